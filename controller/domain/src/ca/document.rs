//! What is kept of the authorities, as one document: their certificates, their keys, and the
//! certificates by which one vouches for another.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::Seconds;

/// The layout that this release writes. A later one is refused, never rewritten.
pub const VERSION: u32 = 1;

/// All authorities. Serialised it holds their private keys: where it is kept must be for its owner
/// alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaDocument {
    /// [`VERSION`].
    pub version: u32,
    /// Every authority that there ever was, oldest first. The last one that is not retired signs.
    pub authorities: Vec<AuthorityRecord>,
    /// Certificates by which an older authority vouches for a newer one.
    #[serde(default)]
    pub cross: Vec<CrossRecord>,
}

/// One authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its private key, PKCS #8 in PEM; none once it is retired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretPem>,
    /// Since when it signs.
    pub created_at: Seconds,
    /// Since when it is trusted no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Seconds>,
}

/// `issuer` says: this name and key are an authority too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrossRecord {
    /// Hash of the newer authority's key, hexadecimal.
    pub subject: String,
    /// Hash of the older authority's key, hexadecimal.
    pub issuer: String,
    /// PEM.
    pub certificate: String,
}

/// A private key's PEM. Wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretPem(Zeroizing<String>);

impl SecretPem {
    /// Takes it.
    pub fn new(pem: Zeroizing<String>) -> Self {
        Self(pem)
    }

    /// The text.
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
    fn a_key_is_in_what_is_kept_and_in_nothing_that_is_shown() {
        let key = SecretPem::new(Zeroizing::new("sesame".into()));
        let record = AuthorityRecord { certificate: "c".into(), key: Some(key), created_at: 1, retired_at: None };
        let document = CaDocument { version: VERSION, authorities: vec![record], cross: Vec::new() };
        assert!(!format!("{document:?}").contains("sesame"));
        let kept = serde_json::to_string(&document).unwrap();
        assert!(kept.contains("sesame"));
        assert_eq!(serde_json::from_str::<CaDocument>(&kept).unwrap(), document);
    }
}
