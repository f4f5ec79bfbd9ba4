//! Tests octets that are not a certificate, and certificates that were changed after they were
//! signed.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

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
    // No prefix of a good certificate is accepted, nor the certificate with an extra octet.
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

proptest! {
    #[test]
    fn a_mutilated_certificate_is_refused_without_panic(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        // One certificate is used for all cases, since making keys takes most of the time.
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
}
