use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use edge_types::{NodeName, Role};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::*;

use super::error::MOST_TRUSTED;
use super::request::NodeKey;
use super::*;
use crate::clock::Seconds;

const NOW: Seconds = 1_800_000_000;
const DAY: Seconds = 24 * 3600;

async fn open(directory: &Path) -> Result<Ca, CaError> {
    Ca::open(Box::new(Files::new(directory, NOW)), None, NOW).await
}

async fn open_with_operator_ca(directory: &Path, operator_ca: &OperatorCa) -> Result<Ca, CaError> {
    Ca::open(Box::new(Files::new(directory, NOW)), Some(operator_ca.clone()), NOW).await
}

fn name() -> NodeName {
    "edge-1".parse().unwrap()
}

fn node_key() -> NodeKey {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
    request::read(&csr.pem().unwrap(), &name()).unwrap()
}

fn issue(authorities: &Authorities, role: Role) -> (Issued, Vec<CertificateDer<'static>>) {
    let issued = authorities.sign_node(&name(), role, &node_key(), &Term::days(7, NOW).unwrap()).unwrap();
    let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    (issued, chain)
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(der).unwrap().1
}

#[tokio::test]
async fn a_nodes_certificate_says_its_name_and_role_and_serves_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).await.unwrap();
    let (issued, chain) = issue(&ca.current(), Role::Hub);
    assert_eq!(chain.len(), 1);
    let certificate = parsed(&chain[0]);
    let san = certificate.subject_alternative_name().unwrap().unwrap().value;
    let text = format!("{:?}", san.general_names);
    assert!(text.contains("DNSName(\"edge-1\")") && text.contains("URI(\"edge-cni://hub/edge-1\")"), "{text}");
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert_eq!(usage.other[0].to_id_string(), "1.3.6.1.5.5.7.3.17");
    assert_eq!(hex(certificate.raw_serial()), issued.term.serial);
    assert_eq!(certificate.validity().not_before.timestamp(), NOW - 3600);
    assert_eq!(certificate.validity().not_after.timestamp(), NOW + 7 * DAY);
    let current = ca.current();
    certificate.verify_signature(Some(parsed(current.active().certificate()).public_key())).unwrap();
}

#[tokio::test]
async fn the_authority_stays_the_same_and_its_key_is_for_its_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path()).await.unwrap().current();
    let second = open(directory.path()).await.unwrap().current();
    assert_eq!((first.anchors(), first.active().id()), (second.anchors(), second.active().id()));
    let mode = std::fs::metadata(directory.path().join(files::DOCUMENT)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!std::fs::read_to_string(directory.path().join(files::CERTIFICATES)).unwrap().contains("PRIVATE"));
}

#[tokio::test]
async fn the_authority_of_an_earlier_release_is_taken_over_also_if_that_was_interrupted() {
    let key = KeyPair::generate().unwrap();
    for certificate in [None, Some(authority::self_signed(&key, NOW - 5).unwrap())] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(files::FORMER_KEY), key.serialize_pem()).unwrap();
        if let Some(certificate) = &certificate {
            std::fs::write(directory.path().join(files::CERTIFICATES), certificate).unwrap();
        }
        let current = open(directory.path()).await.unwrap().current();
        assert_eq!(current.active().key_hash(), request::hash(&rcgen::PublicKeyData::subject_public_key_info(&key)));
        assert!(current.is_issuer("", current.active()), "nodes' certificates were noted without their issuer");
        assert!(!directory.path().join(files::FORMER_KEY).exists(), "one key, one place");
        let again = open(directory.path()).await.unwrap().current();
        assert_eq!(again.anchors(), current.anchors());
    }
}

#[tokio::test]
async fn missing_foreign_damaged_and_newer_files_are_errors_that_name_the_file_and_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let refused = async || open(directory.path()).await.err().unwrap().to_string();
    let put = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    put(files::CERTIFICATES, &authority::self_signed(&key, NOW).unwrap());
    assert!(refused().await.contains("ca.json is missing"), "{}", refused().await);
    put(files::FORMER_KEY, &other.serialize_pem());
    assert!(refused().await.contains("another key"), "{}", refused().await);
    put(files::FORMER_KEY, "half a k");
    assert!(refused().await.contains(files::FORMER_KEY), "{}", refused().await);
    put(files::FORMER_KEY, &key.serialize_pem());
    open(directory.path()).await.unwrap();
    let good = std::fs::read_to_string(directory.path().join(files::DOCUMENT)).unwrap();
    let newer = good.replace("\"version\": 1", "\"version\": 9");
    let half = &good[..good.len() / 2];
    for (bad, says) in
        [(newer.as_str(), "the release that wrote it"), (half, "restore it from a backup"), ("{}", "backup")]
    {
        put(files::DOCUMENT, bad);
        let error = refused().await;
        assert!(error.contains(files::DOCUMENT) && error.contains(says), "{error}");
        assert!(!error.contains("PRIVATE"), "{error}");
        assert_eq!(std::fs::read_to_string(directory.path().join(files::DOCUMENT)).unwrap(), bad);
    }
}

#[tokio::test]
async fn after_a_rollover_the_new_authority_signs_and_all_before_it_cross_sign_it() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).await.unwrap();
    let first = ca.current().active().clone();
    ca.rollover(NOW + 1).await.unwrap();
    let second = ca.current().active().clone();
    ca.rollover(NOW + 2).await.unwrap();
    let current = ca.current();
    assert_eq!(current.trusted().iter().map(|one| one.id()).collect::<Vec<_>>()[..2], [first.id(), second.id()]);
    let (issued, chain) = issue(&current, Role::Edge);
    assert_eq!((issued.issuer, chain.len()), (current.active().id(), 3));
    assert_eq!(current.issuer_of(&chain[0]).unwrap().id(), current.active().id());
    let active = parsed(current.active().certificate());
    for (cross, root) in chain[1..].iter().zip([&first, &second]) {
        let cross = parsed(cross);
        assert_eq!(cross.subject().as_raw(), active.subject().as_raw());
        assert_eq!(cross.public_key().raw, active.public_key().raw);
        cross.verify_signature(Some(parsed(root.certificate()).public_key())).unwrap();
        let constraints = cross.basic_constraints().unwrap().unwrap().value;
        assert!(constraints.ca && constraints.path_len_constraint == Some(0));
    }
    assert_eq!(current.anchors()[0], current.active().pem());
    // All authorities survive a restart, and the last root in the TLS chain is the signing
    // authority.
    let again = open(directory.path()).await.unwrap().current();
    assert_eq!(again.anchors(), current.anchors());
    let (server, _) = again.sign_server(&["cloud".into()], &Term::days(1, NOW).unwrap()).unwrap();
    assert_eq!(server.len(), 1 + 2 + 3);
    assert_eq!(server.last(), Some(current.active().certificate()));
}

#[tokio::test]
async fn a_retired_authority_is_gone_from_everything_but_the_list_and_its_key_is_wiped() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).await.unwrap();
    let first = ca.current().active().clone();
    assert!(matches!(ca.retire(&first.id(), NOW).await, Err(CaError::Active(_))));
    assert!(matches!(ca.retire("00", NOW).await, Err(CaError::NoSuch(_))));
    let key = std::fs::read_to_string(directory.path().join(files::DOCUMENT)).unwrap();
    let key = serde_json::from_str::<CaDocument>(&key).unwrap().authorities[0].key.clone().unwrap();
    ca.rollover(NOW + 1).await.unwrap();
    assert!(!first.valid().is_cancelled());
    ca.retire(&first.id()[..8], NOW + 2).await.unwrap();
    assert!(first.valid().is_cancelled(), "connections by its certificates are cut");
    let current = ca.current();
    assert!(!current.active().valid().is_cancelled());
    assert_eq!((current.trusted().len(), issue(&current, Role::Edge).1.len()), (1, 1));
    assert_eq!((&current.retired()[0].id, current.retired()[0].retired_at), (&first.id(), NOW + 2));
    let kept = std::fs::read_to_string(directory.path().join(files::DOCUMENT)).unwrap();
    assert!(!kept.contains(&key.expose().replace('\n', "\\n")));
    let again = open(directory.path()).await.unwrap().current();
    assert_eq!((again.anchors(), again.retired()), (current.anchors(), current.retired()));
    assert!(again.is_issuer("", &first), "what was noted without an issuer is the first one's for ever");
}

#[tokio::test]
async fn only_so_many_authorities_are_trusted_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let ca = open(directory.path()).await.unwrap();
    for _ in 1..MOST_TRUSTED {
        ca.rollover(NOW).await.unwrap();
    }
    assert!(matches!(ca.rollover(NOW).await, Err(CaError::TooMany)));
    let oldest = ca.current().trusted()[0].id();
    ca.retire(&oldest, NOW).await.unwrap();
    ca.rollover(NOW).await.unwrap();
}

#[tokio::test]
async fn two_that_change_the_same_document_overwrite_nothing_of_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let one = open(directory.path()).await.unwrap();
    let other = open(directory.path()).await.unwrap();
    one.rollover(NOW).await.unwrap();
    other.rollover(NOW).await.unwrap();
    assert_eq!(other.current().trusted().len(), 3);
    let files = Files::new(directory.path(), NOW);
    let (document, revision) = files.load().await.unwrap().unwrap();
    one.rollover(NOW).await.unwrap();
    assert!(matches!(files.store(&document, Some(&revision)).await, Err(CaError::Conflict)));
    assert!(matches!(files.store(&document, None).await, Err(CaError::Conflict)));
}

#[tokio::test]
async fn nothing_is_signed_beyond_the_authoritys_own_end() {
    let directory = tempfile::tempdir().unwrap();
    let current = open(directory.path()).await.unwrap().current();
    let sign = |now| current.sign_node(&name(), Role::Edge, &node_key(), &Term::days(7, now).unwrap());
    let last_day = current.active().not_after() - DAY;
    assert_eq!(sign(last_day).unwrap().term.not_after, current.active().not_after());
    let error = sign(current.active().not_after()).err().unwrap().to_string();
    assert!(error.contains("ca rollover"), "{error}");
}

/// Writes an authority's files as an operator provides them. `change` alters the certificate.
fn operator_ca(directory: &Path, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> OperatorCa {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, "Example CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    let paths = OperatorCa { certificate: directory.join("operator.crt"), key: directory.join("operator.key") };
    // Some tools write text before the PEM.
    let text = format!("Certificate:\n    Data: x\n{}", params.self_signed(key).unwrap().pem());
    std::fs::write(&paths.certificate, text).unwrap();
    std::fs::write(&paths.key, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    paths
}

#[tokio::test]
async fn an_operators_authority_of_either_kind_signs_and_a_later_one_signs_after_a_rollover() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
        let directory = tempfile::tempdir().unwrap();
        let paths = operator_ca(directory.path(), &KeyPair::generate_for(algorithm).unwrap(), |_| {});
        let ca = open_with_operator_ca(directory.path(), &paths).await.unwrap();
        assert!(ca.current().active().subject().contains("Example CA"));
        let (_, chain) = issue(&ca.current(), Role::Edge);
        assert_eq!(ca.current().issuer_of(&chain[0]).unwrap().id(), ca.current().active().id());
        assert!(matches!(ca.rollover(NOW).await, Err(CaError::SameOperatorCa(_))));
        let second = KeyPair::generate_for(algorithm).unwrap();
        operator_ca(directory.path(), &second, |_| {});
        // At the start the controller uses the stored authority. It uses the authority in the files
        // only after a rollover.
        let ca = open_with_operator_ca(directory.path(), &paths).await.unwrap();
        let (first, _) = (ca.current().active().id(), ca.rollover(NOW).await.unwrap());
        let current = ca.current();
        assert_eq!(current.active().key_hash(), request::hash(&rcgen::PublicKeyData::subject_public_key_info(&second)));
        let (_, chain) = issue(&current, Role::Edge);
        // Both authorities have the same subject. Only their keys differ.
        assert_eq!(current.issuer_of(&chain[0]).unwrap().id(), current.active().id());
        assert_eq!(current.trusted()[0].id(), first);
        ca.retire(&first, NOW).await.unwrap();
    }
}

#[tokio::test]
async fn an_operators_authority_that_cannot_sign_is_refused_with_the_reason() {
    type Edit = Box<dyn Fn(&mut CertificateParams)>;
    let cases: [(&str, Edit); 5] = [
        ("CA:TRUE", Box::new(|params| params.is_ca = IsCa::ExplicitNoCa)),
        ("keyCertSign", Box::new(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature])),
        ("no subject", Box::new(|params| params.distinguished_name = DistinguishedName::new())),
        ("expired at 2020", Box::new(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))),
        ("valid only from 2100", Box::new(|params| params.not_before = rcgen::date_time_ymd(2100, 1, 1))),
    ];
    for (says, change) in cases {
        let directory = tempfile::tempdir().unwrap();
        let paths = operator_ca(directory.path(), &KeyPair::generate().unwrap(), change);
        let error = open_with_operator_ca(directory.path(), &paths).await.err().unwrap().to_string();
        assert!(error.contains("operator.crt") && error.contains(says), "{error}");
        assert!(!directory.path().join(files::DOCUMENT).exists());
    }
    let directory = tempfile::tempdir().unwrap();
    let paths = operator_ca(directory.path(), &KeyPair::generate().unwrap(), |_| {});
    let refused = async || open_with_operator_ca(directory.path(), &paths).await.err().unwrap().to_string();
    std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused().await.contains("chmod 600"), "{}", refused().await);
    std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(0o440)).unwrap();
    open_with_operator_ca(tempfile::tempdir().unwrap().path(), &paths).await.unwrap();
    std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(0o600)).unwrap();
    for (key, says) in [
        (KeyPair::generate().unwrap().serialize_pem(), "another key"),
        (KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem(), "another kind"),
        ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n".into(), "openssl pkcs8"),
        ("sesame".into(), "PKCS #8"),
    ] {
        std::fs::write(&paths.key, &key).unwrap();
        let error = refused().await;
        assert!(error.contains("operator.key") && error.contains(says) && !error.contains(&key), "{error}");
    }
}
