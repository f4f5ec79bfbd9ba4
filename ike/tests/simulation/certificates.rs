//! Certificates: both roles, fragments, and those that must not be believed.

use edge_ike::config::CertificateAuth;
use edge_ike::event::PeerErrorKind;
use edge_ike::{Auth, Event, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType,
};

use crate::peers::{Pair, SECOND};
use crate::world::Weather;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn certify(&self, name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Auth {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // As large as real ones are, so that IKE_AUTH does not fit one datagram.
        let filling = (0..12).map(|i| SanType::URI(format!("urn:example:{i}:{}", "x".repeat(60)).try_into().unwrap()));
        params.subject_alt_names.extend(filling);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Auth::Certificate(CertificateAuth {
            chain: vec![der],
            key: Secret::new(key.serialize_der()),
            trust_anchors: vec![self.der.clone()],
            remote_uri: None,
            remote_key_usages: Vec::new(),
        })
    }
}

fn pair(seed: u64, weather: Weather, a: Auth, b: Auth) -> Pair {
    let mut pair = Pair::new(seed, weather).one_sided();
    pair.a_config.auth = a;
    pair.b_config.auth = b;
    pair
}

#[test]
fn certificates_prove_both_ends_in_fragments_through_a_storm() {
    let authority = Authority::new("CA");
    for seed in 0..20 {
        let a = authority.certify("a.example", &PKCS_ED25519);
        let b = authority.certify("b.example", &PKCS_ECDSA_P256_SHA256);
        let mut pair = pair(seed, Weather::STORM, a, b);
        pair.start();
        pair.world.run_for(30 * SECOND);
        pair.world.weather = Weather::FAIR;
        pair.world.run_for(30 * SECOND);
        pair.assert_connected();
        assert!(pair.world.wire.iter().all(|(_, _, octets)| octets.len() <= 1232));
        // SKF (RFC 7383) is payload type 53, named by the header behind the marker.
        assert!(pair.world.wire.iter().any(|(_, to, octets)| to.port() == 4500 && octets[4 + 16] == 53));
        let up = pair.world.nodes[pair.a].events.iter().find_map(|(_, event)| match event {
            Event::IkeUp { details, .. } => Some(details.authentication.clone()),
            _ => None,
        });
        assert_eq!(up.unwrap(), "ecdsa-p256");
    }
}

#[test]
fn both_ends_starting_at_once_with_certificates_end_with_one_ike_sa_and_no_gap() {
    let authority = Authority::new("CA");
    let a = authority.certify("a.example", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    for seed in 0..40 {
        let mut pair = pair(seed, Weather::WINDY, a.clone(), b.clone());
        pair.b_config.initiate = true;
        pair.start();
        pair.traffic(25 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_whom_it_is_shown() {
    let (ours, theirs) = (Authority::new("CA"), Authority::new("Another CA"));
    let a = ours.certify("a.example", &PKCS_ED25519);
    let b = theirs.certify("b.example", &PKCS_ED25519);
    let mut pair = pair(1, Weather::FAIR, a, b);
    pair.start();
    pair.world.run_for(2 * SECOND);
    assert_eq!(pair.world.nodes[pair.b].errors()[0], PeerErrorKind::UntrustedCertificate);
    assert_eq!(pair.world.nodes[pair.a].errors()[0], PeerErrorKind::RefusedByPeer);
    pair.world.assert_tidy();
}

#[test]
fn an_initiator_that_does_not_believe_the_responder_tells_it_and_both_are_rid_of_it() {
    let (ours, theirs) = (Authority::new("CA"), Authority::new("Another CA"));
    let a = ours.certify("a.example", &PKCS_ED25519);
    let mut b = theirs.certify("b.example", &PKCS_ED25519);
    // b believes a, but not the other way round.
    if let Auth::Certificate(auth) = &mut b {
        auth.trust_anchors.push(ours.der.clone());
    }
    let mut pair = pair(1, Weather::FAIR, a, b);
    pair.start();
    pair.world.run_for(std::time::Duration::from_millis(400));
    assert_eq!(pair.world.nodes[pair.a].errors()[0], PeerErrorKind::UntrustedCertificate);
    assert_eq!(pair.world.nodes[pair.b].errors()[0], PeerErrorKind::RefusedByPeer);
    assert!(pair.world.nodes[pair.b].host.kernel.ike_sas.is_empty());
    pair.world.assert_tidy();
}

#[test]
fn a_certificate_for_somebody_else_is_refused() {
    let authority = Authority::new("CA");
    let a = authority.certify("somebody.else", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    let mut pair = pair(1, Weather::FAIR, a, b);
    pair.start();
    pair.world.run_for(2 * SECOND);
    assert_eq!(pair.world.nodes[pair.b].errors()[0], PeerErrorKind::WrongIdentity);
    pair.world.assert_tidy();
}

#[test]
fn a_renewed_certificate_leaves_a_running_tunnel_alone() {
    let authority = Authority::new("CA");
    let a = authority.certify("a.example", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    let mut pair = pair(1, Weather::FAIR, a, b);
    pair.start();
    pair.traffic(2 * SECOND);
    let before = pair.world.nodes[pair.a].events.len();
    pair.a_config.auth = authority.certify("a.example", &PKCS_ED25519);
    pair.start_a();
    pair.traffic(5 * SECOND);
    assert_eq!(pair.world.nodes[pair.a].events.len(), before);
    pair.assert_connected();
}
