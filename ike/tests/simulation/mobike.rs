//! Tests MOBIKE (RFC 4555): either end moves, loses one of its addresses, or is behind a NAT. The
//! oracle checks that SAs move only after UPDATE_SA_ADDRESSES from the original initiator and after
//! COOKIE2.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::event::{DownReason, PeerErrorKind};
use edge_ike::{ChildId, Event, PeerConfig, PeerName};

use crate::foreign::{Foreign, notification};
use crate::network::{LinkQuality, Nat};
use crate::oracle::octets::{Message, exchange, notify};
use crate::peers::{PSK, Pair, SECOND, name, peer};

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn connected(seed: u64, quality: LinkQuality, change: impl Fn(&mut PeerConfig)) -> Pair {
    let mut pair = Pair::new(seed, quality).one_sided().both(change);
    pair.start();
    pair.traffic(5 * SECOND);
    pair.assert_connected();
    pair
}

/// Checks the state after a move: the IKE SA is the same, and ESP arrives in both directions.
fn assert_moved(pair: &mut Pair, within: Duration) {
    pair.network.working.clear();
    pair.traffic(within);
    assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
    pair.traffic(10 * SECOND);
    pair.assert_connected();
    for node in &pair.network.nodes {
        let again =
            node.events.iter().any(|(_, event)| matches!(event, Event::IkeReplaced { .. } | Event::IkeDown { .. }));
        assert!(!again, "the IKE SA stays:{}", pair.network.history());
    }
}

fn plain(config: &mut PeerConfig) {
    config.force_encapsulation = false;
}

#[test]
fn the_initiator_moves_and_esp_follows_in_two_round_trips() {
    //= RFC 4555 3.5 REQUIRED 5: the addresses of the IP header
    for change in [|_: &mut PeerConfig| {}, plain] {
        let mut pair = connected(1, LinkQuality::RELIABLE, change);
        pair.network.move_node(pair.a, at("10.0.0.9"));
        assert_moved(&mut pair, Duration::from_millis(40));
    }
}

#[test]
pub fn the_responder_moves_and_the_initiator_follows_in_two_round_trips() {
    for change in [|_: &mut PeerConfig| {}, plain] {
        let mut pair = connected(1, LinkQuality::RELIABLE, change);
        pair.network.move_node(pair.b, at("10.0.0.9"));
        assert_moved(&mut pair, Duration::from_millis(40));
    }
}

#[test]
fn after_a_move_the_peer_is_told_our_addresses_again_behind_what_is_urgent() {
    //= RFC 4555 3.6 MUST 2: another source needs another request
    //= RFC 4555 3.6 REQUIRED 3: the source of the message is part of the list
    let told = |pair: &Pair| {
        let story = pair.network.oracle.story();
        story.lines().filter(|line| line.contains("node 0 to") && line.contains("N(16399)")).count()
    };
    let mut pair = connected(1, LinkQuality::RELIABLE, |_| {});
    pair.network.move_node(pair.a, at("10.0.0.9"));
    pair.network.run_for(SECOND);
    assert_eq!(told(&pair), 0, "the owner rekeys its CHILD_SA first");
    let b_name = pair.b_name.clone();
    for _ in 0..2 {
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b_name, now, env));
        pair.network.run_for(SECOND);
        assert_eq!(told(&pair), 1, "{}", pair.network.oracle.story());
    }
}

#[test]
fn either_end_moves_on_a_bad_network_and_the_ike_sa_stays() {
    //= RFC 4555 3.5 REQUIRED 6: the addresses changed again
    for seed in 0..40 {
        let quality = LinkQuality { loss_percent: 10, ..LinkQuality::REORDERING };
        let mut pair = Pair::new(seed, quality).one_sided().both(|config| config.timing.transmissions = 8);
        pair.start();
        pair.network.run_for(5 * SECOND);
        let moves = if seed % 2 == 0 { pair.a } else { pair.b };
        pair.network.move_node(moves, at("10.0.0.9"));
        // The node moves again while the first move is in progress.
        pair.network.run_for(Duration::from_millis(seed * 5));
        pair.network.move_node(moves, at("10.0.0.10"));
        pair.network.run_for(20 * SECOND);
        pair.network.quality = LinkQuality::RELIABLE;
        assert_moved(&mut pair, SECOND);
    }
}

#[test]
fn both_ends_move_at_once_and_additional_addresses_find_them() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| config.timing.transmissions = 6);
    for (node, more) in [(pair.a, "10.0.1.1"), (pair.b, "10.0.1.2")] {
        let host = &mut pair.network.nodes[node].host;
        host.more_addresses = vec![at(more)];
        let addresses = vec![host.address, at(more)];
        pair.network.call(node, |endpoint, now, env| endpoint.set_addresses(addresses, now, env));
    }
    pair.start();
    pair.traffic(5 * SECOND);
    // Each node keeps only the address that it announced to the other node as an additional one.
    for (node, more) in [(pair.a, "10.0.1.1"), (pair.b, "10.0.1.2")] {
        pair.network.nodes[node].host.more_addresses.clear();
        pair.network.move_node(node, at(more));
    }
    pair.network.run_for(10 * SECOND);
    assert_moved(&mut pair, SECOND);
}

/// A pair of which these nodes have further addresses, and each knows those of the other.
fn with_more_addresses(mut pair: Pair, more: &[(usize, &str)]) -> Pair {
    for (node, more) in more {
        let host = &mut pair.network.nodes[*node].host;
        host.more_addresses = vec![at(more)];
        let addresses = vec![host.address, at(more)];
        pair.network.call(*node, |endpoint, now, env| endpoint.set_addresses(addresses, now, env));
    }
    pair.start();
    pair.traffic(5 * SECOND);
    pair
}

/// The addresses between which `a` sends ESP.
fn path_of_a(pair: &Pair) -> (IpAddr, IpAddr) {
    let kernel = &pair.network.nodes[pair.a].host.kernel;
    let child = kernel.tunnels[&pair.b_name].sole_outbound().unwrap().id;
    let (local, remote) = kernel.paths[&child];
    (local.ip(), remote.ip())
}

/// Loses all IKE messages from and to an address.
fn lose(pair: &mut Pair, dead: &str) {
    let dead = at(dead);
    pair.network.tap = Some(Box::new(move |from, to, _| from.ip() != dead && to.ip() != dead));
}

#[test]
fn a_peer_is_found_at_its_other_address_when_the_first_one_is_out_of_reach() {
    // Address family of the peer's other address, and whether ESP still arrives from the first one.
    for (more, esp) in [("10.0.1.2", false), ("10.0.1.2", true), ("2001:db8::2", false)] {
        let new = if esp { Pair::reporting_esp } else { Pair::new };
        let mut more_addresses = vec![(1, more)];
        if !at(more).is_ipv4() {
            more_addresses.push((0, "2001:db8::1"));
        }
        let mut pair = with_more_addresses(new(1, LinkQuality::RELIABLE).one_sided(), &more_addresses);
        lose(&mut pair, "10.0.0.2");
        if esp {
            // The peer is asked since a rekey is due, although ESP arrives.
            let b_name = pair.b_name.clone();
            pair.network.call(pair.a, |endpoint, now, env| endpoint.check_liveness(&b_name, now, env));
            pair.traffic(15 * SECOND);
        } else {
            pair.network.run_for(15 * SECOND);
        }
        assert_eq!(path_of_a(&pair).1, at(more), "{}", pair.network.history());
        pair.network.tap = None;
        assert_moved(&mut pair, SECOND);
    }
}

#[test]
fn the_initiator_tries_its_own_other_addresses_too() {
    let pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    let mut pair = with_more_addresses(pair, &[(0, "10.0.1.1")]);
    lose(&mut pair, "10.0.0.1");
    pair.network.run_for(15 * SECOND);
    assert_eq!(path_of_a(&pair), (at("10.0.1.1"), at("10.0.0.2")), "{}", pair.network.history());
    pair.network.tap = None;
    assert_moved(&mut pair, SECOND);
}

#[test]
fn a_responder_waits_five_minutes_for_an_initiator_that_may_move() {
    //= RFC 4555 3.11 SHOULD 1: the responder waits long
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.b_config.remotes.clear();
    pair.start();
    pair.traffic(5 * SECOND);
    pair.assert_connected();
    pair.network.nodes[pair.a].down = true;
    pair.network.run_for(120 * SECOND);
    pair.network.nodes[pair.a].down = false;
    pair.network.move_node(pair.a, at("10.0.0.9"));
    assert_moved(&mut pair, SECOND);
    pair.network.nodes[pair.a].down = true;
    pair.network.run_for(320 * SECOND);
    assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty());
}

#[test]
fn an_ike_sa_without_child_sas_is_not_kept_for_an_initiator_that_may_move() {
    let mut foreign = mobile_foreign();
    let answers = foreign.request(exchange::INFORMATIONAL, &[crate::foreign::delete_child(foreign.child.0)]);
    assert_eq!(answers[0].deleted_children(), [foreign.child.1]);
    // The initiator forgets the IKE SA.
    foreign.network.run_for(30 * SECOND);
    let down = |(_, event): &(Duration, Event)| matches!(event, Event::IkeDown { .. });
    assert!(foreign.network.nodes[0].events.iter().any(down), "{}", foreign.network.history());
}

#[test]
fn a_responder_that_can_begin_itself_gives_up_a_silent_peer_within_seconds() {
    // As for a tunnel on demand: while the old SAs are there, no packet brings a new IKE SA.
    let mut pair = connected(1, LinkQuality::RELIABLE, |_| {});
    pair.network.nodes[pair.a].down = true;
    pair.traffic(5 * SECOND);
    pair.network.run_for(20 * SECOND);
    assert!(pair.network.nodes[pair.b].host.kernel.ike_sas.is_empty());
}

#[test]
fn each_peer_gets_the_address_that_the_route_to_it_gives() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    let c = pair.network.add("10.0.0.3", None);
    let [a_of_c, c_of_a] = [("a.example", "c.example", "10.0.0.3"), ("c.example", "a.example", "10.0.0.1")]
        .map(|(us, them, remote)| peer(us, them, &[remote]));
    let responds = PeerConfig { initiate: false, ..c_of_a };
    pair.network.call(c, |endpoint, now, env| endpoint.set_peer(responds, now, env)).unwrap();
    pair.start();
    pair.network.call(pair.a, |endpoint, now, env| endpoint.set_peer(a_of_c, now, env)).unwrap();
    pair.network.run_for(2 * SECOND);
    pair.network.nodes[pair.a].host.more_addresses = vec![at("10.0.0.8"), at("10.0.0.9")];
    let (old, b_at) = (at("10.0.0.1"), at("10.0.0.2"));
    let to_b = |remote: IpAddr| (remote == b_at).then(|| at("10.0.0.8"));
    let locals = |pair: &Pair| -> Vec<IpAddr> {
        pair.network.nodes[pair.a].endpoint.ike_addresses().map(|(_, local, _)| local.ip()).collect()
    };
    // There is no route to `c` yet.
    pair.network.call(pair.a, |endpoint, now, env| endpoint.local_address_changed(old, to_b, now, env));
    assert_eq!(locals(&pair), [at("10.0.0.8"), old]);
    let everywhere = |remote: IpAddr| to_b(remote).or(Some(at("10.0.0.9")));
    pair.network.call(pair.a, |endpoint, now, env| endpoint.local_address_changed(old, everywhere, now, env));
    assert_eq!(locals(&pair), [at("10.0.0.8"), at("10.0.0.9")]);
}

#[test]
fn a_node_that_moves_behind_a_nat_and_back_goes_on_in_udp_and_without() {
    //= RFC 4555 3.5 REQUIRED 7: NAT traversal on or off
    let mut pair = connected(1, LinkQuality::RELIABLE, plain);
    let encapsulated = |pair: &Pair| {
        let moved = pair.network.nodes[pair.b].events.iter().rev().find_map(|(_, event)| match event {
            Event::PeerMoved { encapsulated, .. } => Some(*encapsulated),
            _ => None,
        });
        moved.unwrap()
    };
    pair.network.nodes[pair.a].nat = Some(Nat::new("192.0.2.1"));
    pair.network.move_node(pair.a, at("10.0.0.9"));
    assert_moved(&mut pair, SECOND);
    assert!(encapsulated(&pair));
    pair.network.nodes[pair.a].nat = None;
    pair.network.move_node(pair.a, at("10.0.0.1"));
    assert_moved(&mut pair, SECOND);
    assert!(!encapsulated(&pair));
}

#[test]
pub fn another_mapping_of_the_initiators_nat_is_noticed_by_a_liveness_check() {
    //= RFC 4555 3.8 SHOULD 2: liveness checks detect a changed NAT mapping
    //= RFC 4555 3.8 SHOULD 3: update the addresses if the mapping changed
    let nat = Nat::new("192.0.2.1");
    let mut pair = Pair::with_nats(1, LinkQuality::RELIABLE, Some(nat), None).one_sided().both(plain);
    pair.b_config.remotes.clear();
    pair.start();
    pair.network.run_for(25 * SECOND);
    pair.network.nodes[pair.a].nat.as_mut().unwrap().rebind();
    pair.network.run_for(6 * SECOND);
    assert_moved(&mut pair, SECOND / 2);
}

#[test]
pub fn another_mapping_is_noticed_when_the_peer_refuses_because_of_it() {
    //= RFC 4555 3.8 SHOULD 2: liveness checks detect a changed NAT mapping
    another_mapping_is_noticed_after_a_refusal(true);
    another_mapping_is_noticed_after_a_refusal(false);
}

/// `theirs_is_of_ike` states whether the peer's request rekeys the IKE SA and ours the CHILD_SA, or
/// the reverse.
fn another_mapping_is_noticed_after_a_refusal(theirs_is_of_ike: bool) {
    let nat = Nat::new("192.0.2.1");
    let mut pair =
        Pair::with_nats(1, LinkQuality::RELIABLE, Some(nat), None).reports_esp().one_sided().both(|config| {
            plain(config);
            // No liveness check is due in this test.
            config.timing.idle_liveness = 3600 * SECOND;
        });
    pair.b_config.remotes.clear();
    pair.start();
    pair.network.run_for(5 * SECOND);
    pair.network.nodes[pair.a].nat.as_mut().unwrap().rebind();
    // The peer's request goes to the former mapping, and while it has no response, the peer refuses
    // ours.
    let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
    let rekey = |pair: &mut Pair, node, peer: &PeerName, of_ike| {
        pair.network.call(node, |endpoint, now, env| match of_ike {
            true => endpoint.rekey_ike(peer, now, env),
            false => endpoint.rekey_children(peer, now, env),
        });
    };
    let (a, b) = (pair.a, pair.b);
    rekey(&mut pair, b, &a_name, theirs_is_of_ike);
    pair.network.run_for(SECOND / 50);
    rekey(&mut pair, a, &b_name, !theirs_is_of_ike);
    pair.network.run_for(2 * SECOND);
    for node in [a, b] {
        let events = &pair.network.nodes[node].events;
        let ike = |(_, event): &(Duration, Event)| matches!(event, Event::IkeReplaced { .. });
        let child = |(_, event): &(Duration, Event)| matches!(event, Event::ChildRekeyed { .. });
        assert!(events.iter().any(ike) && events.iter().any(child), "node {node}:{}", pair.network.history());
    }
    pair.network.run_for(20 * SECOND);
    pair.assert_connected();
}

#[test]
fn a_peer_that_does_not_speak_mobike_is_told_nothing() {
    //= RFC 4555 3.2 MUST 1: MOBIKE is announced in IKE_AUTH
    for (ours, theirs) in [(true, false), (false, true)] {
        let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
        (pair.a_config.mobike, pair.b_config.mobike) = (ours, theirs);
        pair.start();
        pair.network.run_for(5 * SECOND);
        for node in &pair.network.nodes {
            assert!(!node.endpoint.snapshot()[0].ike_sas[0].details.mobike);
        }
        // The oracle would report UPDATE_SA_ADDRESSES as a violation. The peer detected a NAT, so
        // it follows without MOBIKE.
        pair.network.move_node(pair.a, at("10.0.0.9"));
        assert_moved(&mut pair, SECOND);
    }
}

#[test]
pub fn a_copied_update_with_a_forged_source_diverts_nothing() {
    //= RFC 4555 3.7 SHOULD 2: ESP follows after the check
    let mut pair = connected(1, LinkQuality::RELIABLE, |_| {});
    // An attacker between the two ends intercepts the datagrams that `a` sends from its new
    // address, and forwards them with the address of a third host as source.
    let victim: SocketAddr = "203.0.113.9:4500".parse().unwrap();
    let taken = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let new = at("10.0.0.9");
    let take = std::rc::Rc::clone(&taken);
    pair.network.tap = Some(Box::new(move |from, _, octets: &mut Vec<u8>| {
        let first = from.ip() == new && take.borrow().is_empty();
        if first {
            take.borrow_mut().push(octets.clone());
        }
        !first
    }));
    pair.network.move_node(pair.a, new);
    let octets = taken.borrow()[0].clone();
    pair.network.inject(victim, "10.0.0.2:4500".parse().unwrap(), octets);
    pair.network.run_for(20 * SECOND);
    pair.network.tap = None;
    let moved_there = pair.network.nodes[pair.b]
        .events
        .iter()
        .any(|(_, event)| matches!(event, Event::PeerMoved { remote, .. } if *remote == victim));
    assert!(!moved_there, "{}", pair.network.history());
    assert!(!pair.network.outside.is_empty(), "the stranger's address was checked");
    pair.network.run_for(30 * SECOND);
    pair.network.working.clear();
    pair.traffic(5 * SECOND);
    assert_eq!(pair.network.working.len(), 2, "{}", pair.network.history());
    pair.assert_connected();
}

#[test]
fn an_address_changes_while_the_child_sa_and_the_ike_sa_are_rekeyed() {
    for seed in 0..60 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING).one_sided();
        pair.start();
        pair.traffic(3 * SECOND);
        let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
        let moves = if seed % 2 == 0 { pair.a } else { pair.b };
        let (rekeys, of) = if seed % 3 == 0 { (pair.a, b_name) } else { (pair.b, a_name) };
        pair.network.call(rekeys, |endpoint, now, env| match seed % 4 {
            0 | 1 => endpoint.rekey_ike(&of, now, env),
            _ => endpoint.rekey_children(&of, now, env),
        });
        pair.network.run_for(Duration::from_millis(seed * 3));
        pair.network.move_node(moves, at("10.0.0.9"));
        pair.network.run_for(10 * SECOND);
        pair.network.working.clear();
        pair.traffic(SECOND);
        assert_eq!(pair.network.working.len(), 2, "seed {seed}: {}", pair.network.history());
        pair.network.run_for(20 * SECOND);
        pair.assert_connected();
    }
}

/// Makes a foreign initiator that supports MOBIKE.
fn mobile_foreign() -> Foreign {
    mobile_foreign_with(&[])
}

/// Does the same as [`mobile_foreign`], with data in MOBIKE_SUPPORTED.
fn mobile_foreign_with(data: &[u8]) -> Foreign {
    let mut foreign = Foreign::new(1, |_| {});
    let response = foreign.authenticate_with(PSK, |parts| {
        parts.push(notification(notify::MOBIKE_SUPPORTED, 0, &[], data));
    });
    assert!(response.notify(notify::MOBIKE_SUPPORTED).is_some());
    foreign.child.1 = response.proposals()[0].spi32();
    foreign.network.run_for(SECOND / 50);
    for datagram in foreign.arrived() {
        let message = foreign.open(&datagram);
        foreign.answer(&message, &[]);
    }
    foreign
}

/// Sends the foreign peer's next request from another address. Returns the messages that arrive
/// after it.
fn request_from(foreign: &mut Foreign, from: &str, parts: &[crate::foreign::Part]) -> Vec<Message> {
    let datagram = foreign.seal(exchange::INFORMATIONAL, false, foreign.next_id, parts);
    foreign.next_id += 1;
    let arrived = foreign.exchange_from(from.parse().unwrap(), datagram);
    arrived.iter().map(|datagram| foreign.open(datagram)).collect()
}

fn moves(foreign: &Foreign) -> usize {
    let events = &foreign.network.nodes[0].events;
    events.iter().filter(|(_, event)| matches!(event, Event::PeerMoved { .. })).count()
}

fn update() -> crate::foreign::Part {
    notification(notify::UPDATE_SA_ADDRESSES, 0, &[], &[])
}

fn cookie2(octets: usize) -> crate::foreign::Part {
    notification(notify::COOKIE2, 0, &[], &vec![0xc2; octets])
}

#[test]
fn an_address_that_was_given_up_is_checked_again_when_the_peer_uses_it() {
    //= RFC 4555 3.7 REQUIRED 6: a request to several addresses shows no path
    const NEW: &str = "198.51.100.8:4500";
    let mut foreign = mobile_foreign();
    request_from(&mut foreign, NEW, &[update()]);
    // The check goes on at the former address.
    foreign.network.run_for(8 * SECOND);
    foreign.arrived();
    let mut messages = request_from(&mut foreign, NEW, &[]);
    // The first check was sent to both addresses, so its answer proves nothing.
    for _ in 0..2 {
        assert_eq!(moves(&foreign), 0);
        let check = messages.iter().find(|message| message.notify(notify::COOKIE2).is_some()).expect("a check");
        let cookie = check.notify(notify::COOKIE2).unwrap().data;
        messages = foreign.answer(check, &[notification(notify::COOKIE2, 0, &[], &cookie)]);
    }
    assert_eq!(moves(&foreign), 1);
}

#[test]
pub fn a_foreign_initiator_is_checked_before_esp_follows_it() {
    //= RFC 4555 3.7 SHOULD 1: the path is checked
    //= RFC 4555 3.7 MUST 3: COOKIE2 is copied unchanged
    let mut foreign = mobile_foreign();
    let messages = request_from(&mut foreign, "198.51.100.8:4500", &[update(), cookie2(64)]);
    let (answers, checks): (Vec<_>, Vec<_>) = messages.into_iter().partition(|message| message.header.response());
    assert_eq!(answers[0].notify(notify::COOKIE2).unwrap().data, vec![0xc2; 64]);
    assert_eq!(moves(&foreign), 0, "nothing is shown yet");
    let cookie = checks[0].notify(notify::COOKIE2).expect("a check");
    foreign.answer(&checks[0], &[notification(notify::COOKIE2, 0, &[], &cookie.data)]);
    assert_eq!(moves(&foreign), 1);
}

#[test]
fn data_in_mobike_supported_is_ignored() {
    //= RFC 4555 4.2.1 MUST 2: its data does not matter
    for data in [vec![0], vec![0xff; 200]] {
        let mut foreign = mobile_foreign_with(&data);
        let messages = request_from(&mut foreign, "198.51.100.8:4500", &[update()]);
        let check = messages.into_iter().find(|message| !message.header.response()).expect("a check");
        let cookie = check.notify(notify::COOKIE2).expect("a check").data;
        foreign.answer(&check, &[notification(notify::COOKIE2, 0, &[], &cookie)]);
        assert_eq!(moves(&foreign), 1);
    }
}

#[test]
fn updates_from_many_places_do_not_multiply_a_request_that_nobody_answers() {
    let mut foreign = mobile_foreign();
    let mut checks = 0;
    for number in 0..60 {
        let from = ["198.51.100.8:4500", "198.51.100.8:4501", "198.51.100.9:4500"][number % 3];
        let messages = request_from(&mut foreign, from, &[update(), cookie2(8)]);
        assert!(messages.iter().any(|message| message.header.response()), "update {number} is not answered");
        checks += messages.iter().filter(|message| !message.header.response()).count();
    }
    assert_eq!(moves(&foreign), 0);
    // Four are sent because the peer moves, and the others are regular retransmissions.
    assert!(checks <= 8, "{checks} transmissions of the request");
    // The IKE SA ends even if the peer moves 40 times.
    let down = |foreign: &Foreign| {
        let events = &foreign.network.nodes[0].events;
        events.iter().any(|(_, event)| matches!(event, Event::IkeDown { .. }))
    };
    for number in 0..40 {
        let from = ["198.51.100.8:4500", "198.51.100.9:4500"][number % 2];
        if !down(&foreign) {
            request_from(&mut foreign, from, &[update(), cookie2(8)]);
            foreign.network.run_for(SECOND);
        }
    }
    assert!(down(&foreign), "it is still there after 40 s");
}

#[test]
pub fn another_cookie2_closes_the_ike_sa() {
    //= RFC 4555 3.7 MUST 4: COOKIE2 is compared with the one that was sent
    //= RFC 4555 3.7 MUST 5: a different COOKIE2 closes the IKE SA
    for wrong in [Some(vec![1; 16]), Some(Vec::new()), None] {
        let mut foreign = mobile_foreign();
        let messages = request_from(&mut foreign, "198.51.100.8:4500", &[update()]);
        let check = messages.into_iter().find(|message| !message.header.response()).expect("a check");
        let parts: Vec<_> = wrong.iter().map(|data| notification(notify::COOKIE2, 0, &[], data)).collect();
        foreign.answer(&check, &parts);
        assert_eq!(moves(&foreign), 0);
        let down = |event: &Event| matches!(event, Event::IkeDown { reason: DownReason::Failed, .. });
        assert!(foreign.network.nodes[0].events.iter().any(|(_, event)| down(event)), "{wrong:?}");
    }
}

#[test]
pub fn who_asks_from_elsewhere_without_an_update_moves_nothing() {
    //= RFC 4555 3.8 MUST NOT 4: nothing moves without UPDATE_SA_ADDRESSES
    let mut foreign = mobile_foreign();
    let messages = request_from(&mut foreign, "198.51.100.8:4500", &[]);
    assert_eq!(messages.len(), 1, "the answer, and no check: {messages:?}");
    foreign.network.run_for(10 * SECOND);
    assert!(foreign.network.outside.iter().all(|(_, to, _)| to.ip() != at("198.51.100.8")));
    assert_eq!(moves(&foreign), 0);
}

#[test]
pub fn a_nat_that_the_peer_forbids_is_found() {
    //= RFC 4555 3.9 MUST 2: compared with the IP header
    //= RFC 4555 3.9 REQUIRED 3: UNEXPECTED_NAT_DETECTED
    //= RFC 4555 3.9 MUST NOT 6: and used for nothing else
    let mut foreign = mobile_foreign();
    let elsewhere = |foreign: &Foreign| foreign.network.wire.iter().any(|(_, to, _)| to.ip() == at("198.51.100.9"));
    let octets = |from: [u8; 4], port: u16| {
        [from.as_slice(), &[10, 0, 0, 1], &port.to_be_bytes(), &500_u16.to_be_bytes()].concat()
    };
    let forbid = |octets: &[u8]| notification(notify::NO_NATS_ALLOWED, 0, &[], octets);
    for wrong in [octets([198, 51, 100, 9], 500), octets([198, 51, 100, 8], 501), Vec::new()] {
        let messages = request_from(&mut foreign, "198.51.100.8:500", &[update(), forbid(&wrong), cookie2(8)]);
        assert_eq!(messages.len(), 1, "no check");
        assert_eq!(messages[0].error(), Some(notify::UNEXPECTED_NAT_DETECTED));
        assert!(messages[0].notify(notify::COOKIE2).is_some());
    }
    assert_eq!(foreign.network.nodes[0].errors().last(), Some(&PeerErrorKind::Protocol));
    let right = octets([198, 51, 100, 8], 500);
    let messages = request_from(&mut foreign, "198.51.100.8:500", &[update(), forbid(&right)]);
    assert_eq!(messages.iter().filter(|message| !message.header.response()).count(), 1, "a check");
    // A request that changes no address is answered where it came from, whatever it forbids.
    request_from(&mut foreign, "198.51.100.8:500", &[forbid(&octets([198, 51, 100, 9], 500))]);
    foreign.network.run_for(10 * SECOND);
    assert!(!elsewhere(&foreign), "the address in NO_NATS_ALLOWED is used");
}

#[test]
fn an_impossible_address_is_refused() {
    let mut foreign = mobile_foreign();
    for from in ["224.0.0.9:500", "10.0.0.1:501", "127.0.0.1:500"] {
        let datagram = foreign.seal(exchange::INFORMATIONAL, false, foreign.next_id, &[update(), cookie2(8)]);
        foreign.next_id += 1;
        let (from, to) = (from.parse().unwrap(), Foreign::ours());
        foreign.network.inject(from, to, datagram);
        foreign.network.run_for(SECOND / 50);
        let answer = foreign.network.wire.last().unwrap().2.clone();
        let answer = foreign.open(&answer);
        assert_eq!(answer.error(), Some(notify::UNACCEPTABLE_ADDRESSES), "{from}");
    }
    assert_eq!(moves(&foreign), 0);
}

#[test]
fn what_is_malformed_or_too_much_changes_nothing() {
    //= RFC 4555 4.2.5 MUST 1: 8 to 64 octets
    let mut foreign = mobile_foreign();
    let additional = |octets: &[u8]| notification(notify::ADDITIONAL_IP4_ADDRESS, 0, &[], octets);
    let mut many: Vec<_> = (0..100).map(|host| additional(&[10, 9, 0, host])).collect();
    many.extend([additional(&[1; 3]), additional(&[]), additional(&[1; 16]), cookie2(7), cookie2(65)]);
    let messages = request_from(&mut foreign, "198.51.100.7:500", &many);
    assert_eq!(messages.len(), 1);
    assert!(messages[0].payloads.is_empty(), "a COOKIE2 of a forbidden length is not returned");
    assert_eq!(moves(&foreign), 0);
}

#[test]
fn without_a_nat_both_ends_use_port_4500_from_ike_auth_on() {
    //= RFC 4555 3.3 MUST 1: port 4500 with MOBIKE
    let pair = connected(1, LinkQuality::RELIABLE, plain);
    let init = pair.network.wire.iter().filter(|(_, to, _)| to.port() == 500).count();
    assert_eq!(init, 2, "IKE_SA_INIT alone goes to port 500");
}

#[test]
fn what_lingers_moves_too() {
    let mut pair = connected(1, LinkQuality::RELIABLE, |_| {});
    let b_name = pair.b_name.clone();
    pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b_name, now, env));
    pair.network.run_for(SECOND);
    pair.network.move_node(pair.a, at("10.0.0.9"));
    pair.network.run_for(SECOND);
    let children: Vec<ChildId> = pair.network.nodes[pair.b]
        .events
        .iter()
        .find_map(|(_, event)| match event {
            Event::PeerMoved { children, .. } => Some(children.clone()),
            _ => None,
        })
        .unwrap();
    assert_eq!(children.len(), 2);
}

#[test]
fn addresses_of_another_family_are_announced_and_used() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    for node in [pair.a, pair.b] {
        let six = at(&format!("2001:db8::{node}"));
        pair.network.nodes[node].host.more_addresses = vec![six];
        let addresses = vec![pair.network.nodes[node].host.address, six];
        pair.network.call(node, |endpoint, now, env| endpoint.set_addresses(addresses, now, env));
    }
    pair.start();
    pair.traffic(2 * SECOND);
    let config = peer("a.example", "b.example", &["10.0.0.2"]);
    assert_eq!(config.name, name("b.example"));
    pair.assert_connected();
}
