//! Events, which an endpoint reports to its owner. The owner must carry out events in order, so
//! that no packet is lost in a rekey.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::config::{Cipher, Identity, Mode, NextLayer, PeerName};
use crate::purpose::Purpose;
use crate::secret::Secret;
use crate::suite::IkeSuite;
use crate::wire::AgentNotification;

/// The SPIs of an IKE SA. They identify it in events and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeId {
    /// SPI of the IKE SA's initiator.
    pub initiator: u64,
    /// SPI of the IKE SA's responder.
    pub responder: u64,
}

/// Identifies a CHILD_SA: our inbound SPI, which is unique in the endpoint at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub u32);

/// A pair of ESP SAs, as negotiated.
#[derive(Debug, Clone)]
pub struct ChildSa {
    /// Identifies the CHILD_SA in events and in the snapshot. Equal to `inbound_spi`.
    pub id: ChildId,
    /// The IKE SA that the CHILD_SA belongs to now.
    pub ike: IkeId,
    /// The purpose of the CHILD_SA. We send with only one of the CHILD_SAs of each purpose.
    pub purpose: Purpose,
    /// SPI that we allocated. The peer sends with it.
    pub inbound_spi: u32,
    /// SPI that the peer allocated. We send with it.
    pub outbound_spi: u32,
    /// Cipher of both directions.
    pub cipher: Cipher,
    /// Keys for packets that we receive, in the layout of [`ChildKeys`](crate::crypto::ChildKeys).
    pub inbound_key: Secret,
    /// Keys for packets that we send.
    pub outbound_key: Secret,
    /// Whether extended sequence numbers are used.
    pub esn: bool,
    /// Our end of the tunnel. The port is used only if `encapsulated` is set.
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
    /// Whether we initiated the exchange that created this CHILD_SA.
    pub initiator: bool,
}

/// When to send through the new SA of a rekey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundSwitch {
    /// Immediately, in one batch: add the new outbound SA, delete the old one.
    Now,
    /// Only after [`Event::OutboundSwitch`], since the peer may not have its new inbound SA yet.
    Later,
}

/// An event, which the owner must carry out. Do so before the next call into the endpoint, and
/// before you send the datagrams that the endpoint returns after the event: the peer may use an SA
/// as soon as it has our response.
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
        /// The chosen proposal, how the peer authenticated and the NATs that were detected, for
        /// display.
        details: IkeDetails,
    },
    /// An IKE SA has been replaced by another, which an earlier [`Event::IkeUp`] reported. After a
    /// rekey, the CHILD_SAs have moved to the new IKE SA. After a new authentication, they linger,
    /// unless the peer no longer has the old IKE SA. Every `IkeUp` is followed by exactly one
    /// `IkeReplaced` or `IkeDown`.
    IkeReplaced {
        /// The peer.
        peer: PeerName,
        /// The IKE SA that has ended.
        old: IkeId,
        /// The IKE SA that stays.
        new: IkeId,
    },
    /// An IKE SA has ended. Earlier [`Event::ChildDown`]s reported its CHILD_SAs.
    IkeDown {
        /// The peer.
        peer: PeerName,
        /// The IKE SA.
        ike: IkeId,
        /// The reason.
        reason: DownReason,
    },
    /// A CHILD_SA was created that does not replace another, or that belongs to a new IKE SA.
    /// Install the inbound SA, then the outbound one. Do not change other CHILD_SAs: only those of
    /// the same [`Purpose`] replace each other. If `replaces` is set, delete the outbound SA of
    /// that CHILD_SA in the same batch. Its inbound SA stays until its [`Event::ChildDown`].
    ChildUp {
        /// The peer.
        peer: PeerName,
        /// SPIs, keys and selectors to install.
        child: Arc<ChildSa>,
        /// The CHILD_SA whose outbound SA this one replaces.
        replaces: Option<ChildId>,
    },
    /// A CHILD_SA was created that rekeys another, or that belongs to a second IKE SA with the
    /// peer. Install the new inbound SA, and switch the outbound SA at the time given by `switch`.
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
    /// Switch from the old to the new outbound SA now, in one batch. `new` may be the CHILD_SA that
    /// was established earlier, if that one survives.
    OutboundSwitch {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SA whose outbound SA is in use.
        old: ChildId,
        /// The CHILD_SA with which to send from now on. Its inbound SA was installed by an earlier
        /// event.
        new: Arc<ChildSa>,
    },
    /// A CHILD_SA has ended. Remove its inbound SA, and its outbound SA unless that was already
    /// replaced.
    ChildDown {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SA.
        child: ChildId,
        /// The reason.
        reason: DownReason,
    },
    /// The peer's address or port changed, or ours. Update the SAs of these CHILD_SAs, including
    /// those that linger.
    PeerMoved {
        /// The peer.
        peer: PeerName,
        /// The CHILD_SAs to update.
        children: Vec<ChildId>,
        /// Our new address.
        local: SocketAddr,
        /// The peer's new address.
        remote: SocketAddr,
        /// Whether ESP now travels in UDP. This may also have changed.
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
    /// An attempt failed. The endpoint tries again if `initiate` is set in the peer's
    /// configuration.
    PeerFailed {
        /// The peer.
        peer: PeerName,
        /// The exchange, what was expected, what was received, and what to do.
        error: PeerError,
    },
    /// An initiator was refused. It is not a configured peer, or the handshake failed before its
    /// identity was known.
    Refused {
        /// The initiator's address.
        from: SocketAddr,
        /// The identity that the initiator sent, if it sent IKE_AUTH.
        identity: Option<Identity>,
        /// The reason for the refusal.
        error: PeerError,
    },
}

/// The negotiated parameters of an IKE SA, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeDetails {
    /// Encryption, PRF, key exchange. As text for example
    /// `AES_GCM_16-256/PRF_HMAC_SHA2_256/CURVE_25519`.
    pub proposal: IkeSuite,
    /// How the peer authenticated: `psk`, `ed25519`, `ecdsa-p256`, `ecdsa-p384` or `rsa`.
    pub authentication: &'static str,
    /// Whether a NAT in front of us was detected or forced.
    pub nat_local: bool,
    /// Whether a NAT in front of the peer was detected.
    pub nat_remote: bool,
    /// Whether both ends support MOBIKE (RFC 4555), so that the IKE SA follows changes of
    /// addresses.
    pub mobike: bool,
    /// The peer's certificate, if it authenticated with one.
    pub certificate: Option<PeerCertificate>,
    /// The addresses that one end has given the other one
    /// ([`AddressAssignment`](crate::AddressAssignment)): at most one of each family. With a pool
    /// they are the peer's, otherwise ours.
    pub internal_addresses: Vec<IpAddr>,
    /// What the peer has asked for and does not get.
    pub not_served: NotServed,
}

/// What a peer has asked for and does not get, although its IKE SA is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NotServed {
    /// An internal address (a configuration payload, RFC 7296 2.19): the peer has no pool here.
    pub internal_address: bool,
    /// Transport mode: it got a CHILD_SA in tunnel mode.
    pub transport_mode: bool,
}

impl NotServed {
    /// Returns a sentence about each request, with what to do.
    pub fn sentences(self) -> impl Iterator<Item = &'static str> {
        let address = "the peer asks for an internal address (strongSwan: vips), and it has no address_pool here, so it gets none; \
                       configure one, or let the peer use its own networks";
        let transport = "the peer asks for transport mode, and its child is in tunnel mode here, so it gets tunnel mode; \
                         configure the same at both ends";
        let address = self.internal_address.then_some(address);
        address.into_iter().chain(self.transport_mode.then_some(transport))
    }
}

/// The stored fields of a peer's certificate. `Debug` shows the chain's length alone.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// notBefore, seconds since 1970-01-01 UTC.
    pub not_before: u64,
    /// The earliest notAfter of the certificate and its issuers, seconds since 1970-01-01 UTC.
    pub not_after: u64,
    /// The certificate and its issuers below the trust anchor, DER, so that later revocation lists
    /// can be applied. `None` if the peer has no revocation lists.
    pub chain: Option<Arc<[Vec<u8>]>>,
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate")
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("chain", &self.chain.as_ref().map(|chain| chain.len()))
            .finish()
    }
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
    /// Replaced by a rekey, by the surviving IKE SA after a simultaneous initiation, or by
    /// INITIAL_CONTACT.
    Replaced,
    /// A protocol error ended the SA.
    Failed,
    /// The lifetime of the SA or the validity of the peer's certificate has ended, or the
    /// configuration changed and the peer has not authenticated again.
    Expired,
}

/// An error that names the exchange, what was expected, what was received and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{exchange}: {kind}: {detail}")]
pub struct PeerError {
    /// The exchange, by its name in the RFC: `IKE_SA_INIT`, `IKE_AUTH`, `CREATE_CHILD_SA`,
    /// `INFORMATIONAL`.
    pub exchange: &'static str,
    /// The kind of failure.
    pub kind: PeerErrorKind,
    /// What was expected, what was received, and what to do. Contains no secret.
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
    /// The peer's identity or certificate differs from the expected one.
    #[error("the peer is not who was expected")]
    WrongIdentity,
    /// No peer with this identity is configured.
    #[error("unknown identity")]
    UnknownIdentity,
    /// TS_UNACCEPTABLE, from either end.
    #[error("traffic selectors unacceptable")]
    TrafficSelectors,
    /// One end requires transport mode, and the other end does not allow it, or it is configured
    /// for other addresses than those of the IKE SA.
    #[error("transport mode is not possible")]
    TransportMode,
    /// The peer violated the protocol.
    #[error("protocol error")]
    Protocol,
    /// This node or its kernel failed, for example to reserve an SPI.
    #[error("local failure")]
    Local,
    /// The lifetime of an SA has ended, and nothing has replaced the SA.
    #[error("the lifetime is over")]
    Expired,
    /// The peer requests more CHILD_SAs than [`PeerConfig::max_children`](crate::PeerConfig).
    #[error("too many CHILD_SAs")]
    TooManyChildren,
    /// The peer creates or rekeys SAs so often that we refuse some of its requests.
    #[error("too many requests")]
    TooManyRequests,
    /// The peer did not give us an internal address, did not ask us for one, or our pool has none
    /// left.
    #[error("no internal address")]
    InternalAddress,
    /// Any other error notification from the peer.
    #[error("the peer reported an error")]
    Notified,
}
