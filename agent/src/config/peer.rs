//! `[[peer]]`: a static peer, which runs edge-agent or any other IKEv2 implementation.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_ike::config::{
    AgentNotifications, Auth, CertificateAuth, ChildConfig, EspProposal, IkeProposal, Mode, NextLayer, Timing,
};
use edge_ike::crl::RevocationPolicy;
use edge_ike::{AddressAssignment, ChildName, Childless, Identity, PeerConfig, PeerName, Secret, same_identity};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::child::{ChildSection, DEFAULT_CHILD, MAX_CHILD_SAS, MAX_CHILDREN};
use super::encap::Encap;
use super::host_address::check_host;
use super::peer_collisions::PeerEnds;
use super::remote::Remote;
use super::secret::{self, SecretText};
use super::{Config, identity, proposal};
use crate::crl_files::CrlFiles;

/// Maximum number of networks in `address_pool`.
const MAX_POOL_NETWORKS: usize = 16;

/// The end that initiates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// This node initiates the tunnel, and again whenever the tunnel is lost.
    #[default]
    Initiate,
    /// The peer initiates.
    Respond,
    /// This node initiates when the first packet is sent. The peer may initiate too.
    OnDemand,
}

/// When a peer is refused because no revocation list says that a certificate of its chain is not
/// revoked. The words are strongSwan's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RevocationSetting {
    /// Never: only a revoked certificate is refused.
    #[default]
    Relaxed,
    /// If the certificate says where its list is.
    IfUri,
    /// Always.
    Strict,
}

/// Whether IKE_AUTH creates the first CHILD_SA (RFC 6023). The words are strongSwan's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChildlessSetting {
    /// It does, whichever end initiates.
    Never,
    /// It does if this node initiates. The peer may leave the CHILD_SA out.
    #[default]
    Allow,
    /// It does not if the peer supports this.
    Prefer,
    /// It never does.
    Force,
}

/// A table `[[peer]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    /// Name of the peer in messages and `status`.
    pub name: String,
    /// Local address; if not set, the source address of the route to the peer.
    pub local: Option<IpAddr>,
    /// Addresses and host names of the peer, with port if it is not 500. If empty, the peer must
    /// initiate.
    #[serde(default, deserialize_with = "remotes")]
    pub remote: Vec<Remote>,
    /// Identity of this node.
    #[serde(deserialize_with = "identity_text")]
    pub local_id: Identity,
    /// Identity that the peer must prove.
    #[serde(deserialize_with = "identity_text")]
    pub remote_id: Identity,
    /// Pre-shared key. If it is set, the configuration file must be readable by its owner only.
    pub psk: Option<SecretText>,
    /// File with the pre-shared key. A newline at its end is not part of the key.
    pub psk_file: Option<PathBuf>,
    /// File with this node's certificate and intermediates, PEM, leaf first.
    pub certificate: Option<PathBuf>,
    /// File with this node's private key, PKCS#8 PEM (Ed25519, ECDSA P-256 or P-384,
    /// RSA).
    pub key: Option<PathBuf>,
    /// File with the trust anchors for the peer's certificate, PEM.
    pub trust_anchors: Option<PathBuf>,
    /// File or directory with revocation lists, PEM or DER, against which the peer's certificate
    /// and its issuers are checked.
    pub crls: Option<PathBuf>,
    /// When the peer is refused because no list says that its certificate is not revoked. Needs
    /// `crls`.
    #[serde(default)]
    pub revocation: RevocationSetting,
    /// Networks behind this node. Empty if `children` lists the networks.
    #[serde(default)]
    pub local_subnets: Vec<IpNetwork>,
    /// Networks behind the peer. Empty if `children` lists the networks.
    #[serde(default)]
    pub remote_subnets: Vec<IpNetwork>,
    /// Networks from which the peer gets its address in the tunnel, instead of `remote_subnets`.
    /// The peer must ask for the address.
    #[serde(default)]
    pub address_pool: Vec<IpNetwork>,
    /// Whether this node asks the peer for its address in the tunnel. The address must lie within
    /// `local_subnets`, or may be any address if they are empty.
    #[serde(default)]
    pub request_address: bool,
    /// The children of this peer, each with its own networks. Empty if `local_subnets` and
    /// `remote_subnets` list the networks of a single child.
    #[serde(default, rename = "child")]
    pub children: Vec<ChildSection>,
    /// IKE proposals, best first.
    #[serde(default = "proposal::default_ike", deserialize_with = "proposal::ike_list")]
    pub ike_proposals: Vec<IkeProposal>,
    /// ESP proposals, best first.
    #[serde(default = "proposal::default_esp", deserialize_with = "proposal::esp_list")]
    pub esp_proposals: Vec<EspProposal>,
    /// The end that initiates.
    #[serde(default)]
    pub start: Start,
    /// Whether ESP is encapsulated in UDP even without a NAT.
    #[serde(default = "auto")]
    pub encap: Encap,
    /// Whether IKE_AUTH creates the first CHILD_SA.
    #[serde(default)]
    pub childless: ChildlessSetting,
    /// Whether MOBIKE (RFC 4555) is used with a peer that supports it.
    #[serde(default = "yes")]
    pub mobike: bool,
}

fn auto() -> Encap {
    Encap::Auto
}

fn yes() -> bool {
    true
}

fn identity_text<'de, D: Deserializer<'de>>(from: D) -> Result<Identity, D::Error> {
    identity::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn remotes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Remote>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "remote is an address or a list of addresses in quotes")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(from)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts.iter().map(|text| Remote::parse(text).map_err(serde::de::Error::custom)).collect()
}

impl PeerSection {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("name must be printable text".into());
        }
        if self.remote.is_empty()
            && let Some(word) = match self.start {
                Start::Initiate => Some("initiate"),
                Start::OnDemand => Some("on-demand"),
                Start::Respond => None,
            }
        {
            return Err(format!("start = \"{word}\" needs remote; or set start = \"respond\""));
        }
        match self.internal_address_key() {
            Some(key) => self.check_internal_address(key)?,
            None => self.check_children()?,
        }
        if self.ike_proposals.is_empty() || self.esp_proposals.is_empty() {
            return Err("an empty list of proposals never matches the peer's; leave it out for the defaults".into());
        }
        if let Some(psk) = &self.psk {
            psk.psk().map_err(|problem| format!("psk: {problem}"))?;
        }
        let psk = usize::from(self.psk.is_some()) + usize::from(self.psk_file.is_some());
        let certificate =
            [&self.certificate, &self.key, &self.trust_anchors].iter().filter(|path| path.is_some()).count();
        if self.crls.is_some() && self.certificate.is_none() {
            return Err("crls goes with certificate, key and trust_anchors: a pre-shared key is not revoked".into());
        }
        if self.crls.is_none() && self.revocation != RevocationSetting::Relaxed {
            return Err("revocation needs crls, a file or directory with revocation lists: none is fetched".into());
        }
        match (psk, certificate) {
            (1, 0) | (0, 3) => Ok(()),
            (0, 0) => Err("no way to authenticate: set psk_file, or certificate, key and trust_anchors".into()),
            (0, _) => Err("certificate, key and trust_anchors go together; one is missing".into()),
            (2, 0) => Err("psk and psk_file exclude each other".into()),
            _ => Err("pre-shared key and certificate exclude each other".into()),
        }
    }

    /// Fails if no host can have an address of either end, or if both ends have the same one.
    pub(super) fn check_addresses(&self) -> Result<(), String> {
        if let Some(local) = &self.local {
            check_host("local", local)?;
        }
        for remote in &self.remote {
            let Some(address) = remote.address() else { continue };
            check_host("remote", &address)?;
            let is_own = |local: IpAddr| local.to_canonical() == address.to_canonical();
            if self.local.is_some_and(is_own) && remote.port.is_none() {
                return Err(format!(
                    "local and remote are both {address}; expected this node's address in local and the peer's in remote"
                ));
            }
        }
        Ok(())
    }

    /// Returns the key that makes one end give the other one an address.
    fn internal_address_key(&self) -> Option<&'static str> {
        if self.request_address {
            return Some("request_address");
        }
        (!self.address_pool.is_empty()).then_some("address_pool")
    }

    fn check_internal_address(&self, key: &str) -> Result<(), String> {
        if self.request_address && !self.address_pool.is_empty() {
            return Err(
                "request_address and address_pool exclude each other: one end gives the other one its address".into()
            );
        }
        if matches!(self.childless, ChildlessSetting::Prefer | ChildlessSetting::Force) {
            return Err(format!("{key} does not go with childless = \"prefer\" or \"force\"; leave childless out"));
        }
        if !self.children.is_empty() {
            return Err(format!("{key} does not go with [[peer.child]]; put the networks into [[peer]]"));
        }
        let (start, word, why) = if self.request_address {
            (Start::Initiate, "initiate", "only the end that asks for an address can begin")
        } else {
            (Start::Respond, "respond", "the peer must ask for its address, so only the peer can begin")
        };
        if self.start != start {
            return Err(format!("{key} needs start = \"{word}\": {why}"));
        }
        match (self.request_address, self.local_subnets.is_empty(), self.remote_subnets.is_empty()) {
            (true, _, true) => return Err("request_address needs remote_subnets: the networks behind the peer".into()),
            (false, true, _) => {
                return Err("address_pool needs local_subnets: the networks that the peer may reach".into());
            }
            (false, _, false) => {
                return Err(
                    "address_pool and remote_subnets exclude each other: the peer has the address from the pool".into(),
                );
            }
            _ => {}
        }
        if self.address_pool.len() > MAX_POOL_NETWORKS {
            return Err(format!(
                "address_pool has {} networks; {MAX_POOL_NETWORKS} are the most",
                self.address_pool.len()
            ));
        }
        let unusable = |network: &&IpNetwork| {
            let address = network.network();
            network.prefix() == 0 || address.is_loopback() || address.is_multicast() || address.is_unspecified()
        };
        match self.address_pool.iter().find(unusable) {
            Some(network) => {
                Err(format!("address_pool: {network} has no addresses for hosts, for example 10.9.0.0/24 has"))
            }
            None => Ok(()),
        }
    }

    fn check_children(&self) -> Result<(), String> {
        let own = !self.local_subnets.is_empty() || !self.remote_subnets.is_empty();
        if self.children.is_empty() && (self.local_subnets.is_empty() || self.remote_subnets.is_empty()) {
            return Err(
                "local_subnets and remote_subnets need at least one network each, or [[peer.child]] has them".into()
            );
        }
        if !self.children.is_empty() && own {
            return Err("local_subnets and remote_subnets stand either in [[peer]] or in its [[peer.child]]".into());
        }
        if self.children.len() > MAX_CHILDREN {
            return Err(format!("it has {} [[peer.child]]; {MAX_CHILDREN} are the most", self.children.len()));
        }
        for (at, child) in self.children.iter().enumerate() {
            child.check().map_err(|problem| format!("[[peer.child]] {:?}: {problem}", child.name))?;
            if self.children.iter().take(at).any(|other| other.name == child.name) {
                return Err(format!("two [[peer.child]] are called {:?}", child.name));
            }
        }
        Ok(())
    }

    /// Returns what tells this peer apart from others when it connects.
    pub(super) fn ends(&self) -> PeerEnds<'_> {
        PeerEnds {
            name: &self.name,
            local_id: &self.local_id,
            remote_id: &self.remote_id,
            hosts: self.remote.iter().map(|remote| remote.host.canonical()).collect(),
        }
    }

    /// Builds the configuration for `edge-ike`: reads secrets, certificates and revocation lists
    /// from their files, and leaves out the host names in `remote`. Fails if a file cannot be used.
    /// `crls` has the revocation lists that were read for other peers.
    pub fn resolve(&self, config: &Config, crls: &mut CrlFiles) -> Result<PeerConfig, String> {
        let wrong = |problem: String| format!("[[peer]] {:?}: {problem}", self.name);
        let mut auth = self.auth(config).map_err(wrong)?;
        if let (Auth::Certificate(auth), Some(path)) = (&mut auth, self.crls_path(config)) {
            let policy = match self.revocation {
                RevocationSetting::Relaxed => RevocationPolicy::Relaxed,
                RevocationSetting::IfUri => RevocationPolicy::IfUri,
                RevocationSetting::Strict => RevocationPolicy::Strict,
            };
            auth.revocation = Some(crls.load(&path, policy).map_err(wrong)?);
        }
        let (child, additional_children) = self.child_configs();
        Ok(PeerConfig {
            name: PeerName::new(&self.name),
            local: self.local,
            remotes: (self.remote.iter())
                .filter_map(|remote| Some(SocketAddr::new(remote.address()?, remote.port_or_default())))
                .collect(),
            local_id: as_certified(&self.local_id, &auth),
            remote_id: self.remote_id.clone(),
            auth,
            ike_proposals: self.ike_proposals.clone(),
            child,
            additional_children,
            max_children: MAX_CHILD_SAS,
            initiate: self.start == Start::Initiate,
            force_encapsulation: self.encap == Encap::Force,
            mobike: self.mobike,
            childless: match self.childless {
                ChildlessSetting::Never => Childless::Never,
                ChildlessSetting::Allow => Childless::Allow,
                ChildlessSetting::Prefer => Childless::Prefer,
                ChildlessSetting::Force => Childless::Force,
            },
            keep_existing: false,
            agent_notifications: AgentNotifications::Off,
            address_assignment: match self.internal_address_key() {
                None => AddressAssignment::Off,
                Some(_) if self.request_address => AddressAssignment::Request,
                Some(_) => AddressAssignment::Pool(self.pool_networks()),
            },
            timing: Timing { patient: self.is_patient(config), ..config.timing.resolve() },
        })
    }

    /// Returns whether requests to the peer are repeated for minutes. They are not if the
    /// configuration says how often, if another address of the peer may answer, or if packets set
    /// up the tunnel, which would wait as long.
    fn is_patient(&self, config: &Config) -> bool {
        config.timing.transmissions.is_none() && self.remote.len() <= 1 && self.start != Start::OnDemand
    }

    /// Returns the file or directory with revocation lists.
    pub fn crls_path(&self, config: &Config) -> Option<PathBuf> {
        self.crls.as_ref().map(|path| config.path(path))
    }

    /// Returns the networks behind this node, including those of all children.
    pub fn all_local_subnets(&self) -> impl Iterator<Item = &IpNetwork> {
        self.local_subnets.iter().chain(self.children.iter().flat_map(|child| &child.local_subnets))
    }

    /// Returns the networks behind the peer, including those of all children, and those from which
    /// the peer gets its address.
    pub fn all_remote_subnets(&self) -> impl Iterator<Item = &IpNetwork> {
        self.remote_subnets
            .iter()
            .chain(&self.address_pool)
            .chain(self.children.iter().flat_map(|child| &child.remote_subnets))
    }

    /// Returns the pool's networks, without host bits.
    fn pool_networks(&self) -> Vec<IpNetwork> {
        let network = |of: &IpNetwork| IpNetwork::new(of.network(), of.prefix()).unwrap_or(*of);
        self.address_pool.iter().map(network).collect()
    }

    /// Returns the networks of this node's side. An address that the peer gives may be any one of
    /// the families that the peer's networks have.
    fn local_networks(&self) -> Vec<IpNetwork> {
        if !self.request_address || !self.local_subnets.is_empty() {
            return self.local_subnets.clone();
        }
        let has = |ipv4: bool| self.remote_subnets.iter().any(|network| network.is_ipv4() == ipv4);
        let v4 = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok().filter(|_| has(true)).map(IpNetwork::V4);
        let v6 = Ipv6Network::new(Ipv6Addr::UNSPECIFIED, 0).ok().filter(|_| has(false)).map(IpNetwork::V6);
        v4.into_iter().chain(v6).collect()
    }

    /// Returns a peer's first child, and its other children.
    fn child_configs(&self) -> (ChildConfig, Vec<ChildConfig>) {
        let mut children = self.children.iter().map(|child| child.config(&self.esp_proposals));
        let only = || ChildConfig {
            name: ChildName::new(DEFAULT_CHILD),
            proposals: self.esp_proposals.clone(),
            local: self.local_networks(),
            remote: if self.address_pool.is_empty() { self.remote_subnets.clone() } else { self.pool_networks() },
            next_layer: NextLayer::ANY,
            mode: Mode::Tunnel,
        };
        (children.next().unwrap_or_else(only), children.collect())
    }

    fn auth(&self, config: &Config) -> Result<Auth, String> {
        if let Some(psk) = &self.psk {
            return Ok(Auth::Psk(psk.psk()?));
        }
        if let Some(path) = &self.psk_file {
            let octets = read_private(&config.path(path))?;
            let psk = secret::psk_of_file(&octets).map_err(|problem| format!("{}: {problem}", path.display()))?;
            return Ok(Auth::Psk(psk));
        }
        let (Some(certificate), Some(key), Some(anchors)) = (&self.certificate, &self.key, &self.trust_anchors) else {
            return Err("no way to authenticate".into());
        };
        let key_path = config.path(key);
        let key = PrivateKeyDer::from_pem_slice(&read_private(&key_path)?)
            .map_err(|_| format!("{}: not a private key in PEM", key_path.display()))?;
        let PrivateKeyDer::Pkcs8(key) = key else {
            return Err(format!(
                "{}: the key is not PKCS#8; convert it with `openssl pkcs8 -topk8 -nocrypt`",
                key_path.display()
            ));
        };
        Ok(Auth::Certificate(CertificateAuth {
            chain: certificates(&config.path(certificate))?,
            key: Secret::new(key.secret_pkcs8_der().to_vec()),
            trust_anchors: certificates(&config.path(anchors))?,
            remote_uri: None,
            remote_key_usages: vec![],
            remote_not_before: 0,
            remote_grace: Duration::ZERO,
            revocation: None,
        }))
    }
}

/// Returns this node's identity as it is sent. A distinguished name that is the subject of this
/// node's certificate is sent with the octets of that subject. The peer may compare octets, and the
/// string types cannot be derived from the text.
fn as_certified(identity: &Identity, auth: &Auth) -> Identity {
    if let (Identity::DistinguishedName(_), Auth::Certificate(CertificateAuth { chain, .. })) = (identity, auth)
        && let Some(Ok((_, leaf))) = chain.first().map(|leaf| x509_parser::parse_x509_certificate(leaf))
    {
        let subject = Identity::DistinguishedName(leaf.subject().as_raw().to_vec());
        if same_identity(&subject, identity) {
            return subject;
        }
    }
    identity.clone()
}

/// Reads a file that must be readable by its owner only.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error| format!("{}: cannot be read: {error}", path.display());
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!("{}: others may read this secret (mode {:04o}); chmod 600", path.display(), mode & 0o7777));
    }
    fs::read(path).map(Zeroizing::new).map_err(unreadable)
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all.into_iter().map(|certificate| certificate.to_vec()).collect()),
        Ok(_) => Err(format!("{}: no certificate in PEM", path.display())),
        Err(error) => Err(format!("{}: not certificates in PEM: {error}", path.display())),
    }
}
