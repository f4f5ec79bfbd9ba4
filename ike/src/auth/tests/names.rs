//! Tests the comparison of the names in a certificate with the identity that the peer claims.

use proptest::collection::vec;
use proptest::prelude::*;
use rcgen::DnValue;

use super::*;

#[test]
fn somebody_else_than_expected_is_refused_though_its_proof_is_good() {
    //= RFC 7296 1.2 MUST 3: the name belongs to the secret
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
    let (utf8, _) = root.issue(&PKCS_ED25519, |params| params.distinguished_name = named("edge-a1"));
    let other = Identity::DistinguishedName(X509Certificate::from_der(&utf8).unwrap().1.subject().as_raw().to_vec());
    assert_ne!(identity, other);
    assert_eq!(canonical_identity(&identity), canonical_identity(&other));
}

#[test]
fn identities_have_one_canonical_form_exactly_if_they_are_the_same() {
    let fqdn = |name: &str| Identity::Fqdn(name.into());
    let email = |address: &str| Identity::Email(address.into());
    let address = |text: &str| Identity::Address(text.parse().unwrap());
    let name = |der: &[u8]| Identity::DistinguishedName(der.to_vec());
    // O=a, as a UTF8String and as a PrintableString.
    let utf8 = [0x30, 0x0c, 0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x0c, 0x01, b'a'];
    let printable = [0x30, 0x0c, 0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x01, b'a'];
    let integer = [0x30, 0x0c, 0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x02, 0x01, b'a'];
    let octet_string = [0x30, 0x0c, 0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x04, 0x01, b'a'];
    let more_in_the_name = [0x30, 0x0e, 0x31, 0x0a, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x0c, 0x01, b'a', 5, 0];
    let more_in_the_rdn = [0x30, 0x0e, 0x31, 0x0c, 0x30, 0x08, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x0c, 0x01, b'a', 5, 0];
    let same: [&[Identity]; 19] = [
        &[fqdn("a.example"), fqdn("A.Example.")],
        &[fqdn("b.example")],
        &[email("a.example")],
        &[email("ops@Example.org"), email("ops@example.org.")],
        &[email("OPS@example.org")],
        &[address("192.0.2.1"), address("::ffff:192.0.2.1")],
        &[address("2001:db8::1")],
        &[Identity::KeyId(b"a.example".to_vec())],
        &[Identity::KeyId(b"A.example".to_vec())],
        &[name(&utf8), name(&printable)],
        &[name(&integer)],
        &[name(&octet_string)],
        &[name(&more_in_the_name)],
        &[name(&more_in_the_rdn)],
        &[name(&[])],
        &[name(&[0x30, 0])],
        &[name(&[0x30, 2, 5, 0])],
        &[name(&[0x30, 0, 0])],
        // Another class than SEQUENCE.
        &[name(&[0x70, 0])],
    ];
    let all: Vec<_> = same.iter().enumerate().flat_map(|(n, list)| list.iter().map(move |one| (n, one))).collect();
    for (group_a, a) in &all {
        for (group_b, b) in &all {
            assert_eq!(same_identity(a, b), group_a == group_b, "{a:?} and {b:?}");
            assert_eq!(canonical_identity(a) == canonical_identity(b), group_a == group_b, "{a:?} and {b:?}");
        }
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
    fn names_of_any_octets_are_compared_and_shown_without_panic(a in vec(any::<u8>(), 0..60), b in vec(any::<u8>(), 0..60)) {
        let wrapped = |octets: &[u8]| [&[0x30, octets.len() as u8], octets].concat();
        for (a, b) in [(a.clone(), b.clone()), (wrapped(&a), wrapped(&b))] {
            let (a, b) = (Identity::DistinguishedName(a), Identity::DistinguishedName(b));
            // Two names of the same attributes do not come about by chance.
            prop_assert_eq!(same_identity(&a, &b), a == b);
            prop_assert!(same_identity(&a, &a) && a.to_string().len() < 1000);
        }
    }
}
