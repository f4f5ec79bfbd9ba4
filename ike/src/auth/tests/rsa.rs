//! Tests RSA signatures. `openssl` makes the keys, since `ring` cannot.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use ring::signature::{
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::rsa::check_size;
use super::*;

/// A key of 2048 bits, PKCS#8.
static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| make_key(2048));

fn make_key(bits: usize) -> Vec<u8> {
    let size = format!("rsa_keygen_bits:{bits}");
    let key = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", &size], &[]);
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], &key)
}

/// Runs `openssl` and returns its output.
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn key_pair() -> KeyPair {
    KeyPair::from_pkcs8_der_and_sign_algo(&KEY.as_slice().into(), &rcgen::PKCS_RSA_SHA256).unwrap()
}

fn with_rsa(root: &Authority) -> Authenticator {
    let (certificate, _) = root.certify(key_pair(), |_| {});
    authenticator(&config(root, (certificate, Secret::new(KEY.to_vec()))))
}

/// Returns the result of verifying a signature in AUTH with an RSA certificate.
fn verify(auth: &Authenticator, method: AuthMethod, data: Vec<u8>) -> Result<Proof, AuthError> {
    let id = Id::from(&fqdn());
    let authentication = Authentication { method, data };
    let presented = Presented { id: &id, certificates: auth.certificates(), authentication: &authentication };
    auth.verify(&fqdn(), presented, &octets(&id), NOW)
}

fn signature(encoding: &'static dyn RsaEncoding) -> Vec<u8> {
    let key = ring::rsa::KeyPair::from_pkcs8(&KEY).unwrap();
    let mut signature = vec![0; key.public().modulus_len()];
    let octets = octets(&Id::from(&fqdn()));
    key.sign(encoding, &ring::rand::SystemRandom::new(), octets.as_slice(), &mut signature).unwrap();
    signature
}

fn digital(identifier: &[u8], signature: &[u8]) -> Vec<u8> {
    [&[identifier.len() as u8], identifier, signature].concat()
}

/// Returns the AlgorithmIdentifier of sha256WithRSAEncryption, or of the variant with a longer hash
/// (RFC 7427 A.1).
fn pkcs1(last: u8) -> Vec<u8> {
    [&[0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1][..], &[last, 5, 0]].concat()
}

/// RSASSA-PSS with SHA-256 as in RFC 7427 A.4.3, without the trailer field: DER leaves out fields
/// that have their default value.
const PSS_SHA256: [u8; 67] = [
    0x30, 0x41, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a, 0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 6, 9, 0x60,
    0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 0xa1, 0x1c, 0x30, 0x1a, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8,
    0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 0xa2, 3, 2, 1, 0x20,
];

#[test]
fn an_rsa_key_signs_by_pss_with_a_hash_that_the_peer_accepts() {
    let root = Authority::root("root");
    let auth = with_rsa(&root);
    let id = Id::from(&fqdn());
    let proved = auth.prove(&octets(&id), HASHES).unwrap();
    assert_eq!((proved.method, &proved.data[1..68]), (AuthMethod::DigitalSignature, &PSS_SHA256[..]));
    assert_eq!(verify(&auth, proved.method, proved.data), Ok(Proof::Rsa));
    for hash in [HashAlgorithm::Sha2_384, HashAlgorithm::Sha2_512] {
        let proved = auth.prove(&octets(&id), Some(&[HashAlgorithm::Sha1, hash])).unwrap();
        assert_eq!(verify(&auth, proved.method, proved.data), Ok(Proof::Rsa), "{hash}");
    }
    let error = auth.prove(&octets(&id), Some(&[HashAlgorithm::Sha1, HashAlgorithm::Identity])).unwrap_err();
    assert_eq!(error.kind(), PeerErrorKind::Local);
    assert!(error.to_string().contains("RSA"), "{error}");
}

#[test]
fn an_rsa_key_signs_by_method_1_for_a_peer_that_announced_no_hashes() {
    let root = Authority::root("root");
    let auth = with_rsa(&root);
    let proved = auth.prove(&octets(&Id::from(&fqdn())), None).unwrap();
    assert_eq!((proved.method, &proved.data), (AuthMethod::RsaSignature, &signature(&RSA_PKCS1_SHA256)));
    assert_eq!(verify(&auth, proved.method, proved.data), Ok(Proof::Rsa));
}

#[test]
fn rsa_signatures_of_both_paddings_and_all_hashes_are_verified() {
    let root = Authority::root("root");
    let auth = with_rsa(&root);
    let digital_signature = AuthMethod::DigitalSignature;
    let pkcs1_encodings: [&dyn RsaEncoding; 3] = [&RSA_PKCS1_SHA256, &RSA_PKCS1_SHA384, &RSA_PKCS1_SHA512];
    for (last, encoding) in (11..).zip(pkcs1_encodings) {
        let signature = signature(encoding);
        assert_eq!(verify(&auth, AuthMethod::RsaSignature, signature.clone()), Ok(Proof::Rsa));
        assert_eq!(verify(&auth, digital_signature, digital(&pkcs1(last), &signature)), Ok(Proof::Rsa));
        // An identifier without the NULL is accepted; one that names a different hash than the
        // signature uses is not.
        let without_null = [&[0x30, 0x0b], &pkcs1(last)[2..13]].concat();
        assert_eq!(verify(&auth, digital_signature, digital(&without_null, &signature)), Ok(Proof::Rsa));
        let other = pkcs1(if last == 11 { 12 } else { 11 });
        assert_eq!(verify(&auth, digital_signature, digital(&other, &signature)), Err(AuthError::Signature));
    }
    let pss_encodings: [&dyn RsaEncoding; 3] = [&RSA_PSS_SHA256, &RSA_PSS_SHA384, &RSA_PSS_SHA512];
    for (hash, salt, encoding) in [(1, 32, pss_encodings[0]), (2, 48, pss_encodings[1]), (3, 64, pss_encodings[2])] {
        let mut identifier = PSS_SHA256;
        (identifier[29], identifier[59], identifier[66]) = (hash, hash, salt);
        let signature = signature(encoding);
        assert_eq!(verify(&auth, digital_signature, digital(&identifier, &signature)), Ok(Proof::Rsa), "{hash}");
        // The identifier is also accepted with the trailer field, as in RFC 7427 A.4.3, and without
        // the NULLs.
        let mut printed = [&identifier[..], &[0xa3, 3, 2, 1, 1]].concat();
        (printed[1], printed[14]) = (0x46, 0x39);
        assert_eq!(verify(&auth, digital_signature, digital(&printed, &signature)), Ok(Proof::Rsa), "{hash}");
        let mut bare = [&identifier[..30], &identifier[32..60], &identifier[62..]].concat();
        for (at, less) in [(1, 4), (14, 4), (16, 2), (18, 2), (31, 2), (33, 2), (46, 2)] {
            bare[at] -= less;
        }
        assert_eq!(verify(&auth, digital_signature, digital(&bare, &signature)), Ok(Proof::Rsa), "{hash}");
        // A PSS signature is not accepted as PKCS #1.
        assert_eq!(verify(&auth, AuthMethod::RsaSignature, signature), Err(AuthError::Signature));
    }
}

#[test]
fn sha1_is_refused_in_digital_signatures_and_so_are_mixed_parameters() {
    let root = Authority::root("root");
    let auth = with_rsa(&root);
    let refused = |identifier: &[u8]| {
        let error = verify(&auth, AuthMethod::DigitalSignature, digital(identifier, &[1; 256])).unwrap_err();
        assert!(matches!(error, AuthError::UnsupportedSignature(_)), "{error}");
    };
    // RFC 8247 3.2: sha1WithRSAEncryption must not be used.
    refused(&pkcs1(5));
    // The defaults of RSASSA-PSS are SHA-1.
    refused(&[0x30, 0x0d, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0a, 0x30, 0]);
    for (at, value) in [(29, 3), (59, 3), (66, 20)] {
        let mut identifier = PSS_SHA256;
        identifier[at] = value;
        refused(&identifier);
    }
}

#[test]
fn sha1_is_refused_in_method_1() {
    let root = Authority::root("root");
    let auth = with_rsa(&root);
    let file = std::env::temp_dir().join(format!("edge-ike-rsa-{}.der", std::process::id()));
    std::fs::write(&file, KEY.as_slice()).unwrap();
    let octets = octets(&Id::from(&fqdn()));
    let sign = |hash: &str| {
        let key = file.to_str().unwrap();
        openssl(&["dgst", hash, "-sign", key, "-keyform", "DER"], octets.as_slice())
    };
    let (sha1, sha256) = (sign("-sha1"), sign("-sha256"));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(verify(&auth, AuthMethod::RsaSignature, sha256), Ok(Proof::Rsa));
    assert_eq!(verify(&auth, AuthMethod::RsaSignature, sha1), Err(AuthError::Signature));
}

#[test]
fn an_rsa_certificate_with_an_ecdsa_or_wrong_signature_is_refused() {
    let root = Authority::root("root");
    let auth = with_rsa(&root);
    assert_eq!(verify(&auth, AuthMethod::EcdsaP256Sha256, vec![0; 64]), Err(AuthError::AlgorithmMismatch));
    let mut wrong = signature(&RSA_PKCS1_SHA256);
    wrong[100] ^= 1;
    assert_eq!(verify(&auth, AuthMethod::RsaSignature, wrong.clone()), Err(AuthError::Signature));
    assert_eq!(verify(&auth, AuthMethod::RsaSignature, vec![]), Err(AuthError::Signature));
    let ed25519 = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    assert_eq!(verify(&ed25519, AuthMethod::RsaSignature, wrong), Err(AuthError::AlgorithmMismatch));
}

#[test]
fn a_short_rsa_key_is_refused_with_its_length() {
    let public = ["pkey", "-inform", "DER", "-pubout", "-outform", "DER"];
    let public = openssl(&public, &make_key(1024));
    let (_, info) = SubjectPublicKeyInfo::from_der(&public).unwrap();
    let error = check_size(&info).unwrap_err();
    assert!(error.to_string().contains("1024 bits, expected 2048"), "{error}");
}

#[test]
fn a_p384_key_signs_with_sha384() {
    let root = Authority::root("root");
    let auth = authenticator(&config(&root, root.issue(&rcgen::PKCS_ECDSA_P384_SHA384, |_| {})));
    let id = Id::from(&fqdn());
    for (hashes, method) in [(HASHES, AuthMethod::DigitalSignature), (None, AuthMethod::EcdsaP384Sha384)] {
        let proved = auth.prove(&octets(&id), hashes).unwrap();
        assert_eq!(proved.method, method);
        assert_eq!(verify(&auth, proved.method, proved.data), Ok(Proof::EcdsaP384));
    }
}
