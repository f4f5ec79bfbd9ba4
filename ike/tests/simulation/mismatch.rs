//! Tests that incompatible configurations are refused at both ends, with an error that names the
//! mismatch, and that no state is left.

use std::time::Duration;

use edge_ike::config::{Cipher, EspProposal, Group};
use edge_ike::event::{DownReason, PeerErrorKind};
use edge_ike::{Auth, EndpointConfig, Event, Identity, PeerConfig, Secret};

use crate::network::{LinkQuality, Network};
use crate::peers::{Pair, Refused, SECOND, name, peer};

fn refused(change: impl Fn(&mut PeerConfig, &mut PeerConfig)) -> Refused {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    change(&mut pair.a_config, &mut pair.b_config);
    pair.refused()
}

#[test]
fn one_letter_of_the_secret_changed_is_an_error_at_both_ends() {
    let Refused { a, b, network } =
        refused(|_, b| b.auth = Auth::Psk(Secret::new(b"correct horse battery stapla".to_vec())));
    a.is(PeerErrorKind::RefusedByPeer, &["IKE_AUTH", r#"we are "a.example""#, "compare the pre-shared key"]);
    b.is(PeerErrorKind::AuthenticationFailed, &["IKE_AUTH", "compare the pre-shared key on both sides"]);
    let last = network.nodes[0].endpoint.snapshot()[0].last_error.clone().unwrap();
    assert_eq!(last.exchange, "IKE_AUTH");
}

#[test]
fn an_identity_that_nobody_configured_is_refused() {
    let Refused { a, b, .. } = refused(|a, _| a.local_id = Identity::Fqdn("mallory.example".to_owned()));
    a.is(PeerErrorKind::RefusedByPeer, &["IKE_AUTH", r#"we are "mallory.example""#, "the identities on both sides"]);
    b.is(
        PeerErrorKind::UnknownIdentity,
        &["IKE_AUTH", r#""mallory.example" asks for "b.example""#, "no peer with this remote_id"],
    );
}

#[test]
fn a_responder_is_only_who_was_dialled() {
    let Refused { a, b, .. } = refused(|a, _| a.remote_id = Identity::Fqdn("c.example".to_owned()));
    a.is(PeerErrorKind::RefusedByPeer, &["IKE_AUTH", "the identities on both sides"]);
    b.is(PeerErrorKind::UnknownIdentity, &["IKE_AUTH", r#""a.example" asks for "c.example""#, "local_id"]);
}

#[test]
fn no_ike_proposal_in_common_is_an_error_at_both_ends() {
    //= RFC 7296 2.7 MUST 3: one proposal or NO_PROPOSAL_CHOSEN
    //= RFC 7296 3.3.4 MUST 5: nothing else is accepted
    let Refused { a, b, network } = refused(|a, b| {
        a.ike_proposals[0].ciphers = vec![Cipher::Aes128Gcm16];
        b.ike_proposals[0].ciphers = vec![Cipher::ChaCha20Poly1305];
    });
    a.is(
        PeerErrorKind::NoProposalChosen,
        &[
            "IKE_SA_INIT",
            "none of our IKE proposals",
            "AES_GCM_16-128",
            "no connection for the address from which we come",
        ],
    );
    b.is(
        PeerErrorKind::NoProposalChosen,
        &[
            "IKE_SA_INIT",
            "none of the peer's IKE proposals",
            "offers: AES_GCM_16-128/PRF_HMAC",
            "configured here: CHACHA20_POLY1305/PRF_HMAC",
        ],
    );
    // An unauthenticated error is reported within 100 ms, and does not end the attempt.
    let first = network.nodes[0].events.first().unwrap().0;
    assert!(first < Duration::from_millis(1000 * 1000 + 100));
}

#[test]
fn no_esp_proposal_in_common_is_an_error_at_both_ends() {
    //= RFC 7296 2.7 MUST 3: one proposal or NO_PROPOSAL_CHOSEN
    //= RFC 7296 2.21.2 MUST NOT 4: a failed CHILD_SA is no failed authentication
    let esp = |cipher| vec![EspProposal { ciphers: vec![cipher], groups: Vec::new(), esn: false }];
    let Refused { a, b, .. } = refused(|a, b| {
        a.child.proposals = esp(Cipher::Aes128Gcm16);
        b.child.proposals = esp(Cipher::ChaCha20Poly1305);
    });
    a.is(PeerErrorKind::NoProposalChosen, &["IKE_AUTH", "none of our proposals (ESP: AES_GCM_16-128)"]);
    b.is(
        PeerErrorKind::NoProposalChosen,
        &[
            "IKE_AUTH",
            "none of the peer's ESP proposals",
            "offers: AES_GCM_16-128/NO_ESN;",
            "configured here: CHACHA20_POLY1305 (",
        ],
    );
}

#[test]
fn selectors_that_do_not_meet_are_an_error_at_both_ends() {
    //= RFC 7296 1.2 REQUIRED 7: the IKE SA stays without a CHILD_SA
    //= RFC 7296 2.9 REQUIRED 4: TS_UNACCEPTABLE
    let Refused { a, b, .. } = refused(|a, b| {
        a.child.local = vec!["10.1.0.0/16".parse().unwrap()];
        b.child.remote = vec!["10.3.0.0/16".parse().unwrap()];
    });
    a.is(PeerErrorKind::TrafficSelectors, &["IKE_AUTH", "TS_UNACCEPTABLE", "local 10.1.0.0/16", "the other way round"]);
    b.is(
        PeerErrorKind::TrafficSelectors,
        &[
            "IKE_AUTH",
            "do not fit",
            "for its side 10.1.0.0/16; configured",
            "remote 10.3.0.0/16",
            "the other way round",
        ],
    );
}

#[test]
fn selectors_are_narrowed_to_what_both_ends_want() {
    //= RFC 7296 2.9 SHOULD 3: narrow, not SINGLE_PAIR_REQUIRED
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.b_config.child.local = vec!["10.2.0.0/16".parse().unwrap()];
    pair.b_config.child.remote = vec!["10.1.4.0/24".parse().unwrap(), "10.1.6.0/24".parse().unwrap()];
    pair.start();
    pair.network.run_for(SECOND);
    pair.assert_connected();
    let sa = pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name].sole_outbound().cloned().unwrap();
    assert_eq!(sa.local_selectors, pair.b_config.child.remote);
    assert_eq!(sa.remote_selectors, pair.b_config.child.local);
}

#[test]
fn a_guess_at_the_wrong_group_costs_one_round_trip() {
    //= RFC 7296 1.2 MUST 4: another group is taken up
    //= RFC 7296 3.3.6 SHOULD 10: a likely group first
    //= RFC 7296 3.3.6 SHOULD 11: a share of the wanted group
    //= RFC 7296 3.4 MUST 5: INVALID_KE_PAYLOAD
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.ike_proposals[0].groups = vec![Group::X25519, Group::P256];
    pair.b_config.ike_proposals[0].groups = vec![Group::P256];
    pair.start();
    pair.network.run_for(SECOND);
    pair.assert_connected();
    assert_eq!(pair.network.wire.len(), 6);
}

#[test]
fn cookies_are_asked_for_and_brought() {
    //= RFC 7296 2.6 MUST 6: the cookie comes first, the rest stays
    //= RFC 7296 2.15 REQUIRED 2: the latest IKE_SA_INIT counts
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.1", None);
    let b = network.add_with("10.0.0.2", None, EndpointConfig { cookie_threshold: 0, ..EndpointConfig::default() });
    let dial = peer("a.example", "b.example", &["10.0.0.2"]);
    let wait = PeerConfig { initiate: false, ..peer("b.example", "a.example", &[]) };
    network.call(b, |endpoint, now, env| endpoint.set_peer(wait, now, env)).unwrap();
    network.call(a, |endpoint, now, env| endpoint.set_peer(dial, now, env)).unwrap();
    network.run_for(SECOND);
    assert!(network.nodes[a].host.kernel.tunnels[&name("b.example")].sole_outbound().is_some());
    assert_eq!(network.wire.len(), 6);
}

#[test]
fn a_wrong_secret_on_one_address_does_not_keep_another_from_winning() {
    // 10.0.0.3 claims the identity of 10.0.0.2, but has another pre-shared key.
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.1", None);
    let b = network.add("10.0.0.2", None);
    let impostor = network.add("10.0.0.3", None);
    let wait = PeerConfig { initiate: false, ..peer("b.example", "a.example", &[]) };
    let wrong = PeerConfig { auth: Auth::Psk(Secret::new(b"guess".to_vec())), ..wait.clone() };
    let dial = peer("a.example", "b.example", &["10.0.0.3", "10.0.0.2"]);
    network.call(b, |endpoint, now, env| endpoint.set_peer(wait, now, env)).unwrap();
    network.call(impostor, |endpoint, now, env| endpoint.set_peer(wrong, now, env)).unwrap();
    network.call(a, |endpoint, now, env| endpoint.set_peer(dial, now, env)).unwrap();
    network.run_for(SECOND);
    let sa = network.nodes[a].host.kernel.tunnels[&name("b.example")].sole_outbound().cloned().unwrap();
    assert_eq!(sa.remote.ip().to_string(), "10.0.0.2");
    assert!(network.nodes[a].errors().is_empty());
}

#[test]
fn a_terminated_tunnel_stays_down_until_it_is_asked_for() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.start();
    pair.network.run_for(2 * SECOND);
    let b_name = pair.b_name.clone();
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.terminate(&b_name, now, env)));
    pair.network.run_for(60 * SECOND);
    let down = |event: &Event| matches!(event, Event::IkeDown { reason: DownReason::DeletedByPeer, .. });
    assert!(pair.network.nodes[pair.b].events.iter().any(|(_, event)| down(event)));
    assert!(pair.network.nodes[pair.a].host.kernel.ike_sas.is_empty());
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.connect(&b_name, now, env)));
    pair.network.run_for(SECOND);
    pair.assert_connected();
}

#[test]
fn fifty_peers_that_are_down_hold_up_nobody() {
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.1", None);
    let b = network.add("10.0.0.2", None);
    for i in 0..50 {
        let them = format!("down-{i}.example");
        let config = peer("a.example", &them, &[&format!("10.1.0.{i}")]);
        network.call(a, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    }
    let wait = PeerConfig { initiate: false, ..peer("b.example", "a.example", &[]) };
    network.call(b, |endpoint, now, env| endpoint.set_peer(wait, now, env)).unwrap();
    let dial = peer("a.example", "b.example", &["10.0.0.2"]);
    network.call(a, |endpoint, now, env| endpoint.set_peer(dial, now, env)).unwrap();
    network.run_for(Duration::from_millis(50));
    assert!(network.nodes[a].host.kernel.tunnels[&name("b.example")].sole_outbound().is_some());
}
