//! Digital signatures (RFC 7427, RFC 8420), ECDSA by RFC 4754 and RSA by RFC 7296.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::prelude::X509Certificate;

use super::ecdsa::{self, Curve, EcdsaSigner};
use super::error::{AuthError, CredentialError};
use super::object_identifiers;
use super::proof::Proof;
use super::rsa::{self, RsaSigner};
use crate::secret::Secret;
use crate::wire::{AuthMethod, Authentication, HashAlgorithm};

/// AlgorithmIdentifier as in RFC 8420 2: SEQUENCE { OBJECT IDENTIFIER }, no parameters.
const ID_ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

// Contents of OBJECT IDENTIFIERs in SubjectPublicKeyInfo (RFC 5480, RFC 8410).
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const OID_EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// Our private key, ready to sign.
pub(super) enum SigningKey {
    Ed25519(Box<Ed25519KeyPair>),
    Ecdsa(EcdsaSigner),
    Rsa(Box<RsaSigner>),
}

impl SigningKey {
    pub(super) fn new(pkcs8: &Secret) -> Result<Self, CredentialError> {
        // The key may remain unchecked here: version 1 of PKCS#8 contains no public key to compare
        // it with. `belongs_to` compares it with the certificate's key instead.
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.expose()) {
            return Ok(Self::Ed25519(Box::new(key)));
        }
        if let Some(key) = EcdsaSigner::new(pkcs8) {
            return Ok(Self::Ecdsa(key));
        }
        RsaSigner::new(pkcs8).map(|key| Self::Rsa(Box::new(key))).ok_or(CredentialError::UnsupportedKey)
    }

    pub(super) fn belongs_to(&self, certified: &PublicKey) -> bool {
        let (kind, key) = match self {
            Self::Ed25519(key) => (KeyKind::Ed25519, key.public_key().as_ref()),
            Self::Ecdsa(key) => (KeyKind::Ecdsa(key.curve()), key.public_key()),
            Self::Rsa(key) => (KeyKind::Rsa, key.public_key()),
        };
        certified.kind == kind && certified.key == key
    }

    pub(super) fn sign(
        &self,
        octets: &[u8],
        peer_hashes: Option<&[HashAlgorithm]>,
    ) -> Result<Authentication, AuthError> {
        match (self, peer_hashes) {
            // RFC 8420 2: the "Identity" hash must have been announced.
            (Self::Ed25519(key), Some(hashes)) if hashes.contains(&HashAlgorithm::Identity) => {
                Ok(digital_signature(ID_ED25519, key.sign(octets).as_ref()))
            }
            (Self::Ed25519(_), _) => Err(no_common_signature("Ed25519", peer_hashes)),
            (Self::Ecdsa(key), Some(hashes)) => {
                let signed = key.sign(octets, hashes)?;
                let signed = signed.ok_or_else(|| no_common_signature(key.curve().name(), peer_hashes))?;
                Ok(digital_signature(signed.identifier, &signed.signature))
            }
            // RFC 7427 4: without SIGNATURE_HASH_ALGORITHMS the peer may not support method 14.
            (Self::Ecdsa(key), None) => {
                let (method, data) = key.sign_fixed(octets)?;
                Ok(Authentication { method, data })
            }
            (Self::Rsa(key), Some(hashes)) => {
                let signed = key.sign_pss(octets, hashes)?;
                let signed = signed.ok_or_else(|| no_common_signature("RSA", peer_hashes))?;
                Ok(digital_signature(&signed.identifier, &signed.signature))
            }
            (Self::Rsa(key), None) => {
                Ok(Authentication { method: AuthMethod::RsaSignature, data: key.sign_pkcs1(octets)? })
            }
        }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ed25519(_) => "Ed25519",
            Self::Ecdsa(key) => key.curve().name(),
            Self::Rsa(_) => "Rsa",
        })
    }
}

/// Encodes method 14: the length of the AlgorithmIdentifier, the AlgorithmIdentifier and the
/// signature (RFC 7427 3).
fn digital_signature(algorithm: &[u8], signature: &[u8]) -> Authentication {
    let length = u8::try_from(algorithm.len()).unwrap_or(u8::MAX);
    Authentication { method: AuthMethod::DigitalSignature, data: [&[length], algorithm, signature].concat() }
}

fn no_common_signature(key: &'static str, peer_hashes: Option<&[HashAlgorithm]>) -> AuthError {
    let names: Vec<String> = peer_hashes.unwrap_or_default().iter().map(HashAlgorithm::to_string).collect();
    let accepted = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    AuthError::NoCommonSignature { key, accepted }
}

/// A public key from a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    kind: KeyKind,
    key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Ed25519,
    Ecdsa(Curve),
    Rsa,
}

impl PublicKey {
    pub(super) fn certified_by(certificate: &X509Certificate<'_>) -> Result<Self, AuthError> {
        let info = certificate.public_key();
        let oid = info.algorithm.algorithm.as_bytes();
        let parameters = info.algorithm.parameters.as_ref().map(|parameters| parameters.data);
        let kind = match (oid, parameters) {
            (OID_ED25519, None) => KeyKind::Ed25519,
            (OID_EC_PUBLIC_KEY, Some(OID_P256)) => KeyKind::Ecdsa(Curve::P256),
            (OID_EC_PUBLIC_KEY, Some(OID_P384)) => KeyKind::Ecdsa(Curve::P384),
            (rsa::OID_RSA_ENCRYPTION, _) => {
                rsa::check_size(info)?;
                KeyKind::Rsa
            }
            _ => {
                let name = object_identifiers::key(&info.algorithm);
                return Err(AuthError::UnsupportedSignature(format!("key {name}")));
            }
        };
        Ok(Self { kind, key: info.subject_public_key.data.to_vec() })
    }

    /// Checks that AUTH is a signature by this key. Returns the kind of signature.
    pub(super) fn verify(&self, octets: &[u8], auth: &Authentication) -> Result<Proof, AuthError> {
        if !self.has_signed(octets, auth)? {
            return Err(AuthError::Signature);
        }
        Ok(match self.kind {
            KeyKind::Ed25519 => Proof::Ed25519,
            KeyKind::Ecdsa(Curve::P256) => Proof::EcdsaP256,
            KeyKind::Ecdsa(Curve::P384) => Proof::EcdsaP384,
            KeyKind::Rsa => Proof::Rsa,
        })
    }

    fn has_signed(&self, octets: &[u8], auth: &Authentication) -> Result<bool, AuthError> {
        let (key, data) = (self.key.as_slice(), auth.data.as_slice());
        match (auth.method, self.kind) {
            (AuthMethod::DigitalSignature, _) => {
                let identifier_and_signature =
                    data.split_first().and_then(|(&length, rest)| rest.split_at_checked(length.into()));
                let (identifier, signature) = identifier_and_signature.ok_or(AuthError::Signature)?;
                self.has_signed_by(octets, identifier, signature)
            }
            (AuthMethod::EcdsaP256Sha256, KeyKind::Ecdsa(curve @ Curve::P256))
            | (AuthMethod::EcdsaP384Sha384, KeyKind::Ecdsa(curve @ Curve::P384)) => {
                Ok(curve.verify_fixed(key, octets, data))
            }
            (AuthMethod::RsaSignature, KeyKind::Rsa) => {
                let verified = |algorithm: &&'static dyn VerificationAlgorithm| {
                    UnparsedPublicKey::new(*algorithm, key).verify(octets, data).is_ok()
                };
                Ok(rsa::PKCS1.iter().any(verified))
            }
            (AuthMethod::EcdsaP256Sha256 | AuthMethod::EcdsaP384Sha384 | AuthMethod::RsaSignature, _) => {
                Err(AuthError::AlgorithmMismatch)
            }
            (found, _) => Err(AuthError::Method { expected: "a digital signature", found }),
        }
    }

    /// Returns whether `signature` is a signature by this key with the algorithm that
    /// `identifier`, the DER of an AlgorithmIdentifier, names.
    pub(super) fn has_signed_by(&self, octets: &[u8], identifier: &[u8], signature: &[u8]) -> Result<bool, AuthError> {
        let key = self.key.as_slice();
        match (SignatureAlgorithm::named_by(identifier)?, self.kind) {
            (SignatureAlgorithm::Ed25519, KeyKind::Ed25519) => {
                Ok(UnparsedPublicKey::new(&ED25519, key).verify(octets, signature).is_ok())
            }
            (SignatureAlgorithm::Ecdsa(hash), KeyKind::Ecdsa(curve)) => Ok(curve.verify(hash, key, octets, signature)),
            (SignatureAlgorithm::Rsa(algorithm), KeyKind::Rsa) => {
                Ok(UnparsedPublicKey::new(algorithm, key).verify(octets, signature).is_ok())
            }
            _ => Err(AuthError::AlgorithmMismatch),
        }
    }

    /// Returns the key's octets, as the certificate has them.
    pub(super) fn octets(&self) -> &[u8] {
        &self.key
    }
}

/// An algorithm of method 14.
enum SignatureAlgorithm {
    Ed25519,
    Ecdsa(HashAlgorithm),
    Rsa(&'static dyn VerificationAlgorithm),
}

impl SignatureAlgorithm {
    fn named_by(identifier: &[u8]) -> Result<Self, AuthError> {
        if identifier == ID_ED25519 {
            return Ok(Self::Ed25519);
        }
        let ecdsa = ecdsa::hash(identifier).map(Self::Ecdsa);
        let algorithm = ecdsa.or_else(|| rsa::algorithm(identifier).map(Self::Rsa));
        algorithm.ok_or_else(|| AuthError::UnsupportedSignature(object_identifiers::algorithm(identifier)))
    }
}
