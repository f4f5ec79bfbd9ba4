//! Who the peers are and what may be negotiated with them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::secret::Secret;

/// Settings of the whole endpoint.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// UDP port for IKE without marker (500).
    pub port: u16,
    /// UDP port for IKE with non-ESP marker and for ESP in UDP (4500).
    pub nat_port: u16,
    /// Half-open IKE SAs of responders from which on cookies are demanded (RFC 7296 2.6).
    pub cookie_threshold: usize,
    /// Half-open IKE SAs of responders beyond which new requests are dropped.
    pub half_open_limit: usize,
    /// Datagrams larger than this are sent as fragments where the peer can (RFC 7383), bytes of UDP
    /// payload.
    pub fragment_size: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self { port: 500, nat_port: 4500, cookie_threshold: 64, half_open_limit: 4096, fragment_size: 1232 }
    }
}

/// Our name for a peer; unique on this node, stable over configuration changes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(Arc<str>);

impl PeerName {
    /// Takes a name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

/// An IKE identity (RFC 7296 3.5). Ordered by type and then content: the smaller one wins where
/// both ends began at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_DER_ASN1_DN, the DER of the name.
    DistinguishedName(Vec<u8>),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Our name for it.
    pub name: PeerName,
    /// Address to speak from; `None` leaves it to the kernel's route.
    pub local: Option<IpAddr>,
    /// Where it may be found, likeliest first, all tried at once. Empty: it must come to us. A port
    /// equal to the endpoint's `nat_port` (or any port but 500) is spoken to with the non-ESP
    /// marker from the first message on (RFC 7296 2.23).
    pub remotes: Vec<SocketAddr>,
    /// Who we say we are.
    pub local_id: Identity,
    /// Who it must be; an initiator accepts only this one, a responder finds the peer by it.
    pub remote_id: Identity,
    /// How both prove it.
    pub auth: Auth,
    /// IKE SA proposals, best first.
    pub ike_proposals: Vec<IkeProposal>,
    /// The one CHILD_SA wanted with this peer.
    pub child: ChildConfig,
    /// Begin by ourselves, and begin again when the peer is lost.
    pub initiate: bool,
    /// Make both ends believe in a NAT, so that ESP travels in UDP.
    pub force_encapsulation: bool,
    /// Kernel SAs of this peer are kept from before (restart of the agent): INITIAL_CONTACT is not
    /// sent.
    pub keep_existing: bool,
    /// Timers.
    pub timing: Timing,
}

/// Timers of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Silence after which liveness is checked (RFC 7296 2.4).
    pub liveness: Duration,
    /// First retransmission after this; then doubled each time.
    pub retransmit: Duration,
    /// Transmissions of one request before the IKE SA is given up.
    pub transmissions: u32,
    /// Soft lifetime of a CHILD_SA; jitter is subtracted from it.
    pub child_lifetime: Duration,
    /// Lifetime of an IKE SA, after which it is made anew before the old one goes; jitter is
    /// subtracted.
    pub ike_lifetime: Duration,
    /// How long an old inbound SA lingers after a rekey.
    pub linger: Duration,
    /// Wait before beginning again after a failure; doubled up to `retry_max`.
    pub retry: Duration,
    /// Longest wait between beginnings.
    pub retry_max: Duration,
    /// NAT keepalive interval when behind a NAT and silent (RFC 3948 4).
    pub nat_keepalive: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            liveness: Duration::from_secs(4),
            retransmit: Duration::from_millis(500),
            transmissions: 4,
            child_lifetime: Duration::from_secs(3600),
            ike_lifetime: Duration::from_secs(4 * 3600),
            linger: Duration::from_secs(5),
            retry: Duration::from_millis(500),
            retry_max: Duration::from_secs(10),
            nat_keepalive: Duration::from_secs(20),
        }
    }
}

/// How a peer and we prove who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Pre-shared key (RFC 7296 2.15).
    Psk(Secret),
    /// Digital signatures (RFC 7427) with X.509 certificates on both sides.
    Certificate(CertificateAuth),
}

/// Certificates of one relation.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateAuth {
    /// Our certificate and intermediates, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Our private key, PKCS#8 DER (Ed25519 or ECDSA P-256).
    pub key: Secret,
    /// Trust anchors, DER certificates.
    pub trust_anchors: Vec<Vec<u8>>,
    /// A URI that the peer's certificate must carry as subjectAltName, on top of `remote_id`.
    pub remote_uri: Option<String>,
    /// Extended key usages of which the peer's certificate must have one, as DER content of the OID
    /// (empty: none asked).
    pub remote_key_usages: Vec<Vec<u8>>,
    /// Certificates of the peer that begin before this are revoked, seconds since 1970-01-01 UTC
    /// (0: none is). Raising it ends the IKE SAs in which the peer showed one of them.
    pub remote_not_before: u64,
}

impl fmt::Debug for CertificateAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuth")
            .field("chain", &self.chain.len())
            .field("key", &self.key)
            .field("trust_anchors", &self.trust_anchors.len())
            .field("remote_uri", &self.remote_uri)
            .field("remote_not_before", &self.remote_not_before)
            .finish_non_exhaustive()
    }
}

/// An AEAD with 16-octet ICV, for IKE (RFC 5282, RFC 7634) and for ESP (RFC 4106, RFC 7634).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aead {
    /// ENCR_AES_GCM_16 with a 128-bit key.
    Aes128Gcm16,
    /// ENCR_AES_GCM_16 with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_CHACHA20_POLY1305.
    ChaCha20Poly1305,
}

impl fmt::Display for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128Gcm16 => "AES_GCM_16-128",
            Self::Aes256Gcm16 => "AES_GCM_16-256",
            Self::ChaCha20Poly1305 => "CHACHA20_POLY1305",
        })
    }
}

/// A pseudo-random function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256.
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
}

impl fmt::Display for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "PRF_HMAC_SHA2_256",
            Self::HmacSha384 => "PRF_HMAC_SHA2_384",
            Self::HmacSha512 => "PRF_HMAC_SHA2_512",
        })
    }
}

/// A key exchange method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    /// Curve25519 (RFC 8031), 31.
    X25519,
    /// 256-bit random ECP (RFC 5903), 19.
    P256,
}

/// One IKE SA proposal: any combination of what it lists, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeProposal {
    /// Encryption.
    pub aeads: Vec<Aead>,
    /// PRFs.
    pub prfs: Vec<Prf>,
    /// Key exchange methods; the first is the one whose key is sent unasked.
    pub groups: Vec<Group>,
}

/// One ESP proposal: any combination of what it lists, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspProposal {
    /// Encryption.
    pub aeads: Vec<Aead>,
    /// Key exchange methods for rekeying with forward secrecy; empty: none.
    pub groups: Vec<Group>,
    /// Extended sequence numbers offered or accepted, besides short ones.
    pub esn: bool,
}

/// The CHILD_SA wanted with a peer: tunnel mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildConfig {
    /// ESP proposals, best first.
    pub proposals: Vec<EspProposal>,
    /// Traffic selectors of our side; between our own nodes 0.0.0.0/0 and ::/0.
    pub local: Vec<IpNetwork>,
    /// Traffic selectors of the peer's side.
    pub remote: Vec<IpNetwork>,
}
