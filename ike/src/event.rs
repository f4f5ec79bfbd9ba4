//! What an endpoint reports to its owner. The owner must carry out events in the order in which
//! they come, so that a rekey loses no packet.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::config::{Cipher, Identity, Mode, NextLayer, PeerName};
use crate::purpose::Purpose;
use crate::secret::Secret;
use crate::wire::AgentNotification;

/// The SPIs of an IKE SA. They identify it in events and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeId {
    /// IKE SA initiator's SPI.
    pub initiator: u64,
    /// IKE SA responder's SPI.
    pub responder: u64,
}

/// Identifies a CHILD_SA: our inbound SPI, which is unique on this node at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub u32);

/// A pair of ESP SAs, as negotiated.
#[derive(Debug, Clone)]
pub struct ChildSa {
    /// Identifies the CHILD_SA in events and in the snapshot. Equal to `inbound_spi`.
    pub id: ChildId,
    /// The IKE SA that the CHILD_SA belongs to now.
    pub ike: IkeId,
    /// What the CHILD_SA is for. We send with one of the CHILD_SAs of each purpose.
    pub purpose: Purpose,
    /// SPI that we allocated; the peer sends with it.
    pub inbound_spi: u32,
    /// SPI that the peer allocated; we send with it.
    pub outbound_spi: u32,
    /// Cipher of both directions.
    pub cipher: Cipher,
    /// Keys for packets that we receive, in the layout of [`ChildKeys`](crate::crypto::ChildKeys).
    pub inbound_key: Secret,
    /// Keys for packets that we send.
    pub outbound_key: Secret,
    /// Whether extended sequence numbers are used.
    pub esn: bool,
    /// Our end of the tunnel. The port counts only if `encapsulated`.
    pub local: SocketAddr,
    /// The peer's end of the tunnel.
    pub remote: SocketAddr,
    /// Whether ESP travels in UDP between these ports (RFC 3948).
    pub encapsulated: bool,
    /// Negotiated selectors of our side, as networks.
    pub local_selectors: Vec<IpNetwork>,
    /// Negotiated selectors of the peer's side.
    pub remote_selectors: Vec<IpNetwork>,
    /// The protocol and the ports of the selectors.
    pub next_layer: NextLayer,
    /// Tunnel or transport mode.
    pub mode: Mode,
    /// Whether we began the exchange that made this CHILD_SA.
    pub initiator: bool,
}

/// When to send through the new SA of a rekey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundSwitch {
    /// At once, in one batch: add the new outbound, delete the old outbound.
    Now,
    /// Not before [`Event::OutboundSwitch`]: the peer may not have its new inbound SA yet.
    Later,
}

/// Something that happened. Carry out an event before the next call into the endpoint, and before
/// you send the datagrams that the endpoint gives after it: the peer may use an SA as soon as it
/// has our response.
#[derive(Debug, Clone)]
pub enum Event {
    /// An IKE SA is established.
    IkeUp {
        /// The peer.
        peer: PeerName,
        /// The IKE SA.
        ike: IkeId,
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        remote: SocketAddr,
        /// Whether we are the initiator of the IKE SA.
        initiator: bool,
        /// The chosen proposal, the peer's authentication and NATs, to show to people.
        details: IkeDetails,
    },
    /// An IKE SA has been replaced by another, which an earlier [`Event::IkeUp`] reported. After a
    /// rekey its CHILD_SAs have moved to the new one. After a new authentication they linger,
    /// unless the peer no longer has the old IKE SA. One `IkeReplaced` or one `IkeDown` follows
    /// every `IkeUp`.
    IkeReplaced {
        /// The peer.
        peer: PeerName,
        /// The IKE SA that is gone.
        old: IkeId,
        /// The IKE SA that stays.
        new: IkeId,
    },
    /// An IKE SA is gone. Earlier [`Event::ChildDown`]s reported its CHILD_SAs.
    IkeDown {
        /// The peer.
        peer: PeerName,
        /// The IKE SA.
        ike: IkeId,
        /// The reason.
        reason: DownReason,
    },
    /// A CHILD_SA that replaces none, or one that belongs to a new IKE SA. Install the inbound SA,
    /// then the outbound one. Leave other CHILD_SAs as they are: only those of the same [`Purpose`]
    /// replace each other. If `replaces` is set, delete the outbound SA of that CHILD_SA in the
    /// same batch; its inbound SA stays until its [`Event::ChildDown`].
    ChildUp {
        /// The peer.
        peer: PeerName,
        /// SPIs, keys and selectors to install.
        child: Arc<ChildSa>,
        /// The CHILD_SA whose outbound SA this one replaces.
        replaces: Option<ChildId>,
    },
    /// A CHILD_SA that rekeys another, or one that belongs to a second IKE SA with the peer.
    /// Install the new inbound SA, and switch the outbound SA as `switch` says.
    ChildRekeyed {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SA that will be removed.
        old: ChildId,
        /// The new CHILD_SA.
        new: Arc<ChildSa>,
        /// When to switch the outbound SA.
        switch: OutboundSwitch,
    },
    /// Switch from the old to the new outbound SA now, in one batch. `new` may be the older
    /// CHILD_SA, if that one survives.
    OutboundSwitch {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SA whose outbound SA is in use.
        old: ChildId,
        /// The CHILD_SA to send with. An earlier event had you install its inbound SA.
        new: Arc<ChildSa>,
    },
    /// Remove what is left of this CHILD_SA: the inbound SA, and the outbound one unless it was
    /// already replaced.
    ChildDown {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SA.
        child: ChildId,
        /// The reason.
        reason: DownReason,
    },
    /// The peer's or our address or port changed: update the SAs of these CHILD_SAs, including
    /// those that only linger.
    PeerMoved {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SAs to update.
        children: Vec<ChildId>,
        /// Our new address.
        local: SocketAddr,
        /// The peer's new address.
        remote: SocketAddr,
        /// Whether ESP travels in UDP now. This may have changed too.
        encapsulated: bool,
    },
    /// The peer, an agent of ours, has sent a notification for private use in an INFORMATIONAL
    /// request. [`Endpoint::mapped_address`](crate::Endpoint::mapped_address) has the address that
    /// came in IKE_AUTH.
    AgentNotification {
        /// The peer.
        peer: PeerName,
        /// The notification.
        notification: AgentNotification,
    },
    /// The peer has not answered three transmissions of a request and sends no ESP. Its IKE SA
    /// stays until all transmissions are used up, but another peer may take over its traffic.
    PeerSilent {
        /// The peer.
        peer: PeerName,
    },
    /// The peer of an earlier [`Event::PeerSilent`] has sent an authentic IKE message.
    PeerHeard {
        /// The peer.
        peer: PeerName,
    },
    /// An attempt failed; the endpoint will try again by itself if the peer's configuration says
    /// `initiate`.
    PeerFailed {
        /// The peer.
        peer: PeerName,
        /// The exchange, what was expected, what came, what to do.
        error: PeerError,
    },
    /// An initiator was refused that is not a configured peer, or that failed before its identity
    /// was known.
    Refused {
        /// The initiator's address.
        from: SocketAddr,
        /// The identity that the initiator sent, if it sent IKE_AUTH.
        identity: Option<Identity>,
        /// The reason for the refusal.
        error: PeerError,
    },
}

/// What was negotiated for an IKE SA, to show to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeDetails {
    /// Encryption, PRF, key exchange, for example `AES_GCM_16-256/PRF_HMAC_SHA2_256/CURVE_25519`.
    pub proposal: String,
    /// How the peer authenticated: `psk`, `ed25519`, `ecdsa-p256`, `ecdsa-p384` or `rsa`.
    pub authentication: String,
    /// Whether a NAT in front of us was detected or forced.
    pub nat_local: bool,
    /// Whether a NAT in front of the peer was detected.
    pub nat_remote: bool,
    /// Whether both ends speak MOBIKE (RFC 4555), so that the IKE SA follows changes of addresses.
    pub mobike: bool,
    /// The peer's certificate, if it authenticated with one.
    pub certificate: Option<PeerCertificate>,
}

/// The fields of a peer's certificate that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// notBefore, seconds since 1970-01-01 UTC.
    pub not_before: u64,
    /// The earliest notAfter of the certificate and its issuers, seconds since 1970-01-01 UTC.
    pub not_after: u64,
}

/// The reason why an SA has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DownReason {
    /// The peer deleted the SA.
    DeletedByPeer,
    /// We deleted the SA: the peer was removed, its certificate was revoked, or the owner
    /// terminated it.
    DeletedByUs,
    /// The peer did not answer.
    Timeout,
    /// Replaced by a rekey, by the survivor of two IKE SAs that both ends began at once, or by
    /// INITIAL_CONTACT.
    Replaced,
    /// A protocol error ended the SA.
    Failed,
    /// The lifetime of the SA or the validity of the peer's certificate has ended, or the
    /// configuration changed and the peer has not authenticated again.
    Expired,
}

/// An error that names the exchange, what was expected, what arrived and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{exchange}: {kind}: {detail}")]
pub struct PeerError {
    /// The exchange, by its name in the RFC: `IKE_SA_INIT`, `IKE_AUTH`, `CREATE_CHILD_SA`,
    /// `INFORMATIONAL`.
    pub exchange: &'static str,
    /// The kind of failure.
    pub kind: PeerErrorKind,
    /// What was expected, what came, what to do. Holds no secret.
    pub detail: String,
}

impl PeerError {
    pub(crate) fn new(exchange: &'static str, kind: PeerErrorKind, detail: String) -> Self {
        Self { exchange, kind, detail }
    }
}

/// The kinds of [`PeerError`]. Metrics and the owner's reaction depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PeerErrorKind {
    /// The peer did not answer any transmission of a request.
    #[error("no answer")]
    Timeout,
    /// NO_PROPOSAL_CHOSEN, from either end.
    #[error("no proposal in common")]
    NoProposalChosen,
    /// AUTHENTICATION_FAILED from the peer: it does not accept us.
    #[error("the peer refused our authentication")]
    RefusedByPeer,
    /// The peer's AUTH is wrong: its PSK differs, or it does not hold the key of its certificate.
    #[error("the peer's authentication is wrong")]
    AuthenticationFailed,
    /// The peer's certificate does not lead to a trust anchor, is expired or revoked, or lacks a
    /// usage.
    #[error("the peer's certificate is not trusted")]
    UntrustedCertificate,
    /// The peer's identity or certificate is not the expected one.
    #[error("the peer is not who was expected")]
    WrongIdentity,
    /// No peer with this identity is configured.
    #[error("unknown identity")]
    UnknownIdentity,
    /// TS_UNACCEPTABLE, from either end.
    #[error("traffic selectors unacceptable")]
    TrafficSelectors,
    /// One end wants transport mode, and the other end or a NAT on the way does not allow it.
    #[error("transport mode is not possible")]
    TransportMode,
    /// The peer broke the protocol.
    #[error("protocol error")]
    Protocol,
    /// This node or its kernel failed, for example to reserve an SPI.
    #[error("local failure")]
    Local,
    /// The lifetime of an SA has ended, and nothing has replaced the SA.
    #[error("the lifetime is over")]
    Expired,
    /// The peer asks for more CHILD_SAs than [`PeerConfig::max_children`](crate::PeerConfig).
    #[error("too many CHILD_SAs")]
    TooManyChildren,
    /// Any other error notification from the peer.
    #[error("the peer reported an error")]
    Notified,
}
