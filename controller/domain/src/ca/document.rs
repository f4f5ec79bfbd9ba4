//! The stored form of the certificate authorities: their certificates, their keys and the cross
//! certificates.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::Seconds;

/// The layout version that this release writes. A document with a later version is refused and
/// never overwritten.
pub const VERSION: u32 = 1;

/// All authorities. The serialised form contains their private keys, so only the file's owner may
/// read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaDocument {
    /// Layout version of the document: see [`VERSION`].
    pub version: u32,
    /// All authorities that were ever in use, oldest first. The last one that is not retired signs.
    pub authorities: Vec<AuthorityRecord>,
    /// Cross certificates, in which an older authority signed the name and key of a newer one.
    #[serde(default)]
    pub cross: Vec<CrossRecord>,
}

/// An authority as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// The authority's certificate, PEM.
    pub certificate: String,
    /// The authority's private key, PKCS #8 in PEM; `None` once the authority is retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretPem>,
    /// Time at which the authority began to sign, seconds since 1970-01-01 UTC.
    pub created_at: Seconds,
    /// Time at which the authority was retired; `None` while it is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Seconds>,
}

/// A certificate of a newer authority's key, signed by an older authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossRecord {
    /// SHA-256 of the newer authority's key, hexadecimal.
    pub subject: String,
    /// SHA-256 of the older authority's key, hexadecimal.
    pub issuer: String,
    /// The cross certificate, PEM.
    pub certificate: String,
}

/// A private key in PEM. It is wiped from memory when dropped and never appears in `Debug` output.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretPem(Zeroizing<String>);

impl SecretPem {
    /// Wraps a private key in PEM.
    pub fn new(pem: Zeroizing<String>) -> Self {
        Self(pem)
    }

    /// Returns the private key as PEM. It must not be logged.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<secret>")
    }
}

impl Serialize for SecretPem {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretPem {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|pem| Self(Zeroizing::new(pem)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_stored_form_and_in_no_debug_output() {
        let key = SecretPem::new(Zeroizing::new("sesame".into()));
        let record = AuthorityRecord { certificate: "c".into(), key: Some(key), created_at: 1, retired_at: None };
        let document = CaDocument { version: VERSION, authorities: vec![record], cross: Vec::new() };
        assert!(!format!("{document:?}").contains("sesame"));
        let kept = serde_json::to_string(&document).unwrap();
        assert!(kept.contains("sesame"));
        assert_eq!(serde_json::from_str::<CaDocument>(&kept).unwrap(), document);
    }
}
