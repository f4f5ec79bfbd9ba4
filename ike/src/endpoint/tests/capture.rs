//! Tests the copies of decrypted messages.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::*;
use crate::capture::{Captured, CapturedMessage};
use crate::wire::{ExchangeType, Message, Payload};

/// Returns the address of end `us`.
fn addresses(us: usize) -> BTreeSet<IpAddr> {
    [ADDRESSES[us].parse::<SocketAddr>().unwrap().ip()].into()
}

fn summary(captured: &Captured) -> Vec<(bool, ExchangeType, bool)> {
    let one = |captured: &CapturedMessage| {
        let header = Message::decode(&captured.message).expect("it is in clear").header;
        (captured.outgoing, header.exchange, header.response)
    };
    captured.messages.iter().map(one).collect()
}

#[test]
fn both_ends_capture_the_same_messages_in_clear() {
    let mut pair = Pair::new().one_sided();
    for us in 0..2 {
        pair.ends[us].endpoint.begin_capture(addresses(1 - us));
    }
    pair.start();
    assert!(pair.is_connected());
    let [a, b] = [0, 1].map(|us| pair.ends[us].endpoint.take_captured());
    let (init, auth) = (ExchangeType::IkeSaInit, ExchangeType::IkeAuth);
    let expected = [(true, init, false), (false, init, true), (true, auth, false), (false, auth, true)];
    assert_eq!(summary(&a)[..4], expected);
    assert_eq!(a.messages.len(), b.messages.len());
    for (a, b) in a.messages.iter().zip(&b.messages) {
        assert_eq!(a.message, b.message);
        assert_eq!((a.outgoing, a.local, a.remote), (!b.outgoing, b.remote, b.local));
    }
    let request = Message::decode(&a.messages[2].message).unwrap();
    assert!(request.payloads.iter().any(|payload| matches!(payload, Payload::IdInitiator(_))), "{request:?}");
    assert_eq!((a.dropped, b.dropped), (0, 0));
    assert_eq!(pair.ends[0].endpoint.take_captured(), Captured::default(), "each is given once");
}

#[test]
fn a_capture_has_neither_the_pre_shared_key_nor_keys_of_an_sa() {
    let mut pair = Pair::new().one_sided();
    pair.ends[0].endpoint.begin_capture(addresses(1));
    pair.start();
    let name = PeerName::new(NAMES[1]);
    pair.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env));
    pair.call(0, |endpoint, now, env| endpoint.rekey_ike(&name, now, env));
    pair.run_for(5 * SECOND);
    let captured = pair.ends[0].endpoint.take_captured();
    assert!(summary(&captured).iter().any(|(_, exchange, _)| *exchange == ExchangeType::CreateChildSa));
    let holds = |secret: &[u8]| {
        captured.messages.iter().any(|captured| captured.message.windows(secret.len()).any(|part| part == secret))
    };
    assert!(holds(NAMES[0].as_bytes()), "the search works");
    assert!(!holds(b"correct horse"));
    let keys = pair.ends[0].events.iter().filter_map(|event| match event {
        Event::ChildUp { child, .. } => Some(child),
        _ => None,
    });
    let keys: Vec<_> = keys.collect();
    assert!(!keys.is_empty());
    for child in keys {
        assert!(!holds(child.inbound_key.expose()) && !holds(child.outbound_key.expose()));
    }
}

#[test]
fn messages_of_others_are_not_captured_and_those_of_a_peer_that_moves_are() {
    let mut pair = Pair::new().one_sided();
    pair.ends[0].endpoint.begin_capture(addresses(0));
    pair.ends[1].endpoint.begin_capture(addresses(0));
    pair.start();
    assert_eq!(pair.ends[0].endpoint.take_captured(), Captured::default());
    assert!(!pair.ends[1].endpoint.take_captured().messages.is_empty());
    // A request of `a` arrives from another address and is captured too.
    let sent = Rc::new(RefCell::new(Vec::new()));
    let keep = sent.clone();
    pair.tap = Box::new(move |from, transmit| {
        if from == 0 {
            keep.borrow_mut().push(transmit.payload.clone());
        }
        from != 0
    });
    let name = PeerName::new(NAMES[1]);
    assert!(pair.call(0, |endpoint, now, env| endpoint.check_liveness(&name, now, env)));
    let request = sent.borrow()[0].clone();
    let elsewhere: SocketAddr = "198.51.100.9:4500".parse().unwrap();
    pair.arrive(1, &request, "192.0.2.2:4500".parse().unwrap(), elsewhere);
    let moved = pair.ends[1].endpoint.take_captured();
    assert!(moved.messages.iter().any(|captured| captured.remote == elsewhere && !captured.outgoing), "{moved:?}");
    pair.ends[1].endpoint.end_capture();
    pair.arrive(1, &request, "192.0.2.2:4500".parse().unwrap(), elsewhere);
    assert_eq!(pair.ends[1].endpoint.take_captured(), Captured::default());
}

#[test]
fn a_capture_that_nobody_takes_stays_small_and_counts_what_it_drops() {
    let mut pair = Pair::new().one_sided();
    pair.ends[0].endpoint.begin_capture(addresses(1));
    pair.ends[1].endpoint.begin_capture(addresses(0));
    pair.start();
    let request = pair.ends[0].endpoint.take_captured().messages.remove(0).message;
    let (to, from) = (ADDRESSES[1].parse().unwrap(), ADDRESSES[0].parse().unwrap());
    for _ in 0..(2 << 20) / request.len() {
        pair.arrive(1, &request, to, from);
    }
    let captured = pair.ends[1].endpoint.take_captured();
    let octets: usize = captured.messages.iter().map(|captured| captured.message.len()).sum();
    assert!(octets <= 1 << 20, "{octets}");
    assert!(captured.dropped > 0);
}
