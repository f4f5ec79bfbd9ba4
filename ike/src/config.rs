//! The configuration: the peers, and the parameters that may be negotiated with them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::address_assignment::AddressAssignment;
use crate::childless::Childless;
use crate::crl::Revocation;
use crate::purpose::ChildName;
use crate::secret::Secret;

/// Configuration of the whole endpoint.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// UDP port for IKE without the non-ESP marker (500).
    pub port: u16,
    /// UDP port for IKE with the non-ESP marker and for ESP in UDP (4500).
    pub nat_port: u16,
    /// Number of half-open IKE SAs from which a new initiator must return a cookie (RFC 7296 2.6).
    pub cookie_threshold: usize,
    /// Maximum number of half-open IKE SAs. At the limit, further IKE_SA_INIT requests are dropped.
    pub half_open_limit: usize,
    /// Maximum number of simultaneous attempts that are caused by packets
    /// ([`crate::Endpoint::acquire`]). 0 counts as 1.
    pub acquire_limit: usize,
    /// Maximum number of simultaneous attempts that start without a packet and without a command of
    /// the owner. Further ones wait in order. An attempt counts until it ends or the peer has left
    /// the first transmission of a request unanswered, so silent peers delay the others only by
    /// [`Timing::retransmit`]. 0 counts as 1.
    pub attempt_limit: usize,
    /// Maximum size of the UDP payload, bytes. Larger messages are sent in fragments if the peer
    /// supports fragmentation (RFC 7383).
    pub fragment_size: usize,
    /// Whether the owner reports ESP by [`crate::Endpoint::esp_sent`] and
    /// [`crate::Endpoint::esp_received`]. If it does, the liveness of a peer is checked soon only
    /// if ESP was sent to the peer and nothing was received in return. Otherwise it is checked
    /// whenever the peer has been silent for [`Timing::liveness`].
    pub esp_reported: bool,
    /// Addresses of this node at which peers may reach it ([`crate::Endpoint::set_addresses`]).
    /// Peers that support MOBIKE receive the address in use and up to eight others. Addresses that
    /// no other host can reach (loopback, link-local, multicast) are left out and do not count.
    pub addresses: Vec<IpAddr>,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            port: 500,
            nat_port: 4500,
            cookie_threshold: 64,
            half_open_limit: 4096,
            acquire_limit: 32,
            attempt_limit: 64,
            fragment_size: 1232,
            esp_reported: false,
            addresses: Vec::new(),
        }
    }
}

/// Our name for a peer. The name is unique on this node and does not change with the configuration.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(Arc<str>);

impl PeerName {
    /// Makes a name from this text.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Returns the name as text.
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

/// An IKE identity (RFC 7296 3.5). Identities are ordered by type, then by content. If both ends
/// initiate an IKE SA at the same time, the one initiated by the end with the smaller identity
/// stays.
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

/// Configuration of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Our name for the peer.
    pub name: PeerName,
    /// Our address towards this peer. If it is `None`, the kernel chooses the address by its
    /// routes.
    pub local: Option<IpAddr>,
    /// Addresses of the peer, likeliest first. An attempt tries all of them at the same time. If
    /// there are none, only the peer can initiate. Messages to ports other than 500 carry the
    /// non-ESP marker from the first message on (RFC 7296 2.23).
    pub remotes: Vec<SocketAddr>,
    /// Our identity.
    pub local_id: Identity,
    /// The peer's identity. As initiator we accept only this identity. As responder we find the
    /// peer by it.
    pub remote_id: Identity,
    /// How both ends authenticate.
    pub auth: Auth,
    /// IKE SA proposals, best first.
    pub ike_proposals: Vec<IkeProposal>,
    /// The CHILD_SA that IKE_AUTH creates if we are the initiator.
    pub child: ChildConfig,
    /// CHILD_SAs that should exist in addition to `child`, under the same IKE SA (RFC 7296 1.3.1).
    /// Their names differ from each other and from the name of `child`.
    pub additional_children: Vec<ChildConfig>,
    /// Maximum number of purposes of CHILD_SAs of one IKE SA. CHILD_SAs for further purposes are
    /// refused with NO_ADDITIONAL_SAS. With 1, one CHILD_SA carries all traffic, as between our own
    /// nodes. With more, the peer may create several CHILD_SAs within the selectors of one child,
    /// for example one for each pair of its subnets.
    pub max_children: usize,
    /// Whether we start an attempt as soon as the peer is configured, and again when the peer is
    /// lost. Otherwise, an attempt starts when the peer sends a request, or when a packet for the
    /// peer waits ([`crate::Endpoint::acquire`]).
    pub initiate: bool,
    /// Whether we make both ends detect a NAT that need not exist, so that ESP travels in UDP.
    pub force_encapsulation: bool,
    /// Whether we use MOBIKE (RFC 4555) if the peer supports it, so that an IKE SA and its
    /// CHILD_SAs can move to other addresses of either end. MOBIKE is never used with a child in
    /// transport mode. A change of this setting takes effect with the next IKE_SA_INIT.
    pub mobike: bool,
    /// Whether the kernel SAs with this peer from before a restart are kept. If they are,
    /// INITIAL_CONTACT is not sent.
    pub keep_existing: bool,
    /// Which notifications of our own we exchange with the peer. A change applies from the next
    /// IKE_AUTH on.
    pub agent_notifications: AgentNotifications,
    /// Whether one end gives the other one internal addresses.
    pub address_assignment: AddressAssignment,
    /// Whether IKE_AUTH creates the first CHILD_SA. A change applies from the next IKE_SA_INIT on.
    pub childless: Childless,
    /// Timers.
    pub timing: Timing,
}

/// The notifications for private use (RFC 7296 3.10.1) that agents of ours send each other. Both
/// ends announce in IKE_AUTH by a vendor ID (3.12) that they understand them. A peer that does not
/// announce it gets none, and none is taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentNotifications {
    /// The peer is no agent of ours: the vendor ID is not sent.
    #[default]
    Off,
    /// The notifications are exchanged, but the peer is not told its mapped address.
    Exchange,
    /// The peer is also told the address and port from which its datagrams come: in our IKE_AUTH
    /// response, or in an INFORMATIONAL request if we are the initiator or the address changes.
    TellAddress,
}

impl PeerConfig {
    /// Returns all configured children: `child`, then the additional ones.
    pub fn children(&self) -> impl Iterator<Item = &ChildConfig> {
        std::iter::once(&self.child).chain(&self.additional_children)
    }

    /// Returns the timers of an established IKE SA. There is no patience with a peer that has
    /// another address, for example because its host name has several.
    pub(crate) fn timing_when_up(&self) -> Timing {
        Timing { patient: self.timing.patient && self.remotes.len() <= 1, ..self.timing }
    }

    /// Returns whether we announce MOBIKE. MOBIKE supports only tunnel mode (RFC 4555 1.3): in
    /// transport mode the selectors are the addresses of both ends, so the addresses cannot change.
    pub(crate) fn speaks_mobike(&self) -> bool {
        self.mobike && self.children().all(|child| child.mode == Mode::Tunnel)
    }

    /// Returns the child with this name.
    pub fn child_named(&self, name: &ChildName) -> Option<&ChildConfig> {
        self.children().find(|child| child.name == *name)
    }
}

/// Timers of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Time without a message from the peer after which liveness is checked (RFC 7296 2.4). If the
    /// owner reports ESP ([`EndpointConfig::esp_reported`]), only silence after ESP was sent
    /// counts.
    pub liveness: Duration,
    /// Time without an IKE message after which liveness is checked in any case, if the owner
    /// reports ESP. Up to a tenth is subtracted at random.
    pub idle_liveness: Duration,
    /// The time after which an idle peer is asked is at least this multiplied by the number of our
    /// CHILD_SAs, so that the traffic of the checks that we begin has a limit, unless a NAT in
    /// front of us was detected. Never more than half an hour for this reason. Zero for no such
    /// limit.
    pub idle_share: Duration,
    /// Delay before the first retransmission of a request. It doubles each time.
    pub retransmit: Duration,
    /// Number of transmissions of one request before the IKE SA is abandoned.
    pub transmissions: u32,
    /// Whether a request on an established IKE SA is sent a dozen times over four minutes (RFC 7296
    /// 2.4) before the IKE SA is abandoned, if that is longer. If we initiate, an attempt to
    /// replace the IKE SA begins after half a dozen, so that a peer that has restarted is reached
    /// soon. Set it for a peer that no other peer can replace. It has no effect if the peer has
    /// several addresses.
    pub patient: bool,
    /// Lifetime of a CHILD_SA, after which it is rekeyed. Up to a tenth is subtracted at random. A
    /// CHILD_SA that cannot be rekeyed expires after 1.5 times this lifetime.
    pub child_lifetime: Duration,
    /// Lifetime of the keys of an IKE SA, after which it is rekeyed (RFC 7296 1.3.2). Up to a tenth
    /// is subtracted at random. If the peer refuses the rekey, IKE_SA_INIT and IKE_AUTH create a
    /// new IKE SA to replace the old one. An IKE SA that cannot be replaced expires after 1.5 times
    /// this lifetime.
    pub ike_lifetime: Duration,
    /// How long the peer's authentication is valid. After that, IKE_SA_INIT and IKE_AUTH create a
    /// new IKE SA, which replaces the present one without interrupting traffic (RFC 7296 2.8.3). Up
    /// to a tenth is subtracted at random. A rekey of the IKE SA does not prolong the
    /// authentication. If a peer has not authenticated again after 1.5 times this lifetime, its IKE
    /// SA ends.
    pub authentication_lifetime: Duration,
    /// How long an old inbound SA lingers after a rekey.
    pub linger: Duration,
    /// Delay after a failed attempt. It doubles up to `retry_max`.
    pub retry: Duration,
    /// Maximum delay between attempts.
    pub retry_max: Duration,
    /// Time without a packet from us after which a NAT keepalive is sent if we are behind a NAT
    /// (RFC 3948 4), or encapsulation was forced. It is sent up to one second earlier, so that it
    /// falls on a whole second. If there is no NAT and `idle_share` is set, the time is five times
    /// as long.
    pub nat_keepalive: Duration,
}

/// Upper limit of [`Timing::child_retry_max`].
const LONGEST_CHILD_RETRY: Duration = Duration::from_secs(10);

impl Timing {
    /// Returns an upper limit of the time for which a request is repeated before it is abandoned.
    pub fn longest_exchange(&self) -> Duration {
        self.retransmit.saturating_mul(2_u32.saturating_pow(self.transmissions))
    }

    /// Returns the maximum lifetime of a CHILD_SA, counted from its creation (RFC 7296 2.8: a
    /// CHILD_SA MUST NOT be used beyond its lifetime).
    pub(crate) fn child_hard_lifetime(&self) -> Duration {
        self.child_lifetime.saturating_add(self.child_lifetime / 2)
    }

    /// Returns the maximum delay between two requests for a CHILD_SA on an IKE SA that is up. The
    /// peer responds on such an IKE SA, so a long delay, as for a silent peer, is not needed.
    pub(crate) fn child_retry_max(&self) -> Duration {
        self.retry_max.min(LONGEST_CHILD_RETRY).max(self.retry)
    }

    /// Returns the maximum lifetime of an IKE SA, counted from the creation of its keys.
    pub(crate) fn ike_hard_lifetime(&self) -> Duration {
        self.ike_lifetime.saturating_add(self.ike_lifetime / 2)
    }

    /// Returns the maximum lifetime of an IKE SA together with the IKE SAs from which it was
    /// rekeyed, counted from the peer's authentication.
    pub(crate) fn authentication_hard_lifetime(&self) -> Duration {
        self.authentication_lifetime.saturating_add(self.authentication_lifetime / 2)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            liveness: Duration::from_secs(4),
            idle_liveness: Duration::from_secs(120),
            idle_share: Duration::ZERO,
            retransmit: Duration::from_millis(500),
            transmissions: 4,
            patient: false,
            child_lifetime: Duration::from_secs(3600),
            ike_lifetime: Duration::from_secs(4 * 3600),
            authentication_lifetime: Duration::from_secs(24 * 3600),
            linger: Duration::from_secs(5),
            retry: Duration::from_millis(500),
            retry_max: Duration::from_secs(10),
            nat_keepalive: Duration::from_secs(20),
        }
    }
}

/// How both ends authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Pre-shared key (RFC 7296 2.15).
    Psk(Secret),
    /// Digital signatures (RFC 7427) with X.509 certificates on both sides.
    Certificate(CertificateAuth),
}

/// Our certificate towards a peer, and the requirements for the peer's certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateAuth {
    /// Our certificate and intermediates, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Our private key, PKCS#8 DER (Ed25519 or ECDSA P-256).
    pub key: Secret,
    /// Trust anchors, DER certificates.
    pub trust_anchors: Vec<Vec<u8>>,
    /// A URI that the peer's certificate must have as subjectAltName, in addition to `remote_id`.
    pub remote_uri: Option<String>,
    /// Extended key usages, as DER content of the OID. The peer's certificate must have one of
    /// them. If the list is empty, none is required.
    pub remote_key_usages: Vec<Vec<u8>>,
    /// Certificates of the peer whose notBefore is earlier are revoked. Seconds since 1970-01-01
    /// UTC. With 0, none is revoked. Raising this value ends the IKE SAs in which the peer used a
    /// certificate that is now revoked.
    pub remote_not_before: u64,
    /// Time for which the peer's certificate is still accepted after its notAfter, and for which an
    /// IKE SA that it authenticated continues. A certificate that is revoked has no such time. The
    /// certificate's issuers must have been valid at its notAfter. With 0, the certificate is not
    /// accepted, and the IKE SA ends, when the certificate expires.
    pub remote_grace: Duration,
    /// The revocation lists against which the peer's certificate and its issuers are checked. With
    /// `None`, they are not. New lists end the IKE SAs in which the peer used a certificate that
    /// is now revoked.
    pub revocation: Option<Revocation>,
}

impl fmt::Debug for CertificateAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuth")
            .field("chain", &self.chain.len())
            .field("key", &self.key)
            .field("trust_anchors", &self.trust_anchors.len())
            .field("remote_uri", &self.remote_uri)
            .field("remote_not_before", &self.remote_not_before)
            .field("remote_grace", &self.remote_grace)
            .finish_non_exhaustive()
    }
}

/// The protection of the messages of an IKE SA or of the packets of a CHILD_SA: an AEAD, or AES-CBC
/// with an integrity algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// ENCR_AES_GCM_16 with a 128-bit key (RFC 5282, RFC 4106).
    Aes128Gcm16,
    /// ENCR_AES_GCM_16 with a 256-bit key.
    Aes256Gcm16,
    /// ENCR_CHACHA20_POLY1305 (RFC 7634).
    ChaCha20Poly1305,
    /// ENCR_AES_CBC (RFC 3602) with an integrity algorithm over the ciphertext.
    AesCbc(AesKeyLength, Integrity),
}

impl Cipher {
    /// Returns the integrity algorithm that is used with AES-CBC, or `None` if the cipher is an
    /// AEAD.
    pub fn integrity(self) -> Option<Integrity> {
        match self {
            Self::AesCbc(_, integrity) => Some(integrity),
            Self::Aes128Gcm16 | Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => None,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aes128Gcm16 => f.write_str("AES_GCM_16-128"),
            Self::Aes256Gcm16 => f.write_str("AES_GCM_16-256"),
            Self::ChaCha20Poly1305 => f.write_str("CHACHA20_POLY1305"),
            Self::AesCbc(key, integrity) => write!(f, "AES_CBC-{}/{integrity}", key.bits()),
        }
    }
}

/// Length of an AES key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AesKeyLength {
    /// 128 bits.
    Bits128,
    /// 192 bits.
    Bits192,
    /// 256 bits.
    Bits256,
}

impl AesKeyLength {
    /// Returns the length in bits.
    pub fn bits(self) -> u16 {
        match self {
            Self::Bits128 => 128,
            Self::Bits192 => 192,
            Self::Bits256 => 256,
        }
    }
}

/// An integrity algorithm (RFC 4868).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// AUTH_HMAC_SHA2_256_128.
    HmacSha256,
    /// AUTH_HMAC_SHA2_384_192.
    HmacSha384,
    /// AUTH_HMAC_SHA2_512_256.
    HmacSha512,
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "HMAC_SHA2_256_128",
            Self::HmacSha384 => "HMAC_SHA2_384_192",
            Self::HmacSha512 => "HMAC_SHA2_512_256",
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
    /// Curve25519 (RFC 8031), transform ID 31.
    X25519,
    /// 256-bit random ECP (RFC 5903), transform ID 19.
    P256,
    /// 384-bit random ECP (RFC 5903), transform ID 20.
    P384,
    /// 521-bit random ECP (RFC 5903), transform ID 21.
    P521,
    /// 2048-bit MODP (RFC 3526), transform ID 14.
    Modp2048,
    /// 3072-bit MODP (RFC 3526), transform ID 15.
    Modp3072,
    /// 4096-bit MODP (RFC 3526), transform ID 16.
    Modp4096,
}

/// One IKE SA proposal: any combination of the listed algorithms, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
//= RFC 7296 3.3.4 MUST 3: suites are configured
pub struct IkeProposal {
    /// Encryption and integrity.
    pub ciphers: Vec<Cipher>,
    /// PRFs.
    pub prfs: Vec<Prf>,
    /// Key exchange methods. IKE_SA_INIT carries our public value for the first one.
    pub groups: Vec<Group>,
}

/// One ESP proposal: any combination of the listed algorithms, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspProposal {
    /// Encryption and integrity.
    pub ciphers: Vec<Cipher>,
    /// Key exchange methods for rekeying with forward secrecy. If the list is empty, there is no
    /// forward secrecy.
    pub groups: Vec<Group>,
    /// Whether extended sequence numbers are offered and accepted. 32-bit sequence numbers are
    /// always offered and accepted.
    pub esn: bool,
}

/// The configuration of a CHILD_SA that should exist with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildConfig {
    /// Our name for the CHILD_SA.
    pub name: ChildName,
    /// ESP proposals, best first.
    pub proposals: Vec<EspProposal>,
    /// Traffic selectors of our side. Between our own nodes they are 0.0.0.0/0 and ::/0.
    pub local: Vec<IpNetwork>,
    /// Traffic selectors of the peer's side.
    pub remote: Vec<IpNetwork>,
    /// Protocol and ports that the CHILD_SA carries. The selectors of both sides contain them (RFC
    /// 7296 3.13.1).
    pub next_layer: NextLayer,
    /// The mode of ESP. In transport mode `local` and `remote` are the addresses of the IKE SA as
    /// we see them.
    pub mode: Mode,
}

/// The part of a packet that ESP protects (RFC 4301 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Whole packets.
    #[default]
    Tunnel,
    /// The payload of packets between the two ends themselves. If there is a NAT, the selectors are
    /// the addresses as we see them (RFC 7296 2.23.1): our own one, and that of the peer's NAT.
    Transport,
}

/// The next layer protocol and the ports of traffic selectors (RFC 4301 4.4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextLayer {
    /// IP protocol. 0 matches any protocol.
    pub protocol: u8,
    /// Port of our side. `None` matches any port.
    pub local_port: Option<u16>,
    /// Port of the peer's side. `None` matches any port.
    pub remote_port: Option<u16>,
}

impl NextLayer {
    /// Any protocol and any port.
    pub const ANY: Self = Self { protocol: 0, local_port: None, remote_port: None };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_asked_for_again_soon_also_where_silent_peers_are_tried_seldom() {
        let seconds = Duration::from_secs;
        let wait = |retry, retry_max| Timing { retry, retry_max, ..Timing::default() }.child_retry_max();
        assert_eq!(wait(seconds(1), seconds(120)), seconds(10));
        assert_eq!(wait(seconds(1), seconds(5)), seconds(5));
        assert_eq!(wait(seconds(20), seconds(120)), seconds(20));
        assert_eq!(wait(seconds(20), seconds(5)), seconds(20));
    }
}
