//! Tests tunnels on demand, and what shortens or ends the delay after a failure.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::endpoint::Phase;
use crate::wire::{ExchangeType, Header};

/// Time for which a packet waits for a tunnel.
const HELD: Duration = Duration::from_secs(30);

/// Returns two endpoints, neither of which initiates without a packet.
fn on_demand() -> Pair {
    let mut pair = Pair::new();
    pair.configs.iter_mut().for_each(|config| config.initiate = false);
    pair.start();
    pair
}

fn acquire(pair: &mut Pair, us: usize) {
    let (name, until) = (PeerName::new(NAMES[1 - us]), Instant::new(pair.now + HELD));
    assert!(pair.call(us, |endpoint, now, env| endpoint.acquire(&name, until, now, env)));
}

fn phase(pair: &Pair) -> Phase {
    pair.ends[0].endpoint.snapshot()[0].phase
}

/// Counts the attempts of end 0 by their SPIs.
fn count_attempts(pair: &mut Pair) -> Rc<RefCell<std::collections::BTreeSet<u64>>> {
    let attempts = Rc::new(RefCell::new(std::collections::BTreeSet::new()));
    let basket = Rc::clone(&attempts);
    pair.tap = Box::new(move |from, sent| {
        let message = sent.payload.strip_prefix(&[0; 4]).unwrap_or(&sent.payload);
        if let Ok(header) = Header::decode(message)
            && from == 0
            && header.exchange == ExchangeType::IkeSaInit
        {
            basket.borrow_mut().insert(header.initiator_spi);
        }
        true
    });
    attempts
}

#[test]
fn a_packet_brings_a_tunnel_and_another_one_after_that_was_closed() {
    let mut pair = on_demand();
    pair.run_for(60 * SECOND);
    assert_eq!((pair.ike_sas(0), phase(&pair)), (0, Phase::Idle));
    for us in [0, 1, 0] {
        acquire(&mut pair, us);
        assert!(pair.is_connected());
        let began = [0, 1].map(|end| pair.ends[end].endpoint.is_initiator(&PeerName::new(NAMES[1 - end])));
        assert_eq!(began, [Some(us == 0), Some(us == 1)]);
        let name = PeerName::new(NAMES[1 - us]);
        pair.call(us, |endpoint, now, env| endpoint.terminate(&name, now, env));
        pair.run_for(60 * SECOND);
        assert_eq!((pair.ike_sas(0), pair.ike_sas(1)), (0, 0), "neither end begins again by itself");
    }
}

#[test]
fn a_rekey_by_the_peer_does_not_change_who_began() {
    let mut pair = on_demand();
    acquire(&mut pair, 0);
    let name = PeerName::new(NAMES[0]);
    assert!(pair.call(1, |endpoint, now, env| endpoint.rekey_ike(&name, now, env)));
    pair.run_for(SECOND);
    assert!(pair.is_connected());
    assert_eq!(pair.ends[0].endpoint.is_initiator(&PeerName::new(NAMES[1])), Some(true));
}

#[test]
fn packets_at_both_ends_at_once_leave_one_tunnel() {
    let mut pair = on_demand();
    let now = Instant::new(pair.now);
    for us in 0..2 {
        // Nothing is delivered before both ends have initiated.
        let End { endpoint, host, .. } = &mut pair.ends[us];
        endpoint.acquire(&PeerName::new(NAMES[1 - us]), now + HELD, now, host);
    }
    pair.deliver();
    // Another packet matches the policy before the tunnel is up.
    (0..2).for_each(|us| acquire(&mut pair, us));
    pair.run_for(10 * SECOND);
    assert!(pair.is_connected(), "{:?}", pair.ends[0].events);
    // The packets have their tunnel and do not cause another attempt.
    let name = PeerName::new(NAMES[1]);
    pair.call(0, |endpoint, now, env| endpoint.terminate(&name, now, env));
    pair.run_for(60 * SECOND);
    assert_eq!((pair.ike_sas(0), pair.ike_sas(1)), (0, 0));
}

#[test]
fn a_packet_that_waits_is_tried_for_as_long_as_it_waits() {
    let mut pair = on_demand();
    pair.ends[1].down = true;
    acquire(&mut pair, 0);
    pair.run_for(20 * SECOND);
    assert_ne!(phase(&pair), Phase::Idle);
    pair.ends[1].down = false;
    pair.run_for(8 * SECOND);
    assert!(pair.is_connected(), "{:?}", pair.error_texts(0));
}

#[test]
fn without_a_packet_that_waits_attempts_end() {
    let mut pair = on_demand();
    pair.ends[1].down = true;
    acquire(&mut pair, 0);
    pair.run_for(120 * SECOND);
    assert_eq!(phase(&pair), Phase::Idle);
    pair.ends[1].down = false;
    pair.run_for(600 * SECOND);
    assert_eq!(pair.ike_sas(0), 0);
}

#[test]
fn a_flood_of_packets_to_a_dead_peer_leads_to_few_attempts() {
    let mut pair = on_demand();
    pair.configs[0].timing.retry_max = Duration::from_secs(120);
    pair.configure(0);
    pair.ends[1].down = true;
    let attempts = count_attempts(&mut pair);
    for _ in 0..6000 {
        acquire(&mut pair, 0);
        pair.run_for(SECOND / 10);
    }
    let count = attempts.borrow().len();
    assert!((10..=25).contains(&count), "{count} attempts in ten minutes");
    // Occasional packets do not shorten the delays.
    let attempts = count_attempts(&mut pair);
    for _ in 0..20 {
        acquire(&mut pair, 0);
        pair.run_for(31 * SECOND);
    }
    let count = attempts.borrow().len();
    assert!((10..=25).contains(&count), "{count} attempts in ten minutes");
    pair.ends[1].down = false;
    acquire(&mut pair, 0);
    pair.run_for(HELD);
    assert!(pair.is_connected(), "{:?}", pair.error_texts(0));
}

/// Adds silent peers to end 0, each at its own address.
fn add_silent(pair: &mut Pair, count: u8) -> Vec<PeerName> {
    let silent = |number| PeerConfig {
        name: PeerName::new(&format!("silent-{number}")),
        remotes: vec![SocketAddr::from(([198, 51, 100, number], 500))],
        remote_id: Identity::Fqdn(format!("silent-{number}.example")),
        ..pair.configs[0].clone()
    };
    let configs: Vec<PeerConfig> = (0..count).map(silent).collect();
    let names = configs.iter().map(|config| config.name.clone()).collect();
    for config in configs {
        pair.call(0, |endpoint, now, env| endpoint.set_peer(config, now, env).unwrap());
    }
    names
}

#[test]
fn few_attempts_run_at_once_and_many_dead_peers_do_not_delay_the_others() {
    let mut pair = on_demand();
    pair.ends[0].endpoint.config.acquire_limit = 4;
    let silent = add_silent(&mut pair, 200);
    let busy = |pair: &Pair| {
        let snapshot = pair.ends[0].endpoint.snapshot();
        snapshot.iter().filter(|peer| peer.phase == Phase::Connecting).count()
    };
    let flood = |pair: &mut Pair| {
        for name in &silent {
            let until = Instant::new(pair.now + HELD);
            pair.call(0, |endpoint, now, env| endpoint.acquire(name, until, now, env));
        }
    };
    let mut seen = 0;
    for _ in 0..500 {
        flood(&mut pair);
        pair.run_for(SECOND);
        seen = seen.max(busy(&pair));
    }
    assert_eq!(seen, 4);
    // All of them have failed by now, and more packets need all of them.
    flood(&mut pair);
    acquire(&mut pair, 0);
    let name = PeerName::new(NAMES[1]);
    let up = |pair: &Pair| pair.ends[0].endpoint.is_initiator(&name).is_some();
    for _ in 0..10 {
        pair.run_for(SECOND);
        flood(&mut pair);
    }
    assert!(up(&pair), "one attempt lasts less than eight seconds");
}

/// Returns a pair whose peer has been silent for this time. The delay between attempts is at most 2
/// minutes.
fn silent_for(time: Duration) -> Pair {
    let mut pair = Pair::new().one_sided();
    pair.configs[0].timing.retry_max = Duration::from_secs(120);
    pair.ends[1].down = true;
    pair.start();
    pair.run_for(time);
    while !matches!(phase(&pair), Phase::Waiting { until } if until.since_start() > pair.now + 60 * SECOND) {
        pair.run_for(SECOND);
    }
    pair.ends[1].down = false;
    pair
}

#[test]
fn a_silent_peer_is_tried_every_two_minutes() {
    let mut pair = silent_for(Duration::from_secs(300));
    pair.ends[1].down = true;
    let attempts = count_attempts(&mut pair);
    pair.run_for(HOUR);
    let count = attempts.borrow().len();
    assert!((25..=36).contains(&count), "{count} attempts in an hour");
}

#[test]
fn other_addresses_of_a_peer_shorten_the_wait_to_ten_seconds_and_never_more() {
    let mut pair = silent_for(Duration::from_secs(300));
    pair.configs[0].remotes.push("192.0.2.3:500".parse().unwrap());
    pair.configure(0);
    pair.run_for(10 * SECOND);
    assert!(pair.is_connected(), "{:?}", phase(&pair));

    // A peer that changes its addresses all the time does not cause more requests than that.
    let mut pair = silent_for(Duration::from_secs(300));
    pair.ends[1].down = true;
    let attempts = count_attempts(&mut pair);
    for number in 0..600 {
        pair.configs[0].remotes =
            vec![ADDRESSES[1].parse().unwrap(), SocketAddr::from(([198, 51, 100, 1], 500 + number))];
        pair.configure(0);
        pair.run_for(SECOND);
    }
    // Each attempt takes up to eight seconds, with at most eight addresses.
    let count = attempts.borrow().len();
    assert!(count <= 8 * 600 / 17 + 8, "{count} requests");
}

#[test]
fn a_datagram_from_the_address_of_a_peer_shortens_the_wait() {
    let mut pair = silent_for(Duration::from_secs(300));
    // A datagram for an IKE SA that no longer exists here.
    let mut datagram = vec![0; 28];
    datagram[..8].fill(7);
    datagram[8..16].fill(9);
    datagram[17..20].copy_from_slice(&[0x20, 37, 0x08]);
    datagram[27] = 28;
    let [ours, theirs] = ADDRESSES.map(|address| address.parse::<SocketAddr>().unwrap());
    pair.arrive(0, &datagram, ours, SocketAddr::from(([203, 0, 113, 5], 500)));
    pair.run_for(11 * SECOND);
    assert!(!pair.is_connected(), "from another address");
    pair.arrive(0, &datagram, ours, theirs);
    pair.run_for(SECOND);
    assert!(pair.is_connected(), "{:?}", phase(&pair));
}

#[test]
fn a_way_that_may_have_changed_ends_the_waits_of_peers_that_are_wanted_only() {
    let mut pair = silent_for(Duration::from_secs(300));
    pair.call(0, |endpoint, now, env| endpoint.retry_unreached(now, env));
    assert!(pair.is_connected());

    let mut pair = on_demand();
    pair.ends[1].down = true;
    acquire(&mut pair, 0);
    pair.run_for(HELD + SECOND);
    while !matches!(phase(&pair), Phase::Waiting { .. }) {
        pair.run_for(SECOND / 10);
    }
    pair.ends[1].down = false;
    pair.call(0, |endpoint, now, env| endpoint.retry_unreached(now, env));
    assert_eq!(pair.ike_sas(0), 0, "the packet is gone");
}

#[test]
fn a_new_authentication_is_wanted_no_longer_than_the_ike_sa_that_it_replaces() {
    let mut pair = on_demand();
    acquire(&mut pair, 0);
    pair.run_for(SECOND);
    assert!(pair.is_connected());
    pair.ends[1].down = true;
    let name = PeerName::new(NAMES[1]);
    assert!(pair.call(0, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
    pair.run_for(600 * SECOND);
    assert_eq!((pair.ike_sas(0), phase(&pair)), (0, Phase::Idle));
}

#[test]
fn a_new_authentication_by_the_peer_is_the_one_that_was_wanted() {
    let mut pair = on_demand();
    acquire(&mut pair, 0);
    pair.run_for(SECOND);
    pair.tap = Box::new(|from, _| from != 0);
    let name = PeerName::new(NAMES[1]);
    assert!(pair.call(0, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
    pair.run_for(SECOND);
    pair.tap = Box::new(|_, _| true);
    let attempts = count_attempts(&mut pair);
    let name = PeerName::new(NAMES[0]);
    assert!(pair.call(1, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
    // The attempt of end 0 is still running: its requests are lost.
    pair.tap = Box::new(|from, sent| from != 0 || !is_init_request(sent));
    pair.run_for(30 * SECOND);
    assert_eq!(attempts.borrow().len(), 0);
    let attempts = count_attempts(&mut pair);
    pair.run_for(600 * SECOND);
    assert!(pair.is_connected());
    assert_eq!(attempts.borrow().len(), 0, "another attempt");
}

fn is_init_request(sent: &Transmit) -> bool {
    let message = sent.payload.strip_prefix(&[0; 4]).unwrap_or(&sent.payload);
    Header::decode(message).is_ok_and(|header| header.exchange == ExchangeType::IkeSaInit && !header.response)
}
