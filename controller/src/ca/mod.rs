//! The certificate authority: made on first start, kept in the state directory, signs nodes' and the controller's own certificates.
//!
//! - [`Ca`]: the key and what it signs.
//! - [`request`]: what a node's certificate request may hold.

mod files;
pub mod request;

use std::net::IpAddr;
use std::path::Path;

use edge_types::pki::{CONTROLLER_URI, EKU_IPSEC_IKE, node_uri};
use edge_types::{NodeName, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::clock::Seconds;
use request::NodeKey;

/// Certificates begin this much before they are made, for nodes whose clocks are behind.
const BACKDATED: Seconds = 3600;
/// The CA's certificate holds for ten years.
const CA_LIFETIME: Seconds = 10 * 366 * DAY;
const DAY: Seconds = 24 * 3600;

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of it cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of it does not hold what it should.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// The certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: Seconds,
    pem: String,
    key_hash: [u8; 32],
}

/// A certificate that was just signed for a node.
pub struct Issued {
    /// PEM.
    pub pem: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Its end.
    pub not_after: Seconds,
}

impl Ca {
    /// Reads the authority below a state directory; makes one where there is none.
    pub fn open(state_dir: &Path, now: Seconds) -> Result<Self, CaError> {
        let (key, pem) = files::open(state_dir, |key| Ok(root(now)?.self_signed(key)?.pem()))?;
        let certificate = files::certificate(&pem, state_dir)?;
        let key_hash = request::hash(&key.subject_public_key_info());
        let not_after = not_after(&certificate);
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, certificate, not_after, pem, key_hash })
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The end of its certificate.
    pub fn not_after(&self) -> Seconds {
        self.not_after
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of its DER SubjectPublicKeyInfo: what a join token pins.
    pub fn key_hash(&self) -> [u8; 32] {
        self.key_hash
    }

    /// Signs a node's certificate: who it is as dNSName, what it is as URI.
    pub fn sign_node(
        &self,
        node: &NodeName,
        role: Role,
        key: &NodeKey,
        days: u32,
        now: Seconds,
    ) -> Result<Issued, CaError> {
        let not_after = now + i64::from(days) * DAY;
        let mut params = leaf(now, not_after)?;
        // ub-common-name is 64 characters (RFC 5280 A.1); a longer name stands in the dNSName alone.
        if node.as_str().len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, node.as_str());
        }
        params.subject_alt_names =
            vec![SanType::DnsName(node.as_str().try_into()?), SanType::URI(node_uri(role, node).try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(EKU_IPSEC_IKE.to_vec())];
        let serial = params.serial_number.as_ref().map(|serial| hex(serial.as_ref())).unwrap_or_default();
        let pem = params.signed_by(key.public(), &self.issuer)?.pem();
        Ok(Issued { pem, serial, not_after })
    }

    /// Makes a key for the controller's own TLS and signs its certificate: the chain, leaf first, and the key.
    pub fn sign_server(
        &self,
        names: &[String],
        days: u32,
        now: Seconds,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf(now, now + i64::from(days) * DAY)?;
        params.distinguished_name.push(DnType::CommonName, "edge-controller");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.subject_alt_names.push(SanType::URI(CONTROLLER_URI.try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer)?;
        // The CA itself goes along: whoever joins knows only its hash.
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        Ok((chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }
}

/// The end of a certificate that can be parsed; the epoch for one that cannot.
pub fn not_after(der: &[u8]) -> Seconds {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(der).map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp())
}

/// Hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn root(now: Seconds) -> Result<CertificateParams, CaError> {
    let mut params = validity(now, now + CA_LIFETIME)?;
    // Distinct in every installation, so that two of them are never confused by name.
    let mut tag = [0; 4];
    SystemRandom::new().fill(&mut tag).map_err(|_| CaError::Random)?;
    params.distinguished_name.push(DnType::CommonName, format!("edge-cni CA {}", hex(&tag)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf(now: Seconds, not_after: Seconds) -> Result<CertificateParams, CaError> {
    let mut params = validity(now, not_after)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn validity(now: Seconds, not_after: Seconds) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::from_unix_timestamp(now - BACKDATED).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    params.not_after = OffsetDateTime::from_unix_timestamp(not_after).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // Positive, no leading zero octet, 127 random bits (RFC 5280 4.1.2.2).
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| CaError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::prelude::*;

    const NOW: Seconds = 1_800_000_000;

    fn node_certificate(ca: &Ca, role: Role) -> (Issued, Vec<u8>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let name = "edge-1".parse().unwrap();
        let key = request::read(&csr.pem().unwrap(), &name).unwrap();
        let issued = ca.sign_node(&name, role, &key, 7, NOW).unwrap();
        let der = ::x509_parser::pem::parse_x509_pem(issued.pem.as_bytes()).unwrap().1.contents;
        (issued, der)
    }

    #[test]
    fn a_nodes_certificate_says_its_name_and_role_and_serves_no_server() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(folder.path(), NOW).unwrap();
        let (issued, der) = node_certificate(&ca, Role::Hub);
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let san = certificate.subject_alternative_name().unwrap().unwrap().value;
        let text = format!("{:?}", san.general_names);
        assert!(text.contains("DNSName(\"edge-1\")") && text.contains("URI(\"edge-cni://hub/edge-1\")"), "{text}");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        assert_eq!(usage.other[0].to_id_string(), "1.3.6.1.5.5.7.3.17");
        assert_eq!(hex(certificate.raw_serial()), issued.serial);
        assert_eq!(certificate.validity().not_before.timestamp(), NOW - 3600);
        assert_eq!(certificate.validity().not_after.timestamp(), NOW + 7 * DAY);
        let (_, root) = X509Certificate::from_der(ca.certificate()).unwrap();
        certificate.verify_signature(Some(root.public_key())).unwrap();
    }

    #[test]
    fn the_authority_stays_the_same_and_its_key_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Ca::open(folder.path(), NOW).unwrap();
        let second = Ca::open(folder.path(), NOW + 5).unwrap();
        assert_eq!((first.pem(), first.key_hash()), (second.pem(), second.key_hash()));
        let mode = std::fs::metadata(folder.path().join(files::KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_made_good() {
        let folder = tempfile::tempdir().unwrap();
        let first = Ca::open(folder.path(), NOW).unwrap();
        std::fs::remove_file(folder.path().join(files::CERTIFICATE)).unwrap();
        let second = Ca::open(folder.path(), NOW).unwrap();
        assert_eq!(first.key_hash(), second.key_hash(), "tokens pin the key, and it is still the same");
    }

    #[test]
    fn a_lost_or_foreign_key_is_an_error_that_names_the_file() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Ca::open(folder.path(), NOW).unwrap();
        Ca::open(other.path(), NOW).unwrap();
        std::fs::copy(other.path().join(files::KEY), folder.path().join(files::KEY)).unwrap();
        let error = Ca::open(folder.path(), NOW).err().unwrap().to_string();
        assert!(error.contains(files::CERTIFICATE) && error.contains("another key"), "{error}");
        std::fs::remove_file(folder.path().join(files::KEY)).unwrap();
        let error = Ca::open(folder.path(), NOW).err().unwrap().to_string();
        assert!(error.contains(files::KEY), "{error}");
        std::fs::write(folder.path().join(files::KEY), "half a k").unwrap();
        let error = Ca::open(folder.path(), NOW).err().unwrap().to_string();
        assert!(error.contains(files::KEY), "{error}");
    }
}
