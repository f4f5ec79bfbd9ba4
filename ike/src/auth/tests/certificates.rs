//! Tests which certificates and signatures the validator accepts.

use rcgen::PKCS_ECDSA_P384_SHA384;

use super::super::certificate_validator::candidate_issuers;
use super::*;

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
    //= RFC 7296 3.6 MUST 4: the key's certificate is first
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
fn a_chain_of_four_certificates_is_believed() {
    //= RFC 7296 3.6 MUST 2: four certificates
    let root = Authority::root("root");
    let upper = root.intermediate("upper", |_| {});
    let middle = upper.intermediate("middle", |_| {});
    let lower = middle.intermediate("lower", |_| {});
    let mut auth = config(&root, lower.issue(&PKCS_ED25519, |_| {}));
    // All certificates except the first may be in any order.
    auth.chain.extend([upper.der, lower.der, middle.der]);
    assert_eq!(judged(&authenticator(&auth), &authenticator(&auth), &fqdn()), Ok(Proof::Ed25519));
}

#[test]
fn a_chain_of_cas_that_all_have_one_name_is_cut_and_costs_little() {
    let certificates: Vec<Vec<u8>> = (0..7).map(|_| Authority::root("anyone").der).collect();
    // Every certificate could have issued every other one. A search of all of them tries all
    // orders, which are 13,700 paths.
    let candidates = candidate_issuers(certificates.iter().map(Vec::as_slice));
    let candidates: Vec<&[u8]> = candidates.iter().map(|candidate| candidate.der).collect();
    assert_eq!(candidates, certificates[..2]);
    let (root, stranger) = (Authority::root("root"), Authority::root("anyone"));
    let mut auth = config(&root, stranger.issue(&PKCS_ED25519, |_| {}));
    auth.chain.extend(certificates);
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::UnknownIssuer { .. }), "{error}");
}

#[test]
fn an_intermediate_with_two_certificates_is_believed_if_either_leads_to_a_trust_anchor() {
    let (root, other) = (Authority::root("root"), Authority::root("other root"));
    let (key, params) = (KeyPair::generate_for(&PKCS_ED25519).unwrap(), Authority::params("intermediate"));
    let [by_root, by_other] =
        [&root, &other].map(|issuer| params.signed_by(&key, &issuer.issuer).unwrap().der().to_vec());
    let intermediate = Authority { issuer: Issuer::new(params, key), der: by_root.clone() };
    for order in [[&by_root, &by_other], [&by_other, &by_root]] {
        let mut auth = config(&root, intermediate.issue(&PKCS_ED25519, |_| {}));
        auth.chain.extend(order.map(Clone::clone));
        assert_eq!(judged(&authenticator(&auth), &authenticator(&auth), &fqdn()), Ok(Proof::Ed25519));
    }
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
    assert!(error.to_string().contains("leads to none of our trust anchors"), "{error}");
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
fn a_grace_accepts_a_certificate_after_its_end_and_no_other_fault() {
    /// 2025-06-01
    const END: u64 = 1_748_736_000;
    let root = Authority::root("root");
    let ended = root.issue(&PKCS_ED25519, |params| params.not_after = date_time_ymd(2025, 6, 1));
    let within =
        |seconds: u64| CertificateAuth { remote_grace: Duration::from_secs(seconds), ..config(&root, ended.clone()) };
    let verdict = |auth: &CertificateAuth| judged(&authenticator(auth), &authenticator(auth), &fqdn());
    verdict(&within(NOW - END)).unwrap();
    let expired = AuthError::Expired { not_after: END, now: NOW };
    assert_eq!(verdict(&within(NOW - END - 1)).unwrap_err(), expired);
    assert_eq!(verdict(&within(0)).unwrap_err(), expired);
    verdict(&within(u64::MAX)).unwrap();
    // A certificate that is revoked has no grace.
    let revoked = CertificateAuth { remote_not_before: NOW, ..within(NOW) };
    assert!(matches!(verdict(&revoked).unwrap_err(), AuthError::Revoked { .. }));
    // Another authority's certificate, and one for another use, stay refused.
    let stranger = CertificateAuth { trust_anchors: vec![Authority::root("other").der], ..within(NOW) };
    assert!(matches!(verdict(&stranger).unwrap_err(), AuthError::UnknownIssuer { .. }));
    let usage = CertificateAuth { remote_key_usages: vec![vec![0x2b, 6, 1, 5, 5, 7, 3, 1]], ..within(NOW) };
    assert!(matches!(verdict(&usage).unwrap_err(), AuthError::LacksKeyUsage { .. }));
    // A certificate that begins later gets no grace.
    let future = root.issue(&PKCS_ED25519, |params| params.not_before = date_time_ymd(2026, 6, 1));
    let future = CertificateAuth { remote_grace: Duration::from_secs(NOW), ..config(&root, future) };
    assert!(matches!(verdict(&future).unwrap_err(), AuthError::NotYetValid { .. }));
}

#[test]
fn an_authority_that_had_ended_before_the_certificate_did_gets_no_grace() {
    let expired = Authority::root_with("root", |params| params.not_after = date_time_ymd(2025, 1, 1));
    let ended = expired.issue(&PKCS_ED25519, |params| params.not_after = date_time_ymd(2025, 6, 1));
    let auth = CertificateAuth { remote_grace: Duration::from_secs(NOW), ..config(&expired, ended) };
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::Expired { .. }), "{error}");
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
    //= RFC 7296 3.6 MUST 4: the key's certificate is first
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
    //= RFC 7296 1.2 MUST 2: verify signatures and MACs
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
    assert_eq!(verify(AuthMethod::RsaSignature, vec![1; 256]), AuthError::AlgorithmMismatch);
    assert!(matches!(verify(AuthMethod::Null, vec![]), AuthError::Method { .. }));
}

#[test]
fn a_certificate_whose_key_usage_excludes_signatures_is_refused() {
    let with = |usages: &[KeyUsagePurpose]| verdict(&fqdn(), |params| params.key_usages = usages.to_vec());
    for good in [&[][..], &[KeyUsagePurpose::DigitalSignature], &[KeyUsagePurpose::ContentCommitment]] {
        assert_eq!(with(good), Ok(Proof::Ed25519), "{good:?}");
    }
    let error = with(&[KeyUsagePurpose::KeyEncipherment]).unwrap_err();
    assert_eq!(error.kind(), PeerErrorKind::UntrustedCertificate);
    assert!(error.to_string().contains("digitalSignature"), "{error}");
}

#[test]
fn an_issuer_whose_key_usage_excludes_certificates_is_not_believed() {
    for (usage, good) in [(KeyUsagePurpose::KeyCertSign, true), (KeyUsagePurpose::DigitalSignature, false)] {
        let root = Authority::root("root");
        let intermediate = root.intermediate("intermediate", |params| params.key_usages = vec![usage]);
        let mut auth = config(&root, intermediate.issue(&PKCS_ED25519, |_| {}));
        auth.chain.push(intermediate.der.clone());
        let result = judged(&authenticator(&auth), &authenticator(&auth), &fqdn());
        assert_eq!(result.is_ok(), good, "{usage:?}: {result:?}");
    }
}

#[test]
fn a_trust_anchor_counts_only_while_it_is_valid() {
    let expired = Authority::root_with("root", |params| params.not_after = date_time_ymd(2025, 6, 1));
    let auth = config(&expired, expired.issue(&PKCS_ED25519, |_| {}));
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::Expired { .. }), "{error}");
    let early = Authority::root_with("root", |params| params.not_before = date_time_ymd(2026, 6, 1));
    let auth = config(&early, early.issue(&PKCS_ED25519, |_| {}));
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::NotYetValid { .. }), "{error}");
    // Another, valid trust anchor is used, in either order.
    let good = Authority::root("good root");
    for anchors in [[&expired, &good], [&good, &expired]] {
        let mut auth = config(&good, good.issue(&PKCS_ED25519, |_| {}));
        auth.trust_anchors = anchors.map(|anchor| anchor.der.clone()).to_vec();
        assert_eq!(judged(&authenticator(&auth), &authenticator(&auth), &fqdn()), Ok(Proof::Ed25519));
    }
}

#[test]
fn a_trust_anchor_that_allows_no_intermediates_has_none() {
    let root = Authority::root_with("root", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let direct = config(&root, root.issue(&PKCS_ED25519, |_| {}));
    assert_eq!(judged(&authenticator(&direct), &authenticator(&direct), &fqdn()), Ok(Proof::Ed25519));
    let intermediate = root.intermediate("intermediate", |_| {});
    let mut auth = config(&root, intermediate.issue(&PKCS_ED25519, |_| {}));
    auth.chain.push(intermediate.der.clone());
    let error = judged(&authenticator(&auth), &authenticator(&auth), &fqdn()).unwrap_err();
    assert!(matches!(error, AuthError::Chain(_)), "{error}");
}
