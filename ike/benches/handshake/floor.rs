//! The baseline: the cryptographic calls of both ends of one handshake, made directly on `ring` and
//! `x25519-dalek`, with inputs of the same lengths. X25519 is the faster one of both, as in IKE.
//!
//! The baseline omits two kinds of work, which makes the comparison stricter for the endpoint:
//! hashes for other purposes (recognizing a retransmitted request), and finding keys and names in
//! certificates.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{self, EphemeralPrivateKey, X25519};
use ring::digest::{self, SHA1_FOR_LEGACY_USE_ONLY};
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    UnparsedPublicKey, VerificationAlgorithm,
};
use std::hint::black_box;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::pair::Authentication;

/// Size of both nonces together, bytes.
const NONCES: usize = 64;
/// Number of octets before the ciphertext of a message (header, generic header, IV) and after its
/// contents (pad length, ICV).
const BEFORE: usize = 28 + 4 + 8;
const AFTER: usize = 1 + 16;
/// Size of an ID payload, bytes: type, reserved octets and text.
const ID: usize = 4 + 13;
/// Approximate number of octets that a certificate's signature covers.
const TO_BE_SIGNED: usize = 300;

/// The cryptographic calls of one handshake.
pub(crate) struct Floor {
    /// Sizes of the IKE_SA_INIT request and response and of the IKE_AUTH request and response,
    /// bytes.
    lengths: [usize; 4],
    /// The signing key of either end, and the CA's signature on a certificate. The same key makes
    /// the CA's signature, since verifying it takes the same time.
    signer: Option<(Signer, Vec<u8>)>,
}

enum Signer {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl Floor {
    /// Prepares the calls of a handshake whose datagrams had these lengths.
    pub(crate) fn of(lengths: &[usize], authentication: Authentication) -> Self {
        let random = SystemRandom::new();
        let signer = match authentication {
            Authentication::Psk => None,
            Authentication::Ed25519 => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                Some(Signer::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()))
            }
            Authentication::P256 => {
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
                Some(Signer::P256(key))
            }
        };
        let signer = signer.map(|signer| {
            let certified = signer.sign(&[1; TO_BE_SIGNED]);
            (signer, certified)
        });
        Self { lengths: lengths.try_into().expect("two exchanges, no fragments"), signer }
    }

    /// Makes all calls of both ends.
    pub(crate) fn replay(&self) {
        let [request, response, auth_request, auth_response] = self.lengths;
        let [(left, left_share), (right, right_share)] = [(); 2].map(|()| key_pair());
        // NAT detection (RFC 7296 2.23): each end makes two hashes and checks two.
        for _ in 0..8 {
            black_box(digest::digest(&SHA1_FOR_LEGACY_USE_ONLY, &[7; 22]));
        }
        for shared in [agree(left, right_share), agree(right, left_share)] {
            let skeyseed = prf(&[1; NONCES], &shared);
            // SK_d, SK_pi and SK_pr, and SK_ei and SK_er with salts.
            expand(skeyseed.as_ref(), NONCES + 16, 3 * 32 + 2 * 36);
            // KEYMAT of the CHILD_SA.
            expand(&[2; 32], NONCES, 2 * 36);
        }
        // One end makes each AUTH and the other checks it. Both compute the octets that AUTH
        // covers.
        for covered in [request + 32 + 32, response + 32 + 32] {
            for _ in 0..2 {
                prf(&[3; 32], &[4; ID]);
            }
            self.prove(&vec![5; covered]);
        }
        let (seal, open) = (aead_key(), aead_key());
        let (seal_back, open_back) = (aead_key(), aead_key());
        for (length, seal, open) in [(auth_request, &seal, &open), (auth_response, &seal_back, &open_back)] {
            let mut contents = vec![6; length - BEFORE - AFTER + 1];
            let nonce = || Nonce::assume_unique_for_key([0; 12]);
            seal.seal_in_place_append_tag(nonce(), Aad::from([8; 32]), &mut contents).unwrap();
            black_box(open.open_in_place(nonce(), Aad::from([8; 32]), &mut contents).unwrap());
        }
    }

    /// Makes and checks one AUTH. With certificates it also checks the certificate chain.
    fn prove(&self, octets: &[u8]) {
        match &self.signer {
            None => {
                for _ in 0..2 {
                    let key = prf(&[9; 32], b"Key Pad for IKEv2");
                    black_box(prf(key.as_ref(), octets));
                }
            }
            Some((signer, certified)) => {
                signer.verify(octets, &signer.sign(octets));
                signer.verify(&[1; TO_BE_SIGNED], certified);
            }
        }
    }
}

impl Signer {
    fn sign(&self, octets: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.sign(octets).as_ref().to_vec(),
            Self::P256(key) => key.sign(&SystemRandom::new(), octets).unwrap().as_ref().to_vec(),
        }
    }

    fn verify(&self, octets: &[u8], signature: &[u8]) {
        let (algorithm, key): (&dyn VerificationAlgorithm, _) = match self {
            Self::Ed25519(key) => (&ED25519, key.public_key().as_ref()),
            Self::P256(key) => (&ECDSA_P256_SHA256_ASN1, key.public_key().as_ref()),
        };
        UnparsedPublicKey::new(algorithm, key).verify(octets, signature).unwrap();
    }
}

/// A private key for X25519 by `ring`, or by `x25519-dalek` on a processor without ADX.
enum Private {
    Ring(EphemeralPrivateKey),
    Dalek(StaticSecret),
}

/// Draws the random octets of one end, and computes its share.
fn key_pair() -> (Private, [u8; 32]) {
    let random = SystemRandom::new();
    let (mut nonce, mut spi) = ([0; 32], [0; 8]);
    for bytes in [nonce.as_mut_slice(), &mut spi] {
        random.fill(bytes).unwrap();
    }
    black_box((nonce, spi));
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("adx") {
        let private = EphemeralPrivateKey::generate(&X25519, &random).unwrap();
        let public = private.compute_public_key().unwrap();
        return (Private::Ring(private), public.as_ref().try_into().unwrap());
    }
    let mut private = [0; 32];
    random.fill(&mut private).unwrap();
    let private = StaticSecret::from(private);
    let public = PublicKey::from(&private).to_bytes();
    (Private::Dalek(private), public)
}

fn agree(private: Private, peer: [u8; 32]) -> [u8; 32] {
    match private {
        Private::Ring(private) => {
            let shared = |shared: &[u8]| shared.try_into().unwrap();
            agreement::agree_ephemeral(private, &agreement::UnparsedPublicKey::new(&X25519, peer), shared).unwrap()
        }
        Private::Dalek(private) => private.diffie_hellman(&PublicKey::from(peer)).to_bytes(),
    }
}

fn prf(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(HMAC_SHA256, key), data)
}

/// Computes prf+ (RFC 7296 2.13).
fn expand(key: &[u8], seed: usize, len: usize) {
    let key = hmac::Key::new(HMAC_SHA256, key);
    for block in 0..len.div_ceil(32) {
        let before = if block == 0 { 0 } else { 32 };
        black_box(hmac::sign(&key, &[0; 32 + NONCES + 16 + 1][..before + seed + 1]));
    }
}

fn aead_key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap())
}
