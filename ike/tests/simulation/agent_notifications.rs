//! Tests the notifications for private use between agents of ours: the mapped address, and
//! notifications that the owner sends.

use std::net::SocketAddr;

use edge_ike::config::AgentNotifications;
use edge_ike::endpoint::Phase;
use edge_ike::wire::{AgentNotification, RelayRefusal};
use edge_ike::{Event, PeerName};

use crate::network::{LinkQuality, Nat};
use crate::peers::{Pair, SECOND};

/// `a`, behind a NAT, and `b`, which tells its peers their mapped addresses.
fn behind_a_nat(seed: u64, quality: LinkQuality) -> Pair {
    let mut pair = Pair::with_nats(seed, quality, Some(Nat::new("192.0.2.1")), None).one_sided();
    pair.b_config.remotes.clear();
    pair.a_config.agent_notifications = AgentNotifications::Exchange;
    pair.b_config.agent_notifications = AgentNotifications::TellAddress;
    pair
}

fn mapped(pair: &Pair, node: usize, peer: &PeerName) -> Option<SocketAddr> {
    pair.network.nodes[node].endpoint.mapped_address(peer)
}

/// The notifications that a node has reported.
fn reported(pair: &Pair, node: usize) -> Vec<AgentNotification> {
    let events = pair.network.nodes[node].events.iter();
    let notifications = events.filter_map(|(_, event)| match event {
        Event::AgentNotification { notification, .. } => Some(notification.clone()),
        _ => None,
    });
    notifications.collect()
}

/// The address to which a node sends.
fn remote(pair: &Pair, node: usize) -> SocketAddr {
    pair.network.nodes[node].endpoint.ike_addresses().next().unwrap().2
}

#[test]
fn a_peer_behind_a_nat_is_told_its_mapped_address_with_ike_auth() {
    let mut pair = behind_a_nat(1, LinkQuality::RELIABLE);
    pair.start();
    pair.traffic(5 * SECOND);
    pair.assert_connected();
    assert_eq!(mapped(&pair, pair.a, &pair.b_name), Some(remote(&pair, pair.b)), "{}", pair.network.history());
    assert_eq!(mapped(&pair, pair.a, &pair.b_name).unwrap().ip(), "192.0.2.1".parse::<std::net::IpAddr>().unwrap());
    assert_eq!(mapped(&pair, pair.b, &pair.a_name), None, "only one end tells");
    assert_eq!(reported(&pair, pair.a), [], "it came with IKE_AUTH");
}

#[test]
fn a_new_mapping_is_told_in_an_informational_exchange_and_only_once() {
    for quality in [LinkQuality::RELIABLE, LinkQuality { loss_percent: 10, ..LinkQuality::REORDERING }] {
        for mobike in [true, false] {
            let mut pair = behind_a_nat(1, quality).both(|config| {
                config.mobike = mobike;
                config.timing.transmissions = 8;
            });
            pair.start();
            pair.traffic(10 * SECOND);
            let before = mapped(&pair, pair.a, &pair.b_name).unwrap();
            pair.network.nodes[pair.a].nat.as_mut().unwrap().rebind();
            pair.traffic(40 * SECOND);
            let after = mapped(&pair, pair.a, &pair.b_name).unwrap();
            assert_ne!(before, after, "{}", pair.network.history());
            assert_eq!(after, remote(&pair, pair.b), "{}", pair.network.history());
            assert_eq!(reported(&pair, pair.a), [AgentNotification::MappedAddress(after)]);
            pair.assert_connected();
        }
    }
}

#[test]
fn an_initiator_tells_the_address_after_ike_auth() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.agent_notifications = AgentNotifications::TellAddress;
    pair.b_config.agent_notifications = AgentNotifications::Exchange;
    pair.start();
    pair.traffic(5 * SECOND);
    let told = remote(&pair, pair.a);
    assert_eq!(mapped(&pair, pair.b, &pair.a_name), Some(told), "{}", pair.network.history());
    assert_eq!(reported(&pair, pair.b), [AgentNotification::MappedAddress(told)]);
}

#[test]
fn the_mapped_address_stays_known_while_a_new_ike_sa_is_about_to_tell_it() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.agent_notifications = AgentNotifications::TellAddress;
    pair.b_config.agent_notifications = AgentNotifications::Exchange;
    pair.start();
    pair.traffic(5 * SECOND);
    let known = mapped(&pair, pair.b, &pair.a_name);
    assert!(known.is_some());
    let b_name = pair.b_name.clone();
    assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&b_name, now, env)));
    for _ in 0..2_000 {
        pair.network.run_for(SECOND / 1_000);
        assert_eq!(mapped(&pair, pair.b, &pair.a_name), known, "{}", pair.network.history());
    }
}

#[test]
fn the_mapped_address_stays_known_when_the_ike_sa_is_rekeyed() {
    for rekeys_a in [true, false] {
        let mut pair = behind_a_nat(1, LinkQuality::RELIABLE);
        pair.start();
        pair.traffic(5 * SECOND);
        let known = mapped(&pair, pair.a, &pair.b_name);
        let (rekeys, of) = if rekeys_a { (pair.a, pair.b_name.clone()) } else { (pair.b, pair.a_name.clone()) };
        assert!(pair.network.call(rekeys, |endpoint, now, env| endpoint.rekey_ike(&of, now, env)));
        pair.traffic(10 * SECOND);
        assert_eq!(mapped(&pair, pair.a, &pair.b_name), known);
        assert_eq!(reported(&pair, pair.a), [], "nothing has changed");
    }
}

#[test]
fn a_peer_that_does_not_announce_our_vendor_id_gets_and_sends_no_notifications() {
    //= RFC 7296 3.12 MUST NOT 1: only private types get a meaning
    //= RFC 7296 3.12 MUST 4: our vendor ID
    use AgentNotifications::{Exchange, Off, TellAddress};
    for (ours, theirs) in [(TellAddress, Off), (Off, TellAddress), (Off, Exchange), (Off, Off)] {
        let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
        (pair.a_config.agent_notifications, pair.b_config.agent_notifications) = (ours, theirs);
        pair.start();
        pair.traffic(5 * SECOND);
        pair.assert_connected();
        for (node, peer) in [(pair.a, pair.b_name.clone()), (pair.b, pair.a_name.clone())] {
            let request = AgentNotification::RelayRequest { node: "c".into() };
            let sent = pair.network.call(node, |endpoint, now, env| endpoint.notify_agent(&peer, request, now, env));
            assert!(!sent && !pair.network.nodes[node].endpoint.takes_agent_notifications(&peer));
            assert_eq!((mapped(&pair, node, &peer), reported(&pair, node)), (None, vec![]));
        }
        let story = pair.network.oracle.story();
        assert!(!story.contains("N(4096"), "{story}");
    }
}

#[test]
fn after_many_changes_and_a_rekey_the_peer_knows_the_last_mapping_whatever_is_lost() {
    for seed in 0..20 {
        let quality = LinkQuality { loss_percent: 20, ..LinkQuality::REORDERING };
        let mut pair = behind_a_nat(seed, quality).both(|config| config.timing.transmissions = 10);
        pair.start();
        pair.traffic(20 * SECOND);
        for change in 0..6 {
            pair.network.nodes[pair.a].nat.as_mut().unwrap().rebind();
            if change == 3 {
                let b_name = pair.b_name.clone();
                pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_ike(&b_name, now, env));
            }
            pair.traffic(SECOND);
        }
        pair.traffic(120 * SECOND);
        let known = mapped(&pair, pair.a, &pair.b_name);
        assert_eq!(known, Some(remote(&pair, pair.b)), "seed {seed}: {}", pair.network.history());
        assert!(reported(&pair, pair.a).len() <= 6, "one for each change at most");
    }
}

#[test]
fn notifications_of_the_owner_arrive_once_each_and_in_their_order_whatever_is_lost() {
    for seed in 0..20 {
        let quality = LinkQuality { loss_percent: 20, ..LinkQuality::REORDERING };
        let mut pair = Pair::new(seed, quality).one_sided().both(|config| {
            config.agent_notifications = AgentNotifications::Exchange;
            config.timing.transmissions = 10;
        });
        pair.start();
        pair.network.run_for(20 * SECOND);
        let sent: Vec<AgentNotification> = (0..10)
            .map(|number| AgentNotification::RelayRefused {
                node: format!("node-{number}"),
                reason: RelayRefusal::Unknown(100 + number),
            })
            .collect();
        let b_name = pair.b_name.clone();
        for notification in sent.clone() {
            assert!(
                pair.network
                    .call(pair.a, |endpoint, now, env| { endpoint.notify_agent(&b_name, notification, now, env) })
            );
        }
        // The notifications that wait move to the new IKE SA.
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_ike(&b_name, now, env));
        pair.network.run_for(200 * SECOND);
        assert_eq!(reported(&pair, pair.b), sent, "seed {seed}: {}", pair.network.history());
    }
}

#[test]
fn the_number_of_notifications_that_wait_is_limited() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE)
        .one_sided()
        .both(|config| config.agent_notifications = AgentNotifications::Exchange);
    pair.start();
    pair.network.run_for(5 * SECOND);
    let b_name = pair.b_name.clone();
    let sent = (0..1000).filter(|number| {
        let request = AgentNotification::RelayRequest { node: format!("node-{number}") };
        pair.network.call(pair.a, |endpoint, now, env| endpoint.notify_agent(&b_name, request, now, env))
    });
    assert_eq!(sent.count(), 33, "one under way, 32 wait");
    pair.network.run_for(60 * SECOND);
    assert_eq!(reported(&pair, pair.b).len(), 33);
    let long = AgentNotification::RelayRequest { node: "x".repeat(254) };
    assert!(!pair.network.call(pair.a, |endpoint, now, env| endpoint.notify_agent(&b_name, long, now, env)));
}

#[test]
fn a_better_path_is_tried_beside_the_one_in_use_and_taken_without_loss() {
    // At first, `b` is reachable only at its second address, as through a relay.
    let mut pair = Pair::new(1, LinkQuality::RELIABLE);
    let (first, second) = ("10.0.0.2:4500".parse::<SocketAddr>().unwrap(), "10.0.1.2:4500".parse().unwrap());
    pair.network.nodes[pair.b].host.more_addresses = vec!["10.0.1.2".parse().unwrap()];
    pair.a_config.remotes = vec![first, second];
    pair.b_config.initiate = false;
    let closed = first.ip();
    pair.network.tap = Some(Box::new(move |from, to, _| from.ip() != closed && to.ip() != closed));
    pair.start();
    pair.network.run_for(5 * SECOND);
    assert_eq!(remote(&pair, pair.a), second, "{}", pair.network.history());
    let b_name = pair.b_name.clone();
    let try_first = |pair: &mut Pair| {
        pair.network.call(pair.a, |endpoint, now, env| endpoint.try_addresses(&b_name, &[first], now, env))
    };
    assert!(try_first(&mut pair));
    assert!(!try_first(&mut pair), "one attempt at a time");
    pair.traffic(30 * SECOND);
    assert_eq!(remote(&pair, pair.a), second, "nobody answers there");
    let failed = |event: &Event| matches!(event, Event::PeerFailed { .. } | Event::IkeDown { .. });
    assert!(!pair.network.nodes[pair.a].events.iter().any(|(_, event)| failed(event)), "{}", pair.network.history());
    pair.network.tap = None;
    assert!(try_first(&mut pair));
    pair.traffic(30 * SECOND);
    assert_eq!(remote(&pair, pair.a), first, "{}", pair.network.history());
    pair.assert_connected();
    let elsewhere = "10.0.0.77:4500".parse().unwrap();
    assert!(
        !pair.network.call(pair.a, |endpoint, now, env| endpoint.try_addresses(&b_name, &[elsewhere], now, env)),
        "only configured addresses"
    );
}

#[test]
fn the_responder_tries_a_better_path_as_soon_as_esp_shows_that_the_initiator_has_its_response() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    let second: SocketAddr = "10.0.1.1:4500".parse().unwrap();
    pair.network.nodes[pair.a].host.more_addresses = vec![second.ip()];
    pair.b_config.remotes.push(second);
    pair.start();
    pair.network.run_for(SECOND);
    let a_name = pair.a_name.clone();
    let try_second = |pair: &mut Pair| {
        pair.network.call(pair.b, |endpoint, now, env| endpoint.try_addresses(&a_name, &[second], now, env))
    };
    assert!(!try_second(&mut pair), "the initiator may not have the response yet");
    let inbound = pair.network.nodes[pair.b].endpoint.snapshot()[0].children[0].sa.inbound_spi;
    pair.network.call(pair.b, |endpoint, now, _| endpoint.esp_received(&a_name, inbound, now));
    assert!(try_second(&mut pair), "{}", pair.network.history());
    pair.network.run_for(SECOND);
    let (_, remote) = pair.network.nodes[pair.b].endpoint.path(&pair.a_name).unwrap();
    assert_eq!(remote, second, "{}", pair.network.history());
    pair.network.run_for(30 * SECOND);
    pair.assert_connected();
}

#[test]
fn the_responder_of_an_idle_ike_sa_tries_a_better_path_too() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    let second: SocketAddr = "10.0.1.1:4500".parse().unwrap();
    pair.network.nodes[pair.a].host.more_addresses = vec![second.ip()];
    pair.b_config.remotes.push(second);
    pair.start();
    pair.network.run_for(SECOND);
    assert_eq!(pair.network.nodes[pair.b].endpoint.phase(&pair.a_name), Some(Phase::Up), "{}", pair.network.history());
    let a_name = pair.a_name.clone();
    let try_second = |pair: &mut Pair| {
        pair.network.call(pair.b, |endpoint, now, env| endpoint.try_addresses(&a_name, &[second], now, env))
    };
    assert!(!try_second(&mut pair), "the initiator may not have the response yet");
    pair.network.run_for(20 * SECOND);
    assert!(try_second(&mut pair), "{}", pair.network.history());
    pair.network.run_for(SECOND);
    let (_, remote) = pair.network.nodes[pair.b].endpoint.path(&pair.a_name).unwrap();
    assert_eq!(remote, second, "{}", pair.network.history());
    pair.network.run_for(30 * SECOND);
    pair.assert_connected();
}
