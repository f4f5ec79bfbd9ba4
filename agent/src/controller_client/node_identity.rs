//! This node's identity: a private key that this node generates and that never leaves it, its
//! certificate, and the trust anchors. One file holds all three, so that they always match. A key
//! whose certificate has not arrived is kept in a separate file, so that a retry after a power cut
//! sends the same key.

use std::path::Path;
use std::sync::Arc;

use edge_ike::Secret;
use edge_types::api::CertificateResponse;
use edge_types::pki::{EKU_IPSEC_IKE_DER, node_uri};
use edge_types::{NodeName, Role};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519, PublicKeyData};
use rustls::crypto::ring;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use super::error::ControllerError;
use super::tls;
use crate::clock::CertificateClock;
use crate::membership::NodeCredentials;
use crate::state_dir::{self, StateDir, StateDirError};

/// Key, certificate and trust anchors. Mode 0600.
const IDENTITY_FILE: &str = "identity.json";
/// A key whose certificate has not arrived yet. Mode 0600.
const PENDING_KEY_FILE: &str = "key.pending";
const VERSION: u32 = 1;

/// id-kp-clientAuth, 1.3.6.1.5.5.7.3.2 (RFC 5280 4.2.1.12), DER content.
const EKU_CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

const ADVICE: &str = "restore it from a backup, or remove it and join again with a new token";

/// The identity of a member.
#[derive(Debug, Clone)]
pub(super) struct NodeIdentity {
    pub(super) node: NodeName,
    pub(super) role: Role,
    /// [`JoinCredential::id`](super::join_credential::JoinCredential::id) of the credential with
    /// which the node joined.
    pub(super) token_id: String,
    /// notBefore of the certificate, seconds since 1970-01-01 UTC.
    pub(super) not_before: i64,
    pub(super) credentials: Arc<NodeCredentials>,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    version: u32,
    node: NodeName,
    role: Role,
    token_id: String,
    /// PKCS#8, PEM.
    key: String,
    /// PEM, leaf first.
    certificate: String,
    /// PEM.
    trust_anchors: Vec<String>,
}

impl Drop for IdentityFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl NodeIdentity {
    /// Reads the identity from disk; `None` if this node has never joined. Fails if the file is
    /// damaged or its parts do not match.
    pub(super) fn load(state: &StateDir) -> Result<Option<Self>, StateDirError> {
        Self::load_from(state.path())
    }

    /// Reads the identity as [`Self::load`] does, for programs other than the agent: takes no lock.
    pub(super) fn load_from(directory: &Path) -> Result<Option<Self>, StateDirError> {
        let Some(file) = state_dir::read_layout::<IdentityFile>(directory, IDENTITY_FILE, VERSION, ADVICE)? else {
            return Ok(None);
        };
        let damaged = |why: String| StateDirError::Damaged { path: directory.join(IDENTITY_FILE), why, advice: ADVICE };
        if file.version != VERSION {
            return Err(damaged(format!("its version is {}, this agent reads {VERSION}", file.version)));
        }
        let key = PrivatePkcs8KeyDer::from_pem_slice(file.key.as_bytes())
            .map_err(|_| damaged("it holds no private key".into()))?;
        let pair = KeyPair::try_from(&key).map_err(|_| damaged("its private key cannot be used".into()))?;
        let chain = certificates(&file.certificate).map_err(&damaged)?;
        let trust_anchors = anchors(&file.trust_anchors).map_err(&damaged)?;
        let leaf = Leaf::parse(&chain).map_err(&damaged)?;
        leaf.check(&pair, &file.node, file.role).map_err(&damaged)?;
        Ok(Some(Self {
            node: file.node.clone(),
            role: file.role,
            token_id: file.token_id.clone(),
            not_before: leaf.not_before,
            credentials: Arc::new(NodeCredentials {
                chain: chain.clone(),
                key: Secret::new(key.secret_pkcs8_der().to_vec()),
                trust_anchors,
                not_after: leaf.not_after,
            }),
        }))
    }

    /// Builds an identity from the controller's response. Fails if the certificate is not for
    /// `key`, `node` and `role`, or if peers would not accept it.
    pub(super) fn accept(
        response: &CertificateResponse,
        key: &KeyPair,
        node: &NodeName,
        role: Role,
        token_id: &str,
        clock: &CertificateClock,
    ) -> Result<Self, ControllerError> {
        let refuse = |why: String| {
            ControllerError::Unacceptable(format!("the certificate from the controller is refused: {why}"))
        };
        if response.role != role {
            return Err(refuse(format!(
                "it is for role {}, not {role}: the role is what the operator gave the token at the controller; ask for a token for {role}",
                response.role
            )));
        }
        if response.node != *node {
            return Err(refuse(format!("it is for node {}, not {node}", response.node)));
        }
        let chain = certificates(&response.certificate).map_err(&refuse)?;
        let trust_anchors = anchors(&response.trust_anchors).map_err(&refuse)?;
        let leaf = Leaf::parse(&chain).map_err(&refuse)?;
        leaf.check(key, node, role).map_err(&refuse)?;
        // This time is certainly past: the connection is authenticated, and the controller sets
        // notBefore to an hour before it issues a certificate.
        clock.raise_floor(unix_seconds(leaf.not_before));
        verify(&chain, &trust_anchors, clock.unix_time()).map_err(&refuse)?;
        clock.set_own_validity(unix_seconds(leaf.not_before), unix_seconds(leaf.not_after));
        Ok(Self {
            node: node.clone(),
            role,
            token_id: token_id.to_owned(),
            not_before: leaf.not_before,
            credentials: Arc::new(NodeCredentials {
                chain,
                key: Secret::new(key.serialize_der()),
                trust_anchors,
                not_after: leaf.not_after,
            }),
        })
    }

    /// Returns this identity with other trust anchors; `None` if the trust anchors are unchanged.
    pub(super) fn with_trust_anchors(&self, trust_anchors: Vec<Vec<u8>>) -> Option<Self> {
        if trust_anchors == self.credentials.trust_anchors {
            return None;
        }
        let credentials = NodeCredentials { trust_anchors, ..(*self.credentials).clone() };
        Some(Self { credentials: Arc::new(credentials), ..self.clone() })
    }

    /// Returns whether the certificate was issued by the authority that currently signs, which is
    /// the first trust anchor.
    pub(super) fn is_of_signing_authority(&self) -> bool {
        let anchor = self.credentials.trust_anchors.first().map(std::slice::from_ref).unwrap_or_default();
        let leaf = self.credentials.chain.first().map(std::slice::from_ref).unwrap_or_default();
        // Validity is checked at the certificate's notBefore, so that an expired certificate passes
        // too.
        verify(leaf, anchor, u64::try_from(self.not_before).unwrap_or(0)).is_ok()
    }

    /// Writes the identity to disk. The caller must then remove the pending key.
    pub(super) fn store(&self, state: &StateDir) -> Result<(), StateDirError> {
        let file = IdentityFile {
            version: VERSION,
            node: self.node.clone(),
            role: self.role,
            token_id: self.token_id.clone(),
            key: pem("PRIVATE KEY", self.credentials.key.expose()),
            certificate: self.credentials.chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
            trust_anchors: self.credentials.trust_anchors.iter().map(|der| pem("CERTIFICATE", der)).collect(),
        };
        // Serialising a struct of strings cannot fail.
        let bytes = Zeroizing::new(serde_json::to_vec_pretty(&file).unwrap_or_default());
        state.write(IDENTITY_FILE, &bytes)
    }

    /// Returns the time at which half of the certificate's lifetime is over, in seconds since
    /// 1970-01-01 UTC.
    pub(super) fn renew_at(&self) -> u64 {
        let middle = self.not_before + (self.credentials.not_after - self.not_before) / 2;
        unix_seconds(middle)
    }

    /// Returns whether the certificate's notAfter has passed.
    pub(super) fn has_expired(&self, clock: &CertificateClock) -> bool {
        self.has_expired_by(clock, 0)
    }

    /// Returns whether the certificate's notAfter has passed by more than `grace` seconds.
    pub(super) fn has_expired_by(&self, clock: &CertificateClock, grace: u64) -> bool {
        clock.unix_time() > unix_seconds(self.credentials.not_after).saturating_add(grace)
    }
}

/// Converts a time in a certificate to seconds since 1970-01-01 UTC; 0 for an earlier time.
pub(super) fn unix_seconds(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

/// Returns the key for the next certificate request: the key of an interrupted attempt, or a new
/// one.
pub(super) fn pending_key(state: &StateDir) -> Result<KeyPair, ControllerError> {
    if let Some(text) = state.read(PENDING_KEY_FILE)? {
        let text = Zeroizing::new(text);
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text).ok().and_then(|der| KeyPair::try_from(&der).ok());
        match key {
            Some(key) => return Ok(key),
            None => tracing::warn!(file = PENDING_KEY_FILE, "the file is damaged; generating a new key"),
        }
    }
    let key = KeyPair::generate_for(&PKCS_ED25519)
        .map_err(|error| ControllerError::Unacceptable(format!("making a key failed: {error}")))?;
    state
        .write(PENDING_KEY_FILE, Zeroizing::new(pem("PRIVATE KEY", &Zeroizing::new(key.serialize_der()))).as_bytes())?;
    Ok(key)
}

/// Removes the pending key. Called after [`NodeIdentity::store`].
pub(super) fn forget_pending_key(state: &StateDir) -> Result<(), StateDirError> {
    state.remove(PENDING_KEY_FILE)
}

/// Creates a PKCS#10 certificate request for the node's name, in PEM. It contains no role, because
/// the controller decides the role.
pub(super) fn request(key: &KeyPair, node: &NodeName) -> Result<String, ControllerError> {
    let failed = |error| ControllerError::Unacceptable(format!("making the certificate request failed: {error}"));
    let mut parameters = CertificateParams::new(vec![node.to_string()]).map_err(failed)?;
    // A node name may be longer than a common name (64 characters).
    parameters.distinguished_name = DistinguishedName::new();
    parameters.serialize_request(key).and_then(|request| request.pem()).map_err(failed)
}

/// Parses PEM texts into trust anchors in DER. Fails if there are none, or if a certificate cannot
/// be a trust anchor.
pub(super) fn anchors(texts: &[String]) -> Result<Vec<Vec<u8>>, String> {
    let mut all = Vec::new();
    for text in texts {
        all.extend(certificates(text).map_err(|why| format!("trust anchors: {why}"))?);
    }
    for der in &all {
        anchor_from_trusted_cert(&CertificateDer::from(der.as_slice()))
            .map_err(|error| format!("trust anchors: one of them cannot be used ({error})"))?;
    }
    if all.is_empty() { Err("there is no trust anchor".into()) } else { Ok(all) }
}

fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let all: Result<Vec<_>, rustls_pki_types::pem::Error> =
        CertificateDer::pem_slice_iter(text.as_bytes()).map(|der| Ok(der?.to_vec())).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err("there is no certificate in it".into()),
        Err(_) => Err("it is not PEM".into()),
    }
}

/// Verifies the certificate chain, its validity and the extended key usages, as the controller and
/// the peers do.
fn verify(chain: &[Vec<u8>], trust_anchors: &[Vec<u8>], now: u64) -> Result<(), String> {
    let ders: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let (leaf, intermediates) = ders.split_first().ok_or("there is no certificate in it")?;
    let roots: Vec<CertificateDer<'_>> = trust_anchors.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let roots: Vec<_> = roots.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| format!("it is malformed ({error})"))?;
    for usage in [EKU_CLIENT_AUTH, &EKU_IPSEC_IKE_DER] {
        leaf.verify_for_usage(
            ring::default_provider().signature_verification_algorithms.all,
            &roots,
            intermediates,
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(now)),
            KeyUsage::required(usage),
            None,
            None,
        )
        .map_err(|error| format!("it does not verify against the controller's own trust anchors ({error})"))?;
    }
    Ok(())
}

/// The checked fields of the leaf certificate.
struct Leaf {
    not_before: i64,
    not_after: i64,
    /// DER SubjectPublicKeyInfo.
    public_key: Vec<u8>,
    dns_names: Vec<String>,
    uris: Vec<String>,
}

impl Leaf {
    fn parse(chain: &[Vec<u8>]) -> Result<Self, String> {
        let der = chain.first().ok_or("there is no certificate in it")?;
        let (_, leaf) = X509Certificate::from_der(der).map_err(|_| "it is not a certificate".to_owned())?;
        let names = leaf.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        Ok(Self {
            not_before: leaf.validity().not_before.timestamp(),
            not_after: leaf.validity().not_after.timestamp(),
            public_key: leaf.tbs_certificate.subject_pki.raw.to_vec(),
            dns_names: names
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                })
                .collect(),
            uris: tls::uris(&leaf).map(str::to_owned).collect(),
        })
    }

    fn check(&self, key: &KeyPair, node: &NodeName, role: Role) -> Result<(), String> {
        if self.public_key != key.subject_public_key_info() {
            return Err("it is for another key than this node's".into());
        }
        if !self.dns_names.iter().any(|name| name == node.as_str()) {
            return Err(format!("its dNSNames are {:?}, expected {node}", self.dns_names));
        }
        let expected = node_uri(role, node);
        if !self.uris.contains(&expected) {
            return Err(format!("its URIs are {:?}, expected {expected}", self.uris));
        }
        Ok(())
    }
}

/// Encodes DER as PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let encoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
