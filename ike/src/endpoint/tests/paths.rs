//! Tests that we follow a peer whose address changes (RFC 7296 2.23), but not an attacker.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;

fn moves(pair: &Pair, us: usize) -> usize {
    pair.ends[us].events.iter().filter(|event| matches!(event, Event::PeerMoved { .. })).count()
}

fn remote(pair: &Pair, us: usize) -> SocketAddr {
    pair.ends[us].endpoint.snapshot()[0].ike_sas[0].remote
}

/// Makes end `us` send a request, and returns all datagrams that it sends.
fn catch_from(pair: &mut Pair, us: usize) -> Vec<Transmit> {
    let caught = Rc::new(RefCell::new(Vec::new()));
    let basket = Rc::clone(&caught);
    pair.tap = Box::new(move |from, transmit| {
        if from == us {
            basket.borrow_mut().push(transmit.clone());
        }
        from != us
    });
    let name = PeerName::new(NAMES[1 - us]);
    pair.call(us, |endpoint, now, env| endpoint.check_liveness(&name, now, env));
    pair.tap = Box::new(|_, _| true);
    caught.take()
}

#[test]
fn a_copy_of_a_packet_from_a_forged_source_turns_no_traffic_away() {
    //= RFC 7296 2.23 SHOULD NOT 17: followed when the peer has answered there
    for us in 0..2 {
        let mut pair = Pair::new().one_sided();
        pair.start();
        let before = remote(&pair, us);
        for sent in catch_from(&mut pair, 1 - us) {
            // The copy arrives before the original.
            pair.arrive(us, &sent.payload, sent.remote, "203.0.113.66:4500".parse().unwrap());
            pair.deliver();
            pair.arrive(us, &sent.payload, sent.remote, sent.local);
            pair.deliver();
        }
        pair.run_for(60 * SECOND);
        assert_eq!((moves(&pair, us), remote(&pair, us)), (0, before));
        assert!(pair.is_connected());
    }
}

#[test]
fn a_copy_of_esp_from_a_forged_source_makes_us_ask_there_once_and_turns_no_traffic_away() {
    for mobike in [false, true] {
        let mut pair = Pair::new().one_sided();
        pair.configs.iter_mut().for_each(|config| config.mobike = mobike);
        pair.start();
        let (before, name) = (remote(&pair, 1), PeerName::new(NAMES[0]));
        let spi = pair.ends[1].endpoint.snapshot()[0].children[0].sa.inbound_spi;
        let asked = Rc::new(RefCell::new(0));
        let count = Rc::clone(&asked);
        let forged: SocketAddr = "203.0.113.66:4500".parse().unwrap();
        pair.tap = Box::new(move |_, transmit| {
            *count.borrow_mut() += u32::from(transmit.remote == forged);
            transmit.remote != forged
        });
        // Reports with an SPI that does not exist, or from an address to which nothing can be sent
        // from here, cause no request.
        for (spi, from) in [(spi ^ 1, forged), (spi, "[2001:db8::66]:4500".parse().unwrap())] {
            pair.call(1, |endpoint, now, env| endpoint.esp_came_from(&name, spi, from, now, env));
        }
        assert_eq!(*asked.borrow(), 0);
        pair.call(1, |endpoint, now, env| endpoint.esp_came_from(&name, spi, forged, now, env));
        assert_eq!(*asked.borrow(), 1);
        pair.run_for(60 * SECOND);
        assert_eq!((*asked.borrow(), moves(&pair, 1), remote(&pair, 1)), (1, 0, before));
        assert!(pair.is_connected());
    }
}

#[test]
fn a_copy_whose_original_never_arrives_turns_no_traffic_away_either() {
    //= RFC 7296 2.23 REQUIRED 18: old messages move nothing
    let mut pair = Pair::new().one_sided();
    pair.start();
    let before = remote(&pair, 1);
    for sent in catch_from(&mut pair, 0) {
        pair.arrive(1, &sent.payload, sent.remote, "203.0.113.66:4500".parse().unwrap());
        pair.deliver();
    }
    assert_eq!((moves(&pair, 1), remote(&pair, 1)), (0, before));
    pair.run_for(60 * SECOND);
    assert_eq!((moves(&pair, 1), remote(&pair, 1)), (0, before));
    assert!(pair.is_connected());
}

#[test]
fn a_peer_behind_a_nat_is_followed_when_it_has_answered_at_its_new_address() {
    //= RFC 7296 2.23 SHOULD 15: a peer behind a NAT is followed
    for (forced, mobike) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut pair = Pair::new().one_sided();
        pair.configs.iter_mut().for_each(|config| (config.force_encapsulation, config.mobike) = (forced, mobike));
        pair.configs[1].remotes.clear();
        pair.nat = Some(20_000);
        pair.start();
        assert!(pair.is_connected());
        pair.nat = Some(30_000);
        pair.run_for(5 * SECOND);
        assert_eq!((moves(&pair, 1), remote(&pair, 1)), (1, "192.0.2.1:34500".parse().unwrap()), "forced: {forced}");
        pair.run_for(60 * SECOND);
        assert_eq!(moves(&pair, 1), 1);
        assert!(pair.is_connected() && pair.downs(1).is_empty());
    }
}

#[test]
fn a_peer_is_followed_while_our_own_request_still_goes_to_its_old_address() {
    //= RFC 7296 2.23 SHOULD 16: the new address is kept
    for mobike in [false, true] {
        let mut pair = Pair::new().one_sided();
        pair.configs.iter_mut().for_each(|config| config.mobike = mobike);
        pair.nat = Some(20_000);
        pair.start();
        pair.nat = Some(30_000);
        // Our request goes to the old mapping of the NAT and is lost.
        let name = PeerName::new(NAMES[0]);
        pair.call(1, |endpoint, now, env| endpoint.check_liveness(&name, now, env));
        assert_eq!(moves(&pair, 1), 0);
        let name = PeerName::new(NAMES[1]);
        pair.call(0, |endpoint, now, env| endpoint.check_liveness(&name, now, env));
        assert_eq!((moves(&pair, 1), remote(&pair, 1)), (1, "192.0.2.1:34500".parse().unwrap()));
        pair.run_for(60 * SECOND);
        assert!(pair.is_connected() && pair.downs(1).is_empty());
    }
}

#[test]
fn a_peer_that_answers_no_third_transmission_is_reported_and_so_is_its_return() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    let reports = |pair: &Pair| {
        let count = |is: fn(&Event) -> bool| pair.ends[0].events.iter().filter(|event| is(event)).count();
        (
            count(|event| matches!(event, Event::PeerSilent { .. })),
            count(|event| matches!(event, Event::PeerHeard { .. })),
        )
    };
    pair.tap = Box::new(|_, _| false);
    let name = PeerName::new(NAMES[1]);
    pair.call(0, |endpoint, now, env| endpoint.check_liveness(&name, now, env));
    pair.run_for(SECOND);
    assert_eq!(reports(&pair), (0, 0), "two transmissions");
    pair.run_for(SECOND);
    assert_eq!(reports(&pair), (1, 0), "three transmissions");
    pair.tap = Box::new(|_, _| true);
    pair.run_for(3 * SECOND);
    assert_eq!(reports(&pair), (1, 1));
    assert!(pair.is_connected());
}
