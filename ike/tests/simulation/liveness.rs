//! Tests liveness checks if the owner reports ESP (RFC 7296 2.4). An idle peer is checked rarely,
//! and a busy peer never. A peer that does not respond is checked soon.

use std::net::IpAddr;
use std::time::Duration;

use edge_ike::Event;
use edge_ike::event::DownReason;

use crate::network::{LinkQuality, Nat};
use crate::peers::{Pair, SECOND, with_children};

fn connected(seed: u64) -> Pair {
    begun(Pair::reporting_esp(seed, LinkQuality::RELIABLE))
}

/// Connects both ends, and forgets what they sent for it.
fn begun(mut pair: Pair) -> Pair {
    pair.start();
    pair.network.run_for(10 * SECOND);
    pair.assert_connected();
    pair.network.wire.clear();
    pair
}

/// Returns the numbers of IKE messages and of NAT keepalives that both ends have sent.
fn sent(pair: &Pair) -> (usize, usize) {
    let (keepalives, messages): (Vec<_>, Vec<_>) =
        pair.network.wire.iter().partition(|(_, _, octets)| octets.as_slice() == [0xff]);
    (messages.len(), keepalives.len())
}

/// Returns the time at which `a` abandoned the IKE SA with its peer.
fn given_up(pair: &Pair) -> Option<Duration> {
    pair.network.nodes[pair.a].events.iter().find_map(|(at, event)| match event {
        Event::IkeDown { reason: DownReason::Timeout, .. } => Some(*at),
        _ => None,
    })
}

/// Sends ESP every few milliseconds from `a`, and from `b` if it is up. Packets need not arrive.
fn traffic_unwatched(pair: &mut Pair, time: Duration) {
    let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
    pair.network.run_with_traffic(time, (pair.a, &a_name), (pair.b, &b_name));
}

#[test]
pub fn an_idle_peer_is_asked_every_two_minutes() {
    //= RFC 7296 2.4 REQUIRED 7: a silent peer is asked
    let mut pair = connected(1);
    pair.network.run_for(1200 * SECOND);
    let (messages, keepalives) = sent(&pair);
    // There are 10 to 11 checks of two messages each, started by the end whose deadline is earlier.
    assert!((20..=24).contains(&messages), "{messages} messages");
    // Both ends send keepalives every 20 s, less often after a check.
    assert!((90..=120).contains(&keepalives), "{keepalives} keepalives");
    pair.assert_connected();
}

/// Returns how many keepalives were sent from this address.
fn keepalives_from(pair: &Pair, address: &str) -> usize {
    let address: IpAddr = address.parse().unwrap();
    let wire = pair.network.wire.iter();
    wire.filter(|(from, _, octets)| octets.as_slice() == [0xff] && from.ip() == address).count()
}

#[test]
fn an_end_behind_a_nat_keeps_its_mapping_alive_and_without_a_nat_keepalives_may_be_rarer() {
    //= RFC 7296 2.23 SHOULD 11: keepalives behind a NAT
    let every_20_s = 45..=65;
    for (share, nat, by_a, by_b) in [
        (0, true, every_20_s.clone(), every_20_s.clone()),
        (1, true, every_20_s.clone(), 8..=12),
        (0, false, every_20_s.clone(), every_20_s),
        (1, false, 8..=12, 8..=12),
    ] {
        let (nat, at) = if nat { (Some(Nat::new("203.0.113.1")), "203.0.113.1") } else { (None, "10.0.0.1") };
        let pair = Pair::with_nats(8, LinkQuality::RELIABLE, nat, None).reports_esp().one_sided();
        let mut pair = begun(pair.both(|config| config.timing.idle_share = share * SECOND));
        pair.network.run_for(1200 * SECOND);
        let sent = [at, "10.0.0.2"].map(|address| keepalives_from(&pair, address));
        assert!(by_a.contains(&sent[0]) && by_b.contains(&sent[1]), "{sent:?} with a share of {share} s, at {at}");
    }
}

/// Returns how often one of two ends with twelve CHILD_SAs asked the other one in this time.
fn asked(share: Duration, nat: Option<Nat>, time: Duration) -> usize {
    let mut pair = Pair::with_nats(9, LinkQuality::RELIABLE, nat, None).reports_esp().both(|config| {
        with_children(config, 12);
        config.timing.idle_share = share;
        config.timing.child_lifetime = 36_000 * SECOND;
    });
    pair.start();
    pair.network.run_for(20 * SECOND);
    pair.network.wire.clear();
    pair.network.run_for(time);
    sent(&pair).0 / 2
}

#[test]
fn the_more_idle_tunnels_there_are_the_more_rarely_a_peer_is_asked_without_a_nat() {
    let hour = 3600 * SECOND;
    assert!((30..=34).contains(&asked(Duration::ZERO, None, hour)));
    // Every six minutes: twelve times half a minute.
    assert!((10..=12).contains(&asked(30 * SECOND, None, hour)));
    // Not every two hours, but every half an hour.
    assert_eq!(asked(600 * SECOND, None, hour), 2);
    let nat = Some(Nat::new("203.0.113.1").forwarding());
    assert!((30..=34).contains(&asked(30 * SECOND, nat, hour)), "a NAT may have another mapping");
}

#[test]
pub fn a_peer_whose_esp_arrives_is_not_asked_and_its_mapping_not_kept_alive() {
    //= RFC 7296 2.23 SHOULD 11: keepalives behind a NAT
    let mut pair = connected(2);
    pair.traffic(90 * SECOND);
    assert_eq!(sent(&pair), (0, 0));
    // An IKE daemon that is silent while its kernel continues to send is still detected.
    pair.traffic(60 * SECOND);
    assert_eq!(sent(&pair).0, 2);
    pair.assert_connected();
}

#[test]
pub fn a_dead_peer_is_noticed_as_soon_as_without_reports_if_something_is_sent_to_it() {
    for seed in 0..20 {
        let mut pair = connected(seed);
        let busy = pair.network.random.below(3000);
        traffic_unwatched(&mut pair, Duration::from_millis(busy));
        pair.network.nodes[pair.b].down = true;
        let died = pair.network.now;
        traffic_unwatched(&mut pair, 10 * SECOND);
        let after = given_up(&pair).expect("the dead peer is given up") - died;
        assert!(after <= Duration::from_millis(9600), "{after:?}");
    }
}

#[test]
pub fn the_first_packet_to_a_peer_that_died_long_ago_leads_to_a_check() {
    //= RFC 7296 2.4 REQUIRED 7: a silent peer is asked
    let mut pair = connected(3);
    pair.network.run_for(50 * SECOND);
    pair.network.nodes[pair.b].down = true;
    pair.network.run_for(20 * SECOND);
    assert_eq!(given_up(&pair), None, "nothing was sent to it");
    let sent = pair.network.now;
    let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
    pair.network.esp((pair.a, &a_name), (pair.b, &b_name));
    pair.network.run_for(8 * SECOND);
    assert_eq!(given_up(&pair).map(|at| at - sent), Some(Duration::from_millis(7500)));
}

#[test]
pub fn a_peer_whose_esp_arrives_is_not_given_up_when_requests_are_lost() {
    let mut pair = connected(4);
    // Drop all IKE messages, as in the worst case of a congested uplink.
    pair.network.tap = Some(Box::new(|_, _, _| false));
    let b_name = pair.b_name.clone();
    pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b_name, now, env));
    pair.traffic(50 * SECOND);
    assert_eq!(given_up(&pair), None);
    pair.network.tap = None;
    pair.traffic(10 * SECOND);
    pair.network.run_for(10 * SECOND);
    pair.assert_connected();
    let rekeyed = |(_, event): &(Duration, Event)| matches!(event, Event::ChildRekeyed { .. });
    assert!(pair.network.nodes[pair.a].events.iter().any(rekeyed), "{}", pair.network.history());
}

#[test]
pub fn a_peer_whose_ike_daemon_is_gone_is_given_up_after_a_minute_although_its_esp_arrives() {
    let mut pair = connected(5);
    pair.network.tap = Some(Box::new(|_, _, _| false));
    let asked = pair.network.now;
    let b_name = pair.b_name.clone();
    pair.network.call(pair.a, |endpoint, now, env| endpoint.check_liveness(&b_name, now, env));
    traffic_unwatched(&mut pair, 70 * SECOND);
    let after = given_up(&pair).expect("it is given up") - asked;
    assert!((60..65).contains(&after.as_secs()), "{after:?}");
}

/// Returns how many IKE SAs both ends gave up in an hour in which a fifth of the datagrams of each
/// direction was lost.
fn given_up_at_a_fifth_lost(seed: u64, patient: bool) -> usize {
    let mut pair = Pair::new(seed, LinkQuality::RELIABLE).both(|config| {
        config.timing.patient = patient;
        config.timing.child_lifetime = 120 * SECOND;
    });
    pair.start();
    pair.network.run_for(10 * SECOND);
    pair.assert_connected();
    pair.network.quality = LinkQuality { loss_percent: 20, ..LinkQuality::LOSSY };
    pair.network.run_for(3600 * SECOND);
    let gone = |(_, event): &&(Duration, Event)| matches!(event, Event::IkeDown { reason: DownReason::Timeout, .. });
    let given_up = pair.network.nodes.iter().map(|node| node.events.iter().filter(gone).count()).sum();
    pair.network.quality = LinkQuality::RELIABLE;
    pair.network.run_for(300 * SECOND);
    pair.assert_connected();
    given_up
}

#[test]
fn a_peer_for_which_we_have_patience_is_not_given_up_in_an_hour_in_which_a_fifth_of_the_datagrams_is_lost() {
    for seed in 0..4 {
        assert_eq!(given_up_at_a_fifth_lost(seed, true), 0, "seed {seed}");
    }
    let quick = given_up_at_a_fifth_lost(0, false);
    assert!(quick >= 5, "the loss is too small to show anything: {quick} without patience");
}

#[test]
pub fn a_peer_for_which_we_have_patience_is_found_again_soon_after_a_restart_and_given_up_in_the_end() {
    for seed in 0..4 {
        let mut pair = Pair::reporting_esp(seed, LinkQuality::RELIABLE).both(|config| config.timing.patient = true);
        pair.b_config.initiate = false;
        pair.start();
        pair.traffic(10 * SECOND);
        pair.network.watch = false;
        pair.network.restart(pair.b);
        pair.start_b();
        traffic_unwatched(&mut pair, 12 * SECOND);
        assert_eq!(given_up(&pair), None);
        pair.traffic(SECOND);
        // The forgotten IKE SA ends when its next transmission is due.
        pair.network.run_for(10 * SECOND);
        pair.assert_connected();

        pair.network.watch = false;
        pair.network.nodes[pair.b].down = true;
        let died = pair.network.now;
        let asked = pair.network.nodes[pair.a].endpoint.sent_requests();
        traffic_unwatched(&mut pair, 260 * SECOND);
        let after = given_up(&pair).expect("the dead peer is given up") - died;
        assert!((225..245).contains(&after.as_secs()), "{after:?}");
        let sent = pair.network.nodes[pair.a].endpoint.sent_requests();
        assert_eq!(sent.liveness_checks - asked.liveness_checks, 1);
        assert!(sent.retransmissions - asked.retransmissions >= 11, "{sent:?} after {asked:?}");
    }
}

#[test]
fn a_peer_with_two_addresses_is_given_up_as_soon_as_without_patience() {
    let mut pair = Pair::reporting_esp(6, LinkQuality::RELIABLE).both(|config| config.timing.patient = true);
    pair.a_config.remotes.push("10.0.0.3:500".parse().unwrap());
    pair.start();
    pair.traffic(10 * SECOND);
    pair.network.watch = false;
    pair.network.nodes[pair.b].down = true;
    let died = pair.network.now;
    traffic_unwatched(&mut pair, 12 * SECOND);
    let after = given_up(&pair).expect("the dead peer is given up") - died;
    assert!(after <= Duration::from_millis(9600), "{after:?}");
}

#[test]
fn each_retransmission_is_counted() {
    let mut pair = connected(7);
    pair.network.nodes[pair.b].down = true;
    let before = pair.network.nodes[pair.a].endpoint.sent_requests();
    let b_name = pair.b_name.clone();
    pair.network.call(pair.a, |endpoint, now, env| endpoint.check_liveness(&b_name, now, env));
    pair.network.run_for(5 * SECOND);
    let after = pair.network.nodes[pair.a].endpoint.sent_requests();
    assert_eq!(after.retransmissions - before.retransmissions, 3);
}

#[test]
pub fn an_ike_sa_that_a_restarted_peer_has_forgotten_goes_soon_after_its_successor_came() {
    for seed in 0..20 {
        for (a_begins, b_begins) in [(true, true), (true, false), (false, true)] {
            let mut pair = Pair::reporting_esp(seed, LinkQuality::RELIABLE);
            pair.start();
            pair.traffic(20 * SECOND);
            pair.assert_connected();
            let busy = pair.network.random.below(3000);
            pair.traffic(Duration::from_millis(busy));
            // The kernel keeps using the SAs, so the node does not send INITIAL_CONTACT.
            pair.network.watch = false;
            pair.network.restart(pair.b);
            pair.b_config.keep_existing = true;
            pair.a_config.initiate = a_begins;
            pair.b_config.initiate = b_begins;
            pair.start();
            if a_begins {
                let b_name = pair.b_name.clone();
                pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&b_name, now, env));
            }
            traffic_unwatched(&mut pair, 9 * SECOND / 2);
            for node in &pair.network.nodes {
                assert_eq!(node.host.kernel.ike_sas.len(), 1, "{}", pair.network.history());
            }
            // Traffic continues until no CHILD_SA lingers any more.
            traffic_unwatched(&mut pair, 10 * SECOND);
            pair.assert_connected();
        }
    }
}

#[test]
pub fn child_sas_are_replaced_once_if_esp_stops_although_a_peer_without_mobike_answers() {
    let mut pair = Pair::reporting_esp(6, LinkQuality::RELIABLE).both(|config| config.mobike = false);
    pair.start();
    pair.network.run_for(40 * SECOND);
    let peer = pair.b_name.clone();
    let rekeys = |pair: &Pair| {
        let events = &pair.network.nodes[pair.a].events;
        events.iter().filter(|(_, event)| matches!(event, Event::ChildRekeyed { .. })).count()
    };
    let child = |pair: &Pair| {
        let tunnel = &pair.network.nodes[pair.a].host.kernel.tunnels[&peer];
        let child = tunnel.sole_outbound().expect("one outbound SA");
        (child.inbound_spi, child.outbound_spi)
    };
    let send = |pair: &mut Pair| {
        let (_, outbound) = child(pair);
        pair.network.call(pair.a, |endpoint, now, _| endpoint.esp_sent(&peer, outbound, now));
        pair.network.run_for(5 * SECOND);
    };
    send(&mut pair);
    assert_eq!(rekeys(&pair), 0, "no ESP had come");
    // The peer's ESP goes to an old mapping of our NAT from now on. Its answers to IKE messages
    // come.
    for stops in 0..3 {
        let (inbound, _) = child(&pair);
        let before = rekeys(&pair);
        pair.network.call(pair.a, |endpoint, now, _| endpoint.esp_received(&peer, inbound, now));
        pair.network.run_for(SECOND);
        send(&mut pair);
        assert_eq!(rekeys(&pair), before + 1);
        for _ in 0..12 << stops {
            send(&mut pair);
        }
        assert_eq!(rekeys(&pair), before + 1, "once, until ESP comes again");
    }
    // Hosts that stop answering now and then cause fewer and fewer rekeys.
    let before = rekeys(&pair);
    for _ in 0..60 {
        let (inbound, _) = child(&pair);
        pair.network.call(pair.a, |endpoint, now, _| endpoint.esp_received(&peer, inbound, now));
        for _ in 0..12 {
            send(&mut pair);
        }
    }
    let rekeyed = rekeys(&pair) - before;
    assert!((2..=6).contains(&rekeyed), "{rekeyed} in an hour");
    pair.assert_connected();
}
