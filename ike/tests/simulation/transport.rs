//! Tests transport mode between two hosts (RFC 7296 1.3.1).

use edge_ike::PeerConfig;
use edge_ike::config::Mode;
use edge_ike::event::{NotServed, PeerErrorKind};

use crate::network::{LinkQuality, Nat};
use crate::peers::{Pair, Refused, SECOND, with_children};

/// Sets the first child of a peer to transport mode between the hosts of [`Pair`].
fn between_hosts(config: &mut PeerConfig, local: &str, remote: &str) {
    config.force_encapsulation = false;
    config.child.mode = Mode::Transport;
    config.child.local = vec![local.parse().unwrap()];
    config.child.remote = vec![remote.parse().unwrap()];
}

fn hosts(mut pair: Pair) -> Pair {
    between_hosts(&mut pair.a_config, "10.0.0.1", "10.0.0.2");
    between_hosts(&mut pair.b_config, "10.0.0.2", "10.0.0.1");
    pair
}

fn modes(pair: &Pair) -> Vec<Mode> {
    let kernels = [pair.a, pair.b].map(|node| &pair.network.nodes[node].host.kernel);
    let sas = kernels.iter().flat_map(|kernel| kernel.tunnels.values().flat_map(|tunnel| tunnel.outbound.values()));
    sas.map(|sa| sa.mode).collect()
}

#[test]
pub fn two_hosts_in_transport_mode_rekey_and_lose_nothing() {
    //= RFC 7296 1.3.1 MUST 1: USE_TRANSPORT_MODE in the response
    for seed in 0..4 {
        let mut pair = hosts(Pair::new(seed, LinkQuality::REORDERING));
        if seed % 2 == 0 {
            pair = pair.one_sided();
        }
        pair.start();
        pair.traffic(10 * SECOND);
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env));
            pair.traffic(10 * SECOND);
            pair.network.call(node, |endpoint, now, env| endpoint.reauthenticate(&peer, now, env));
            pair.traffic(20 * SECOND);
            pair.assert_connected();
            assert_eq!(modes(&pair), [Mode::Transport; 2], "{}", pair.network.history());
        }
        // RFC 4555 1.3: MOBIKE supports only tunnel mode.
        for node in &pair.network.nodes {
            assert!(!node.endpoint.snapshot()[0].ike_sas[0].details.mobike);
        }
    }
}

#[test]
fn a_child_in_transport_mode_stands_beside_one_in_tunnel_mode() {
    let mut pair = Pair::new(3, LinkQuality::REORDERING).both(|config| {
        with_children(config, 2);
        config.force_encapsulation = false;
    });
    for (config, local, remote) in
        [(&mut pair.a_config, "10.0.0.1", "10.0.0.2"), (&mut pair.b_config, "10.0.0.2", "10.0.0.1")]
    {
        let second = &mut config.additional_children[0];
        second.mode = Mode::Transport;
        second.local = vec![local.parse().unwrap()];
        second.remote = vec![remote.parse().unwrap()];
    }
    pair.start();
    pair.traffic(20 * SECOND);
    assert_eq!(modes(&pair), [Mode::Tunnel, Mode::Transport, Mode::Tunnel, Mode::Transport]);
    pair.network.assert_tidy();
}

/// The first child of `b` is in tunnel mode for the same addresses, so `b` does not accept
/// transport mode. `a` must delete the CHILD_SA and report an error.
#[test]
pub fn a_host_that_is_given_a_tunnel_instead_deletes_it_and_says_so() {
    //= RFC 7296 1.3.1 MUST 2: tunnel mode that is not wanted is deleted
    let mut pair = hosts(Pair::new(1, LinkQuality::RELIABLE)).one_sided();
    pair.b_config.child.mode = Mode::Tunnel;
    let Refused { a, network, .. } = pair.refused();
    a.is(PeerErrorKind::TransportMode, &["IKE_AUTH", "child net", "the peer made it in tunnel mode"]);
    // The other host does not know whether the peer minds, but what it asked for.
    let not_served = network.nodes[1].not_served();
    assert!(!not_served.is_empty(), "an IKE SA was up");
    assert!(not_served.iter().all(|not_served| not_served.transport_mode && !not_served.internal_address));
    assert!(network.nodes[0].not_served().iter().all(|not_served| *not_served == NotServed::default()));
}

#[test]
fn beside_another_child_a_tunnel_instead_of_transport_mode_is_deleted_and_the_other_one_stays() {
    //= RFC 7296 1.3.1 MUST 2: tunnel mode that is not wanted is deleted
    let mut pair = Pair::new(5, LinkQuality::RELIABLE).one_sided().both(|config| {
        with_children(config, 2);
        config.force_encapsulation = false;
    });
    for (config, local, remote) in
        [(&mut pair.a_config, "10.0.0.1", "10.0.0.2"), (&mut pair.b_config, "10.0.0.2", "10.0.0.1")]
    {
        let second = &mut config.additional_children[0];
        second.local = vec![local.parse().unwrap()];
        second.remote = vec![remote.parse().unwrap()];
    }
    pair.a_config.additional_children[0].mode = Mode::Transport;
    pair.start();
    pair.traffic(15 * SECOND);
    let errors = pair.network.nodes[pair.a].reported_errors();
    assert!(errors.iter().all(|error| error.kind == PeerErrorKind::TransportMode), "{errors:?}");
    assert!(errors[0].to_string().contains("child net1"), "{errors:?}");
    let kernel = &pair.network.nodes[pair.a].host.kernel;
    assert_eq!((kernel.tunnels[&pair.b_name].inbound.len(), kernel.ike_sas.len()), (1, 1));
}

#[test]
fn a_peer_that_asks_for_a_tunnel_where_transport_mode_is_configured_is_refused() {
    let mut pair = hosts(Pair::new(1, LinkQuality::RELIABLE)).one_sided();
    pair.a_config.child.mode = Mode::Tunnel;
    let Refused { a, b, .. } = pair.refused();
    a.is(PeerErrorKind::NoProposalChosen, &["IKE_AUTH"]);
    b.is(PeerErrorKind::TransportMode, &["IKE_AUTH", "child net", "the peer asks for tunnel mode"]);
}

/// Each end names its own address and that of the other end's NAT. The second child makes both ends
/// use CREATE_CHILD_SA too.
#[test]
pub fn through_nats_each_end_has_the_addresses_that_it_sees_and_rekeys_lose_nothing() {
    //= RFC 7296 2.23.1 MUST 1: one address each
    //= RFC 7296 2.23.1 REQUIRED 5: the addresses are substituted first
    //= RFC 7296 2.23.1 REQUIRED 7: substituted in the response too
    for (seed, b_nat) in [(0, false), (1, true), (2, false), (3, true)] {
        let (of_a, of_b) = (Nat::new("203.0.113.1"), b_nat.then(|| Nat::new("203.0.113.2").forwarding()));
        let b_seen = if b_nat { "203.0.113.2" } else { "10.0.0.2" };
        let mut pair = Pair::with_nats(seed, LinkQuality::REORDERING, Some(of_a), of_b).one_sided();
        between_hosts(&mut pair.a_config, "10.0.0.1", b_seen);
        between_hosts(&mut pair.b_config, "10.0.0.2", "203.0.113.1");
        pair.start();
        pair.traffic(10 * SECOND);
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env));
            pair.traffic(10 * SECOND);
            pair.network.call(node, |endpoint, now, env| endpoint.rekey_ike(&peer, now, env));
            pair.traffic(10 * SECOND);
            pair.network.call(node, |endpoint, now, env| endpoint.rekey_children(&peer, now, env));
            pair.traffic(10 * SECOND);
            pair.assert_connected();
        }
        assert_eq!(modes(&pair), [Mode::Transport; 2], "{}", pair.network.history());
        let selectors = |node: usize, peer| {
            let sa = pair.network.nodes[node].host.kernel.tunnels[peer].sole_outbound().unwrap();
            (sa.encapsulated, sa.local_selectors[0].ip().to_string(), sa.remote_selectors[0].ip().to_string())
        };
        assert_eq!(selectors(pair.a, &pair.b_name), (true, "10.0.0.1".into(), b_seen.into()));
        assert_eq!(selectors(pair.b, &pair.a_name), (true, "10.0.0.2".into(), "203.0.113.1".into()));
    }
}

#[test]
fn an_end_that_encapsulates_always_has_transport_mode_too() {
    let mut pair = hosts(Pair::new(1, LinkQuality::REORDERING));
    pair.a_config.force_encapsulation = true;
    pair.start();
    pair.traffic(15 * SECOND);
    pair.assert_connected();
    assert_eq!(modes(&pair), [Mode::Transport; 2]);
}

#[test]
fn a_child_for_the_address_of_a_peer_behind_its_nat_is_refused_with_words() {
    let nat = Nat::new("203.0.113.1");
    let mut pair = Pair::with_nats(1, LinkQuality::RELIABLE, Some(nat), None).one_sided();
    between_hosts(&mut pair.a_config, "10.0.0.1", "10.0.0.2");
    between_hosts(&mut pair.b_config, "10.0.0.2", "10.0.0.1");
    let Refused { a, b, .. } = pair.refused();
    a.is(PeerErrorKind::TrafficSelectors, &["IKE_AUTH"]);
    b.is(PeerErrorKind::TrafficSelectors, &["IKE_AUTH", "10.0.0.1"]);
}

#[test]
fn transport_mode_for_other_addresses_than_those_of_ike_is_refused_with_words() {
    let mut pair = hosts(Pair::new(1, LinkQuality::RELIABLE)).one_sided();
    pair.a_config.child.remote = vec!["10.0.0.9".parse().unwrap()];
    let Refused { a, .. } = pair.refused();
    a.is(PeerErrorKind::TransportMode, &["IKE_AUTH", "the two addresses between which IKE runs"]);
}
