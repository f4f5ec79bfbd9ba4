//! Tests the check against certificate revocation lists (RFC 5280 6.3).

use std::sync::Arc;

use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, KeyIdMethod,
    RevocationReason, RevokedCertParams,
};

use super::*;
use crate::crl::{CrlError, Revocation, RevocationLists, RevocationPolicy};
use crate::event::PeerCertificate;

const URI: &str = "http://ca.example/all.crl";

/// A list that is valid at [`NOW`] and has the certificates with these serial numbers.
fn list(serials: &[u64]) -> CertificateRevocationListParams {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: (*serial).into(),
        revocation_time: date_time_ymd(2025, 6, 1),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 12, 1),
        next_update: date_time_ymd(2026, 2, 1),
        crl_number: 7.into(),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

fn signed(list: &CertificateRevocationListParams, by: &Authority) -> Vec<u8> {
    list.signed_by(&by.issuer).unwrap().der().to_vec()
}

fn lists(ders: Vec<Vec<u8>>, policy: RevocationPolicy) -> Option<Revocation> {
    let named: Vec<_> = ders.into_iter().enumerate().map(|(nth, der)| (format!("{nth}.crl"), der)).collect();
    Some(Revocation { lists: Arc::new(RevocationLists::new(&named).unwrap()), policy })
}

/// A peer whose certificate has this serial number and says where its list is, if `uri` is set.
fn peer(issuer: &Authority, serial: u64, uri: Option<&str>) -> CertificateAuth {
    let certificate = issuer.issue(&PKCS_ED25519, |params| {
        params.serial_number = Some(serial.into());
        let points = uri.map(|uri| CrlDistributionPoint { uris: vec![uri.to_owned()] });
        params.crl_distribution_points = points.into_iter().collect();
    });
    config(issuer, certificate)
}

/// Returns what a node that has these lists says to `peer`.
fn verdict_of(peer: &CertificateAuth, revocation: Option<Revocation>) -> Result<Proof, AuthError> {
    let judge = CertificateAuth { revocation, ..peer.clone() };
    judged(&authenticator(&judge), &authenticator(peer), &fqdn())
}

fn credentials(root: &Authority, ders: Vec<Vec<u8>>) -> Result<Authenticator, CredentialError> {
    let auth = CertificateAuth { revocation: lists(ders, RevocationPolicy::Relaxed), ..peer(root, 1, None) };
    Authenticator::new(&Auth::Certificate(auth))
}

#[test]
fn a_revoked_certificate_is_refused_by_every_policy_and_the_others_are_not() {
    let root = Authority::root("root");
    for policy in [RevocationPolicy::Relaxed, RevocationPolicy::IfUri, RevocationPolicy::Strict] {
        let all = lists(vec![signed(&list(&[4711, 4712]), &root)], policy);
        assert_eq!(verdict_of(&peer(&root, 4713, Some(URI)), all.clone()), Ok(Proof::Ed25519));
        let error = verdict_of(&peer(&root, 4711, None), all).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), PeerErrorKind::UntrustedCertificate);
        for part in ["serial 1267", "CN=root", "Jun  1", "keyCompromise", "0.crl"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_certificate_without_a_current_list_is_refused_as_the_policy_says() {
    let root = Authority::root("root");
    let other = Authority::root("other");
    let change = |change: fn(&mut CertificateRevocationListParams)| {
        let mut list = list(&[]);
        change(&mut list);
        signed(&list, &root)
    };
    let past = change(|list| list.next_update = date_time_ymd(2025, 12, 31));
    let future = change(|list| list.this_update = date_time_ymd(2026, 1, 2));
    for (der, why) in [
        (past, "was valid until"),
        (future, "later than our clock"),
        (signed(&list(&[]), &other), "no revocation list of its issuer"),
    ] {
        let verdict = |uri, policy| verdict_of(&peer(&root, 1, uri), lists(vec![der.clone()], policy));
        for uri in [None, Some(URI)] {
            assert_eq!(verdict(uri, RevocationPolicy::Relaxed), Ok(Proof::Ed25519));
            let error = verdict(uri, RevocationPolicy::Strict).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("serial 01"), "{why}: {error}");
        }
        assert_eq!(verdict(None, RevocationPolicy::IfUri), Ok(Proof::Ed25519));
        assert!(verdict(Some(URI), RevocationPolicy::IfUri).unwrap_err().to_string().contains(why));
    }
}

#[test]
fn a_list_whose_time_is_past_still_revokes() {
    let root = Authority::root("root");
    let past = CertificateRevocationListParams { next_update: date_time_ymd(2025, 12, 31), ..list(&[5]) };
    let past = lists(vec![signed(&past, &root)], RevocationPolicy::Relaxed);
    assert!(matches!(verdict_of(&peer(&root, 5, None), past), Err(AuthError::RevokedByList { .. })));
}

#[test]
fn every_certificate_of_the_chain_is_checked_each_with_the_list_of_its_own_issuer() {
    let root = Authority::root("root");
    let middle = root.intermediate("middle", |params| params.serial_number = Some(20.into()));
    let mut leaf = peer(&middle, 30, None);
    leaf.trust_anchors = vec![root.der.clone()];
    leaf.chain.push(middle.der.clone());
    let verdict = |by_root: &[u64], by_middle: &[u64]| {
        let ders = vec![signed(&list(by_root), &root), signed(&list(by_middle), &middle)];
        verdict_of(&leaf, lists(ders, RevocationPolicy::Strict))
    };
    assert_eq!(verdict(&[30], &[20]), Ok(Proof::Ed25519), "serial numbers are those of one issuer");
    assert!(verdict(&[20], &[]).unwrap_err().to_string().contains("serial 14"));
    assert!(verdict(&[], &[30]).unwrap_err().to_string().contains("serial 1e"));
    let only_root = lists(vec![signed(&list(&[]), &root)], RevocationPolicy::Strict);
    assert!(matches!(verdict_of(&leaf, only_root), Err(AuthError::RevocationUnknown { .. })));
}

#[test]
fn another_path_to_a_trust_anchor_is_taken_if_an_issuer_on_the_first_one_is_revoked() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let crossed = |by: &Authority, serial: u64| {
        let mut params = Authority::params("middle");
        params.serial_number = Some(serial.into());
        params.signed_by(&key, &by.issuer).unwrap().der().to_vec()
    };
    let (by_old, by_new) = (crossed(&old, 1), crossed(&new, 2));
    let middle = Authority { issuer: Issuer::new(Authority::params("middle"), key), der: by_old.clone() };
    for order in [[by_old.clone(), by_new.clone()], [by_new, by_old]] {
        let mut leaf = peer(&middle, 30, None);
        leaf.trust_anchors = vec![old.der.clone(), new.der.clone()];
        leaf.chain.extend(order);
        let ders = |by_new: &[u64]| vec![signed(&list(&[1]), &old), signed(&list(by_new), &new)];
        assert_eq!(verdict_of(&leaf, lists(ders(&[]), RevocationPolicy::Relaxed)), Ok(Proof::Ed25519));
        let both = verdict_of(&leaf, lists(ders(&[2]), RevocationPolicy::Relaxed));
        assert!(matches!(both, Err(AuthError::RevokedByList { .. })), "{both:?}");
    }
}

#[test]
fn a_list_that_its_issuer_has_not_signed_is_refused_or_does_not_count() {
    let (root, stranger) = (Authority::root("root"), Authority::root("root"));
    let error = credentials(&root, vec![signed(&list(&[1]), &stranger)]).unwrap_err().to_string();
    assert!(error.contains("0.crl") && error.contains("CN=root") && error.contains("not signed"), "{error}");
    // The list of an intermediate is known to be another one's only when the peer comes.
    let middle = root.intermediate("middle", |_| {});
    let other = root.intermediate("middle", |_| {});
    let mut leaf = peer(&middle, 30, None);
    leaf.trust_anchors = vec![root.der.clone()];
    leaf.chain.push(middle.der.clone());
    let foreign =
        |policy| verdict_of(&leaf, lists(vec![signed(&list(&[30]), &other), signed(&list(&[]), &root)], policy));
    assert_eq!(foreign(RevocationPolicy::Relaxed), Ok(Proof::Ed25519));
    assert!(foreign(RevocationPolicy::Strict).unwrap_err().to_string().contains("is not signed by its issuer"));
    let both = vec![signed(&list(&[30]), &other), signed(&list(&[30]), &middle)];
    assert!(matches!(verdict_of(&leaf, lists(both, RevocationPolicy::Relaxed)), Err(AuthError::RevokedByList { .. })));
}

#[test]
fn a_list_of_an_issuer_that_may_not_sign_lists_is_refused_or_does_not_count() {
    let only = |usage: KeyUsagePurpose| {
        move |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::KeyCertSign, usage]
    };
    let able = Authority::root_with("root", only(KeyUsagePurpose::CrlSign));
    assert!(credentials(&able, vec![signed(&list(&[]), &able)]).is_ok());
    // The same name and key, but a certificate without cRLSign.
    let mut params = Authority::params("root");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let unable = params.self_signed(able.issuer.key()).unwrap().der().to_vec();
    let auth = CertificateAuth {
        trust_anchors: vec![unable],
        revocation: lists(vec![signed(&list(&[1]), &able)], RevocationPolicy::Relaxed),
        ..peer(&able, 1, None)
    };
    let error = Authenticator::new(&Auth::Certificate(auth)).unwrap_err().to_string();
    assert!(error.contains("cRLSign"), "{error}");
    let middle = able.intermediate("middle", only(KeyUsagePurpose::DigitalSignature));
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(&middle.issuer.key().serialize_pem(), &PKCS_ED25519).unwrap();
    let free = Authority { issuer: Issuer::new(Authority::params("middle"), key), der: vec![] };
    let mut leaf = peer(&middle, 30, None);
    leaf.trust_anchors = vec![able.der.clone()];
    leaf.chain.push(middle.der.clone());
    let by_middle = lists(vec![signed(&list(&[30]), &free), signed(&list(&[]), &able)], RevocationPolicy::Strict);
    assert!(verdict_of(&leaf, by_middle).unwrap_err().to_string().contains("cRLSign"));
}

#[test]
fn the_newest_list_counts_and_remove_from_crl_revokes_nothing() {
    let root = Authority::root("root");
    let older = CertificateRevocationListParams { this_update: date_time_ymd(2025, 11, 1), ..list(&[8]) };
    for ders in
        [[signed(&older, &root), signed(&list(&[9]), &root)], [signed(&list(&[9]), &root), signed(&older, &root)]]
    {
        let both = lists(ders.to_vec(), RevocationPolicy::Relaxed);
        assert_eq!(verdict_of(&peer(&root, 8, None), both.clone()), Ok(Proof::Ed25519));
        assert!(verdict_of(&peer(&root, 9, None), both).is_err());
    }
    let mut removed = list(&[8]);
    removed.revoked_certs[0].reason_code = Some(RevocationReason::RemoveFromCrl);
    let removed = lists(vec![signed(&removed, &root)], RevocationPolicy::Strict);
    assert_eq!(verdict_of(&peer(&root, 8, None), removed), Ok(Proof::Ed25519));
}

#[test]
fn a_list_covers_only_the_certificates_in_its_scope() {
    let root = Authority::root("root");
    let scoped = |scope, uri: &str| {
        let distribution_point = CrlDistributionPoint { uris: vec![uri.to_owned()] };
        let point = CrlIssuingDistributionPoint { distribution_point, scope };
        signed(&CertificateRevocationListParams { issuing_distribution_point: Some(point), ..list(&[1]) }, &root)
    };
    let revoked =
        |der: Vec<u8>, at| verdict_of(&peer(&root, 1, at), lists(vec![der], RevocationPolicy::Relaxed)).is_err();
    assert!(revoked(scoped(None, URI), Some(URI)));
    assert!(revoked(scoped(None, URI), None));
    assert!(!revoked(scoped(None, "http://ca.example/other.crl"), Some(URI)));
    assert!(revoked(scoped(Some(CrlScope::UserCertsOnly), URI), Some(URI)));
    assert!(!revoked(scoped(Some(CrlScope::CaCertsOnly), URI), Some(URI)));
}

#[test]
fn lists_that_would_be_understood_wrongly_are_refused_in_words() {
    let root = Authority::root("root");
    let distribution_point = CrlDistributionPoint { uris: vec![URI.to_owned()] };
    let point = CrlIssuingDistributionPoint { distribution_point, scope: Some(CrlScope::UserCertsOnly) };
    let good =
        signed(&CertificateRevocationListParams { issuing_distribution_point: Some(point), ..list(&[1]) }, &root);
    let refused = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|window| window == from).unwrap();
        let mut der = good.clone();
        der[at..at + to.len()].copy_from_slice(to);
        RevocationLists::new(&[("a.crl".to_owned(), der)]).unwrap_err()
    };
    // id-ce-cRLNumber becomes id-ce-deltaCRLIndicator.
    assert_eq!(refused(&[0x55, 0x1d, 20], &[0x55, 0x1d, 27]), ("a.crl".to_owned(), CrlError::Delta));
    // onlyContainsUserCerts becomes indirectCRL.
    assert_eq!(refused(&[0x81, 1, 0xff], &[0x84, 1, 0xff]).1, CrlError::Indirect);
    // id-ce-issuingDistributionPoint, which is critical, becomes an extension that nobody knows.
    assert_eq!(refused(&[0x55, 0x1d, 28], &[0x55, 0x1d, 99]).1, CrlError::CriticalExtension);
    assert_eq!(refused(&[2, 1, 1, 0x30], &[2, 1, 0, 0x30]).1, CrlError::Version);
    for (text, error) in [("complete CRL", CrlError::Delta), ("other issuers", CrlError::Indirect)] {
        assert!(error.to_string().contains(text));
    }
    let many = vec![("a.crl".to_owned(), good.clone()); 65];
    assert_eq!(RevocationLists::new(&many).unwrap_err().1, CrlError::TooMany(65));
    let large = vec![0; crate::crl::MAX_CRL + 1];
    assert!(matches!(RevocationLists::new(&[("a".into(), large)]).unwrap_err().1, CrlError::TooLarge(_)));
}

#[test]
fn a_list_that_is_cut_or_damaged_never_panics_and_never_loses_an_entry_in_silence() {
    let root = Authority::root("root");
    let good = signed(&list(&[1, 2, 3]), &root);
    for length in 0..good.len() {
        assert!(RevocationLists::new(&[("cut".to_owned(), good[..length].to_vec())]).is_err(), "{length} octets");
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert!(RevocationLists::new(&[("longer".to_owned(), longer)]).is_err());
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut der = good.clone();
            der[at] ^= 1 << bit;
            let Ok(read) = RevocationLists::new(&[("damaged".to_owned(), der)]) else { continue };
            let revocation = Revocation { lists: Arc::new(read), policy: RevocationPolicy::Strict };
            let auth = CertificateAuth { revocation: Some(revocation.clone()), ..peer(&root, 9, None) };
            // Either it names another issuer, or its signature is wrong.
            match Authenticator::new(&Auth::Certificate(auth)) {
                Err(error) => assert!(matches!(error, CredentialError::ForeignRevocationList { .. }), "{error}"),
                Ok(_) => assert!(verdict_of(&peer(&root, 9, None), Some(revocation)).is_err(), "octet {at}, bit {bit}"),
            }
        }
    }
}

#[test]
fn a_list_of_a_hundred_thousand_entries_is_searched_and_its_signature_checked_once() {
    let root = Authority::root("root");
    let serials: Vec<u64> = (0..100_000).map(|n| 2 * n + 1).collect();
    let sources = [("large.crl".to_owned(), signed(&list(&serials), &root))];
    let large = RevocationLists::new(&sources).unwrap();
    assert_eq!(large.entries(), 100_000);
    let only = large.iter().next().unwrap();
    assert!(only.entry(&[0x01]).is_some() && only.entry(&[0x02]).is_none());
    let mut checks = 0;
    for _ in 0..3 {
        assert!(only.is_signed_by(b"a key", || {
            checks += 1;
            true
        }));
        assert!(!only.is_signed_by(b"another key", || {
            checks += 1;
            false
        }));
    }
    assert_eq!(checks, 2);
    let large = Some(Revocation { lists: Arc::new(large), policy: RevocationPolicy::Strict });
    assert!(verdict_of(&peer(&root, 199_999, None), large.clone()).is_err());
    assert_eq!(verdict_of(&peer(&root, 199_998, None), large), Ok(Proof::Ed25519));
}

#[test]
fn a_chain_that_was_accepted_is_refused_by_later_lists() {
    let root = Authority::root("root");
    let middle = root.intermediate("middle", |params| params.serial_number = Some(20.into()));
    let mut leaf = peer(&middle, 30, None);
    leaf.trust_anchors = vec![root.der.clone()];
    leaf.chain.push(middle.der.clone());
    let shown = PeerCertificate {
        serial: "1e".into(),
        not_before: 0,
        not_after: u64::MAX,
        chain: Some(leaf.chain.clone().into()),
    };
    assert!(format!("{shown:?}").contains("chain: Some(2)"), "a log needs no certificates: {shown:?}");
    let later = |by_root: &[u64], by_middle: &[u64]| {
        let ders = vec![signed(&list(by_root), &root), signed(&list(by_middle), &middle)];
        let auth = CertificateAuth { revocation: lists(ders, RevocationPolicy::Strict), ..leaf.clone() };
        authenticator(&auth).check_not_revoked(&shown, &fqdn())
    };
    assert_eq!(later(&[], &[]), Ok(()));
    assert!(later(&[20], &[]).is_err());
    assert!(later(&[], &[30]).is_err());
}
