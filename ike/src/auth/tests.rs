//! Real certificates by rcgen, in every way in which they can be wrong.

use proptest::collection::vec;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, SignatureAlgorithm, date_time_ymd,
};

use super::*;
use crate::config::{Aead, Group, Prf};
use crate::crypto::{IkeKeys, IkeSuite, Nonces};
use crate::event::{IkeId, PeerErrorKind};

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;
const IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];
const IPSEC_IKE_DER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 17];
const HASHES: Option<&[HashAlgorithm]> = Some(&Authenticator::HASHES);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    fn root(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = Self::params(name);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = Self::params(name);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// A certificate as a node has it, changed as the test wants; and its key.
    fn issue(
        &self,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (Vec<u8>, Secret) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named("edge-a1");
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params.subject_alt_names = vec![
            SanType::DnsName("edge-a1.example".try_into().unwrap()),
            SanType::URI("edge-cni://edge/edge-a1".try_into().unwrap()),
            SanType::Rfc822Name("ops@edge.example".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        (der, Secret::new(key.serialize_der()))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn fqdn() -> Identity {
    Identity::Fqdn("edge-a1.example".into())
}

fn config(root: &Authority, (der, key): (Vec<u8>, Secret)) -> CertificateAuth {
    CertificateAuth {
        chain: vec![der],
        key,
        trust_anchors: vec![root.der.clone()],
        remote_uri: None,
        remote_key_usages: vec![],
    }
}

fn authenticator(auth: &CertificateAuth) -> Authenticator {
    Authenticator::new(&Auth::Certificate(auth.clone())).unwrap()
}

fn keys(prf: Prf) -> IkeKeys {
    let suite = IkeSuite { aead: Aead::Aes256Gcm16, prf, group: Group::X25519 };
    let (ni, nr): (Vec<u8>, Vec<u8>) = ((0x10..0x30).collect(), (0x80..0x98).collect());
    let shared = Secret::new((0..32_u8).map(|at| at.wrapping_mul(7).wrapping_add(3)).collect());
    let ike = IkeId { initiator: 0x0102_0304_0506_0708, responder: 0x1112_1314_1516_1718 };
    IkeKeys::initial(suite, Nonces { initiator: &ni, responder: &nr }, ike, &shared)
}

fn octets(id: &Id) -> SignedOctets {
    SignedOctets::initiator(&keys(Prf::HmacSha256), b"message", &(0x80..0x98).collect::<Vec<u8>>(), id)
}

/// The peer proves itself with `prover` under `identity`; `judge` judges.
fn judged(judge: &Authenticator, prover: &Authenticator, identity: &Identity) -> Result<Proof, AuthError> {
    let id = Id::from(identity);
    let authentication = prover.prove(&octets(&id), HASHES)?;
    let presented = Presented { id: &id, certificates: prover.certificates(), authentication: &authentication };
    judge.verify(identity, presented, &octets(&id), NOW)
}

/// What a judge who trusts `root` thinks of a certificate issued by it and changed like this.
fn verdict(identity: &Identity, change: impl FnOnce(&mut CertificateParams)) -> Result<Proof, AuthError> {
    let root = Authority::root("root");
    let auth = config(&root, root.issue(&PKCS_ED25519, change));
    let mut judge = auth.clone();
    judge.remote_uri = Some("edge-cni://edge/edge-a1".into());
    judge.remote_key_usages = vec![IPSEC_IKE_DER.to_vec()];
    judged(&authenticator(&judge), &authenticator(&auth), identity)
}

// ---- pre-shared keys

#[test]
fn a_psk_makes_the_auth_of_an_independent_computation() {
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
    let psk = |text: &[u8]| Authenticator::new(&Auth::Psk(Secret::new(text.to_vec()))).unwrap();
    assert_eq!(judged(&psk(b"open sesame"), &psk(b"open sesame"), &fqdn()), Ok(Proof::Psk));
    let error = judged(&psk(b"open sesame"), &psk(b"open Sesame"), &fqdn()).unwrap_err();
    assert_eq!((error.clone(), error.kind()), (AuthError::SharedKey, PeerErrorKind::AuthenticationFailed));
    let text = format!("{error} {error:?} {:?}", psk(b"open sesame"));
    assert!(!text.to_lowercase().contains("sesame"), "{text}");
}

#[test]
fn initiator_and_responder_cover_different_octets() {
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

// ---- identities

#[test]
fn somebody_else_than_expected_is_refused_though_its_proof_is_good() {
    let psk = Authenticator::new(&Auth::Psk(Secret::new(b"secret".to_vec()))).unwrap();
    let id = Id::from(&fqdn());
    let auth = psk.prove(&octets(&id), None).unwrap();
    let presented = Presented { id: &id, certificates: &[], authentication: &auth };
    let error = psk.verify(&Identity::Fqdn("hub.example".into()), presented, &octets(&id), NOW).unwrap_err();
    assert_eq!(error.kind(), PeerErrorKind::WrongIdentity);
    assert!(error.to_string().contains("hub.example") && error.to_string().contains("edge-a1.example"), "{error}");
}

#[test]
fn a_certificate_certifies_each_of_its_names_and_its_subject_and_nothing_else() {
    let subject = |name: &str| {
        let root = Authority::root("root");
        let (der, _) = root.issue(&PKCS_ED25519, |params| params.distinguished_name = named(name));
        use x509_parser::prelude::{FromDer, X509Certificate};
        Identity::DistinguishedName(X509Certificate::from_der(&der).unwrap().1.subject().as_raw().to_vec())
    };
    for identity in [
        fqdn(),
        Identity::Fqdn("EDGE-A1.Example".into()),
        Identity::Email("ops@EDGE.example".into()),
        Identity::Address("192.0.2.1".parse().unwrap()),
        Identity::Address("2001:db8::1".parse().unwrap()),
        subject("edge-a1"),
    ] {
        assert_eq!(verdict(&identity, |_| {}), Ok(Proof::Ed25519), "{identity}");
    }
    for identity in [
        Identity::Fqdn("edge-a2.example".into()),
        Identity::Fqdn("edge-a1".into()),
        Identity::Email("OPS@edge.example".into()),
        Identity::Address("192.0.2.2".parse().unwrap()),
        Identity::KeyId(b"edge-a1.example".to_vec()),
        subject("edge-a2"),
    ] {
        let error = verdict(&identity, |_| {}).unwrap_err();
        assert!(matches!(error, AuthError::NotCertified { .. }), "{identity}: {error}");
        assert_eq!(error.kind(), PeerErrorKind::WrongIdentity);
    }
}

#[test]
fn a_wildcard_certifies_nobody() {
    let error = verdict(&fqdn(), |params| {
        params.subject_alt_names = vec![
            SanType::DnsName("*.example".try_into().unwrap()),
            SanType::URI("edge-cni://edge/edge-a1".try_into().unwrap()),
        ];
    });
    assert!(matches!(error, Err(AuthError::NotCertified { .. })));
}

#[test]
fn a_certificate_without_alternative_names_certifies_no_domain_name() {
    let error = verdict(&fqdn(), |params| {
        params.subject_alt_names.clear();
        params.distinguished_name = named("edge-a1.example");
    });
    assert!(matches!(error, Err(AuthError::NotCertified { .. })), "the common name does not count");
}

#[test]
fn distinguished_names_match_whatever_string_types_the_ca_took() {
    let mut printable = DistinguishedName::new();
    printable.push(DnType::CommonName, DnValue::PrintableString("edge-a1".try_into().unwrap()));
    let root = Authority::root("root");
    let (der, _) = root.issue(&PKCS_ED25519, |params| params.distinguished_name = printable);
    use x509_parser::prelude::{FromDer, X509Certificate};
    let identity = Identity::DistinguishedName(X509Certificate::from_der(&der).unwrap().1.subject().as_raw().to_vec());
    assert_eq!(verdict(&identity, |_| {}), Ok(Proof::Ed25519));
    assert!(!same_identity(&identity, &Identity::DistinguishedName(vec![1, 2, 3])));
}

// ---- certificates

#[test]
fn every_kind_of_key_proves_itself() {
    let root = Authority::root("root");
    let judge = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    for (algorithm, expected) in [(&PKCS_ED25519, Proof::Ed25519), (&PKCS_ECDSA_P256_SHA256, Proof::EcdsaP256)] {
        let prover = authenticator(&config(&root, root.issue(algorithm, |_| {})));
        assert_eq!(judged(&judge, &prover, &fqdn()), Ok(expected));
    }
}

#[test]
fn a_p384_peer_is_believed_by_either_method() {
    use ring::signature::{
        ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    };
    let root = Authority::root("root");
    let judge = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let (der, key) = root.issue(&PKCS_ECDSA_P384_SHA384, |_| {});
    let id = Id::from(&fqdn());
    let certificates = [Certificate { encoding: CertificateEncoding::X509Signature, data: der }];
    let sign = |algorithm: &'static EcdsaSigningAlgorithm| {
        let random = ring::rand::SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, key.expose(), &random).unwrap();
        key.sign(&random, octets(&id).as_slice()).unwrap().as_ref().to_vec()
    };
    let identifier = [12, 0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
    let digital = [identifier.as_slice(), &sign(&ECDSA_P384_SHA384_ASN1_SIGNING)].concat();
    for (method, data) in
        [(AuthMethod::DigitalSignature, digital), (AuthMethod::EcdsaP384Sha384, sign(&ECDSA_P384_SHA384_FIXED_SIGNING))]
    {
        let authentication = Authentication { method, data };
        let presented = Presented { id: &id, certificates: &certificates, authentication: &authentication };
        assert_eq!(judge.verify(&fqdn(), presented, &octets(&id), NOW), Ok(Proof::EcdsaP384), "{method}");
    }
}

#[test]
fn a_p256_key_signs_by_rfc_4754_for_a_peer_that_announced_no_hashes_and_ed25519_cannot() {
    let root = Authority::root("root");
    let judge = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let prover = authenticator(&config(&root, root.issue(&PKCS_ECDSA_P256_SHA256, |_| {})));
    let id = Id::from(&fqdn());
    let auth = prover.prove(&octets(&id), None).unwrap();
    assert_eq!((auth.method, auth.data.len()), (AuthMethod::EcdsaP256Sha256, 64));
    let presented = Presented { id: &id, certificates: prover.certificates(), authentication: &auth };
    assert_eq!(judge.verify(&fqdn(), presented, &octets(&id), NOW), Ok(Proof::EcdsaP256));
    for hashes in [None, Some([HashAlgorithm::Sha2_256].as_slice())] {
        let error = judge.prove(&octets(&id), hashes).unwrap_err();
        assert_eq!(error.kind(), PeerErrorKind::Local);
    }
    let error = prover.prove(&octets(&id), Some(&[HashAlgorithm::Sha1])).unwrap_err();
    assert!(error.to_string().contains("SHA1"), "{error}");
}

#[test]
fn a_chain_with_an_intermediate_is_believed_and_without_it_is_not() {
    let root = Authority::root("root");
    let intermediate = root.intermediate("intermediate", |_| {});
    let mut auth = config(&root, intermediate.issue(&PKCS_ED25519, |_| {}));
    auth.remote_key_usages = vec![IPSEC_IKE_DER.to_vec()];
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::UnknownIssuer { .. }), "{error}");
    auth.chain.push(intermediate.der.clone());
    assert_eq!(judged(&authenticator(&auth), &authenticator(&auth), &fqdn()), Ok(Proof::Ed25519));
}

#[test]
fn an_issuer_limited_to_other_usages_is_not_believed() {
    let root = Authority::root("root");
    let intermediate = root.intermediate("web only", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let mut auth = config(&root, intermediate.issue(&PKCS_ED25519, |_| {}));
    auth.chain.push(intermediate.der.clone());
    auth.remote_key_usages = vec![IPSEC_IKE_DER.to_vec()];
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::LacksKeyUsage { .. }), "{error}");
}

#[test]
fn a_certificate_of_another_ca_is_not_believed() {
    let (root, stranger) = (Authority::root("root"), Authority::root("root"));
    let judge = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let prover = authenticator(&config(&stranger, stranger.issue(&PKCS_ED25519, |_| {})));
    let error = judged(&judge, &prover, &fqdn()).unwrap_err();
    assert_eq!(error.kind(), PeerErrorKind::UntrustedCertificate);
}

#[test]
fn a_leaf_does_not_pass_for_a_ca() {
    let root = Authority::root("root");
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = named("a node");
    let der = params.signed_by(&key, &root.issuer).unwrap().der().to_vec();
    let node = Authority { issuer: Issuer::new(params, key), der };
    let mut auth = config(&root, node.issue(&PKCS_ED25519, |_| {}));
    auth.chain.push(node.der.clone());
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert_eq!(error.kind(), PeerErrorKind::UntrustedCertificate);
}

#[test]
fn an_expired_certificate_and_a_future_one_are_told_apart() {
    let expired = verdict(&fqdn(), |params| params.not_after = date_time_ymd(2025, 6, 1)).unwrap_err();
    assert_eq!(expired, AuthError::Expired { not_after: 1_748_736_000, now: NOW });
    assert!(expired.to_string().contains("2025") && expired.to_string().contains("2026"), "{expired}");
    let future = verdict(&fqdn(), |params| params.not_before = date_time_ymd(2026, 6, 1)).unwrap_err();
    assert!(matches!(future, AuthError::NotYetValid { .. }));
    assert_eq!(
        (expired.kind(), future.kind()),
        (PeerErrorKind::UntrustedCertificate, PeerErrorKind::UntrustedCertificate)
    );
}

#[test]
fn a_certificate_of_another_role_is_refused() {
    let error = verdict(&fqdn(), |params| {
        params.subject_alt_names[1] = SanType::URI("edge-cni://hub/edge-a1".try_into().unwrap());
    })
    .unwrap_err();
    assert!(matches!(error, AuthError::LacksUri { .. }));
    assert_eq!(error.kind(), PeerErrorKind::WrongIdentity);
    assert!(error.to_string().contains("edge-cni://hub/edge-a1"), "{error}");
}

#[test]
fn a_certificate_without_the_usage_is_refused_and_any_usage_does_not_make_up_for_it() {
    for usages in [vec![], vec![ExtendedKeyUsagePurpose::ServerAuth], vec![ExtendedKeyUsagePurpose::Any]] {
        let error = verdict(&fqdn(), |params| params.extended_key_usages = usages).unwrap_err();
        assert!(matches!(error, AuthError::LacksKeyUsage { .. }), "{error}");
        assert_eq!(error.kind(), PeerErrorKind::UntrustedCertificate);
    }
}

#[test]
fn a_usage_that_is_well_known_is_recognized_by_its_oid() {
    let root = Authority::root("root");
    let mut auth = config(&root, root.issue(&PKCS_ED25519, |_| {}));
    auth.remote_key_usages = vec![vec![0x2b, 6, 1, 5, 5, 7, 3, 2]];
    assert_eq!(judged(&authenticator(&auth), &authenticator(&auth), &fqdn()), Ok(Proof::Ed25519));
    auth.remote_key_usages = vec![vec![0x2b, 6, 1, 5, 5, 7, 3, 1]];
    assert!(judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).is_err());
}

#[test]
fn a_good_certificate_with_a_signature_of_another_key_is_refused() {
    let root = Authority::root("root");
    let honest = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let thief = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let id = Id::from(&fqdn());
    let auth = thief.prove(&octets(&id), HASHES).unwrap();
    let presented = Presented { id: &id, certificates: honest.certificates(), authentication: &auth };
    let error = honest.verify(&fqdn(), presented, &octets(&id), NOW).unwrap_err();
    assert_eq!((error.clone(), error.kind()), (AuthError::Signature, PeerErrorKind::AuthenticationFailed));
}

#[test]
fn a_signature_over_other_octets_is_refused() {
    let root = Authority::root("root");
    for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P256_SHA256] {
        let auth = authenticator(&config(&root, root.issue(algorithm, |_| {})));
        let id = Id::from(&fqdn());
        let authentication = auth.prove(&octets(&id), HASHES).unwrap();
        let presented = Presented { id: &id, certificates: auth.certificates(), authentication: &authentication };
        let other = SignedOctets::responder(&keys(Prf::HmacSha256), b"message", &[0; 16], &id);
        assert_eq!(auth.verify(&fqdn(), presented, &other, NOW), Err(AuthError::Signature));
    }
}

#[test]
fn algorithms_that_do_not_fit_or_are_unknown_are_named() {
    let root = Authority::root("root");
    let auth = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let id = Id::from(&fqdn());
    let verify = |method, data: Vec<u8>| {
        let authentication = Authentication { method, data };
        let presented = Presented { id: &id, certificates: auth.certificates(), authentication: &authentication };
        auth.verify(&fqdn(), presented, &octets(&id), NOW).unwrap_err()
    };
    let digital = AuthMethod::DigitalSignature;
    let ecdsa = [12, 0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2, 1, 1];
    assert_eq!(verify(digital, ecdsa.to_vec()), AuthError::AlgorithmMismatch);
    assert_eq!(verify(AuthMethod::EcdsaP256Sha256, vec![0; 64]), AuthError::AlgorithmMismatch);
    assert!(matches!(verify(digital, vec![2, 0x30, 0, 1]), AuthError::UnsupportedSignature(_)));
    assert_eq!(verify(digital, vec![]), AuthError::Signature);
    assert_eq!(verify(digital, vec![200, 1, 2]), AuthError::Signature);
    assert!(matches!(verify(AuthMethod::RsaSignature, vec![1; 256]), AuthError::Method { .. }));
    assert!(matches!(verify(AuthMethod::Null, vec![]), AuthError::Method { .. }));
}

#[test]
fn no_certificate_and_garbage_are_refused() {
    let root = Authority::root("root");
    let auth = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let id = Id::from(&fqdn());
    let authentication = auth.prove(&octets(&id), HASHES).unwrap();
    let verify = |certificates: &[Certificate]| {
        auth.verify(&fqdn(), Presented { id: &id, certificates, authentication: &authentication }, &octets(&id), NOW)
            .unwrap_err()
    };
    let x509 = |data: Vec<u8>| Certificate { encoding: CertificateEncoding::X509Signature, data };
    assert_eq!(verify(&[]), AuthError::NoCertificate);
    let by_url = Certificate { encoding: CertificateEncoding::HashAndUrl, data: vec![1; 30] };
    assert_eq!(verify(&[by_url]), AuthError::NoCertificate);
    assert!(matches!(verify(&[x509(vec![0x30, 3, 1])]), AuthError::MalformedCertificate(_)));
    // Every prefix of a good certificate, and the certificate with something behind it.
    let good = auth.certificates()[0].data.clone();
    for len in 0..good.len() {
        assert_eq!(verify(&[x509(good[..len].to_vec())]).kind(), PeerErrorKind::UntrustedCertificate);
    }
    assert!(matches!(verify(&[x509([good, vec![0]].concat())]), AuthError::MalformedCertificate(_)));
}

#[test]
fn a_certificate_with_any_octet_changed_is_refused() {
    let root = Authority::root("root");
    let auth = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
    let id = Id::from(&fqdn());
    let authentication = auth.prove(&octets(&id), HASHES).unwrap();
    for at in 0..auth.certificates()[0].data.len() {
        let mut certificate = auth.certificates()[0].clone();
        certificate.data[at] ^= 0x01;
        let certificates = [certificate];
        let presented = Presented { id: &id, certificates: &certificates, authentication: &authentication };
        assert!(auth.verify(&fqdn(), presented, &octets(&id), NOW).is_err(), "octet {at}");
    }
}

#[test]
fn endless_names_and_line_breaks_do_not_reach_a_log() {
    let shown = Identity::Fqdn(format!("a\nforged line{}", "x".repeat(60_000))).to_string();
    assert!(shown.len() < 200 && !shown.contains('\n'), "{shown}");
    let error = verdict(&fqdn(), |params| {
        params.distinguished_name = named(&"\n".repeat(10_000));
        params.extended_key_usages.clear();
    })
    .unwrap_err();
    assert!(error.to_string().len() < 500 && !error.to_string().contains('\n'), "{error}");
}

proptest! {
    #[test]
    fn a_mutilated_certificate_is_refused_without_panic(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        // One certificate for all cases: making keys is what takes time here.
        static MADE: std::sync::LazyLock<(Authenticator, Authentication)> = std::sync::LazyLock::new(|| {
            let root = Authority::root("root");
            let auth = authenticator(&config(&root, root.issue(&PKCS_ED25519, |_| {})));
            let authentication = auth.prove(&octets(&Id::from(&fqdn())), HASHES).unwrap();
            (auth, authentication)
        });
        let (auth, authentication) = &*MADE;
        let mut certificates = auth.certificates().to_vec();
        let data = &mut certificates[0].data;
        let original = data.clone();
        for (at, value) in changes {
            let at = at.index(data.len());
            data[at] = value;
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        let same = *data == original;
        let id = Id::from(&fqdn());
        let presented = Presented { id: &id, certificates: &certificates, authentication };
        let verdict = auth.verify(&fqdn(), presented, &octets(&id), NOW);
        prop_assert_eq!(verdict.is_ok(), same);
        if let Err(error) = verdict {
            prop_assert!(error.to_string().len() < 1000);
        }
    }

    #[test]
    fn names_of_any_octets_are_compared_and_shown_without_panic(a in vec(any::<u8>(), 0..60), b in vec(any::<u8>(), 0..60)) {
        let wrapped = |octets: &[u8]| [&[0x30, octets.len() as u8], octets].concat();
        for (a, b) in [(a.clone(), b.clone()), (wrapped(&a), wrapped(&b))] {
            let (a, b) = (Identity::DistinguishedName(a), Identity::DistinguishedName(b));
            let _ = same_identity(&a, &b);
            prop_assert!(same_identity(&a, &a) && a.to_string().len() < 1000);
        }
    }
}

// ---- our own credentials

#[test]
fn credentials_that_cannot_work_are_refused_when_they_are_configured() {
    let root = Authority::root("root");
    let good = config(&root, root.issue(&PKCS_ED25519, |_| {}));
    let refused = |change: &dyn Fn(&mut CertificateAuth)| {
        let mut auth = good.clone();
        change(&mut auth);
        Authenticator::new(&Auth::Certificate(auth)).unwrap_err()
    };
    let (_, other_key) = root.issue(&PKCS_ED25519, |_| {});
    let (p384, p384_key) = root.issue(&PKCS_ECDSA_P384_SHA384, |_| {});
    assert_eq!(refused(&|auth| auth.chain.clear()), CredentialError::NoCertificate);
    assert_eq!(refused(&|auth| auth.chain = vec![vec![]; 9]), CredentialError::ChainTooLong(9));
    assert_eq!(refused(&|auth| auth.chain.push(vec![0; 20_000])), CredentialError::CertificateTooLarge(20_000));
    assert_eq!(refused(&|auth| auth.chain[0] = vec![1]), CredentialError::MalformedCertificate);
    assert_eq!(refused(&|auth| auth.key = Secret::new(vec![1, 2, 3])), CredentialError::UnsupportedKey);
    assert_eq!(refused(&|auth| auth.key = other_key.clone()), CredentialError::KeyMismatch);
    assert_eq!(
        refused(&|auth| (auth.chain[0], auth.key) = (p384.clone(), p384_key.clone())),
        CredentialError::UnsupportedKey
    );
    assert_eq!(refused(&|auth| auth.trust_anchors.clear()), CredentialError::NoTrustAnchor);
    assert_eq!(refused(&|auth| auth.trust_anchors[0] = vec![1]), CredentialError::MalformedTrustAnchor);
}

#[test]
fn the_certificate_request_names_the_trust_anchors_by_the_hash_of_their_key() {
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
    assert!(shown.contains("EcdsaP256"));
}
