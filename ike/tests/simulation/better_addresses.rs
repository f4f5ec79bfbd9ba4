//! Tests moves to another address of this node while the present one still works (RFC 4555 3.5).

use std::net::IpAddr;

use edge_ike::{Event, LocalMove};

use crate::network::LinkQuality;
use crate::peers::{Pair, SECOND};

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A connected pair of which `node` has a second address.
fn with_second_address(pair: Pair, node: usize, second: &str) -> Pair {
    let mut pair = pair.one_sided();
    let host = &mut pair.network.nodes[node].host;
    host.more_addresses = vec![at(second)];
    let addresses = vec![host.address, at(second)];
    pair.network.call(node, |endpoint, now, env| endpoint.set_addresses(addresses, now, env));
    pair.start();
    pair.traffic(5 * SECOND);
    pair.assert_connected();
    pair
}

fn move_to(pair: &mut Pair, node: usize, local: &str) -> LocalMove {
    let peer = if node == pair.a { pair.b_name.clone() } else { pair.a_name.clone() };
    pair.network.call(node, |endpoint, now, env| endpoint.move_to_local_address(&peer, at(local), now, env))
}

/// The address from which a node sends ESP to the other one.
fn esp_source(pair: &Pair, node: usize) -> IpAddr {
    let peer = if node == pair.a { &pair.b_name } else { &pair.a_name };
    let kernel = &pair.network.nodes[node].host.kernel;
    let child = kernel.tunnels[peer].sole_outbound().unwrap().id;
    kernel.paths[&child].0.ip()
}

/// Checks that ESP arrives in both directions, and that no IKE SA has ended.
fn assert_works(pair: &mut Pair) {
    pair.network.working.clear();
    pair.traffic(SECOND);
    assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
    pair.assert_connected();
    for node in &pair.network.nodes {
        let ended =
            node.events.iter().any(|(_, event)| matches!(event, Event::IkeReplaced { .. } | Event::IkeDown { .. }));
        assert!(!ended, "the IKE SA stays:{}", pair.network.history());
    }
}

#[test]
fn the_initiator_moves_to_a_better_address_and_back() {
    for quality in [LinkQuality::RELIABLE, LinkQuality { loss_percent: 10, ..LinkQuality::REORDERING }] {
        let mut pair = with_second_address(Pair::new(1, quality), 0, "10.0.1.1");
        let first = esp_source(&pair, pair.a);
        for to in ["10.0.1.1", &first.to_string()] {
            assert_eq!(move_to(&mut pair, 0, to), LocalMove::Begun);
            assert_eq!(move_to(&mut pair, 0, to), LocalMove::Impossible, "the move is under way");
            pair.traffic(10 * SECOND);
            assert_eq!(esp_source(&pair, pair.a), at(to), "{}", pair.network.history());
            assert_eq!(move_to(&mut pair, 0, to), LocalMove::Impossible, "it is there");
        }
        pair.network.quality = LinkQuality::RELIABLE;
        assert_works(&mut pair);
    }
}

#[test]
fn the_responder_leaves_its_address_to_the_initiator() {
    let mut pair = with_second_address(Pair::new(1, LinkQuality::RELIABLE), 1, "10.0.1.2");
    let (b, first) = (pair.b, esp_source(&pair, pair.b));
    assert_eq!(move_to(&mut pair, b, "10.0.1.2"), LocalMove::PeerChooses);
    pair.traffic(2 * SECOND);
    assert_eq!(esp_source(&pair, b), first, "{}", pair.network.history());
    assert_works(&mut pair);
}

#[test]
fn an_address_from_which_nothing_arrives_is_not_used() {
    let mut pair = with_second_address(Pair::new(1, LinkQuality::RELIABLE), 0, "10.0.1.1");
    let first = esp_source(&pair, pair.a);
    let dead = at("10.0.1.1");
    pair.network.tap = Some(Box::new(move |from, to, _| from.ip() != dead && to.ip() != dead));
    for _ in 0..3 {
        assert_eq!(move_to(&mut pair, 0, "10.0.1.1"), LocalMove::Begun);
        for _ in 0..20 {
            pair.traffic(SECOND);
            assert_eq!(esp_source(&pair, pair.a), first);
        }
        assert_works(&mut pair);
    }
}

#[test]
fn a_peer_without_mobike_and_an_address_of_another_family_change_nothing() {
    let pair = Pair::new(1, LinkQuality::RELIABLE).both(|config| config.mobike = false);
    let mut pair = with_second_address(pair, 0, "10.0.1.1");
    assert_eq!(move_to(&mut pair, 0, "10.0.1.1"), LocalMove::Impossible);
    let mut pair = with_second_address(Pair::new(1, LinkQuality::RELIABLE), 0, "2001:db8::1");
    assert_eq!(move_to(&mut pair, 0, "2001:db8::1"), LocalMove::Impossible);
    assert_works(&mut pair);
}
