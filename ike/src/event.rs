//! What an endpoint tells its owner. In the order in which events come they must be carried out:
//! they are the zero-loss order of rekeying.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::config::{Aead, Identity, PeerName};
use crate::secret::Secret;

/// Names an IKE SA for people and for matching events: initiator's and responder's SPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeId {
    /// IKE SA initiator's SPI.
    pub initiator: u64,
    /// IKE SA responder's SPI.
    pub responder: u64,
}

/// Names a CHILD_SA: our inbound SPI, unique among ours at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub u32);

/// A pair of ESP SAs, as negotiated.
#[derive(Debug, Clone)]
pub struct ChildSa {
    /// Its name.
    pub id: ChildId,
    /// The IKE SA that it belongs to now.
    pub ike: IkeId,
    /// SPI that we allocated; the peer sends with it.
    pub inbound_spi: u32,
    /// SPI that the peer allocated; we send with it.
    pub outbound_spi: u32,
    /// Cipher of both directions.
    pub aead: Aead,
    /// Key and salt for what we receive, as RFC 4106 8.1 (or RFC 7634 2) lays them out.
    pub inbound_key: Secret,
    /// Key and salt for what we send.
    pub outbound_key: Secret,
    /// Extended sequence numbers are on.
    pub esn: bool,
    /// Tunnel's end here; ports matter where `encapsulated`.
    pub local: SocketAddr,
    /// Tunnel's end there.
    pub remote: SocketAddr,
    /// ESP travels in UDP between those ports (RFC 3948).
    pub encapsulated: bool,
    /// Negotiated selectors of our side, as networks.
    pub local_selectors: Vec<IpNetwork>,
    /// Negotiated selectors of the peer's side.
    pub remote_selectors: Vec<IpNetwork>,
    /// We began the exchange that made it.
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

/// What happened. Unless said otherwise the kernel's state must be changed before the next call
/// into the endpoint or, at the latest, before the transmits that follow the event are sent (the
/// peer may use an SA as soon as it has our answer).
#[derive(Debug, Clone)]
pub enum Event {
    /// An IKE SA is established.
    IkeUp {
        /// With whom.
        peer: PeerName,
        /// Which.
        ike: IkeId,
        /// Our address.
        local: SocketAddr,
        /// The peer's address.
        remote: SocketAddr,
        /// Whether we began it.
        initiator: bool,
        /// For people: proposal chosen, authentication, NAT situation.
        details: IkeDetails,
    },
    /// An IKE SA is gone, replaced by another that was reported by [`Event::IkeUp`] before: by a
    /// rekey (its CHILD_SAs moved along) or by the survivor of two (its CHILD_SAs linger). Every
    /// `IkeUp` is followed by one `IkeReplaced` or one `IkeDown`.
    IkeReplaced {
        /// With whom.
        peer: PeerName,
        /// The one that goes.
        old: IkeId,
        /// The one that stays.
        new: IkeId,
    },
    /// An IKE SA is gone. Its CHILD_SAs were reported by [`Event::ChildDown`] before.
    IkeDown {
        /// With whom.
        peer: PeerName,
        /// Which.
        ike: IkeId,
        /// Why.
        reason: DownReason,
    },
    /// A CHILD_SA of a new IKE SA: install inbound, then outbound. If the peer has another CHILD_SA
    /// now, `replaces` names the one whose outbound SA is in use: it is to be replaced in one
    /// batch; its inbound one stays until its [`Event::ChildDown`].
    ChildUp {
        /// With whom.
        peer: PeerName,
        /// The SAs.
        child: Arc<ChildSa>,
        /// The CHILD_SA whose outbound SA this one replaces.
        replaces: Option<ChildId>,
    },
    /// A rekeyed CHILD_SA, or that of a second IKE SA with the peer: install the new inbound SA;
    /// switch outbound as told.
    ChildRekeyed {
        /// With whom.
        peer: PeerName,
        /// The one that will go.
        old: ChildId,
        /// The new one.
        new: Arc<ChildSa>,
        /// When to switch outbound.
        switch: OutboundSwitch,
    },
    /// Switch outbound from the old to the new SA now, in one batch. Also back to an older one,
    /// where that is the survivor of two.
    OutboundSwitch {
        /// With whom.
        peer: PeerName,
        /// From.
        old: ChildId,
        /// To; its inbound SA was installed by an event before.
        new: Arc<ChildSa>,
    },
    /// Remove what is left of this CHILD_SA: the inbound SA (it has lingered) and, unless switched
    /// before, the outbound one.
    ChildDown {
        /// With whom.
        peer: PeerName,
        /// Which.
        child: ChildId,
        /// Why.
        reason: DownReason,
    },
    /// The peer's or our address or port changed: update the SAs of these CHILD_SAs (those that
    /// only linger inbound included).
    PeerMoved {
        /// Who.
        peer: PeerName,
        /// Whose addresses to update.
        children: Vec<ChildId>,
        /// Our address now.
        local: SocketAddr,
        /// Its address now.
        remote: SocketAddr,
    },
    /// An attempt failed; the endpoint will try again by itself if the peer's configuration says
    /// `initiate`.
    PeerFailed {
        /// With whom.
        peer: PeerName,
        /// The exchange, what was expected, what came, what to do.
        error: PeerError,
    },
    /// Somebody unknown or unacceptable was refused.
    Refused {
        /// Where from.
        from: SocketAddr,
        /// Who it said it was, if it came that far.
        identity: Option<Identity>,
        /// Why.
        error: PeerError,
    },
}

/// What was negotiated for an IKE SA, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeDetails {
    /// Encryption, PRF, key exchange, e.g. `AES_GCM_16-256/PRF_HMAC_SHA2_256/CURVE_25519`.
    pub proposal: String,
    /// `psk`, `ed25519`, `ecdsa-p256`: how the peer proved itself.
    pub authentication: String,
    /// A NAT (or forced detection) was seen before us.
    pub nat_local: bool,
    /// A NAT was seen before the peer.
    pub nat_remote: bool,
    /// The certificate with which the peer proved itself, if it did by one.
    pub certificate: Option<PeerCertificate>,
}

/// What is remembered of a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Its beginning, seconds since 1970-01-01 UTC.
    pub not_before: u64,
}

/// Why an SA went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DownReason {
    /// The peer deleted it.
    DeletedByPeer,
    /// We deleted it: the peer left the configuration, or we were told to.
    DeletedByUs,
    /// The peer did not answer.
    Timeout,
    /// Replaced by a rekey, or by the survivor of two begun at once, or by INITIAL_CONTACT.
    Replaced,
    /// A protocol error ended it.
    Failed,
}

/// An error that names the exchange, what was expected, what came and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{exchange}: {kind}: {detail}")]
pub struct PeerError {
    /// The exchange, in the RFC's word: `IKE_SA_INIT`, `IKE_AUTH`, `CREATE_CHILD_SA`,
    /// `INFORMATIONAL`.
    pub exchange: &'static str,
    /// What kind of failure.
    pub kind: PeerErrorKind,
    /// Expected, came, what to do. Never a secret.
    pub detail: String,
}

impl PeerError {
    pub(crate) fn new(exchange: &'static str, kind: PeerErrorKind, detail: String) -> Self {
        Self { exchange, kind, detail }
    }
}

/// Kinds of [`PeerError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PeerErrorKind {
    /// No answer.
    #[error("no answer")]
    Timeout,
    /// NO_PROPOSAL_CHOSEN, here or there.
    #[error("no proposal in common")]
    NoProposalChosen,
    /// AUTHENTICATION_FAILED from the peer: it does not accept us.
    #[error("the peer refused our authentication")]
    RefusedByPeer,
    /// The peer's proof is wrong: other PSK, or not the holder of the certificate's key.
    #[error("the peer's authentication is wrong")]
    AuthenticationFailed,
    /// The peer's certificate does not lead to a trust anchor, is expired, or lacks a usage.
    #[error("the peer's certificate is not trusted")]
    UntrustedCertificate,
    /// The certificate or identity is of somebody else than expected.
    #[error("the peer is not who was expected")]
    WrongIdentity,
    /// Nobody of this identity is configured.
    #[error("unknown identity")]
    UnknownIdentity,
    /// TS_UNACCEPTABLE, here or there.
    #[error("traffic selectors unacceptable")]
    TrafficSelectors,
    /// The peer broke the protocol.
    #[error("protocol error")]
    Protocol,
    /// The kernel or this node refused (no SPI).
    #[error("local failure")]
    Local,
    /// Any other error notification from the peer.
    #[error("the peer reported an error")]
    Notified,
}
