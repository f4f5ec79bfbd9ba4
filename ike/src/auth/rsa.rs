//! RSA signatures: RSASSA-PSS and RSASSA-PKCS1-v1_5 with SHA-2 (RFC 7427, RFC 8247 3.2), and the
//! older method 1 (RFC 7296 3.8).

use ring::rand::SystemRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{
    KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, VerificationAlgorithm,
};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::error::AuthError;
use crate::secret::Secret;
use crate::wire::HashAlgorithm;

/// rsaEncryption, 1.2.840.113549.1.1.1 (RFC 8017 A.1).
pub(super) const OID_RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// Minimum length of an accepted key, bits (RFC 8247 3.1.1).
const MIN_BITS: usize = 2048;
/// Maximum length of a key that `ring` accepts for verification, bits.
const MAX_BITS: usize = 8192;

/// The algorithms that a signature of method 1 may use. The signature does not name its hash
/// algorithm. The padding contains the identifier of the algorithm that was used. SHA-1, which RFC
/// 7296 3.8 recommends as the default, must not be used (RFC 8247 3.2).
pub(super) const PKCS1: [&dyn VerificationAlgorithm; 3] =
    [&RSA_PKCS1_2048_8192_SHA256, &RSA_PKCS1_2048_8192_SHA384, &RSA_PKCS1_2048_8192_SHA512];

/// A hash algorithm of RSA signatures.
struct Hash {
    algorithm: HashAlgorithm,
    /// Last octet of its OBJECT IDENTIFIER, 2.16.840.1.101.3.4.2.x.
    hash_oid: u8,
    /// Last octet of sha...WithRSAEncryption, 1.2.840.113549.1.1.x.
    pkcs1_oid: u8,
    /// Size of its output and of the salt of RSASSA-PSS, bytes.
    len: u8,
    pkcs1: &'static dyn VerificationAlgorithm,
    pss: &'static dyn VerificationAlgorithm,
    pss_signing: &'static dyn RsaEncoding,
}

/// The hash algorithms in our order of preference for signing.
static HASHES: [Hash; 3] = [
    Hash {
        algorithm: HashAlgorithm::Sha2_256,
        hash_oid: 1,
        pkcs1_oid: 11,
        len: 32,
        pkcs1: &RSA_PKCS1_2048_8192_SHA256,
        pss: &RSA_PSS_2048_8192_SHA256,
        pss_signing: &RSA_PSS_SHA256,
    },
    Hash {
        algorithm: HashAlgorithm::Sha2_384,
        hash_oid: 2,
        pkcs1_oid: 12,
        len: 48,
        pkcs1: &RSA_PKCS1_2048_8192_SHA384,
        pss: &RSA_PSS_2048_8192_SHA384,
        pss_signing: &RSA_PSS_SHA384,
    },
    Hash {
        algorithm: HashAlgorithm::Sha2_512,
        hash_oid: 3,
        pkcs1_oid: 13,
        len: 64,
        pkcs1: &RSA_PKCS1_2048_8192_SHA512,
        pss: &RSA_PSS_2048_8192_SHA512,
        pss_signing: &RSA_PSS_SHA512,
    },
];

const NULL: &[u8] = &[0x05, 0x00];
/// trailerField 1, as in RFC 7427 A.4.3.
const TRAILER_FIELD: &[u8] = &[0xa3, 0x03, 0x02, 0x01, 0x01];

impl Hash {
    /// Returns the AlgorithmIdentifier of RSASSA-PKCS1-v1_5 (RFC 7427 A.1).
    fn pkcs1_identifier(&self, parameters: &[u8]) -> Vec<u8> {
        let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, self.pkcs1_oid];
        sequence(0x30, &[&sequence(0x06, &[&oid]), parameters])
    }

    /// Returns the AlgorithmIdentifier of RSASSA-PSS with this hash, MGF1 with the same hash, and a
    /// salt with the length of the hash (RFC 7427 A.4.3). The parameters of the hash are NULL or
    /// absent (RFC 4055 2.1). `trailer` is the trailer field, which DER omits because it has the
    /// default value.
    fn pss_identifier(&self, hash_parameters: &[u8], mask_parameters: &[u8], trailer: &[u8]) -> Vec<u8> {
        let hash_oid = sequence(0x06, &[&[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, self.hash_oid]]);
        let hash = |parameters: &[u8]| sequence(0x30, &[&hash_oid, parameters]);
        let mgf1_oid = sequence(0x06, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08]]);
        let mask = sequence(0x30, &[&mgf1_oid, &hash(mask_parameters)]);
        let parameters = sequence(
            0x30,
            &[
                &sequence(0xa0, &[&hash(hash_parameters)]),
                &sequence(0xa1, &[&mask]),
                &sequence(0xa2, &[&[0x02, 0x01, self.len]]),
                trailer,
            ],
        );
        let pss_oid = sequence(0x06, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a]]);
        sequence(0x30, &[&pss_oid, &parameters])
    }
}

/// Encodes a type and its contents in DER. The contents must have fewer than 128 octets.
fn sequence(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let len = u8::try_from(contents.len()).unwrap_or(u8::MAX);
    [&[tag, len], contents.as_slice()].concat()
}

/// Returns the algorithm that an AlgorithmIdentifier of RFC 7427 names. Returns `None` if it is not
/// an RSA algorithm that we support. SHA-1 must not be used (RFC 8247 3.2).
pub(super) fn algorithm(identifier: &[u8]) -> Option<&'static dyn VerificationAlgorithm> {
    HASHES.iter().find_map(|hash| {
        if [NULL, &[]].iter().any(|parameters| hash.pkcs1_identifier(parameters) == identifier) {
            return Some(hash.pkcs1);
        }
        let mut forms = [NULL, &[]].into_iter().flat_map(|hashed| {
            [NULL, &[]].into_iter().flat_map(move |mask| [&[], TRAILER_FIELD].map(|trailer| (hashed, mask, trailer)))
        });
        forms
            .any(|(hashed, mask, trailer)| hash.pss_identifier(hashed, mask, trailer) == identifier)
            .then_some(hash.pss)
    })
}

/// Returns an error if no signature with an RSA key of this size can be accepted. The error states
/// the reason.
pub(super) fn check_size(info: &SubjectPublicKeyInfo<'_>) -> Result<(), AuthError> {
    let bits = match info.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let modulus: Vec<u8> = key.modulus.iter().copied().skip_while(|octet| *octet == 0).collect();
            let unused = modulus.first().map_or(0, |first| first.leading_zeros() as usize);
            modulus.len().saturating_mul(8).saturating_sub(unused)
        }
        _ => return Err(AuthError::UnsupportedSignature("RSA key that cannot be read".to_owned())),
    };
    if (MIN_BITS..=MAX_BITS).contains(&bits) {
        Ok(())
    } else {
        Err(AuthError::UnsupportedSignature(format!("RSA key of {bits} bits, expected {MIN_BITS} to {MAX_BITS}")))
    }
}

/// A signature by RSASSA-PSS.
pub(super) struct PssSignature {
    /// AlgorithmIdentifier.
    pub(super) identifier: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

/// Our RSA key.
pub(super) struct RsaSigner(RsaKeyPair);

impl RsaSigner {
    /// Parses a private key. Returns `None` if it is not PKCS#8 of an RSA key with 2048 to 4096
    /// bits.
    pub(super) fn new(pkcs8: &Secret) -> Option<Self> {
        RsaKeyPair::from_pkcs8(pkcs8.expose()).ok().map(Self)
    }

    /// Returns the public key in the format of certificates: RSAPublicKey (RFC 8017 A.1.1).
    pub(super) fn public_key(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// Signs by RSASSA-PSS, which every peer with RFC 7427 must support (RFC 8247 3.2). Returns
    /// `None` if the peer accepts none of our hash algorithms.
    pub(super) fn sign_pss(
        &self,
        octets: &[u8],
        peer_hashes: &[HashAlgorithm],
    ) -> Result<Option<PssSignature>, AuthError> {
        let Some(hash) = HASHES.iter().find(|hash| peer_hashes.contains(&hash.algorithm)) else {
            return Ok(None);
        };
        let (identifier, signature) = (hash.pss_identifier(NULL, NULL, &[]), self.sign(octets, hash.pss_signing)?);
        Ok(Some(PssSignature { identifier, signature }))
    }

    /// Makes a signature of method 1. SHA-1 is usual for this method, but `ring` signs only with
    /// SHA-2.
    pub(super) fn sign_pkcs1(&self, octets: &[u8]) -> Result<Vec<u8>, AuthError> {
        self.sign(octets, &RSA_PKCS1_SHA256)
    }

    fn sign(&self, octets: &[u8], encoding: &'static dyn RsaEncoding) -> Result<Vec<u8>, AuthError> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0.sign(encoding, &SystemRandom::new(), octets, &mut signature).map_err(|_| AuthError::Signing)?;
        Ok(signature)
    }
}
