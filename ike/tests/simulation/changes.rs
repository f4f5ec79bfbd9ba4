//! Tests changes while tunnels are up: addresses, NAT mappings, configurations, and peers that fail
//! and return.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::event::{DownReason, PeerErrorKind};
use edge_ike::{Event, Identity, Secret};

use crate::network::{LinkQuality, Nat};
use crate::peers::{OTHER_PSK, Pair, SECOND};

#[test]
fn a_node_behind_a_nat_is_followed_when_its_mapping_changes() {
    //= RFC 7296 2.23 MUST 3: responses go to the request's port
    //= RFC 7296 2.23 MUST 4: port 4500 behind a NAT
    //= RFC 7296 2.23 SHOULD 10: a mismatch is a NAT
    for (seed, mobike) in (0..30).map(|seed| (seed, seed % 2 == 0)) {
        let nat = Nat::new("192.0.2.1");
        let mut pair = Pair::with_nats(seed, LinkQuality::REORDERING, Some(nat), None).one_sided().both(|config| {
            config.force_encapsulation = false;
            config.mobike = mobike;
        });
        pair.b_config.remotes.clear();
        pair.start();
        pair.traffic(10 * SECOND);
        pair.assert_connected();
        pair.network.nodes[pair.a].nat.as_mut().unwrap().rebind();
        // Packets to the old mapping are lost until the liveness check, after 4 s, reveals the new
        // mapping.
        pair.network.working.clear();
        pair.traffic(6 * SECOND);
        pair.traffic(10 * SECOND);
        pair.assert_connected();
        assert_eq!(pair.network.working.len(), 2);
        let moved = |event: &Event| matches!(event, Event::PeerMoved { .. });
        assert_eq!(pair.network.nodes[pair.b].events.iter().filter(|(_, event)| moved(event)).count(), 1);
    }
}

#[test]
fn a_changed_mapping_is_followed_one_or_two_round_trips_after_the_first_packet_through_it() {
    // RFC 4555 3.8: a peer may be followed to the source of its ESP.
    for (seed, mobike) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let nat = Nat::new("192.0.2.1");
        let mut pair = Pair::with_nats(seed, LinkQuality::RELIABLE, Some(nat), None)
            .one_sided()
            .both(|config| config.mobike = mobike);
        pair.network.report_sources = true;
        pair.b_config.remotes.clear();
        pair.start();
        pair.traffic(3 * SECOND);
        let busy = pair.network.random.below(3000);
        pair.traffic(Duration::from_millis(busy));
        pair.network.nodes[pair.a].nat.as_mut().unwrap().rebind();
        pair.network.working.clear();
        // A packet is sent within 10 ms, and each datagram takes 5 ms: ESP, request, response, ESP.
        // With MOBIKE, COOKIE2 takes another round trip.
        pair.traffic(Duration::from_millis(if mobike { 60 } else { 50 }));
        assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
        pair.traffic(10 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn a_changed_address_of_ours_moves_the_tunnel_in_one_round_trip_where_a_nat_is_believed_in() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| config.mobike = false);
    pair.start();
    pair.traffic(2 * SECOND);
    change_address(&mut pair);
    pair.network.working.clear();
    pair.traffic(Duration::from_millis(50));
    assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
    pair.traffic(10 * SECOND);
    pair.assert_connected();
    assert!(!pair.network.nodes[pair.a].events.iter().any(|(_, event)| matches!(event, Event::IkeReplaced { .. })));
}

#[test]
fn a_changed_address_of_ours_replaces_the_ike_sa_at_once_where_none_is() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| {
        config.force_encapsulation = false;
        config.mobike = false;
    });
    pair.start();
    pair.network.run_for(2 * SECOND);
    change_address(&mut pair);
    pair.network.run_for(SECOND);
    let a = &pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name];
    assert_eq!(a.sole_outbound().unwrap().local.ip().to_string(), "10.0.0.9");
    pair.network.run_for(30 * SECOND);
    pair.assert_connected();
}

/// Moves `b` to another address, behind a firewall that lets in only responses. `b` cannot reach
/// `a`. The new address is added to the configuration of `a`.
fn move_b(pair: &mut Pair, new: &'static str) {
    let address = new.parse().unwrap();
    let mut called = false;
    pair.network.tap = Some(Box::new(move |from, to, _| {
        called |= to.ip() == address;
        called || from.ip() != address
    }));
    pair.network.move_node(pair.b, address);
    pair.a_config.remotes = vec![SocketAddr::new(address, 4500)];
}

#[test]
fn a_peer_that_has_left_its_address_is_tried_at_the_new_one_at_once() {
    for seed in 0..20 {
        let mut pair = Pair::new(seed, LinkQuality::RELIABLE);
        pair.start();
        pair.network.run_for(25 * SECOND);
        pair.assert_connected();
        move_b(&mut pair, "10.0.0.9");
        pair.network.run_for(SECOND);
        pair.start_a();
        pair.network.working.clear();
        pair.traffic(SECOND);
        assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
        pair.network.tap = None;
        pair.network.run_for(60 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn a_peer_that_has_left_its_address_is_tried_at_the_new_one_while_a_relay_is_tried() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE);
    pair.start();
    pair.network.run_for(25 * SECOND);
    let (used, relay) = (pair.a_config.remotes.clone(), "10.0.5.5:24000".parse::<SocketAddr>().unwrap());
    move_b(&mut pair, "10.0.0.9");
    let new = std::mem::replace(&mut pair.a_config.remotes, [used, vec![relay]].concat());
    pair.start_a();
    let b_name = pair.b_name.clone();
    let try_relay = |pair: &mut Pair| {
        pair.network.call(pair.a, |endpoint, now, env| endpoint.try_addresses(&b_name, &[relay], now, env))
    };
    assert!(try_relay(&mut pair));
    pair.network.run_for(SECOND / 10);
    pair.a_config.remotes = [new, vec![relay]].concat();
    pair.start_a();
    pair.network.run_for(SECOND);
    pair.network.working.clear();
    pair.traffic(SECOND);
    assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
}

#[test]
fn a_peer_that_moves_three_times_in_ten_seconds_is_followed_each_time() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE);
    pair.start();
    pair.network.run_for(25 * SECOND);
    for new in ["10.0.0.9", "10.0.0.10", "10.0.0.11"] {
        move_b(&mut pair, new);
        pair.start_a();
        pair.network.run_for(SECOND);
        pair.network.working.clear();
        pair.traffic(SECOND);
        assert_eq!(pair.network.working.len(), 2, "{new}: {}", pair.network.history());
    }
}

#[test]
fn a_peer_whose_addresses_change_all_the_time_does_not_make_us_send_more() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.start();
    pair.network.run_for(25 * SECOND);
    pair.assert_connected();
    let used = pair.a_config.remotes.clone();
    pair.network.wire.clear();
    for host in 0..100 {
        pair.a_config.remotes = vec![SocketAddr::new(IpAddr::from([10, 0, 1, host]), 4500)];
        pair.start_a();
        pair.network.run_for(SECOND / 4);
        pair.a_config.remotes.clone_from(&used);
        pair.start_a();
        pair.network.run_for(SECOND / 4);
    }
    let wrong = pair.network.wire.iter().filter(|(_, to, _)| to.ip().to_string().starts_with("10.0.1.")).count();
    // Four addresses may be tried in a row and then one every ten seconds, each with a few
    // transmissions.
    assert!((1..=(4 + 5) * 5).contains(&wrong), "{wrong}");
    pair.assert_connected();
}

fn change_address(pair: &mut Pair) {
    pair.network.move_node(pair.a, "10.0.0.9".parse().unwrap());
}

#[test]
pub fn a_dead_peer_is_noticed_in_less_than_ten_seconds_and_found_again() {
    //= RFC 7296 2.1 REQUIRED 7: an unanswered IKE SA goes
    for seed in 0..20 {
        let mut pair = Pair::new(seed, LinkQuality::RELIABLE);
        pair.start();
        pair.network.run_for(25 * SECOND);
        pair.assert_connected();
        pair.network.nodes[pair.b].down = true;
        let died = pair.network.now;
        pair.network.run_for(10 * SECOND);
        let noticed = pair.network.nodes[pair.a].events.iter().find_map(|(at, event)| match event {
            Event::IkeDown { reason: DownReason::Timeout, .. } => Some(*at),
            _ => None,
        });
        assert!(noticed.unwrap() <= died + 10 * SECOND);
        assert!(pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name].sole_outbound().is_none());
        pair.network.run_for(40 * SECOND);
        pair.network.nodes[pair.b].down = false;
        pair.network.run_for(60 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn a_peer_that_restarts_replaces_what_it_has_forgotten() {
    //= RFC 7296 2.4 MUST 2: INITIAL_CONTACT in the first IKE_AUTH
    //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
    for keep in [false, true] {
        let mut pair = Pair::new(3, LinkQuality::RELIABLE).one_sided();
        pair.start();
        pair.network.run_for(5 * SECOND);
        pair.assert_connected();
        // The agent restarts with a new endpoint. With `keep_existing`, a real kernel would still
        // have the SAs. In this test they are gone in both cases.
        pair.network.restart(pair.a);
        pair.a_config.keep_existing = keep;
        pair.start_a();
        pair.network.run_for(SECOND);
        let a = pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name].sole_outbound().unwrap().outbound_spi;
        let b = &pair.network.nodes[pair.b].host.kernel.tunnels[&pair.a_name];
        assert_eq!(
            b.sole_outbound().unwrap().outbound_spi,
            pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name].sole_outbound().unwrap().inbound_spi
        );
        assert!(b.inbound.values().any(|sa| sa.inbound_spi == a));
        pair.network.run_for(60 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn the_same_configuration_again_changes_nothing() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE);
    pair.start();
    pair.network.run_for(25 * SECOND);
    let before = pair.network.nodes[pair.a].events.len();
    for _ in 0..5 {
        pair.start();
        pair.network.run_for(SECOND);
    }
    assert_eq!(pair.network.nodes[pair.a].events.len(), before);
    pair.assert_connected();
}

#[test]
fn another_timing_or_address_in_the_configuration_leaves_a_running_tunnel_alone() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE);
    pair.start();
    pair.network.run_for(25 * SECOND);
    let before = pair.network.nodes[pair.a].events.len();
    pair.a_config.timing.liveness = 7 * SECOND;
    pair.a_config.remotes.push("10.9.9.9:500".parse().unwrap());
    pair.start_a();
    pair.network.run_for(20 * SECOND);
    assert_eq!(pair.network.nodes[pair.a].events.len(), before);
    pair.assert_connected();
}

#[test]
fn changed_selectors_replace_the_child_sa_without_a_gap() {
    for seed in 0..30 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING);
        pair.start();
        pair.traffic(25 * SECOND);
        pair.a_config.child.remote = vec!["10.2.0.0/16".parse().unwrap()];
        pair.start_a();
        pair.traffic(25 * SECOND);
        pair.assert_connected();
        let sa = pair.network.nodes[pair.b].host.kernel.tunnels[&pair.a_name].sole_outbound().cloned().unwrap();
        assert_eq!(sa.local_selectors, ["10.2.0.0/16".parse().unwrap()]);
    }
}

#[test]
fn another_identity_ends_the_tunnel_at_both_ends() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.start();
    pair.network.run_for(2 * SECOND);
    pair.a_config.remote_id = Identity::Fqdn("somebody.else".to_owned());
    pair.start_a();
    pair.network.run_for(2 * SECOND);
    for node in [pair.a, pair.b] {
        assert!(pair.network.nodes[node].host.kernel.ike_sas.is_empty());
    }
    assert!(pair.network.nodes[pair.a].errors().contains(&PeerErrorKind::RefusedByPeer));
}

#[test]
fn a_changed_pre_shared_key_is_taken_up_when_both_ends_have_it() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE);
    pair.start();
    pair.network.run_for(25 * SECOND);
    let new = edge_ike::Auth::Psk(Secret::new(OTHER_PSK.to_vec()));
    pair.a_config.auth = new.clone();
    pair.start_a();
    pair.traffic(5 * SECOND);
    pair.assert_connected();
    assert!(pair.network.nodes[pair.a].errors().contains(&PeerErrorKind::RefusedByPeer));
    pair.b_config.auth = new;
    pair.start_b();
    pair.traffic(60 * SECOND);
    pair.assert_connected();
    assert!(pair.network.nodes[pair.a].events.iter().any(|(_, event)| matches!(event, Event::IkeReplaced { .. })));
}

#[test]
fn a_removed_peer_is_told_and_everything_of_it_goes() {
    //= RFC 7296 1.4 MUST 2: about an IKE SA on that IKE SA
    //= RFC 7296 1.4.1 REQUIRED 8: CHILD_SAs go with the IKE SA
    //= RFC 7296 2.4 SHOULD 10: the peer is told of a deleted IKE SA
    for seed in 0..20 {
        let mut pair = Pair::new(seed, LinkQuality::LOSSY).one_sided();
        pair.start();
        pair.network.run_for(20 * SECOND);
        let name = pair.b_name.clone();
        pair.network.call(pair.a, |endpoint, now, env| endpoint.remove_peer(&name, now, env));
        assert!(pair.network.nodes[pair.a].host.kernel.ike_sas.is_empty());
        assert!(pair.network.nodes[pair.a].host.kernel.tunnels.values().all(|tunnel| tunnel.inbound.is_empty()));
        pair.network.run_for(60 * SECOND);
        assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty());
        assert!(pair.network.nodes[pair.a].endpoint.poll_timeout().is_none());
        assert!(pair.network.nodes[pair.a].host.kernel.reserved.is_empty());
    }
}

#[test]
fn all_addresses_are_tried_at_once_and_the_first_that_answers_wins() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.remotes =
        ["10.0.0.77:500", "10.0.0.78:500", "10.0.0.2:500", "10.0.0.79:500"].map(|at| at.parse().unwrap()).to_vec();
    pair.start();
    pair.network.run_for(SECOND);
    pair.assert_connected();
    assert!(pair.network.nodes[pair.a].errors().is_empty());
    let before = pair.network.wire.len();
    pair.network.run_for(3 * SECOND);
    assert_eq!(pair.network.wire.len(), before, "the others are dropped");
}

#[test]
fn a_peer_may_be_spoken_to_on_the_nat_traversal_port_from_the_first_message_on() {
    //= RFC 7296 2 MUST 3: four octets of zero on port 4500
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.remotes = vec!["10.0.0.2:4500".parse().unwrap()];
    pair.start();
    pair.network.run_for(SECOND);
    pair.assert_connected();
    assert!(
        pair.network
            .wire
            .iter()
            .all(|(from, to, octets)| from.port() == 4500 && to.port() == 4500 && octets[..4] == [0; 4])
    );
}

#[test]
fn a_silent_peer_is_reported_once_for_each_attempt_with_waits_that_grow() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.network.nodes[pair.b].down = true;
    pair.start_a();
    pair.network.run_for(60 * SECOND);
    let failures: Vec<Duration> = pair.network.nodes[pair.a].events.iter().map(|(at, _)| *at).collect();
    assert!((4..=7).contains(&failures.len()), "{failures:?}");
    assert!(pair.network.nodes[pair.a].errors().iter().all(|kind| *kind == PeerErrorKind::Timeout));
    let waits: Vec<Duration> = failures.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits.last() > waits.first());
    assert!(waits.iter().all(|wait| *wait <= 16 * SECOND));
}
