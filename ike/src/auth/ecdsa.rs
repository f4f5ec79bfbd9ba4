//! ECDSA on P-256 and P-384: digital signatures with SHA-2 (RFC 7427, RFC 8247 3.2), and the older
//! methods of RFC 4754.
//!
//! RFC 7427 lets the signer combine a curve with any hash algorithm that the peer announced. `ring`
//! signs only with the curve's own hash algorithm, and verifies with SHA2-256 and SHA2-384. The
//! `p256` and `p384` crates sign and verify hashes made by the other algorithms.

use p256::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p256::pkcs8::DecodePrivateKey;
use ring::digest::{self, SHA256, SHA384, SHA512};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair,
    UnparsedPublicKey, VerificationAlgorithm,
};

use super::error::AuthError;
use crate::secret::Secret;
use crate::wire::{AuthMethod, HashAlgorithm};

/// AlgorithmIdentifiers as in RFC 7427 A.3: SEQUENCE { OBJECT IDENTIFIER }, no parameters.
const IDENTIFIERS: [(HashAlgorithm, &[u8]); 3] = [
    (HashAlgorithm::Sha2_256, &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]),
    (HashAlgorithm::Sha2_384, &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03]),
    (HashAlgorithm::Sha2_512, &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04]),
];

/// Returns the hash algorithm of ECDSA that an AlgorithmIdentifier of RFC 7427 names. Returns
/// `None` if it names no such algorithm, or SHA-1, which must not be used (RFC 8247 3.2).
pub(super) fn hash(identifier: &[u8]) -> Option<HashAlgorithm> {
    IDENTIFIERS.iter().find(|(_, known)| *known == identifier).map(|(hash, _)| *hash)
}

/// A curve on which we sign and verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "ECDSA P-256",
            Self::P384 => "ECDSA P-384",
        }
    }

    /// Returns the hash algorithms with which we sign, in order of preference: the algorithm with
    /// the strength of the curve, then those with longer hashes, then any shorter one.
    fn hashes(self) -> [HashAlgorithm; 3] {
        match self {
            Self::P256 => [HashAlgorithm::Sha2_256, HashAlgorithm::Sha2_384, HashAlgorithm::Sha2_512],
            Self::P384 => [HashAlgorithm::Sha2_384, HashAlgorithm::Sha2_512, HashAlgorithm::Sha2_256],
        }
    }

    /// Returns the signing algorithm with the curve's own hash algorithm, in the format of RFC 7427
    /// (DER).
    fn asn1(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
        }
    }

    /// Returns the signing algorithm in the format of RFC 4754 (r | s).
    fn fixed(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Self::P384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        }
    }

    /// Returns the authentication method of RFC 4754 for this curve.
    fn method(self) -> AuthMethod {
        match self {
            Self::P256 => AuthMethod::EcdsaP256Sha256,
            Self::P384 => AuthMethod::EcdsaP384Sha384,
        }
    }

    /// Returns whether `signature` (DER) is a signature of this key over the octets.
    pub(super) fn verify(self, hash: HashAlgorithm, key: &[u8], octets: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match (self, hash) {
            (Self::P256, HashAlgorithm::Sha2_256) => &ECDSA_P256_SHA256_ASN1,
            (Self::P256, HashAlgorithm::Sha2_384) => &ECDSA_P256_SHA384_ASN1,
            (Self::P384, HashAlgorithm::Sha2_256) => &ECDSA_P384_SHA256_ASN1,
            (Self::P384, HashAlgorithm::Sha2_384) => &ECDSA_P384_SHA384_ASN1,
            _ => return self.verify_hash(hash, key, octets, signature).is_some(),
        };
        UnparsedPublicKey::new(algorithm, key).verify(octets, signature).is_ok()
    }

    /// Returns whether `signature` (r | s) is a signature of this key over the octets by RFC 4754.
    pub(super) fn verify_fixed(self, key: &[u8], octets: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
        };
        UnparsedPublicKey::new(algorithm, key).verify(octets, signature).is_ok()
    }

    /// Does the same as [`Self::verify`] for hash algorithms that `ring` does not support for
    /// verification on this curve. Returns `None` if the signature is wrong.
    fn verify_hash(self, hash: HashAlgorithm, key: &[u8], octets: &[u8], signature: &[u8]) -> Option<()> {
        let hashed = hashed(hash, octets)?;
        match self {
            Self::P256 => {
                let signature = p256::ecdsa::Signature::from_der(signature).ok()?;
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
                key.verify_prehash(hashed.as_ref(), &signature).ok()
            }
            Self::P384 => {
                let signature = p384::ecdsa::Signature::from_der(signature).ok()?;
                let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(key).ok()?;
                key.verify_prehash(hashed.as_ref(), &signature).ok()
            }
        }
    }

    /// Signs the hash of the octets, for hash algorithms that `ring` does not support for signing
    /// on this curve. Computes the nonce by RFC 6979.
    fn sign_hash(self, hash: HashAlgorithm, pkcs8: &Secret, octets: &[u8]) -> Option<Vec<u8>> {
        let hashed = hashed(hash, octets)?;
        match self {
            Self::P256 => {
                let key = p256::SecretKey::from_pkcs8_der(pkcs8.expose()).ok()?;
                let signature: p256::ecdsa::Signature =
                    p256::ecdsa::SigningKey::from(key).sign_prehash(hashed.as_ref()).ok()?;
                Some(signature.to_der().as_bytes().to_vec())
            }
            Self::P384 => {
                let key = p384::SecretKey::from_pkcs8_der(pkcs8.expose()).ok()?;
                let signature: p384::ecdsa::Signature =
                    p384::ecdsa::SigningKey::from(key).sign_prehash(hashed.as_ref()).ok()?;
                Some(signature.to_der().as_bytes().to_vec())
            }
        }
    }
}

fn hashed(hash: HashAlgorithm, octets: &[u8]) -> Option<digest::Digest> {
    let algorithm = match hash {
        HashAlgorithm::Sha2_256 => &SHA256,
        HashAlgorithm::Sha2_384 => &SHA384,
        HashAlgorithm::Sha2_512 => &SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, octets))
}

/// A signature by RFC 7427.
pub(super) struct EcdsaSignature {
    /// AlgorithmIdentifier.
    pub(super) identifier: &'static [u8],
    /// ECDSA-Sig-Value in DER.
    pub(super) signature: Vec<u8>,
}

/// Our ECDSA key.
pub(super) struct EcdsaSigner {
    curve: Curve,
    /// Signs by RFC 7427 with the curve's own hash algorithm.
    key: Box<EcdsaKeyPair>,
    /// The same key in PKCS#8. It is parsed again only if a peer needs another hash algorithm or
    /// RFC 4754.
    pkcs8: Secret,
}

impl EcdsaSigner {
    /// Parses a private key. Returns `None` if it is not PKCS#8 of a key on a curve that we
    /// support.
    pub(super) fn new(pkcs8: &Secret) -> Option<Self> {
        [Curve::P256, Curve::P384].into_iter().find_map(|curve| {
            let key = Box::new(key_pair(curve.asn1(), pkcs8)?);
            Some(Self { curve, key, pkcs8: pkcs8.clone() })
        })
    }

    pub(super) fn curve(&self) -> Curve {
        self.curve
    }

    /// Returns the public key in the format of certificates (RFC 5480 2.2).
    pub(super) fn public_key(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    /// Signs by RFC 7427. Returns `None` if the peer accepts none of our hash algorithms.
    pub(super) fn sign(
        &self,
        octets: &[u8],
        peer_hashes: &[HashAlgorithm],
    ) -> Result<Option<EcdsaSignature>, AuthError> {
        let hashes = self.curve.hashes();
        let Some(hash) = hashes.into_iter().find(|hash| peer_hashes.contains(hash)) else {
            return Ok(None);
        };
        let signature = if hashes.first() == Some(&hash) {
            let signature = self.key.sign(&SystemRandom::new(), octets).map_err(|_| AuthError::Signing)?;
            signature.as_ref().to_vec()
        } else {
            self.curve.sign_hash(hash, &self.pkcs8, octets).ok_or(AuthError::Signing)?
        };
        let identifier = IDENTIFIERS.iter().find(|(known, _)| *known == hash).map(|(_, identifier)| *identifier);
        Ok(identifier.map(|identifier| EcdsaSignature { identifier, signature }))
    }

    /// Signs by RFC 4754. Returns the method and r | s.
    pub(super) fn sign_fixed(&self, octets: &[u8]) -> Result<(AuthMethod, Vec<u8>), AuthError> {
        let key = key_pair(self.curve.fixed(), &self.pkcs8).ok_or(AuthError::Signing)?;
        let signature = key.sign(&SystemRandom::new(), octets).map_err(|_| AuthError::Signing)?;
        Ok((self.curve.method(), signature.as_ref().to_vec()))
    }
}

fn key_pair(algorithm: &'static EcdsaSigningAlgorithm, pkcs8: &Secret) -> Option<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.expose(), &SystemRandom::new()).ok()
}
