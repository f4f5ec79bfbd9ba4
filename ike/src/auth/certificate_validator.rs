//! Checks a peer's certificate (RFC 5280, RFC 4945): chain, validity, key usage, names.

use std::cell::RefCell;
use std::time::Duration;

use data_encoding::HEXLOWER;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{AuthError, CredentialError};
use super::identity;
use super::limits::MAX_CHAIN;
use super::revocation::RevocationChecker;
use super::signature::PublicKey;
use super::trust_anchors::TrustAnchors;
use crate::config::{CertificateAuth, Identity};
use crate::event::PeerCertificate;
use crate::wire::{Certificate, CertificateEncoding};

/// Signature algorithms that are accepted on certificates.
static CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ED25519,
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Maximum number of presented issuers with the same name. A CA has two certificates if two other
/// CAs have certified it, or while its key changes.
const MAX_OF_SUBJECT: usize = 2;

/// anyExtendedKeyUsage, 2.5.29.37.0 (RFC 5280 4.2.1.12).
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];

/// A certificate that was accepted.
#[derive(Debug)]
pub(super) struct ValidCertificate {
    /// The key that must have signed AUTH.
    pub(super) key: PublicKey,
    /// The stored part of this certificate.
    pub(super) shown: PeerCertificate,
}

/// The requirements on a peer's certificate.
#[derive(Debug)]
pub(super) struct CertificateValidator {
    anchors: TrustAnchors,
    uri: Option<String>,
    usages: Vec<Vec<u8>>,
    /// Certificates whose notBefore is earlier are revoked. Seconds since 1970-01-01 UTC.
    not_before: u64,
    /// Seconds for which a certificate is accepted after its notAfter.
    grace: u64,
    revocation: Option<RevocationChecker>,
}

impl CertificateValidator {
    pub(super) fn new(auth: &CertificateAuth) -> Result<Self, CredentialError> {
        let anchors = TrustAnchors::new(&auth.trust_anchors)?;
        let (uri, usages) = (auth.remote_uri.clone(), auth.remote_key_usages.clone());
        let revocation = auth.revocation.as_ref();
        let revocation = revocation.map(|lists| RevocationChecker::new(lists, &auth.trust_anchors)).transpose()?;
        let (not_before, grace) = (auth.remote_not_before, auth.remote_grace.as_secs());
        Ok(Self { anchors, uri, usages, not_before, grace, revocation })
    }

    /// Returns the hashes of the trust anchors, in the format of CERTREQ.
    pub(super) fn authorities(&self) -> &[u8] {
        self.anchors.authorities()
    }

    /// Returns the seconds for which a certificate is accepted after its notAfter.
    pub(super) fn grace(&self) -> u64 {
        self.grace
    }

    /// Returns the leaf certificate if the chain certifies it for `claimed` at `unix_time`.
    pub(super) fn validate(
        &self,
        certificates: &[Certificate],
        claimed: &Identity,
        unix_time: u64,
    ) -> Result<ValidCertificate, AuthError> {
        let mut chain = certificates
            .iter()
            .filter(|certificate| certificate.encoding == CertificateEncoding::X509Signature)
            .map(|certificate| certificate.data.as_slice())
            .take(MAX_CHAIN);
        // RFC 7296 3.6: the first certificate holds the key of AUTH.
        //= RFC 7296 3.6 MUST 4: the key's certificate is first
        let leaf = chain.next().ok_or(AuthError::NoCertificate)?;
        let intermediates = candidate_issuers(chain);
        let parsed = parse(leaf).ok_or_else(|| AuthError::MalformedCertificate("not DER of X.509".into()))?;
        let (not_after, issuers) = self.check_path(leaf, &intermediates, &parsed, unix_time)?;
        check_key_usage(&parsed)?;
        self.check_usage(&parsed)?;
        let shown = PeerCertificate {
            serial: HEXLOWER.encode(parsed.raw_serial()),
            not_before: u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0),
            not_after,
            chain: self.revocation.as_ref().map(|_| {
                std::iter::once(leaf).chain(issuers.iter().map(|issuer| issuer.der)).map(<[u8]>::to_vec).collect()
            }),
        };
        self.check_revocation(&shown, claimed)?;
        if !identity::certifies(&parsed, claimed) {
            let certified = identity::describe(&parsed);
            return Err(AuthError::NotCertified { claimed: claimed.clone(), certified });
        }
        if let Some(uri) = self.uri.as_ref().filter(|uri| !identity::has_uri(&parsed, uri)) {
            let certified = identity::describe(&parsed);
            return Err(AuthError::LacksUri { expected: uri.clone(), certified });
        }
        Ok(ValidCertificate { key: PublicKey::certified_by(&parsed)?, shown })
    }

    /// Finds a path to a trust anchor. Returns the earliest notAfter on that path, and the issuers
    /// on it below the trust anchor.
    fn check_path<'a, 'd>(
        &self,
        leaf: &[u8],
        intermediates: &'a [CandidateIssuer<'d>],
        parsed: &X509Certificate<'_>,
        unix_time: u64,
    ) -> Result<(u64, Vec<&'a CandidateIssuer<'d>>), AuthError> {
        let ders: Vec<CertificateDer<'_>> =
            intermediates.iter().map(|candidate| CertificateDer::from(candidate.der)).collect();
        let leaf_der = CertificateDer::from(leaf);
        let end_entity =
            EndEntityCert::try_from(&leaf_der).map_err(|error| AuthError::MalformedCertificate(error.to_string()))?;
        let judged_at = self.judged_at(parsed, unix_time);
        let time = UnixTime::since_unix_epoch(Duration::from_secs(judged_at));
        // If a certificate of a path is revoked, webpki tries another path.
        let revoked = RefCell::new(None);
        let not_revoked = |path: &webpki::VerifiedPath<'_>| {
            let Some(revocation) = &self.revocation else { return Ok(()) };
            let issuers: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
            let chain: Vec<&[u8]> = std::iter::once(leaf).chain(issuers.iter().map(|der| &der[..])).collect();
            revocation.check(&chain, unix_time).map_err(|error| {
                revoked.replace(Some(error));
                webpki::Error::CertRevoked
            })
        };
        let verify = |anchors| {
            end_entity.verify_for_usage(
                CHAIN_ALGORITHMS,
                anchors,
                &ders,
                time,
                IssuerUsages(&self.usages),
                None,
                Some(&not_revoked),
            )
        };
        let valid = self.anchors.valid_at(judged_at);
        match verify(&valid.anchors) {
            Ok(path) => {
                let parsed_of = |issuer: &webpki::Cert<'_>| {
                    let der = issuer.der();
                    intermediates.iter().find(|candidate| candidate.der == &der[..])
                };
                let issuers: Option<Vec<_>> = path.intermediate_certificates().map(parsed_of).collect();
                let issuers = issuers.ok_or_else(|| AuthError::Chain("an issuer was not presented".to_owned()))?;
                if issuers.iter().any(|issuer| !may_certify(&issuer.parsed)) {
                    let detail = "the key usage of an issuer excludes signing certificates (keyCertSign)";
                    return Err(AuthError::Chain(detail.to_owned()));
                }
                // RFC 5280 6.1.4: self-issued certificates do not count towards the path length.
                let counted = issuers.iter().filter(|issuer| !is_self_issued(&issuer.parsed)).count();
                let anchor = valid.check(path.anchor(), counted)?;
                let ends = issuers.iter().map(|issuer| end_of(&issuer.parsed));
                let ends = ends.fold(end_of(parsed).min(anchor), u64::min);
                Ok((ends, issuers))
            }
            Err(error) if revoked.borrow().is_some() => {
                Err(revoked.take().unwrap_or_else(|| AuthError::Chain(error.to_string())))
            }
            Err(webpki::Error::CertExpired { not_after, .. }) => {
                Err(AuthError::Expired { not_after: not_after.as_secs(), now: unix_time })
            }
            Err(webpki::Error::CertNotValidYet { not_before, .. }) => {
                Err(AuthError::NotYetValid { not_before: not_before.as_secs(), now: unix_time })
            }
            // If another CA has the same name as one of ours, only the signature shows the
            // difference. The search for an anchor that is not valid now says more in the error.
            Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
                let all = Some(self.anchors.all()).filter(|all| all.len() > valid.anchors.len());
                let path = all.and_then(|all| verify(all).ok());
                let invalid = path.and_then(|path| self.anchors.invalid(path.anchor(), judged_at));
                Err(invalid
                    .unwrap_or_else(|| AuthError::UnknownIssuer { issuer: identity::quoted_name(parsed.issuer()) }))
            }
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => Err(lacks_usage(parsed)),
            Err(error) => Err(AuthError::Chain(error.to_string())),
        }
    }

    /// Returns the time at which the path must be valid: now, or the leaf's notAfter while the
    /// grace after it lasts. Revocation is always checked for now.
    fn judged_at(&self, leaf: &X509Certificate<'_>, now: u64) -> u64 {
        let end = end_of(leaf);
        if now > end && now <= end.saturating_add(self.grace) { end } else { now }
    }

    /// Returns an error if a certificate from `peer` is revoked.
    pub(super) fn check_revocation(&self, shown: &PeerCertificate, peer: &Identity) -> Result<(), AuthError> {
        if let (Some(revocation), Some(chain)) = (&self.revocation, &shown.chain) {
            revocation.check_again(chain)?;
        }
        if shown.not_before >= self.not_before {
            return Ok(());
        }
        let PeerCertificate { serial, not_before, .. } = shown.clone();
        Err(AuthError::Revoked { peer: peer.clone(), serial, not_before, since: self.not_before })
    }

    /// Checks that the leaf itself has one of the usages. anyExtendedKeyUsage does not count: the
    /// certificate must name one of the usages itself.
    fn check_usage(&self, parsed: &X509Certificate<'_>) -> Result<(), AuthError> {
        if self.usages.is_empty() {
            return Ok(());
        }
        let usages = match parsed.extended_key_usage() {
            Ok(Some(extension)) => extension.value,
            _ => return Err(lacks_usage(parsed)),
        };
        let well_known = [
            (usages.server_auth, 1),
            (usages.client_auth, 2),
            (usages.code_signing, 3),
            (usages.email_protection, 4),
            (usages.time_stamping, 8),
            (usages.ocsp_signing, 9),
        ];
        // id-kp, 1.3.6.1.5.5.7.3
        let id_kp = |last: u8| [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, last];
        let has = |wanted: &Vec<u8>| {
            usages.other.iter().any(|usage| usage.as_bytes() == wanted.as_slice())
                || well_known.iter().any(|&(set, last)| set && id_kp(last).as_slice() == wanted.as_slice())
        };
        if self.usages.iter().any(has) { Ok(()) } else { Err(lacks_usage(parsed)) }
    }
}

/// A presented certificate that may have issued others. It is parsed once for all checks.
#[derive(Debug)]
pub(super) struct CandidateIssuer<'a> {
    pub(super) der: &'a [u8],
    parsed: X509Certificate<'a>,
}

/// Returns the presented certificates that may have issued others: at most
/// [`MAX_OF_SUBJECT`] with the same subject. webpki follows every issuer with the right name, and
/// whoever presents certificates has not proved anything yet. With at most seven certificates, this
/// leaves at most 2^7 paths.
pub(super) fn candidate_issuers<'a>(presented: impl Iterator<Item = &'a [u8]>) -> Vec<CandidateIssuer<'a>> {
    let mut candidates: Vec<CandidateIssuer<'a>> = Vec::new();
    for der in presented {
        let Some(parsed) = parse(der) else { continue };
        let subject = parsed.subject().as_raw();
        let known = candidates.iter().filter(|other| other.parsed.subject().as_raw() == subject).count();
        if known < MAX_OF_SUBJECT {
            candidates.push(CandidateIssuer { der, parsed });
        }
    }
    candidates
}

/// The accepted extended key usages of an issuer: no such extension, one of the requested usages,
/// or anyExtendedKeyUsage. webpki applies these rules to the leaf too. `check_usage` then applies
/// the stricter rule for the leaf.
struct IssuerUsages<'a>(&'a [Vec<u8>]);

impl ExtendedKeyUsageValidator for IssuerUsages<'_> {
    fn validate(&self, present: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut found = Vec::new();
        for usage in present {
            let usage = usage?;
            let wanted = self.0.iter().any(|wanted| KeyPurposeId::new(wanted) == usage);
            if self.0.is_empty() || wanted || usage == KeyPurposeId::new(ANY_USAGE) {
                return Ok(());
            }
            found.push(usage.to_decoded_oid());
        }
        if found.is_empty() {
            return Ok(());
        }
        let required = webpki::KeyUsage::required(ANY_USAGE);
        Err(webpki::Error::RequiredEkuNotFoundContext(webpki::RequiredEkuNotFoundContext { required, present: found }))
    }
}

/// Returns notAfter of a certificate, seconds since 1970-01-01 UTC, or 0 if the certificate cannot
/// be parsed.
pub(super) fn not_after(der: &[u8]) -> u64 {
    parse(der).map_or(0, |parsed| end_of(&parsed))
}

fn end_of(parsed: &X509Certificate<'_>) -> u64 {
    u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0)
}

/// Returns the public key of our own certificate.
pub(super) fn public_key(der: &[u8]) -> Option<PublicKey> {
    PublicKey::certified_by(&parse(der)?).ok()
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, certificate)| certificate)
}

/// Checks that the key usage, if there is one, allows signatures (RFC 4945 5.1.3.2).
fn check_key_usage(parsed: &X509Certificate<'_>) -> Result<(), AuthError> {
    match parsed.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.digital_signature() || usage.value.non_repudiation() => Ok(()),
        _ => Err(AuthError::NotForSignatures { subject: identity::quoted_name(parsed.subject()) }),
    }
}

/// Returns whether the key usage of an issuer, if there is one, allows signing certificates (RFC
/// 5280 4.2.1.3).
fn may_certify(issuer: &X509Certificate<'_>) -> bool {
    issuer.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

fn is_self_issued(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

fn lacks_usage(parsed: &X509Certificate<'_>) -> AuthError {
    AuthError::LacksKeyUsage { subject: identity::quoted_name(parsed.subject()) }
}
