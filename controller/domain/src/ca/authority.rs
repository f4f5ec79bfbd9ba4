//! One authority: a key with its certificate, and the certificates that it signs.

use std::net::IpAddr;

use edge_types::pki::{CONTROLLER_URI, EKU_IPSEC_IKE, node_uri};
use edge_types::{NodeName, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Name};
use zeroize::Zeroizing;

use super::document::{AuthorityRecord, SecretPem};
use super::error::CaError;
use super::hash::{hex, sha256};
use super::request::NodeKey;
use crate::clock::{Seconds, rfc3339};
use crate::random;

/// Seconds by which `notBefore` lies before the time of signing, for nodes whose clocks are behind.
pub const BACKDATED: Seconds = 3600;
/// Validity of an authority's certificate, in seconds: ten years.
const LIFETIME: Seconds = 10 * 366 * DAY;
const DAY: Seconds = 24 * 3600;

/// The serial number and validity period of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// `notBefore`, seconds since 1970-01-01 UTC.
    pub not_before: Seconds,
    /// `notAfter`, seconds since 1970-01-01 UTC.
    pub not_after: Seconds,
}

impl Term {
    /// Makes a new serial number and a validity period of `days` days from `now`.
    pub fn days(days: u32, now: Seconds) -> Result<Self, CaError> {
        Ok(Self { serial: hex(&serial()?), not_before: now - BACKDATED, not_after: now + i64::from(days) * DAY })
    }
}

/// An authority that is trusted.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    key_hash: [u8; 32],
    subject: String,
    created_at: Seconds,
    not_after: Seconds,
    /// Cancelled when the authority is retired. Connections with one of its certificates are then
    /// closed.
    valid: CancellationToken,
}

impl Authority {
    /// Reads the record of an authority that is not retired. The error describes the fault.
    pub(super) fn new(record: &AuthorityRecord) -> Result<Self, String> {
        let pair = key(record.key.as_ref().map(SecretPem::expose).unwrap_or_default())?;
        let certificate = CertificateDer::from_pem_slice(record.certificate.as_bytes())
            .map_err(|e| format!("the certificate is not PEM ({e})"))?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|e| format!("the certificate is not X.509 ({e})"))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err("the certificate is of another key".into());
        }
        let key_hash = sha256(parsed.public_key().raw);
        let (subject, not_after) = (parsed.subject().to_string(), parsed.validity().not_after.timestamp());
        let subject_der = parsed.subject().as_raw().to_vec();
        let unusable = |e: rcgen::Error| format!("it cannot sign ({e})");
        let issuer = Issuer::from_ca_cert_der(&certificate, pair).map_err(unusable)?;
        let authority = Self {
            issuer,
            pem: pem(&certificate),
            key_hash,
            subject,
            created_at: record.created_at,
            not_after,
            valid: CancellationToken::new(),
            certificate: certificate.clone(),
        };
        // Verifiers compare names octet by octet (RFC 5280 7.1), and rcgen encodes the name again
        // in each certificate that it signs. A trial signature shows whether both encodings are the
        // same.
        let term = Term::days(1, record.created_at).map_err(|e| e.to_string())?;
        let mut probe = leaf(&term).map_err(|e| e.to_string())?;
        probe.distinguished_name = reencoded(parsed.subject());
        let probe = probe.signed_by(authority.issuer.key(), &authority.issuer).map_err(unusable)?;
        match X509Certificate::from_der(probe.der()) {
            Ok((_, probe)) if [probe.issuer(), probe.subject()].map(X509Name::as_raw) == [&subject_der; 2] => {
                Ok(authority)
            }
            _ => Err(format!(
                "its subject {:?} has an encoding that would change in the certificates that it signs; use a subject of plain UTF8String attributes",
                authority.subject
            )),
        }
    }

    /// Returns the authority's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns SHA-256 of the DER SubjectPublicKeyInfo. A join token pins it.
    pub fn key_hash(&self) -> [u8; 32] {
        self.key_hash
    }

    /// Returns the key hash in hexadecimal, which identifies the authority.
    pub fn id(&self) -> String {
        hex(&self.key_hash)
    }

    /// Returns the subject of the certificate (RFC 5280), as text.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns when the authority began to sign, in seconds since 1970-01-01 UTC.
    pub fn created_at(&self) -> Seconds {
        self.created_at
    }

    /// Returns `notAfter` of the certificate.
    pub fn not_after(&self) -> Seconds {
        self.not_after
    }

    /// Returns a token that is cancelled when the authority is retired.
    pub fn valid(&self) -> &CancellationToken {
        &self.valid
    }

    /// Returns whether the authority's key signed this certificate.
    pub(super) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok((_, own)) = X509Certificate::from_der(&self.certificate) else { return false };
        certificate.issuer().as_raw() == own.subject().as_raw()
            && certificate.verify_signature(Some(own.public_key())).is_ok()
    }

    /// Signs a node's certificate, PEM. The dNSName contains the name of the node, the URI its
    /// role. The certificate expires no later than the authority's own certificate.
    pub(super) fn sign_node(
        &self,
        node: &NodeName,
        role: Role,
        key: &NodeKey,
        term: &Term,
    ) -> Result<(String, Term), CaError> {
        let term = self.limited(term)?;
        let mut params = leaf(&term)?;
        // ub-common-name is 64 characters (RFC 5280 A.1). A longer name appears only in the
        // dNSName.
        if node.as_str().len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, node.as_str());
        }
        params.subject_alt_names =
            vec![SanType::DnsName(node.as_str().try_into()?), SanType::URI(node_uri(role, node).try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(EKU_IPSEC_IKE.to_vec())];
        Ok((params.signed_by(key.public(), &self.issuer)?.pem(), term))
    }

    /// Creates a key for the controller's own TLS and signs its certificate.
    pub(super) fn sign_server(
        &self,
        names: &[String],
        term: &Term,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf(&self.limited(term)?)?;
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
        Ok((leaf.der().clone(), PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
    }

    /// Signs a cross certificate for `newer`, PEM. With the cross certificate, a node that trusts
    /// this authority can verify certificates that the newer authority signs.
    pub(super) fn cross_sign(&self, newer: &Authority, now: Seconds) -> Result<String, CaError> {
        let (_, parsed) =
            X509Certificate::from_der(&newer.certificate).map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = reencoded(parsed.subject());
        let key_id = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        if let Some(key_id) = key_id {
            params.key_identifier_method = KeyIdMethod::PreSpecified(key_id);
        }
        set_term(&mut params, &self.limited(&Term { not_after: newer.not_after, ..Term::days(1, now)? })?)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Some verifiers require the usages of a leaf from every issuer in its chain as well. The
        // list has all usages that our certificates contain.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::Other(EKU_IPSEC_IKE.to_vec()),
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(newer.issuer.key(), &self.issuer)?.pem())
    }

    fn limited(&self, term: &Term) -> Result<Term, CaError> {
        if term.not_before + BACKDATED >= self.not_after {
            return Err(CaError::Ended { subject: self.subject.clone(), at: rfc3339(self.not_after) });
        }
        Ok(Term { not_after: term.not_after.min(self.not_after), ..term.clone() })
    }
}

/// Creates a new authority.
pub(super) fn generate(now: Seconds) -> Result<AuthorityRecord, CaError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let key = Some(SecretPem::new(Zeroizing::new(pair.serialize_pem())));
    Ok(AuthorityRecord { certificate: self_signed(&pair, now)?, key, created_at: now, retired_at: None })
}

/// Returns a self-signed certificate of an authority for this key, PEM.
pub(super) fn self_signed(key: &KeyPair, now: Seconds) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let term = Term { serial: hex(&serial()?), not_before: now - BACKDATED, not_after: now + LIFETIME };
    set_term(&mut params, &term)?;
    // Every authority has a different subject, so that two authorities are never confused by name.
    let tag: String = term.serial.chars().take(8).collect();
    params.distinguished_name.push(DnType::CommonName, format!("edge-cni CA {tag}"));
    // A path length of one allows the cross certificate of the next authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

/// Reads a private key. The error describes the fault and never contains the text that was read.
pub(super) fn key(pem: &str) -> Result<KeyPair, String> {
    if pem.contains("BEGIN EC PRIVATE KEY") {
        return Err("is a SEC 1 key; convert it: openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW".into());
    }
    let pair = KeyPair::from_pem(pem).map_err(|_| "is not an unencrypted private key in PKCS #8 PEM".to_owned())?;
    if pair.algorithm() == &PKCS_ECDSA_P256_SHA256 || pair.algorithm() == &PKCS_ED25519 {
        Ok(pair)
    } else {
        Err("is a key of another kind; expected Ed25519 or ECDSA with P-256".into())
    }
}

/// Returns the name as rcgen will encode it. The caller checks that the encoding is the same.
fn reencoded(name: &X509Name<'_>) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let Some(kind) = attribute.attr_type().iter().map(Iterator::collect::<Vec<u64>>) else { continue };
        let text = attribute.as_str().unwrap_or_default();
        let value = match attribute.attr_value().tag() {
            Tag::PrintableString => text.try_into().map(DnValue::PrintableString),
            Tag::Ia5String => text.try_into().map(DnValue::Ia5String),
            Tag::TeletexString => text.try_into().map(DnValue::TeletexString),
            _ => Ok(DnValue::Utf8String(text.into())),
        };
        if let Ok(value) = value {
            names.push(DnType::from_oid(&kind), value);
        }
    }
    names
}

/// Returns the PEM (RFC 7468) of a certificate.
pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Returns `notAfter` of a DER certificate; 0 if it cannot be parsed.
pub fn not_after(der: &[u8]) -> Seconds {
    X509Certificate::from_der(der).map_or(0, |(_, certificate)| certificate.validity().not_after.timestamp())
}

fn leaf(term: &Term) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    set_term(&mut params, term)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn set_term(params: &mut CertificateParams, term: &Term) -> Result<(), CaError> {
    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    params.not_before = at(term.not_before);
    params.not_after = at(term.not_after);
    let octets = (0..term.serial.len()).step_by(2).map(|at| {
        let pair = term.serial.get(at..at + 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let serial: Option<Vec<u8>> = octets.collect();
    params.serial_number = Some(SerialNumber::from_slice(&serial.ok_or(CaError::Serial)?));
    Ok(())
}

/// Returns a serial number: positive, no leading zero octet, 126 random bits (RFC 5280 4.1.2.2).
fn serial() -> Result<Vec<u8>, CaError> {
    let mut serial = random::octets(16)?.to_vec();
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(serial)
}
