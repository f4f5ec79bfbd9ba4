//! `[[peer]]`: a static peer, an edge-agent or any other IKEv2 implementation.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use edge_ike::config::{Auth, CertificateAuth, ChildConfig, EspProposal, IkeProposal};
use edge_ike::{Identity, PeerConfig, PeerName, Secret, same_identity};
use ipnetwork::IpNetwork;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::secret::{self, SecretText};
use super::{Config, Encap, identity, proposal};

/// Which end initiates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// This node initiates, and again whenever the tunnel is lost.
    #[default]
    Initiate,
    /// The peer initiates.
    Respond,
}

/// A table `[[peer]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    /// Name of the peer in messages and `status`.
    pub name: String,
    /// Local address; the one that the route gives unless set.
    pub local: Option<IpAddr>,
    /// Addresses of the peer, with port if it is not 500. If empty, the peer must initiate.
    #[serde(default, deserialize_with = "remotes")]
    pub remote: Vec<Remote>,
    /// Identity of this node.
    #[serde(deserialize_with = "identity_text")]
    pub local_id: Identity,
    /// Identity that the peer must prove.
    #[serde(deserialize_with = "identity_text")]
    pub remote_id: Identity,
    /// Pre-shared key. The configuration file must then be readable by its owner only.
    pub psk: Option<SecretText>,
    /// File with the pre-shared key. A newline at its end is not part of the key.
    pub psk_file: Option<PathBuf>,
    /// File with this node's certificate and intermediates, PEM, leaf first.
    pub certificate: Option<PathBuf>,
    /// File with this node's private key, PKCS#8 PEM (Ed25519 or ECDSA P-256).
    pub key: Option<PathBuf>,
    /// File with the trust anchors for the peer's certificate, PEM.
    pub trust_anchors: Option<PathBuf>,
    /// Networks behind this node.
    pub local_subnets: Vec<IpNetwork>,
    /// Networks behind the peer.
    pub remote_subnets: Vec<IpNetwork>,
    /// IKE proposals, best first.
    #[serde(default = "proposal::default_ike", deserialize_with = "proposal::ike_list")]
    pub ike_proposals: Vec<IkeProposal>,
    /// ESP proposals, best first.
    #[serde(default = "proposal::default_esp", deserialize_with = "proposal::esp_list")]
    pub esp_proposals: Vec<EspProposal>,
    /// Which end initiates.
    #[serde(default)]
    pub start: Start,
    /// Whether ESP travels in UDP even without a NAT.
    #[serde(default = "auto")]
    pub encap: Encap,
}

/// An address of a peer, with an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// The address.
    pub address: IpAddr,
    /// The port; 500 unless given.
    pub port: Option<u16>,
}

fn auto() -> Encap {
    Encap::Auto
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
    texts
        .iter()
        .map(|text| {
            if let Ok(address) = text.parse() {
                return Ok(Remote { address, port: None });
            }
            let socket: SocketAddr = text.parse().map_err(|_| {
                serde::de::Error::custom(format!(
                    "{text:?} is not an address: write 192.0.2.1, 192.0.2.1:4500, 2001:db8::1 or [2001:db8::1]:4500"
                ))
            })?;
            Ok(Remote { address: socket.ip(), port: Some(socket.port()) })
        })
        .collect()
}

impl PeerSection {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("name must be printable text".into());
        }
        if self.start == Start::Initiate && self.remote.is_empty() {
            return Err("start = \"initiate\" needs remote; or set start = \"respond\"".into());
        }
        if self.local_subnets.is_empty() || self.remote_subnets.is_empty() {
            return Err("local_subnets and remote_subnets need at least one network each".into());
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
        match (psk, certificate) {
            (1, 0) | (0, 3) => Ok(()),
            (0, 0) => Err("no way to authenticate: set psk_file, or certificate, key and trust_anchors".into()),
            (0, _) => Err("certificate, key and trust_anchors go together; one is missing".into()),
            (2, 0) => Err("psk and psk_file exclude each other".into()),
            _ => Err("pre-shared key and certificate exclude each other".into()),
        }
    }

    /// Whether a request from one of two peers could be from the other: they have the same
    /// identities, and no addresses that tell them apart. Then only one of their keys would ever
    /// count.
    pub(super) fn is_indistinguishable_from(&self, other: &Self) -> bool {
        let addresses =
            |peer: &Self| peer.remote.iter().map(|remote| remote.address.to_canonical()).collect::<Vec<_>>();
        let (ours, theirs) = (addresses(self), addresses(other));
        let apart = !ours.is_empty() && !theirs.is_empty() && ours.iter().all(|address| !theirs.contains(address));
        same_identity(&self.remote_id, &other.remote_id) && same_identity(&self.local_id, &other.local_id) && !apart
    }

    /// The configuration for `edge-ike`, with secrets and certificates read from their files. Fails
    /// if a file cannot be used.
    pub fn resolve(&self, config: &Config) -> Result<PeerConfig, String> {
        let wrong = |problem: String| format!("[[peer]] {:?}: {problem}", self.name);
        let auth = self.auth(config).map_err(wrong)?;
        Ok(PeerConfig {
            name: PeerName::new(&self.name),
            local: self.local,
            remotes: self
                .remote
                .iter()
                .map(|remote| SocketAddr::new(remote.address, remote.port.unwrap_or(500)))
                .collect(),
            local_id: as_certified(&self.local_id, &auth),
            remote_id: self.remote_id.clone(),
            auth,
            ike_proposals: self.ike_proposals.clone(),
            child: ChildConfig {
                proposals: self.esp_proposals.clone(),
                local: self.local_subnets.clone(),
                remote: self.remote_subnets.clone(),
            },
            initiate: self.start == Start::Initiate,
            force_encapsulation: self.encap == Encap::Force,
            keep_existing: false,
            timing: config.timing.resolve(),
        })
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
        }))
    }
}

/// Our identity as we send it. A distinguished name is sent in the octets of our certificate's
/// subject, if it is that name: the peer may compare octets, and text does not say their string
/// types.
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

/// Reads a file that only its owner may read.
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
