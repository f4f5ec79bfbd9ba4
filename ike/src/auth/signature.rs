//! Digital signatures (RFC 7427, RFC 8420), ECDSA by RFC 4754 and RSA by RFC 7296.

use data_encoding::HEXLOWER;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::prelude::X509Certificate;

use super::error::{AuthError, CredentialError};
use super::proof::Proof;
use super::rsa::{self, RsaSigner};
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
    Ecdsa {
        curve: EcdsaCurve,
        /// Signs as RFC 7427 wants it (DER).
        key: Box<EcdsaKeyPair>,
        /// The same key in PKCS#8. A signing key for RFC 4754 (r | s) is made from it only when a
        /// peer needs it.
        pkcs8: Secret,
    },
    Rsa(Box<RsaSigner>),
}

/// A curve on which we can sign, with the one hash algorithm that `ring` signs with on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EcdsaCurve {
    P256,
    P384,
}

impl EcdsaCurve {
    fn kind(self) -> KeyKind {
        match self {
            Self::P256 => KeyKind::P256,
            Self::P384 => KeyKind::P384,
        }
    }

    /// Signs as RFC 7427 wants it, and as RFC 4754 does.
    fn algorithms(self) -> (&'static EcdsaSigningAlgorithm, &'static EcdsaSigningAlgorithm) {
        match self {
            Self::P256 => (&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P256_SHA256_FIXED_SIGNING),
            Self::P384 => (&ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P384_SHA384_FIXED_SIGNING),
        }
    }

    fn hash(self) -> HashAlgorithm {
        match self {
            Self::P256 => HashAlgorithm::Sha2_256,
            Self::P384 => HashAlgorithm::Sha2_384,
        }
    }

    fn identifier(self) -> &'static [u8] {
        match self {
            Self::P256 => ECDSA_WITH_SHA256,
            Self::P384 => ECDSA_WITH_SHA384,
        }
    }

    /// The method of RFC 4754.
    fn method(self) -> AuthMethod {
        match self {
            Self::P256 => AuthMethod::EcdsaP256Sha256,
            Self::P384 => AuthMethod::EcdsaP384Sha384,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "ECDSA P-256",
            Self::P384 => "ECDSA P-384",
        }
    }
}

impl SigningKey {
    pub(super) fn new(pkcs8: &Secret) -> Result<Self, CredentialError> {
        // "Maybe unchecked": version 1 of PKCS#8 holds no public key to check against. `belongs_to`
        // checks against the certificate instead.
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.expose()) {
            return Ok(Self::Ed25519(Box::new(key)));
        }
        for curve in [EcdsaCurve::P256, EcdsaCurve::P384] {
            if let Some(key) = ecdsa(curve.algorithms().0, pkcs8) {
                return Ok(Self::Ecdsa { curve, key: Box::new(key), pkcs8: pkcs8.clone() });
            }
        }
        RsaSigner::new(pkcs8).map(|key| Self::Rsa(Box::new(key))).ok_or(CredentialError::UnsupportedKey)
    }

    pub(super) fn belongs_to(&self, certified: &PublicKey) -> bool {
        let (kind, key) = match self {
            Self::Ed25519(key) => (KeyKind::Ed25519, key.public_key().as_ref()),
            Self::Ecdsa { curve, key, .. } => (curve.kind(), key.public_key().as_ref()),
            Self::Rsa(key) => (KeyKind::Rsa, key.public_key()),
        };
        certified.kind == kind && certified.key == key
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
            Self::Ecdsa { curve, key, .. } if accepts(curve.hash()) => {
                let signature = key.sign(&SystemRandom::new(), octets).map_err(|_| AuthError::Signing)?;
                Ok(digital_signature(curve.identifier(), signature.as_ref()))
            }
            // RFC 7427 4: without SIGNATURE_HASH_ALGORITHMS the peer may not know method 14.
            Self::Ecdsa { curve, pkcs8, .. } if peer_hashes.is_none() => {
                let key = ecdsa(curve.algorithms().1, pkcs8).ok_or(AuthError::Signing)?;
                let signature = key.sign(&SystemRandom::new(), octets).map_err(|_| AuthError::Signing)?;
                Ok(Authentication { method: curve.method(), data: signature.as_ref().to_vec() })
            }
            Self::Rsa(key) => match peer_hashes {
                Some(hashes) => {
                    let signed = key.sign_pss(octets, hashes)?;
                    let signed = signed.ok_or_else(|| no_common_signature("RSA", peer_hashes))?;
                    Ok(digital_signature(&signed.identifier, &signed.signature))
                }
                None => Ok(Authentication { method: AuthMethod::RsaSignature, data: key.sign_pkcs1(octets)? }),
            },
            Self::Ed25519(_) => Err(no_common_signature("Ed25519", peer_hashes)),
            Self::Ecdsa { curve, .. } => Err(no_common_signature(curve.name(), peer_hashes)),
        }
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ed25519(_) => "Ed25519",
            Self::Ecdsa { curve: EcdsaCurve::P256, .. } => "EcdsaP256",
            Self::Ecdsa { curve: EcdsaCurve::P384, .. } => "EcdsaP384",
            Self::Rsa(_) => "Rsa",
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
    kind: KeyKind,
    key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Ed25519,
    P256,
    P384,
    Rsa,
}

impl PublicKey {
    pub(super) fn certified_by(certificate: &X509Certificate<'_>) -> Result<Self, AuthError> {
        let info = certificate.public_key();
        let oid = info.algorithm.algorithm.as_bytes();
        let parameters = info.algorithm.parameters.as_ref().map(|parameters| parameters.data);
        let kind = match (oid, parameters) {
            (OID_ED25519, None) => KeyKind::Ed25519,
            (OID_EC_PUBLIC_KEY, Some(OID_P256)) => KeyKind::P256,
            (OID_EC_PUBLIC_KEY, Some(OID_P384)) => KeyKind::P384,
            (rsa::OID_RSA_ENCRYPTION, _) => {
                rsa::check_size(info)?;
                KeyKind::Rsa
            }
            _ => return Err(AuthError::UnsupportedSignature(format!("key {}", info.algorithm.algorithm))),
        };
        Ok(Self { kind, key: info.subject_public_key.data.to_vec() })
    }

    /// Checks that AUTH is a signature by this key.
    pub(super) fn verify(&self, octets: &[u8], auth: &Authentication) -> Result<Proof, AuthError> {
        let (algorithms, signature) = self.algorithms(auth)?;
        let verified = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.key).verify(octets, signature).is_ok()
        };
        if !algorithms.iter().any(verified) {
            return Err(AuthError::Signature);
        }
        Ok(match self.kind {
            KeyKind::Ed25519 => Proof::Ed25519,
            KeyKind::P256 => Proof::EcdsaP256,
            KeyKind::P384 => Proof::EcdsaP384,
            KeyKind::Rsa => Proof::Rsa,
        })
    }

    /// The algorithms that AUTH may be made with, and the signature in it.
    fn algorithms<'a>(
        &self,
        auth: &'a Authentication,
    ) -> Result<(Vec<&'static dyn VerificationAlgorithm>, &'a [u8]), AuthError> {
        let data = auth.data.as_slice();
        match (auth.method, self.kind) {
            (AuthMethod::DigitalSignature, kind) => {
                let identifier_and_signature =
                    data.split_first().and_then(|(&length, rest)| rest.split_at_checked(length.into()));
                let (identifier, signature) = identifier_and_signature.ok_or(AuthError::Signature)?;
                let rsa = rsa::algorithm(identifier);
                let algorithm: &'static dyn VerificationAlgorithm = match (identifier, kind) {
                    (ID_ED25519, KeyKind::Ed25519) => &ED25519,
                    (ECDSA_WITH_SHA256, KeyKind::P256) => &ECDSA_P256_SHA256_ASN1,
                    (ECDSA_WITH_SHA384, KeyKind::P256) => &ECDSA_P256_SHA384_ASN1,
                    (ECDSA_WITH_SHA256, KeyKind::P384) => &ECDSA_P384_SHA256_ASN1,
                    (ECDSA_WITH_SHA384, KeyKind::P384) => &ECDSA_P384_SHA384_ASN1,
                    (ID_ED25519 | ECDSA_WITH_SHA256 | ECDSA_WITH_SHA384, _) => {
                        return Err(AuthError::AlgorithmMismatch);
                    }
                    (other, kind) => match (rsa, kind) {
                        (Some(algorithm), KeyKind::Rsa) => algorithm,
                        (Some(_), _) => return Err(AuthError::AlgorithmMismatch),
                        (None, _) => return Err(AuthError::UnsupportedSignature(shown(other))),
                    },
                };
                Ok((vec![algorithm], signature))
            }
            // RFC 4754: r | s.
            (AuthMethod::EcdsaP256Sha256, KeyKind::P256) => Ok((vec![&ECDSA_P256_SHA256_FIXED], data)),
            (AuthMethod::EcdsaP384Sha384, KeyKind::P384) => Ok((vec![&ECDSA_P384_SHA384_FIXED], data)),
            (AuthMethod::RsaSignature, KeyKind::Rsa) => Ok((rsa::PKCS1.to_vec(), data)),
            (AuthMethod::EcdsaP256Sha256 | AuthMethod::EcdsaP384Sha384 | AuthMethod::RsaSignature, _) => {
                Err(AuthError::AlgorithmMismatch)
            }
            (found, _) => Err(AuthError::Method { expected: "a digital signature", found }),
        }
    }
}

/// An unknown AlgorithmIdentifier in hexadecimal, cut: it comes from the peer.
fn shown(identifier: &[u8]) -> String {
    HEXLOWER.encode(identifier.get(..32).unwrap_or(identifier))
}
