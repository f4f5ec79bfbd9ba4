//! Certificate revocation lists (CRLs, RFC 5280 5): read once, then searched by serial number.
//!
//! A list is used as it is configured. Nothing is fetched from the addresses in certificates.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest;
use webpki::{BorrowedCertRevocationList, Error as WebpkiError, RevocationReason};
use x509_parser::asn1_rs::Any;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Maximum size of one list, bytes: about 400,000 entries. A larger list is refused.
pub const MAX_CRL: usize = 16 << 20;

/// Maximum number of lists of one peer. More lists are refused.
pub const MAX_CRLS: usize = 64;

/// Maximum number of keys for which a list remembers whether they have signed it. The signature is
/// checked again for other keys.
const MAX_VERDICTS: usize = 8;

/// When a peer is refused because it is not known whether a certificate of its chain is revoked. A
/// revoked certificate is always refused. The words are strongSwan's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum RevocationPolicy {
    /// Never.
    #[default]
    Relaxed,
    /// If the certificate says where its list is (cRLDistributionPoints, RFC 5280 4.2.1.13).
    IfUri,
    /// Always.
    Strict,
}

/// The revocation lists that apply to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The lists, shared with other peers.
    pub lists: Arc<RevocationLists>,
    /// Which certificates must be covered by a list.
    pub policy: RevocationPolicy,
}

/// The reason why a list cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// The list is larger than [`MAX_CRL`]. Holds the size, bytes.
    #[error("it has {0} octets; the limit is {limit}", limit = MAX_CRL)]
    TooLarge(usize),
    /// There are more lists than [`MAX_CRLS`]. Holds the number of lists.
    #[error("{0} revocation lists; the limit is {limit}", limit = MAX_CRLS)]
    TooMany(usize),
    /// A delta CRL (RFC 5280 5.2.4).
    #[error("it is a delta CRL, which has only the changes; a complete CRL is needed")]
    Delta,
    /// An indirect CRL (RFC 5280 5.2.5).
    #[error("it is an indirect CRL, with certificates of other issuers; a CRL of the issuer itself is needed")]
    Indirect,
    /// A CRL with some of the revocation reasons (RFC 5280 5.2.5).
    #[error("it is limited to some reasons of revocation; a CRL with all reasons is needed")]
    SomeReasons,
    /// A distribution point without a complete name (RFC 5280 5.2.5).
    #[error(
        "its distribution point has no complete name, so its scope is unknown; a CRL for all certificates is needed"
    )]
    Scope,
    /// A critical extension that is not supported (RFC 5280 5.2).
    #[error("it has a critical extension that is not supported, so it must not be used")]
    CriticalExtension,
    /// Not version 2 (RFC 5280 5.1.2.1).
    #[error("it is not of version 2; with openssl, `crlnumber` in the CA's section makes it so")]
    Version,
    /// It cannot be parsed. Holds the parser's reason.
    #[error("it is not DER of a CRL, or cut short: {0}")]
    Malformed(String),
}

/// An entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// revocationDate, seconds since 1970-01-01 UTC.
    pub(crate) since: u64,
    /// The reason code as RFC 5280 5.3.1 names it.
    pub(crate) reason: &'static str,
}

/// One list. Its signature is not checked when it is read, since the issuer may be known only when
/// a peer presents its chain.
pub(crate) struct Crl {
    /// Where the list comes from, for messages.
    pub(crate) name: String,
    /// The issuer's distinguished name, DER.
    pub(crate) issuer: Vec<u8>,
    /// thisUpdate, seconds since 1970-01-01 UTC.
    pub(crate) this_update: u64,
    /// nextUpdate, seconds since 1970-01-01 UTC.
    pub(crate) next_update: u64,
    /// The octets that the signature covers.
    pub(crate) signed: Vec<u8>,
    /// The AlgorithmIdentifier of the signature, DER.
    pub(crate) algorithm: Vec<u8>,
    /// The signature.
    pub(crate) signature: Vec<u8>,
    scope: Scope,
    entries: HashMap<Box<[u8]>, Entry>,
    /// SHA-256 of the list.
    digest: Vec<u8>,
    /// Whether the keys with these hashes have signed the list.
    verdicts: Mutex<Vec<(Vec<u8>, bool)>>,
}

/// The certificates that a list covers (issuingDistributionPoint, RFC 5280 5.2.5).
#[derive(Debug, Default)]
struct Scope {
    users_only: bool,
    cas_only: bool,
    /// The names of the distribution point. `None` if the list is not limited to one.
    uris: Option<Vec<String>>,
}

/// The lists that apply to a peer. Peers share them.
pub struct RevocationLists {
    /// The newest first.
    lists: Vec<Crl>,
}

impl RevocationLists {
    /// Reads lists. Each one has a name for messages, and its DER.
    ///
    /// # Errors
    /// Returns the name of the first list that cannot be used, and the reason.
    pub fn new(sources: &[(String, Vec<u8>)]) -> Result<Self, (String, CrlError)> {
        if let Some((name, _)) = sources.get(MAX_CRLS) {
            return Err((name.clone(), CrlError::TooMany(sources.len())));
        }
        let lists = sources.iter().map(|(name, der)| Crl::new(name, der).map_err(|error| (name.clone(), error)));
        let mut lists: Vec<Crl> = lists.collect::<Result<_, _>>()?;
        lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
        Ok(Self { lists })
    }

    /// Returns nextUpdate of each list with its name, seconds since 1970-01-01 UTC.
    pub fn next_updates(&self) -> impl Iterator<Item = (&str, u64)> {
        self.lists.iter().map(|list| (list.name.as_str(), list.next_update))
    }

    /// Returns the number of entries of all lists.
    pub fn entries(&self) -> usize {
        self.lists.iter().map(|list| list.entries.len()).sum()
    }

    /// Returns the lists of this issuer, the newest first.
    pub(crate) fn of_issuer(&self, issuer: &[u8]) -> impl Iterator<Item = &Crl> {
        self.lists.iter().filter(move |list| list.issuer == issuer)
    }

    /// Returns all lists, the newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Crl> {
        self.lists.iter()
    }
}

impl PartialEq for RevocationLists {
    fn eq(&self, other: &Self) -> bool {
        self.lists.iter().map(|list| &list.digest).eq(other.lists.iter().map(|list| &list.digest))
    }
}

impl Eq for RevocationLists {}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lists.iter().map(|list| (&list.name, list.entries.len()))).finish()
    }
}

impl Crl {
    fn new(name: &str, der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL {
            return Err(CrlError::TooLarge(der.len()));
        }
        // webpki refuses what it does not understand. x509-parser is less strict, but shows dates
        // and names.
        let strict = BorrowedCertRevocationList::from_der(der).map_err(CrlError::from)?;
        let mut entries = HashMap::new();
        for entry in &strict {
            let entry = entry.map_err(CrlError::from)?;
            // RFC 5280 6.3.3 (l): removeFromCRL means that the certificate is not revoked.
            if entry.reason_code != Some(RevocationReason::RemoveFromCrl) {
                let reason = reason(entry.reason_code);
                entries.insert(entry.serial_number.into(), Entry { since: entry.revocation_date.as_secs(), reason });
            }
        }
        let malformed = |what: &str| CrlError::Malformed(what.to_owned());
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| malformed("its fields are no CRL's"))?;
        let signed = parsed.tbs_cert_list.as_ref();
        let list = Any::from_der(der).map_err(|_| malformed("no sequence"))?.1;
        let after = list.data.get(signed.len()..).ok_or_else(|| malformed("no signature"))?;
        let (rest, _) = Any::from_der(after).map_err(|_| malformed("no signature algorithm"))?;
        let algorithm = after.get(..after.len() - rest.len()).unwrap_or_default();
        let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        let next_update = parsed.next_update().ok_or_else(|| malformed("no nextUpdate"))?;
        Ok(Self {
            name: name.to_owned(),
            issuer: parsed.issuer().as_raw().to_vec(),
            this_update: seconds(parsed.last_update().timestamp()),
            next_update: seconds(next_update.timestamp()),
            signed: signed.to_vec(),
            algorithm: algorithm.to_vec(),
            signature: parsed.signature_value.data.to_vec(),
            scope: Scope::of(&parsed),
            entries,
            digest: digest::digest(&digest::SHA256, der).as_ref().to_vec(),
            verdicts: Mutex::default(),
        })
    }

    /// Returns the entry of a certificate. `serial` is the content of the DER integer.
    pub(crate) fn entry(&self, serial: &[u8]) -> Option<Entry> {
        self.entries.get(serial).copied()
    }

    /// Returns whether the list covers a certificate: an authority's or not, with lists at `uris`.
    pub(crate) fn covers(&self, is_ca: bool, uris: &[&str]) -> bool {
        let Scope { users_only, cas_only, uris: own } = &self.scope;
        let here = own.as_ref().is_none_or(|own| uris.is_empty() || own.iter().any(|uri| uris.contains(&&**uri)));
        here && if is_ca { !users_only } else { !cas_only }
    }

    /// Returns whether `key` has signed the list, as `verify` finds out. The answer is remembered,
    /// since the signature covers the whole list.
    pub(crate) fn is_signed_by(&self, key: &[u8], verify: impl FnOnce() -> bool) -> bool {
        let hash = digest::digest(&digest::SHA256, key);
        let known = |verdicts: &Vec<(Vec<u8>, bool)>| {
            verdicts.iter().find(|(known, _)| known == hash.as_ref()).map(|(_, signed)| *signed)
        };
        if let Some(signed) = known(&self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)) {
            return signed;
        }
        let signed = verify();
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if verdicts.len() < MAX_VERDICTS && known(&verdicts).is_none() {
            verdicts.push((hash.as_ref().to_vec(), signed));
        }
        signed
    }
}

impl Scope {
    fn of(list: &CertificateRevocationList<'_>) -> Self {
        let point = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::IssuingDistributionPoint(point) => Some(point),
            _ => None,
        });
        point.map_or_else(Self::default, |point| Self {
            users_only: point.only_contains_user_certs,
            cas_only: point.only_contains_ca_certs,
            uris: point.distribution_point.as_ref().map(|name| uris(name).map(str::to_owned).collect()),
        })
    }
}

/// Returns the URIs of a distribution point.
pub(crate) fn uris<'a>(name: &'a DistributionPointName<'_>) -> impl Iterator<Item = &'a str> {
    let names = match name {
        DistributionPointName::FullName(names) => names.as_slice(),
        DistributionPointName::NameRelativeToCRLIssuer(_) => &[],
    };
    names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })
}

fn reason(code: Option<RevocationReason>) -> &'static str {
    match code {
        None | Some(RevocationReason::Unspecified) => "unspecified",
        Some(RevocationReason::KeyCompromise) => "keyCompromise",
        Some(RevocationReason::CaCompromise) => "cACompromise",
        Some(RevocationReason::AffiliationChanged) => "affiliationChanged",
        Some(RevocationReason::Superseded) => "superseded",
        Some(RevocationReason::CessationOfOperation) => "cessationOfOperation",
        Some(RevocationReason::CertificateHold) => "certificateHold",
        Some(RevocationReason::RemoveFromCrl) => "removeFromCRL",
        Some(RevocationReason::PrivilegeWithdrawn) => "privilegeWithdrawn",
        Some(RevocationReason::AaCompromise) => "aACompromise",
    }
}

impl From<WebpkiError> for CrlError {
    fn from(error: WebpkiError) -> Self {
        match error {
            WebpkiError::UnsupportedDeltaCrl => Self::Delta,
            WebpkiError::UnsupportedIndirectCrl => Self::Indirect,
            WebpkiError::UnsupportedRevocationReasonsPartitioning => Self::SomeReasons,
            WebpkiError::UnsupportedCrlIssuingDistributionPoint => Self::Scope,
            WebpkiError::UnsupportedCriticalExtension => Self::CriticalExtension,
            WebpkiError::UnsupportedCrlVersion => Self::Version,
            other => Self::Malformed(other.to_string()),
        }
    }
}
