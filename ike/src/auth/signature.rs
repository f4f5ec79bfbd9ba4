//! Digital signatures (RFC 7427, RFC 8420) and ECDSA by RFC 4754.

use data_encoding::HEXLOWER;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, ED25519,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::prelude::X509Certificate;

use super::error::{AuthError, CredentialError};
use super::proof::Proof;
use crate::secret::Secret;
use crate::wire::{AuthMethod, Authentication, HashAlgorithm};

// AlgorithmIdentifiers as RFC 7427 A and RFC 8420 2 print them: SEQUENCE { OBJECT IDENTIFIER }, no
// parameters.
const ID_ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
const ECDSA_WITH_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_WITH_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];

// Contents of OBJECT IDENTIFIERs in SubjectPublicKeyInfo (RFC 5480, RFC 8410).
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const OID_EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// Our private key, ready to sign.
pub(super) enum SigningKey {
    Ed25519(Box<Ed25519KeyPair>),
    EcdsaP256 {
        /// Signs as RFC 7427 wants it (DER).
        key: Box<EcdsaKeyPair>,
        /// The same key in PKCS#8. A signing key for RFC 4754 (r | s) is made from it only when a
        /// peer needs it.
        pkcs8: Secret,
    },
}

impl SigningKey {
    pub(super) fn new(pkcs8: &Secret) -> Result<Self, CredentialError> {
        // "Maybe unchecked": version 1 of PKCS#8 holds no public key to check against. `belongs_to`
        // checks against the certificate instead.
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.expose()) {
            return Ok(Self::Ed25519(Box::new(key)));
        }
        let key = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8).ok_or(CredentialError::UnsupportedKey)?;
        Ok(Self::EcdsaP256 { key: Box::new(key), pkcs8: pkcs8.clone() })
    }

    pub(super) fn belongs_to(&self, certified: &PublicKey) -> bool {
        let (curve, key) = match self {
            Self::Ed25519(key) => (Curve::Ed25519, key.public_key().as_ref()),
            Self::EcdsaP256 { key, .. } => (Curve::P256, key.public_key().as_ref()),
        };
        certified.curve == curve && certified.key == key
    }

    pub(super) fn sign(
        &self,
        octets: &[u8],
        peer_hashes: Option<&[HashAlgorithm]>,
    ) -> Result<Authentication, AuthError> {
        let accepts = |hash| peer_hashes.is_some_and(|hashes| hashes.contains(&hash));
        match self {
            // RFC 8420 2: the "Identity" hash must have been announced.
            Self::Ed25519(key) if accepts(HashAlgorithm::Identity) => {
                Ok(digital_signature(ID_ED25519, key.sign(octets).as_ref()))
            }
            Self::EcdsaP256 { key, .. } if accepts(HashAlgorithm::Sha2_256) => {
                let signature = key.sign(&SystemRandom::new(), octets).map_err(|_| AuthError::Signing)?;
                Ok(digital_signature(ECDSA_WITH_SHA256, signature.as_ref()))
            }
            // RFC 7427 4: without SIGNATURE_HASH_ALGORITHMS the peer may not know method 14.
            Self::EcdsaP256 { pkcs8, .. } if peer_hashes.is_none() => {
                let key = ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8).ok_or(AuthError::Signing)?;
                let signature = key.sign(&SystemRandom::new(), octets).map_err(|_| AuthError::Signing)?;
                Ok(Authentication { method: AuthMethod::EcdsaP256Sha256, data: signature.as_ref().to_vec() })
            }
            Self::Ed25519(_) => Err(no_common_signature("Ed25519", peer_hashes)),
            Self::EcdsaP256 { .. } => Err(no_common_signature("ECDSA P-256", peer_hashes)),
        }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ed25519(_) => "Ed25519",
            Self::EcdsaP256 { .. } => "EcdsaP256",
        })
    }
}

fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm, pkcs8: &Secret) -> Option<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.expose(), &SystemRandom::new()).ok()
}

/// Method 14: length of the AlgorithmIdentifier, AlgorithmIdentifier, signature (RFC 7427 3).
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
    curve: Curve,
    key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    Ed25519,
    P256,
    P384,
}

impl PublicKey {
    pub(super) fn certified_by(certificate: &X509Certificate<'_>) -> Result<Self, AuthError> {
        let info = certificate.public_key();
        let oid = info.algorithm.algorithm.as_bytes();
        let parameters = info.algorithm.parameters.as_ref().map(|parameters| parameters.data);
        let curve = match (oid, parameters) {
            (OID_ED25519, None) => Curve::Ed25519,
            (OID_EC_PUBLIC_KEY, Some(OID_P256)) => Curve::P256,
            (OID_EC_PUBLIC_KEY, Some(OID_P384)) => Curve::P384,
            _ => return Err(AuthError::UnsupportedSignature(format!("key {}", info.algorithm.algorithm))),
        };
        Ok(Self { curve, key: info.subject_public_key.data.to_vec() })
    }

    /// Checks that AUTH is a signature by this key.
    pub(super) fn verify(&self, octets: &[u8], auth: &Authentication) -> Result<Proof, AuthError> {
        let (algorithm, signature) = self.algorithm(auth)?;
        UnparsedPublicKey::new(algorithm, &self.key).verify(octets, signature).map_err(|_| AuthError::Signature).map(
            |()| match self.curve {
                Curve::Ed25519 => Proof::Ed25519,
                Curve::P256 => Proof::EcdsaP256,
                Curve::P384 => Proof::EcdsaP384,
            },
        )
    }

    fn algorithm<'a>(
        &self,
        auth: &'a Authentication,
    ) -> Result<(&'static dyn VerificationAlgorithm, &'a [u8]), AuthError> {
        let data = auth.data.as_slice();
        match (auth.method, self.curve) {
            (AuthMethod::DigitalSignature, curve) => {
                let identifier_and_signature =
                    data.split_first().and_then(|(&length, rest)| rest.split_at_checked(length.into()));
                let (identifier, signature) = identifier_and_signature.ok_or(AuthError::Signature)?;
                let algorithm: &dyn VerificationAlgorithm = match (identifier, curve) {
                    (ID_ED25519, Curve::Ed25519) => &ED25519,
                    (ECDSA_WITH_SHA256, Curve::P256) => &ECDSA_P256_SHA256_ASN1,
                    (ECDSA_WITH_SHA384, Curve::P256) => &ECDSA_P256_SHA384_ASN1,
                    (ECDSA_WITH_SHA256, Curve::P384) => &ECDSA_P384_SHA256_ASN1,
                    (ECDSA_WITH_SHA384, Curve::P384) => &ECDSA_P384_SHA384_ASN1,
                    (ID_ED25519 | ECDSA_WITH_SHA256 | ECDSA_WITH_SHA384, _) => {
                        return Err(AuthError::AlgorithmMismatch);
                    }
                    (other, _) => return Err(AuthError::UnsupportedSignature(shown(other))),
                };
                Ok((algorithm, signature))
            }
            // RFC 4754: r | s.
            (AuthMethod::EcdsaP256Sha256, Curve::P256) => Ok((&ECDSA_P256_SHA256_FIXED, data)),
            (AuthMethod::EcdsaP384Sha384, Curve::P384) => Ok((&ECDSA_P384_SHA384_FIXED, data)),
            (AuthMethod::EcdsaP256Sha256 | AuthMethod::EcdsaP384Sha384, _) => Err(AuthError::AlgorithmMismatch),
            (found, _) => Err(AuthError::Method { expected: "a digital signature", found }),
        }
    }
}

/// An unknown AlgorithmIdentifier in hexadecimal, cut: it comes from the peer.
fn shown(identifier: &[u8]) -> String {
    HEXLOWER.encode(identifier.get(..32).unwrap_or(identifier))
}
