//! Tests configured addresses of a peer that belong to this node, that belong to another host, or
//! that change all the time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::config::Cipher;
use edge_ike::event::PeerErrorKind;
use edge_ike::{Event, PeerConfig};

use crate::network::{LinkQuality, Nat, Network};
use crate::peers::{Pair, SECOND, name, peer};

fn at(text: &str) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), 4500)
}

/// Makes two home networks. In both, a host has the same private address, behind a NAT that drops
/// unrequested datagrams.
fn two_homes(private: &str, publics: [&str; 2]) -> Pair {
    let [a, b] = publics.map(Nat::new);
    let mut pair = Pair::with_nats(1, LinkQuality::RELIABLE, Some(a), Some(b));
    for (node, us, them, public) in
        [(pair.a, "a.example", "b.example", publics[1]), (pair.b, "b.example", "a.example", publics[0])]
    {
        pair.network.nodes[node].host.address = private.parse::<IpAddr>().unwrap();
        let config = PeerConfig { remotes: vec![at(public), at(private)], ..peer(us, them, &[]) };
        pair.network.call(node, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    }
    pair
}

#[test]
fn a_peer_with_our_own_private_address_is_not_looked_for_at_this_node() {
    for (private, publics) in
        [("192.168.1.10", ["192.0.2.1", "192.0.2.2"]), ("fd00::10", ["2001:db8:1::1", "2001:db8:2::1"])]
    {
        let mut pair = two_homes(private, publics);
        // The link between the two nodes is cut, so the error is the one for the public address: a
        // timeout.
        pair.network.cut = [(pair.a, pair.b), (pair.b, pair.a)].into();
        pair.network.run_for(60 * SECOND);
        let private: IpAddr = private.parse().unwrap();
        assert!(pair.network.wire.iter().all(|(_, to, _)| to.ip() != private), "our own address was dialled");
        for node in [pair.a, pair.b] {
            let errors = pair.network.nodes[node].errors();
            assert!(!errors.is_empty() && errors.iter().all(|kind| *kind == PeerErrorKind::Timeout), "{errors:?}");
        }
    }
}

#[test]
fn two_homes_with_the_same_private_address_find_each_other_by_the_public_ones() {
    //= RFC 4555 3.1 SHOULD 1: all addresses are tried
    let mut pair = two_homes("192.168.1.10", ["192.0.2.1", "192.0.2.2"]);
    pair.network.run_for(SECOND);
    // Both hosts have sent datagrams now, so both NATs forward the other host's next datagram. The
    // NATs have endpoint-independent mappings and filters, as RFC 4787 requires.
    let mapped: Vec<SocketAddr> = ["192.0.2.1", "192.0.2.2"]
        .map(|nat| {
            pair.network
                .wire
                .iter()
                .map(|(from, _, _)| *from)
                .find(|from| from.ip() == nat.parse::<IpAddr>().unwrap())
                .unwrap()
        })
        .to_vec();
    for (node, us, them, public) in
        [(pair.a, "a.example", "b.example", mapped[1]), (pair.b, "b.example", "a.example", mapped[0])]
    {
        let config = PeerConfig { remotes: vec![public, at("192.168.1.10")], ..peer(us, them, &[]) };
        pair.network.call(node, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    }
    pair.network.run_for(60 * SECOND);
    pair.assert_connected();
}

#[test]
fn a_peer_that_has_only_addresses_of_ours_is_named_and_found_when_it_comes_or_our_addresses_change() {
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.2", None);
    let config = peer("a.example", "b.example", &["10.0.0.2"]);
    network.call(a, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    network.run_for(60 * SECOND);
    assert!(network.wire.is_empty());
    let errors = network.nodes[a].reported_errors();
    assert_eq!(errors.len(), 1, "said once: {errors:?}");
    assert!(
        errors[0].to_string().contains("every address of the peer (10.0.0.2:500) is one of this node"),
        "{}",
        errors[0]
    );
    // The address of the node changes.
    network.nodes[a].host.address = "10.0.0.1".parse().unwrap();
    let b = network.add("10.0.0.2", None);
    let config = PeerConfig { initiate: false, ..peer("b.example", "a.example", &[]) };
    network.call(b, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    network.run_for(20 * SECOND);
    assert!(
        network.nodes[a].host.kernel.tunnels[&name("b.example")].sole_outbound().is_some(),
        "{}",
        network.history()
    );
}

#[test]
fn what_answers_as_somebody_else_is_only_that_and_the_likeliest_addresss_error_is_shown() {
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.1", None);
    // In this network 10.0.0.3 is a node that is not a configured peer of the other two nodes.
    let stranger = network.add("10.0.0.3", None);
    let config = PeerConfig { initiate: false, ..peer("d.example", "e.example", &[]) };
    network.call(stranger, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    let config = peer("a.example", "b.example", &["10.0.0.9", "10.0.0.3"]);
    network.call(a, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    network.run_for(9 * SECOND);
    let error = network.nodes[a].endpoint.snapshot()[0].last_error.clone().unwrap();
    assert_eq!(error.kind, PeerErrorKind::Timeout, "{error}");
    assert!(error.detail.starts_with("10.0.0.9:500 did not answer"), "{error}");
    assert!(
        error.detail.ends_with("also tried: 10.0.0.3:500 (IKE_AUTH: the peer refused our authentication)"),
        "{error}"
    );
    assert!(network.nodes[a].errors().iter().all(|kind| *kind == PeerErrorKind::Timeout));
    // The expected peer appears at its address. The other node does not prevent the tunnel.
    let b = network.add("10.0.0.9", None);
    let config = PeerConfig { initiate: false, ..peer("b.example", "a.example", &[]) };
    network.call(b, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    network.run_for(20 * SECOND);
    assert!(
        network.nodes[a].host.kernel.tunnels[&name("b.example")].sole_outbound().is_some(),
        "{}",
        network.history()
    );
}

#[test]
fn an_answer_without_proof_from_an_unlikely_address_does_not_hide_the_likeliest() {
    //= RFC 7296 2.21.1 REQUIRED 1: go on after an unauthenticated error
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.1", None);
    let stranger = network.add("10.0.0.3", None);
    let mut config = PeerConfig { initiate: false, ..peer("d.example", "e.example", &[]) };
    config.ike_proposals[0].ciphers = vec![Cipher::ChaCha20Poly1305];
    network.call(stranger, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    let mut config = peer("a.example", "b.example", &["10.0.0.9", "10.0.0.3"]);
    config.ike_proposals[0].ciphers = vec![Cipher::Aes256Gcm16];
    network.call(a, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    network.run_for(60 * SECOND);
    let errors = network.nodes[a].errors();
    assert!(!errors.is_empty() && errors.iter().all(|kind| *kind == PeerErrorKind::Timeout), "{errors:?}");
}

/// One edge reports a different address of a third party every 100 ms for two minutes. We must send
/// at most 500 datagrams.
#[test]
fn a_peer_whose_addresses_change_all_the_time_does_not_make_us_flood_a_third_party() {
    for alternate_with_none in [false, true] {
        let mut pair = Pair::new(1, LinkQuality::RELIABLE);
        for round in 0..1200 {
            let victim = format!("203.0.113.{}", round % 250);
            let remotes = if alternate_with_none && round % 2 == 1 { vec![] } else { vec![at(&victim)] };
            pair.a_config.remotes = remotes;
            pair.start_a();
            pair.network.run_for(Duration::from_millis(100));
        }
        let sent = pair.network.wire.len();
        // There are 8 addresses with 4 transmissions each, every 7 to 17 s.
        assert!(sent <= 500, "{sent} datagrams in two minutes (alternating with none: {alternate_with_none})");
    }
}

#[test]
fn a_wait_after_a_failure_goes_on_when_the_addresses_change_and_the_next_attempt_takes_the_new_ones() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.start_b();
    pair.a_config.remotes = vec![at("203.0.113.1")];
    pair.start_a();
    let failed = |pair: &Pair| {
        pair.network.nodes[pair.a].events.iter().filter(|(_, event)| matches!(event, Event::PeerFailed { .. })).count()
    };
    while failed(&pair) < 4 {
        pair.network.run_for(Duration::from_millis(10));
    }
    let sent = pair.network.wire.len();
    pair.a_config.remotes = vec![at("10.0.0.2")];
    pair.start_a();
    assert_eq!(pair.network.wire.len(), sent, "the wait is not shortened");
    pair.network.run_for(11 * SECOND);
    pair.assert_connected();
}

#[test]
fn an_address_that_becomes_known_during_an_attempt_joins_it() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.start_b();
    pair.a_config.remotes = vec![at("203.0.113.1")];
    pair.start_a();
    pair.network.run_for(SECOND);
    pair.a_config.remotes.push(at("10.0.0.2"));
    pair.start_a();
    pair.network.run_for(SECOND);
    pair.assert_connected();
}

#[test]
fn a_request_that_a_nat_leads_back_to_us_is_nobodys() {
    // Both nodes are behind the same NAT. The peer's public address is also ours, and the NAT maps
    // the peer's configured port to us.
    let mut network = Network::new(1, LinkQuality::RELIABLE);
    let a = network.add("10.0.0.1", Some(Nat::new("192.0.2.1")));
    let config =
        PeerConfig { remotes: vec!["192.0.2.1:20001".parse().unwrap()], ..peer("a.example", "b.example", &[]) };
    network.call(a, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
    network.run_for(30 * SECOND);
    let errors = network.nodes[a].errors();
    assert!(!errors.is_empty() && errors.iter().all(|kind| *kind == PeerErrorKind::Timeout), "{errors:?}");
    assert!(network.wire.iter().all(|(_, to, _)| *to == "192.0.2.1:20001".parse().unwrap()), "nothing was answered");
}
