//! Tests certificates: both roles, fragments, and certificates that must be refused.

use std::sync::Arc;
use std::time::Duration;

use edge_ike::config::CertificateAuth;
use edge_ike::crl::{Revocation, RevocationLists, RevocationPolicy};
use edge_ike::event::PeerErrorKind;
use edge_ike::{Auth, Event, Identity, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

use crate::network::LinkQuality;
use crate::peers::{Pair, Refused, SECOND};

/// id-kp-ipsecIKE (RFC 4945 5.1.3.12).
const IPSEC_IKE: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 3, 17];
const IPSEC_IKE_DER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 17];

pub struct Authority {
    params: CertificateParams,
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params: params.clone(), issuer: Issuer::new(params, key), der }
    }

    /// Issues the cross-certificate with which a node that trusts this authority accepts `other`.
    fn cross(&self, other: &Authority) -> Vec<u8> {
        other.params.signed_by(other.issuer.key(), &self.issuer).unwrap().der().to_vec()
    }

    pub fn certify(&self, name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Auth {
        Auth::Certificate(self.issue(name, algorithm, |_| {}))
    }

    /// Issues a certificate whose notBefore is in this year.
    fn certify_in(&self, year: i32, name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Auth {
        Auth::Certificate(self.issue(name, algorithm, |params| params.not_before = date_time_ymd(year, 1, 1)))
    }

    /// Issues a certificate like those of the controller: with the name, the role, and the key
    /// usages of a node.
    fn certify_node(&self, role: &str, name: &str) -> CertificateAuth {
        self.issue(name, &PKCS_ED25519, |params| {
            params.subject_alt_names.insert(0, SanType::URI(uri(role, name).try_into().unwrap()));
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
        })
    }

    fn issue(
        &self,
        name: &str,
        algorithm: &'static rcgen::SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateAuth {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        // The certificate is as large as a real one, so that IKE_AUTH does not fit into one
        // datagram.
        let filling = (0..12).map(|i| SanType::URI(format!("urn:example:{i}:{}", "x".repeat(60)).try_into().unwrap()));
        params.subject_alt_names.extend(filling);
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        CertificateAuth {
            chain: vec![der],
            key: Secret::new(key.serialize_der()),
            trust_anchors: vec![self.der.clone()],
            remote_uri: None,
            remote_key_usages: Vec::new(),
            remote_not_before: 0,
            remote_grace: Duration::ZERO,
            revocation: None,
        }
    }
}

fn uri(role: &str, name: &str) -> String {
    format!("edge-cni://{role}/{name}")
}

/// Sets a node's requirements for its peer: the peer must have this name and this role.
fn of(role: &str, name: &str, auth: CertificateAuth) -> Auth {
    Auth::Certificate(CertificateAuth {
        remote_uri: Some(uri(role, name)),
        remote_key_usages: vec![IPSEC_IKE_DER.to_vec()],
        ..auth
    })
}

fn pair(seed: u64, quality: LinkQuality, a: Auth, b: Auth) -> Pair {
    let mut pair = Pair::new(seed, quality).one_sided();
    pair.a_config.auth = a;
    pair.b_config.auth = b;
    pair
}

#[test]
fn certificates_prove_both_ends_in_fragments_despite_loss() {
    //= RFC 7296 3.6 SHOULD 1: certificates are sent
    //= RFC 7296 3.7 SHOULD 2: what is asked for is sent
    let authority = Authority::new("CA");
    for seed in 0..20 {
        let a = authority.certify("a.example", &PKCS_ED25519);
        let b = authority.certify("b.example", &PKCS_ECDSA_P256_SHA256);
        let mut pair = pair(seed, LinkQuality::LOSSY, a, b);
        pair.start();
        pair.network.run_for(30 * SECOND);
        pair.network.quality = LinkQuality::RELIABLE;
        pair.network.run_for(30 * SECOND);
        pair.assert_connected();
        assert!(pair.network.wire.iter().all(|(_, _, octets)| octets.len() <= 1232));
        // SKF (RFC 7383) is payload type 53, which is in the header after the non-ESP marker.
        assert!(pair.network.wire.iter().any(|(_, to, octets)| to.port() == 4500 && octets[4 + 16] == 53));
        let up = pair.network.nodes[pair.a].events.iter().find_map(|(_, event)| match event {
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
        let mut pair = pair(seed, LinkQuality::REORDERING, a.clone(), b.clone());
        pair.b_config.initiate = true;
        pair.start();
        pair.traffic(25 * SECOND);
        pair.assert_connected();
    }
}

/// Parts of the error that an end reports if its authentication was refused.
const NOT_ACCEPTED: &[&str] =
    &["the peer does not accept that we are", "certificates and the identities on both sides"];

#[test]
fn a_certificate_of_another_authority_is_refused_by_whom_it_is_shown() {
    let (ours, theirs) = (Authority::new("CA"), Authority::new("Another CA"));
    let a = ours.certify("a.example", &PKCS_ED25519);
    let b = theirs.certify("b.example", &PKCS_ED25519);
    let Refused { a, b, .. } = pair(1, LinkQuality::RELIABLE, a, b).refused();
    b.is(PeerErrorKind::UntrustedCertificate, &["IKE_AUTH", "issuer", "CN=CA", "none of our trust anchors"]);
    a.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
}

#[test]
fn an_initiator_that_does_not_believe_the_responder_tells_it_and_both_are_rid_of_it() {
    let (ours, theirs) = (Authority::new("CA"), Authority::new("Another CA"));
    let a = ours.certify("a.example", &PKCS_ED25519);
    let mut b = theirs.certify("b.example", &PKCS_ED25519);
    // b accepts a, but a does not accept b.
    if let Auth::Certificate(auth) = &mut b {
        auth.trust_anchors.push(ours.der.clone());
    }
    let Refused { a, b, network } = pair(1, LinkQuality::RELIABLE, a, b).refused();
    a.is(PeerErrorKind::UntrustedCertificate, &["IKE_AUTH", "CN=Another CA", "none of our trust anchors"]);
    b.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
    // a notifies b, so b does not wait for a timeout: the notification arrives within one round
    // trip.
    let ups = network.nodes[1].events.iter().filter(|(_, event)| matches!(event, Event::IkeUp { .. }));
    let downs = network.nodes[1].events.iter().filter(|(_, event)| matches!(event, Event::IkeDown { .. }));
    let mut lasted = ups.zip(downs).map(|((up, _), (down, _))| *down - *up);
    assert!(lasted.all(|time| time < SECOND / 10), "{}", network.history());
}

#[test]
fn a_certificate_for_somebody_else_is_refused() {
    let authority = Authority::new("CA");
    let a = authority.certify("somebody.else", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    let Refused { a, b, .. } = pair(1, LinkQuality::RELIABLE, a, b).refused();
    b.is(
        PeerErrorKind::WrongIdentity,
        &["IKE_AUTH", r#"says it is "a.example""#, "its certificate is for", "somebody.else"],
    );
    a.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
}

#[test]
fn a_good_certificate_of_a_node_that_is_no_peer_is_refused() {
    let authority = Authority::new("CA");
    let stranger = of("edge", "b.example", authority.certify_node("edge", "c.example"));
    let member = of("edge", "a.example", authority.certify_node("edge", "b.example"));
    let mut pair = pair(1, LinkQuality::RELIABLE, stranger, member);
    pair.a_config.local_id = Identity::Fqdn("c.example".to_owned());
    let Refused { a, b, .. } = pair.refused();
    b.is(
        PeerErrorKind::UnknownIdentity,
        &["IKE_AUTH", r#""c.example" asks for "b.example""#, "no peer with this remote_id"],
    );
    a.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
}

#[test]
fn a_node_of_another_role_is_refused_whichever_end_it_is() {
    let authority = Authority::new("CA");
    let edge = |name: &str| authority.certify_node("edge", name);
    let Refused { a, b, .. } = pair(
        1,
        LinkQuality::RELIABLE,
        of("edge", "b.example", edge("a.example")),
        of("hub", "a.example", edge("b.example")),
    )
    .refused();
    b.is(PeerErrorKind::WrongIdentity, &["IKE_AUTH", "expected the URI edge-cni://hub/a.example", "edge-cni://edge/a"]);
    a.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
    let Refused { a, b, .. } = pair(
        1,
        LinkQuality::RELIABLE,
        of("hub", "b.example", edge("a.example")),
        of("edge", "a.example", edge("b.example")),
    )
    .refused();
    a.is(PeerErrorKind::WrongIdentity, &["IKE_AUTH", "expected the URI edge-cni://hub/b.example", "edge-cni://edge/b"]);
    b.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
}

#[test]
fn a_certificate_without_a_nodes_usages_is_refused_though_its_names_are_right() {
    let authority = Authority::new("CA");
    let server = authority.issue("a.example", &PKCS_ED25519, |params| {
        params.subject_alt_names.insert(0, SanType::URI(uri("edge", "a.example").try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let member = authority.certify_node("edge", "b.example");
    let pair = pair(1, LinkQuality::RELIABLE, of("edge", "b.example", server), of("edge", "a.example", member));
    let Refused { a, b, .. } = pair.refused();
    b.is(PeerErrorKind::UntrustedCertificate, &["IKE_AUTH", "none of the extended key usages", "the right role"]);
    a.is(PeerErrorKind::RefusedByPeer, NOT_ACCEPTED);
}

#[test]
fn nodes_of_the_expected_roles_believe_each_other() {
    let authority = Authority::new("CA");
    let hub = of("edge", "b.example", authority.certify_node("hub", "a.example"));
    let edge = of("hub", "a.example", authority.certify_node("edge", "b.example"));
    let mut pair = pair(1, LinkQuality::RELIABLE, hub, edge);
    pair.start();
    pair.network.run_for(2 * SECOND);
    pair.assert_connected();
}

#[test]
fn a_renewed_certificate_leaves_a_running_tunnel_alone() {
    let authority = Authority::new("CA");
    let a = authority.certify("a.example", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    let mut pair = pair(1, LinkQuality::RELIABLE, a, b);
    pair.start();
    pair.traffic(2 * SECOND);
    let before = pair.network.nodes[pair.a].events.len();
    pair.a_config.auth = authority.certify("a.example", &PKCS_ED25519);
    pair.start_a();
    pair.traffic(5 * SECOND);
    assert_eq!(pair.network.nodes[pair.a].events.len(), before);
    pair.assert_connected();
}

/// Changes the certificates in `auth`.
fn with(mut auth: Auth, change: impl FnOnce(&mut CertificateAuth)) -> Auth {
    if let Auth::Certificate(auth) = &mut auth {
        change(auth);
    }
    auth
}

/// Returns the credentials of a node after the rollover of its authority from `old` to `new`: a
/// certificate of the new authority, and the cross-certificate from the old one.
fn rolled_over(name: &str, old: &Authority, new: &Authority) -> Auth {
    with(new.certify(name, &PKCS_ED25519), |auth| {
        auth.chain.push(old.cross(new));
        auth.trust_anchors.push(old.der.clone());
    })
}

#[test]
fn whoever_trusts_only_the_old_authority_believes_a_certificate_of_the_new_one_by_its_cross_certificate() {
    let (old, new) = (Authority::new("old CA"), Authority::new("new CA"));
    for old_begins in [true, false] {
        let (mut a, mut b) = (old.certify("a.example", &PKCS_ED25519), rolled_over("b.example", &old, &new));
        if !old_begins {
            (a, b) = (rolled_over("a.example", &old, &new), old.certify("b.example", &PKCS_ED25519));
        }
        let mut believed = pair(1, LinkQuality::RELIABLE, a.clone(), b.clone());
        believed.start();
        believed.traffic(2 * SECOND);
        believed.assert_connected();
        let bare = |auth: Auth| with(auth, |auth| auth.chain.truncate(1));
        let mut refused = pair(1, LinkQuality::RELIABLE, bare(a), bare(b));
        refused.start();
        refused.network.run_for(2 * SECOND);
        let judge = if old_begins { refused.a } else { refused.b };
        assert_eq!(refused.network.nodes[judge].errors()[0], PeerErrorKind::UntrustedCertificate);
    }
}

#[test]
fn a_rollover_of_the_authority_under_running_tunnels_drops_nothing() {
    let (old, new) = (Authority::new("old CA"), Authority::new("new CA"));
    for seed in 0..10 {
        let (a, b) = (old.certify("a.example", &PKCS_ED25519), old.certify("b.example", &PKCS_ED25519));
        let mut pair = pair(seed, LinkQuality::REORDERING, a, b);
        pair.start();
        pair.traffic(3 * SECOND);
        let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
        let retired = |auth: Auth| with(auth, |auth| auth.trust_anchors.truncate(1));
        let (a, b) = (rolled_over("a.example", &old, &new), rolled_over("b.example", &old, &new));
        // One end after the other trusts the new authority, gets a new certificate, and then stops
        // trusting the old authority.
        for (of_a, auth) in [(true, a.clone()), (false, b.clone()), (true, retired(a)), (false, retired(b))] {
            if of_a {
                pair.a_config.auth = auth;
                pair.start_a();
            } else {
                pair.b_config.auth = auth;
                pair.start_b();
            }
            assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b_name, now, env)));
            pair.traffic(10 * SECOND);
            assert!(pair.network.call(pair.b, |endpoint, now, env| endpoint.reauthenticate(&a_name, now, env)));
            pair.traffic(10 * SECOND);
            assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&b_name, now, env)));
            pair.traffic(10 * SECOND);
            pair.assert_connected();
        }
        let down = |(_, event): &(std::time::Duration, Event)| matches!(event, Event::IkeDown { .. });
        assert!(!pair.network.nodes.iter().any(|node| node.events.iter().any(down)));
    }
}

/// Returns the beginning of a year, seconds since 1970-01-01 UTC.
fn year(year: i32) -> u64 {
    date_time_ymd(year, 1, 1).unix_timestamp().unsigned_abs()
}

#[test]
fn a_certificate_that_is_revoked_ends_its_ike_sa_at_once_and_convinces_nobody_any_more() {
    let authority = Authority::new("CA");
    let a = authority.certify_in(2001, "a.example", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    let mut pair = pair(1, LinkQuality::RELIABLE, a, b);
    pair.start();
    pair.traffic(2 * SECOND);
    pair.network.watch = false;
    pair.b_config.auth = with(pair.b_config.auth.clone(), |auth| auth.remote_not_before = year(2001));
    pair.start_b();
    pair.traffic(2 * SECOND);
    pair.assert_connected();
    pair.network.watch = false;
    pair.b_config.auth = with(pair.b_config.auth.clone(), |auth| auth.remote_not_before = year(2002));
    pair.start_b();
    assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty(), "before anything is heard from the peer");
    assert!(pair.network.nodes[pair.b].host.kernel.tunnels[&pair.a_name].sole_outbound().is_none());
    pair.network.run_for(30 * SECOND);
    assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty(), "the peer tried in vain");
    let said = pair.network.nodes[pair.b].endpoint.snapshot()[0].last_error.clone().unwrap();
    assert_eq!(said.kind, PeerErrorKind::UntrustedCertificate);
    let Auth::Certificate(shown) = &pair.a_config.auth else { unreachable!() };
    let (_, certificate) = x509_parser::parse_x509_certificate(&shown.chain[0]).unwrap();
    let serial: String = certificate.raw_serial().iter().map(|octet| format!("{octet:02x}")).collect();
    assert!(said.detail.contains("a.example") && said.detail.contains(&serial), "{said}");
    // A node that has the name now, with a certificate that was issued later, is accepted.
    pair.a_config.auth = authority.certify_in(2002, "a.example", &PKCS_ED25519);
    pair.start_a();
    pair.network.run_for(30 * SECOND);
    pair.assert_connected();
}

/// Returns a node's credentials with a list of its authority that revokes these certificates.
/// 2027-01-15, the time at which the simulation begins.
const BEGIN: u64 = 1_800_000_000;

#[test]
fn nodes_whose_certificates_have_ended_find_each_other_within_the_grace_only() {
    let authority = Authority::new("CA");
    let ended = |role: &str, name: &str, peer: (&str, &str), grace: u64| {
        let auth = authority.issue(name, &PKCS_ED25519, |params| {
            params.subject_alt_names.insert(0, SanType::URI(uri(role, name).try_into().unwrap()));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(IPSEC_IKE.to_vec())];
            params.not_after = date_time_ymd(2027, 1, 10);
        });
        let auth = CertificateAuth { remote_grace: Duration::from_secs(grace), ..auth };
        of(peer.0, peer.1, auth)
    };
    let age = BEGIN - date_time_ymd(2027, 1, 10).unix_timestamp().unsigned_abs();
    let both = |grace| {
        (
            ended("edge", "a.example", ("hub", "b.example"), grace),
            ended("hub", "b.example", ("edge", "a.example"), grace),
        )
    };
    for seed in 0..10 {
        let (a, b) = both(age + 3600);
        let mut pair = pair(seed, LinkQuality::LOSSY, a, b);
        pair.start();
        pair.network.run_for(30 * SECOND);
        pair.network.quality = LinkQuality::RELIABLE;
        pair.network.run_for(30 * SECOND);
        pair.assert_connected();
        // The end of the grace ends the tunnel, although both ends go on trying.
        for node in &mut pair.network.nodes {
            node.host.unix_time += 3601;
        }
        pair.network.run_for(300 * SECOND);
        for node in &pair.network.nodes {
            assert!(node.host.kernel.ike_sas.is_empty(), "{}", pair.network.history());
        }
    }
    let (a, b) = both(age - 1);
    let Refused { b, .. } = pair(1, LinkQuality::RELIABLE, a, b).refused();
    b.is(PeerErrorKind::UntrustedCertificate, &["IKE_AUTH", "expired at", "2027"]);
}

fn with_list(auth: &Auth, authority: &Authority, revoked: &[&Auth]) -> Auth {
    let serial = |auth: &&Auth| {
        let Auth::Certificate(shown) = auth else { unreachable!() };
        let (_, certificate) = x509_parser::parse_x509_certificate(&shown.chain[0]).unwrap();
        RevokedCertParams {
            serial_number: SerialNumber::from_slice(certificate.raw_serial()),
            revocation_time: date_time_ymd(2001, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2000, 1, 1),
        next_update: date_time_ymd(2100, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(serial).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let der = list.signed_by(&authority.issuer).unwrap().der().to_vec();
    let lists = Arc::new(RevocationLists::new(&[("ca.crl".to_owned(), der)]).unwrap());
    let revocation = Some(Revocation { lists, policy: RevocationPolicy::Strict });
    with(auth.clone(), |auth| auth.revocation = revocation)
}

#[test]
fn a_new_revocation_list_ends_the_ike_sas_that_it_concerns_and_no_other() {
    let authority = Authority::new("CA");
    let a = authority.certify("a.example", &PKCS_ED25519);
    let other = authority.certify("a.example", &PKCS_ED25519);
    let b = authority.certify("b.example", &PKCS_ED25519);
    let mut pair = pair(1, LinkQuality::RELIABLE, a.clone(), with_list(&b, &authority, &[]));
    pair.start();
    pair.traffic(2 * SECOND);
    pair.b_config.auth = with_list(&b, &authority, &[&other]);
    pair.start_b();
    pair.traffic(2 * SECOND);
    pair.assert_connected();
    pair.network.watch = false;
    pair.b_config.auth = with_list(&b, &authority, &[&other, &a]);
    pair.start_b();
    assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty(), "before anything is heard from the peer");
    pair.network.run_for(30 * SECOND);
    assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty(), "the peer tried in vain");
    let said = pair.network.nodes[pair.b].endpoint.snapshot()[0].last_error.clone().unwrap();
    assert_eq!(said.kind, PeerErrorKind::UntrustedCertificate);
    assert!(said.detail.contains("ca.crl") && said.detail.contains("is revoked"), "{said}");
    pair.a_config.auth = authority.certify("a.example", &PKCS_ED25519);
    pair.start_a();
    pair.network.run_for(30 * SECOND);
    pair.assert_connected();
}

#[test]
fn a_certificate_that_a_list_revokes_while_it_is_being_shown_does_not_slip_through() {
    let authority = Authority::new("CA");
    for milliseconds in 0..30 {
        let a = authority.certify("a.example", &PKCS_ED25519);
        let b = authority.certify("b.example", &PKCS_ED25519);
        let mut pair = pair(milliseconds, LinkQuality::RELIABLE, a.clone(), with_list(&b, &authority, &[]));
        pair.b_config.initiate = milliseconds % 2 == 0;
        pair.start();
        pair.network.run_for(std::time::Duration::from_millis(milliseconds));
        pair.b_config.auth = with_list(&b, &authority, &[&a]);
        pair.start_b();
        pair.network.run_for(20 * SECOND);
        let kernel = &pair.network.nodes[pair.b].host.kernel;
        assert!(kernel.ike_sas.is_empty(), "{milliseconds} ms: {}", pair.network.history());
    }
}

#[test]
fn a_certificate_that_is_revoked_while_it_is_being_shown_does_not_slip_through() {
    let authority = Authority::new("CA");
    let revoking = |auth: Auth| with(auth, |auth| auth.remote_not_before = year(2002));
    for milliseconds in 0..30 {
        let a = authority.certify_in(2001, "a.example", &PKCS_ED25519);
        let b = authority.certify_in(2003, "b.example", &PKCS_ED25519);
        let mut pair = pair(milliseconds, LinkQuality::RELIABLE, a, b);
        pair.b_config.initiate = milliseconds % 2 == 0;
        pair.start();
        pair.network.run_for(std::time::Duration::from_millis(milliseconds));
        pair.b_config.auth = revoking(pair.b_config.auth.clone());
        pair.start_b();
        pair.network.run_for(20 * SECOND);
        let kernel = &pair.network.nodes[pair.b].host.kernel;
        assert!(kernel.ike_sas.is_empty(), "{milliseconds} ms: {}", pair.network.history());
        assert!(kernel.tunnels.values().all(|tunnel| tunnel.sole_outbound().is_none()));
    }
}
