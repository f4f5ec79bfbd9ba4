//! Tests the reasons for which an IKE SA or a CHILD_SA ends (RFC 7296 2.8): its lifetime, an
//! expired certificate of the peer, and changed credentials.

use super::*;
use crate::wire::{ExchangeType, Header};

/// Returns whether a datagram belongs to this exchange.
fn is_exchange(transmit: &Transmit, exchange: ExchangeType) -> bool {
    let message = transmit.payload.strip_prefix(&[0; 4]).unwrap_or(&transmit.payload);
    Header::decode(message).is_ok_and(|header| header.exchange == exchange)
}

/// Returns whether a datagram belongs to IKE_SA_INIT.
fn is_init(transmit: &Transmit) -> bool {
    is_exchange(transmit, ExchangeType::IkeSaInit)
}

/// Returns two endpoints. The certificate of `a` is valid for 1000 days, that of `b` for an hour.
fn certified(authority: &Authority) -> Pair {
    let mut pair = Pair::new().one_sided();
    pair.configs[0].auth = Auth::Certificate(authority.certify(0, 1000 * DAY));
    pair.configs[1].auth = Auth::Certificate(authority.certify(1, HOUR));
    pair
}

#[test]
fn an_ike_sa_ends_when_the_peers_certificate_expires() {
    //= RFC 7296 2.4 SHOULD 10: the peer is told of a deleted IKE SA
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    pair.start();
    pair.run_for(HOUR - 5 * SECOND);
    assert!(pair.is_connected());
    pair.run_for(10 * SECOND);
    assert_eq!((pair.ike_sas(0), pair.children(0)), (0, 0), "{:?}", pair.ends[0].events);
    assert!(pair.errors(0).contains(&PeerErrorKind::UntrustedCertificate));
}

#[test]
fn a_step_of_the_wall_clock_past_the_certificates_end_is_noticed_at_the_next_liveness_check() {
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    pair.start();
    pair.ends[0].host.unix_time += 2 * 3600;
    pair.run_for(5 * SECOND);
    assert_eq!((pair.ike_sas(0), pair.children(0)), (0, 0));
}

#[test]
fn a_renewed_certificate_is_shown_before_the_old_one_ends() {
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    pair.start();
    pair.run_for(HOUR / 2);
    pair.configs[1].auth = Auth::Certificate(authority.certify(1, DAY));
    pair.configure(1);
    pair.run_for(3 * HOUR);
    assert!(pair.is_connected());
    assert!(pair.downs(0).is_empty() && pair.downs(1).is_empty(), "nothing ended without a successor");
}

#[test]
fn another_lifetime_of_the_keys_does_not_bring_forward_the_renewal_of_a_certificate() {
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    pair.start();
    let handshakes = |pair: &Pair| {
        let up = |event: &&Event| matches!(event, Event::IkeUp { .. });
        pair.ends[0].events.iter().filter(up).count()
    };
    // The end that has begun renews after two to three quarters of the hour.
    pair.run_for(HOUR / 2);
    for us in 0..2 {
        pair.configs[us].timing.ike_lifetime *= 2;
        pair.configure(us);
    }
    pair.run_for(9 * 60 * SECOND);
    assert_eq!(handshakes(&pair), 1);
    pair.run_for(6 * 60 * SECOND);
    assert_eq!(handshakes(&pair), 2);
}

#[test]
fn what_fails_on_an_ike_sa_that_was_replaced_is_not_the_peers_last_failure() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    pair.configs[1].child.proposals[0].groups = vec![Group::P256];
    pair.configure(1);
    let name = PeerName::new(NAMES[1]);
    let last_error = |pair: &Pair| pair.ends[0].endpoint.snapshot()[0].last_error.clone();
    // The refusal arrives when another IKE SA is up, and before the old one is deleted.
    let is_delete = |sent: &Transmit| is_exchange(sent, ExchangeType::Informational);
    let is_refusal = |us, sent: &Transmit| us == 1 && is_exchange(sent, ExchangeType::CreateChildSa);
    pair.tap = Box::new(move |us, sent| !is_refusal(us, sent) && !is_delete(sent));
    assert!(pair.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
    assert!(pair.call(0, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
    assert_eq!((pair.ike_sas(0), last_error(&pair), pair.errors(0).len()), (2, None, 0));
    pair.tap = Box::new(move |_, sent| !is_delete(sent));
    pair.run_for(3 * SECOND);
    assert_eq!((last_error(&pair), pair.errors(0).len()), (None, 1), "{:?}", pair.error_texts(0));
}

/// Sets the time for which `us` accepts the peer's certificate after its end.
fn set_grace(pair: &mut Pair, us: usize, grace: Duration) {
    let Auth::Certificate(auth) = &mut pair.configs[us].auth else { panic!("no certificate") };
    auth.remote_grace = grace;
}

#[test]
fn an_ike_sa_ends_with_the_grace_after_the_end_of_the_peers_certificate() {
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    set_grace(&mut pair, 0, DAY);
    pair.start();
    pair.run_for(HOUR + DAY - 5 * SECOND);
    assert!(pair.is_connected(), "{:?}", pair.ends[0].events);
    assert!(pair.downs(0).is_empty(), "nothing ended without a successor");
    // The certificate is replaced before its end, and then before the end of the grace.
    let handshakes = pair.ends[0].events.iter().filter(|event| matches!(event, Event::IkeUp { .. })).count();
    assert!(handshakes < 30, "{handshakes} handshakes in a day");
    pair.run_for(10 * SECOND);
    assert_eq!((pair.ike_sas(0), pair.children(0)), (0, 0), "{:?}", pair.ends[0].events);
    assert!(pair.errors(0).contains(&PeerErrorKind::UntrustedCertificate));
}

#[test]
fn a_certificate_that_has_ended_is_accepted_within_the_grace_and_a_shorter_grace_takes_effect() {
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    set_grace(&mut pair, 0, DAY);
    for end in &mut pair.ends {
        end.host.unix_time += 5 * 3600;
    }
    pair.start();
    pair.run_for(10 * SECOND);
    assert!(pair.is_connected(), "{:?}", pair.ends[0].events);
    set_grace(&mut pair, 0, 6 * HOUR);
    pair.configure(0);
    pair.run_for(HOUR);
    assert!(pair.is_connected());
    pair.run_for(HOUR + 10 * SECOND);
    assert_eq!((pair.ike_sas(0), pair.children(0)), (0, 0), "{:?}", pair.ends[0].events);
    // A renewed certificate is accepted at the next attempt.
    pair.configs[1].auth = Auth::Certificate(authority.certify(1, DAY));
    pair.configure(1);
    pair.run_for(60 * SECOND);
    assert!(pair.is_connected());
}

#[test]
fn a_child_sa_that_cannot_be_rekeyed_ends_within_its_lifetime() {
    //= RFC 7296 2.4 MUST 9: the peer is told of a deleted CHILD_SA
    //= RFC 7296 2.8 MUST NOT 1: nothing lives beyond its lifetime
    let mut pair = Pair::new().one_sided();
    pair.start();
    let first = pair.ends[0].endpoint.snapshot()[0].children[0].sa.id;
    // From now on, the peer accepts none of our proposals.
    pair.configs[1].child.proposals[0].ciphers = vec![Cipher::ChaCha20Poly1305];
    pair.configure(1);
    pair.run_for(2 * HOUR);
    for us in 0..2 {
        let snapshot = pair.ends[us].endpoint.snapshot();
        let old = snapshot[0].children.iter().find(|child| us == 0 && child.sa.id == first);
        assert!(old.is_none() && snapshot[0].children.is_empty(), "at {us}: {:?}", snapshot[0].children);
    }
    assert!(pair.errors(0).contains(&PeerErrorKind::NoProposalChosen));
    pair.configs[1].child.proposals[0].ciphers = vec![Cipher::Aes256Gcm16];
    pair.configure(1);
    pair.run_for(30 * SECOND);
    assert!(pair.is_connected(), "it comes back as soon as the peer lets it");
}

#[test]
fn a_peer_that_does_not_authenticate_again_loses_its_ike_sa_however_often_it_is_rekeyed() {
    //= RFC 7296 2.8 MUST NOT 1: nothing lives beyond its lifetime
    //= RFC 7296 2.8 MUST 2: what cannot be rekeyed ends
    let mut pair = Pair::new().one_sided();
    for config in &mut pair.configs {
        config.timing.ike_lifetime = HOUR / 2;
        config.timing.authentication_lifetime = 4 * HOUR;
    }
    pair.start();
    pair.tap = Box::new(|_, transmit| !is_init(transmit));
    pair.run_for(4 * HOUR + HOUR / 2);
    assert!(pair.is_connected());
    pair.run_for(2 * HOUR);
    for us in 0..2 {
        assert_eq!((pair.ike_sas(us), pair.children(us)), (0, 0));
    }
    pair.tap = Box::new(|_, _| true);
    pair.run_for(30 * SECOND);
    assert!(pair.is_connected());
}

#[test]
fn another_pre_shared_key_ends_an_ike_sa_whose_peer_does_not_have_it() {
    for changed in 0..2 {
        let mut pair = Pair::new().one_sided();
        pair.start();
        pair.configs[changed].auth = Auth::Psk(Secret::new(b"another one".to_vec()));
        pair.configure(changed);
        pair.run_for(120 * SECOND);
        assert_eq!(pair.ike_sas(changed), 1, "there is time to change it at the peer");
        pair.run_for(200 * SECOND);
        for us in 0..2 {
            assert_eq!((pair.ike_sas(us), pair.children(us)), (0, 0), "changed at {changed}, end {us}");
        }
    }
}

#[test]
fn a_pre_shared_key_that_changes_at_both_ends_ends_nothing() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    for changed in [1, 0] {
        pair.configs[changed].auth = Auth::Psk(Secret::new(b"another one".to_vec()));
        pair.configure(changed);
        pair.run_for(100 * SECOND);
    }
    pair.run_for(HOUR / 2);
    assert!(pair.is_connected());
    assert!(pair.downs(0).is_empty() && pair.downs(1).is_empty());
}

#[test]
fn a_trust_anchor_that_is_taken_away_ends_the_ike_sas_that_rest_on_it() {
    let authority = Authority::new("CA");
    let mut pair = certified(&authority);
    pair.configs[1].auth = Auth::Certificate(authority.certify(1, 1000 * DAY));
    pair.start();
    let Auth::Certificate(auth) = &mut pair.configs[0].auth else { unreachable!() };
    auth.trust_anchors = vec![Authority::new("another CA").der];
    pair.configure(0);
    pair.run_for(301 * SECOND);
    assert_eq!((pair.ike_sas(0), pair.children(0)), (0, 0));
}

/// Returns the selectors of our side of all CHILD_SAs of end 1.
fn local_selectors(pair: &Pair) -> std::collections::BTreeSet<String> {
    let children = &pair.ends[1].endpoint.snapshot()[0].children;
    children.iter().flat_map(|child| &child.sa.local_selectors).map(ToString::to_string).collect()
}

#[test]
fn networks_taken_from_a_peer_that_we_do_not_dial_are_out_of_its_reach_within_minutes() {
    for knows_address in [true, false] {
        let mut pair = Pair::new().one_sided();
        if !knows_address {
            pair.configs[1].remotes.clear();
        }
        pair.start();
        pair.run_for(60 * SECOND);
        pair.configs[1].child.local = vec!["10.1.0.0/16".parse().unwrap()];
        pair.configure(1);
        // A rekey does not give the peer for longer what it may not have.
        let up = |pair: &Pair| {
            let wide = |event: &&Event| match event {
                Event::ChildUp { child: sa, .. } | Event::ChildRekeyed { new: sa, .. } => sa.local_selectors.len() > 1,
                _ => false,
            };
            pair.ends[1].events.iter().filter(wide).count()
        };
        let before = up(&pair);
        let name = PeerName::new(NAMES[0]);
        assert!(pair.call(1, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
        pair.run_for(360 * SECOND);
        assert_eq!(up(&pair), before);
        assert_eq!(local_selectors(&pair).into_iter().collect::<Vec<_>>(), ["10.1.0.0/16"]);
        assert!(pair.is_connected());
        // What is added takes nothing away, so nothing is replaced.
        let ike = |pair: &Pair| pair.ends[1].endpoint.snapshot()[0].ike_sas[0].ike;
        let before = ike(&pair);
        pair.configs[1].child.local.push("10.2.0.0/16".parse().unwrap());
        pair.configure(1);
        pair.run_for(360 * SECOND);
        assert_eq!(ike(&pair), before);
    }
}

#[test]
fn a_rekey_that_a_peer_with_an_address_of_ours_refuses_once_is_tried_again() {
    let mut pair = Pair::new().one_sided();
    pair.configs[0].address_assignment = AddressAssignment::Request;
    pair.configs[1].address_assignment = AddressAssignment::Pool(vec!["10.9.0.0/24".parse().unwrap()]);
    pair.start();
    pair.run_for(5 * SECOND);
    assert!(pair.is_connected(), "{:?}", pair.error_texts(0));
    let ike = |pair: &Pair| pair.ends[1].endpoint.snapshot()[0].ike_sas[0].ike;
    let before = ike(&pair);
    let both = pair.configs[0].ike_proposals.clone();
    pair.configs[0].ike_proposals[0].ciphers = vec![Cipher::Aes128Gcm16];
    pair.configure(0);
    let name = PeerName::new(NAMES[0]);
    assert!(pair.call(1, |endpoint, now, env| endpoint.rekey_ike(&name, now, env)));
    pair.run_for(10 * SECOND);
    assert_eq!(ike(&pair), before, "it was refused");
    pair.configs[0].ike_proposals = both;
    pair.configure(0);
    pair.run_for(120 * SECOND);
    assert!(pair.is_connected());
    assert_ne!(ike(&pair), before);
}
