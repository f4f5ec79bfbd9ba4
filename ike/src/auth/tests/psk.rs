//! Tests authentication with pre-shared keys.

use super::*;

#[test]
fn a_psk_makes_the_auth_of_an_independent_computation() {
    //= RFC 7296 1.7 MUST 2: a PRF takes a key of any length
    //= RFC 7296 2.15 REQUIRED 1: what AUTH covers
    //= RFC 7296 2.15 REQUIRED 3: the key pad
    let psk = Authenticator::new(&Auth::Psk(Secret::new(b"secret".to_vec()))).unwrap();
    let id = Id::from(&Identity::Fqdn("moon.example".into()));
    for (prf, expected) in [
        (Prf::HmacSha256, "6950e4016f398e0a4663421c3840c636a20bb2525f3130f9b33ec8074347a889"),
        (
            Prf::HmacSha512,
            "9df659163a9787602d69b5ac9eac14d59bcb1f998e5b4f959c159e243310cff1\
             c130ac12f730f3c8981506f62e465eb9356f5dda95908481b2d9070d91f8b545",
        ),
    ] {
        let nonce: Vec<u8> = (0x80..0x98).collect();
        let octets = SignedOctets::initiator(&keys(prf), b"message", &nonce, &id);
        let auth = psk.prove(&octets, None).unwrap();
        let shown: String = auth.data.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!((auth.method, shown.as_str()), (AuthMethod::SharedKey, expected));
    }
}

#[test]
fn one_letter_of_the_psk_makes_the_difference() {
    //= RFC 7296 1.2 MUST 2: verify signatures and MACs
    let psk = |text: &[u8]| Authenticator::new(&Auth::Psk(Secret::new(text.to_vec()))).unwrap();
    assert_eq!(judged(&psk(b"open sesame"), &psk(b"open sesame"), &fqdn()), Ok(Proof::Psk));
    let error = judged(&psk(b"open sesame"), &psk(b"open Sesame"), &fqdn()).unwrap_err();
    assert_eq!((error.clone(), error.kind()), (AuthError::SharedKey, PeerErrorKind::AuthenticationFailed));
    let text = format!("{error} {error:?} {:?}", psk(b"open sesame"));
    assert!(!text.to_lowercase().contains("sesame"), "{text}");
}

#[test]
fn initiator_and_responder_cover_different_octets() {
    //= RFC 7296 2.15 REQUIRED 1: what AUTH covers
    let psk = Authenticator::new(&Auth::Psk(Secret::new(b"secret".to_vec()))).unwrap();
    let (id, keys) = (Id::from(&fqdn()), keys(Prf::HmacSha256));
    let ours = SignedOctets::initiator(&keys, b"message", &[1; 16], &id);
    let theirs = SignedOctets::responder(&keys, b"message", &[1; 16], &id);
    let auth = psk.prove(&ours, None).unwrap();
    let presented = Presented { id: &id, certificates: &[], authentication: &auth };
    assert_eq!(psk.verify(&fqdn(), presented, &ours, NOW), Ok(Proof::Psk));
    assert_eq!(psk.verify(&fqdn(), presented, &theirs, NOW), Err(AuthError::SharedKey));
}

#[test]
fn an_empty_psk_is_refused() {
    let error = Authenticator::new(&Auth::Psk(Secret::new(vec![]))).unwrap_err();
    assert_eq!(error, CredentialError::EmptyPsk);
}

#[test]
fn a_shortened_auth_is_refused() {
    let psk = Authenticator::new(&Auth::Psk(Secret::new(b"secret".to_vec()))).unwrap();
    let id = Id::from(&fqdn());
    let mut auth = psk.prove(&octets(&id), None).unwrap();
    while auth.data.pop().is_some() {
        let presented = Presented { id: &id, certificates: &[], authentication: &auth };
        assert_eq!(psk.verify(&fqdn(), presented, &octets(&id), NOW), Err(AuthError::SharedKey));
    }
}

#[test]
fn psk_and_certificate_do_not_pass_for_each_other() {
    let root = Authority::root("root");
    let certificate = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let psk = Authenticator::new(&Auth::Psk(Secret::new(b"secret".to_vec()))).unwrap();
    for (judge, prover) in [(&psk, &certificate), (&certificate, &psk)] {
        let error = judged(judge, prover, &fqdn()).unwrap_err();
        assert!(matches!(error, AuthError::Method { .. }));
        assert_eq!(error.kind(), PeerErrorKind::AuthenticationFailed);
    }
}
