//! Tests the checks of our own credentials when they are configured.

use super::*;

#[test]
fn credentials_that_cannot_work_are_refused_when_they_are_configured() {
    //= RFC 7296 1.2 MUST 1: the key's certificate is first
    let root = Authority::root("root");
    let good = config(&root, root.issue(&PKCS_ED25519, |_| {}));
    let refused = |change: &dyn Fn(&mut CertificateAuth)| {
        let mut auth = good.clone();
        change(&mut auth);
        Authenticator::new(&Auth::Certificate(auth)).unwrap_err()
    };
    let (_, other_key) = root.issue(&PKCS_ED25519, |_| {});
    assert_eq!(refused(&|auth| auth.chain.clear()), CredentialError::NoCertificate);
    assert_eq!(refused(&|auth| auth.chain = vec![vec![]; 9]), CredentialError::ChainTooLong(9));
    assert_eq!(refused(&|auth| auth.chain.push(vec![0; 20_000])), CredentialError::CertificateTooLarge(20_000));
    assert_eq!(refused(&|auth| auth.chain[0] = vec![1]), CredentialError::MalformedCertificate);
    assert_eq!(refused(&|auth| auth.key = Secret::new(vec![1, 2, 3])), CredentialError::UnsupportedKey);
    assert_eq!(refused(&|auth| auth.key = other_key.clone()), CredentialError::KeyMismatch);
    assert_eq!(refused(&|auth| auth.trust_anchors.clear()), CredentialError::NoTrustAnchor);
    assert_eq!(refused(&|auth| auth.trust_anchors[0] = vec![1]), CredentialError::MalformedTrustAnchor);
}

#[test]
fn the_certificate_request_names_the_trust_anchors_by_the_hash_of_their_key() {
    //= RFC 7296 3.7 SHOULD NOT 1: X.509 only
    let root = Authority::root("root");
    let auth = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let request = auth.certificate_request().unwrap();
    assert_eq!(request.encoding, CertificateEncoding::X509Signature);
    let info = rcgen::PublicKeyData::subject_public_key_info(root.issuer.key());
    let expected = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &info);
    assert_eq!(request.authorities, expected.as_ref());
}

#[test]
fn debug_of_credentials_shows_no_key() {
    let root = Authority::root("root");
    let (der, key) = root.issue(&PKCS_ECDSA_P256_SHA256, |_| {});
    let shown = format!("{:?}", authenticator(&config(&root, (der, key.clone()))));
    let octets: Vec<String> = key.expose()[36..44].iter().map(u8::to_string).collect();
    assert!(!shown.contains(&octets.join(", ")), "octets of the private key");
    assert!(shown.contains("ECDSA P-256"));
}
