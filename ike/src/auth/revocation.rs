//! Checks a peer's chain against certificate revocation lists (RFC 5280 6.3).
//!
//! A list counts if the issuer of the certificate has signed it and may sign lists. Of several
//! lists that cover a certificate, the newest one counts.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::error::{AuthError, CredentialError, Timestamp};
use super::identity;
use super::signature::PublicKey;
use crate::crl::{self, Crl, Entry, Revocation, RevocationLists, RevocationPolicy};

/// The lists that apply to a peer, and the keys of the trust anchors that may have signed them.
#[derive(Debug)]
pub(super) struct RevocationChecker {
    lists: Arc<RevocationLists>,
    policy: RevocationPolicy,
    anchors: Vec<CrlIssuer>,
}

/// A certificate whose key may have signed a list.
#[derive(Debug)]
struct CrlIssuer {
    subject: Vec<u8>,
    /// `None` if the key is not supported, or if its key usage excludes lists (cRLSign, RFC 5280
    /// 4.2.1.3).
    key: Option<PublicKey>,
}

/// Whether a certificate is revoked.
enum Status<'a> {
    Revoked(&'a Crl, Entry),
    Good,
    /// Holds the reason why it is not known.
    Unknown(String),
}

impl RevocationChecker {
    /// Fails if a list names a trust anchor as its issuer but is not signed by it. The lists of
    /// other issuers are checked when a peer presents the issuer's certificate.
    pub(super) fn new(revocation: &Revocation, trust_anchors: &[Vec<u8>]) -> Result<Self, CredentialError> {
        let anchors: Result<Vec<CrlIssuer>, _> = trust_anchors
            .iter()
            .map(|der| parse(der).map(|anchor| CrlIssuer::new(&anchor)).ok_or(CredentialError::MalformedTrustAnchor))
            .collect();
        let checker = Self { lists: Arc::clone(&revocation.lists), policy: revocation.policy, anchors: anchors? };
        for list in checker.lists.iter() {
            let issuers: Vec<&CrlIssuer> = checker.anchors_named(&list.issuer).collect();
            if !issuers.is_empty() && !issuers.iter().any(|issuer| issuer.has_signed(list)) {
                let why = if issuers.iter().all(|issuer| issuer.key.is_none()) {
                    "this trust anchor may not sign revocation lists (its key usage lacks cRLSign, or its key is not supported)"
                } else {
                    "it is not signed with the key of this trust anchor"
                };
                let (list, issuer) = (list.name.clone(), name(&list.issuer));
                return Err(CredentialError::ForeignRevocationList { list, issuer, why });
            }
        }
        Ok(checker)
    }

    /// Returns an error if a certificate of the chain is revoked, or if the policy demands to know
    /// that it is not and no list says so at `unix_time`. The chain begins with the peer's
    /// certificate, and ends below a trust anchor.
    pub(super) fn check(&self, chain: &[&[u8]], unix_time: u64) -> Result<(), AuthError> {
        self.check_each(
            chain,
            |certificate, why, uris| match self.policy {
                RevocationPolicy::Relaxed => Ok(()),
                RevocationPolicy::IfUri if uris.is_empty() => Ok(()),
                RevocationPolicy::IfUri | RevocationPolicy::Strict => Err(AuthError::RevocationUnknown {
                    serial: HEXLOWER.encode(certificate.raw_serial()),
                    issuer: identity::quoted_name(certificate.issuer()),
                    why,
                }),
            },
            unix_time,
        )
    }

    /// Returns an error if a certificate of a chain that was accepted earlier is revoked.
    pub(super) fn check_again(&self, chain: &[Vec<u8>]) -> Result<(), AuthError> {
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        self.check_each(&chain, |_, _, _| Ok(()), 0)
    }

    /// Checks each certificate. `unknown` decides about those of which it is not known whether
    /// they are revoked: it gets the certificate, the reason, and the addresses of its lists.
    fn check_each(
        &self,
        chain: &[&[u8]],
        unknown: impl Fn(&X509Certificate<'_>, String, &[&str]) -> Result<(), AuthError>,
        unix_time: u64,
    ) -> Result<(), AuthError> {
        for (nth, der) in chain.iter().enumerate() {
            let malformed = || AuthError::MalformedCertificate("not DER of X.509".into());
            let certificate = parse(der).ok_or_else(malformed)?;
            let uris = uris(&certificate);
            let status = match chain.get(nth + 1) {
                Some(issuer) => {
                    let issuer = CrlIssuer::new(&parse(issuer).ok_or_else(malformed)?);
                    self.status(&certificate, nth > 0, &uris, &[&issuer], unix_time)
                }
                None => {
                    let issuers: Vec<_> = self.anchors_named(certificate.issuer().as_raw()).collect();
                    self.status(&certificate, nth > 0, &uris, &issuers, unix_time)
                }
            };
            match status {
                Status::Good => {}
                Status::Unknown(why) => unknown(&certificate, why, &uris)?,
                Status::Revoked(list, Entry { since, reason }) => {
                    return Err(AuthError::RevokedByList {
                        serial: HEXLOWER.encode(certificate.raw_serial()),
                        issuer: identity::quoted_name(certificate.issuer()),
                        since,
                        reason,
                        list: list.name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn status(
        &self,
        certificate: &X509Certificate<'_>,
        is_ca: bool,
        uris: &[&str],
        issuers: &[&CrlIssuer],
        unix_time: u64,
    ) -> Status<'_> {
        let covering = || self.lists.of_issuer(certificate.issuer().as_raw()).filter(|list| list.covers(is_ca, uris));
        let Some(list) = covering().find(|list| issuers.iter().any(|issuer| issuer.has_signed(list))) else {
            return Status::Unknown(match covering().next() {
                None => "there is no revocation list of its issuer".to_owned(),
                Some(list) => format!(
                    "the revocation list {} is not signed by its issuer, or the key usage of the issuer lacks cRLSign",
                    list.name
                ),
            });
        };
        if let Some(entry) = list.entry(certificate.raw_serial()) {
            return Status::Revoked(list, entry);
        }
        let Crl { name, this_update, next_update, .. } = list;
        if unix_time < *this_update {
            let this_update = Timestamp(*this_update);
            Status::Unknown(format!("the revocation list {name} is valid from {this_update} on, later than our clock"))
        } else if unix_time > *next_update {
            Status::Unknown(format!("the revocation list {name} was valid until {}", Timestamp(*next_update)))
        } else {
            Status::Good
        }
    }

    fn anchors_named<'a>(&'a self, subject: &'a [u8]) -> impl Iterator<Item = &'a CrlIssuer> {
        self.anchors.iter().filter(move |anchor| anchor.subject == subject)
    }
}

impl CrlIssuer {
    fn new(certificate: &X509Certificate<'_>) -> Self {
        let may_sign = match certificate.key_usage() {
            Ok(usage) => usage.is_none_or(|usage| usage.value.crl_sign()),
            Err(_) => false,
        };
        let key = PublicKey::certified_by(certificate).ok().filter(|_| may_sign);
        Self { subject: certificate.subject().as_raw().to_vec(), key }
    }

    fn has_signed(&self, list: &Crl) -> bool {
        self.key.as_ref().is_some_and(|key| {
            list.is_signed_by(key.octets(), || {
                key.has_signed_by(&list.signed, &list.algorithm, &list.signature).unwrap_or(false)
            })
        })
    }
}

/// Returns the addresses of the complete lists that cover a certificate.
fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let points = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::CRLDistributionPoints(points) => Some(&points.points),
        _ => None,
    });
    let complete = points.into_iter().flatten().filter(|point| point.reasons.is_none() && point.crl_issuer.is_none());
    complete.filter_map(|point| point.distribution_point.as_ref()).flat_map(crl::uris).collect()
}

fn name(der: &[u8]) -> String {
    X509Name::from_der(der).map_or_else(|_| HEXLOWER.encode(der), |(_, name)| identity::quoted_name(&name))
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}
