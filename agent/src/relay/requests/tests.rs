//! When a hub is asked for a relay, which hub, and which relay is taken.

use super::*;

fn at(seconds: u64) -> Instant {
    Instant::new(Duration::from_secs(seconds))
}

fn names<const N: usize>(texts: [&str; N]) -> [PeerName; N] {
    texts.map(PeerName::new)
}

fn relay(hub: &PeerName, port: u16) -> OpenedRelay {
    OpenedRelay { hub: hub.clone(), address: SocketAddr::new("203.0.113.1".parse().unwrap(), port) }
}

#[test]
fn a_hub_is_asked_after_three_seconds_and_then_each_hub_in_turn_ever_more_rarely() {
    let mut requests = RelayRequests::default();
    let ([peer], hubs) = (names(["a"]), names(["h1", "h2"]));
    requests.watch(&peer, at(0));
    requests.watch(&peer, at(2));
    let mut asked = vec![];
    while let Some(now) = requests.next_due().filter(|now| *now < at(1000)) {
        assert_eq!(requests.take_due(now), std::slice::from_ref(&peer));
        asked.push((requests.next_hub(&peer, &hubs, now).unwrap(), now));
    }
    let expected = [("h1", 3), ("h2", 13), ("h1", 23), ("h2", 43), ("h1", 63), ("h2", 103), ("h1", 143), ("h2", 223)];
    let expected = expected.map(|(hub, second)| (PeerName::new(hub), at(second)));
    assert_eq!(asked[..8], expected);
    assert_eq!(asked.len(), 12);
}

#[test]
fn after_a_refusal_the_next_hub_is_asked_at_once_but_no_hub_twice() {
    let mut requests = RelayRequests::default();
    let ([peer], hubs) = (names(["a"]), names(["h1", "h2"]));
    requests.watch(&peer, at(0));
    requests.take_due(at(3));
    for (hub, next) in [(&hubs[0], at(3)), (&hubs[1], at(13))] {
        assert_eq!(requests.next_hub(&peer, &hubs, at(3)).as_ref(), Some(hub));
        requests.refused(&peer, hub, RelayRefusal::HubLimit, &hubs, at(3));
        // The next hub is due at once. After the last hub, the next round is due after 10 s.
        assert_eq!(requests.next_due(), Some(next));
        requests.take_due(next.min(at(3)));
    }
    // A second answer of the same hub makes no hub due earlier.
    requests.refused(&peer, &hubs[0], RelayRefusal::NoPort, &hubs, at(4));
    assert_eq!(requests.next_due(), Some(at(13)));
    assert_eq!(requests.refusal(&peer), Some(&(hubs[0].clone(), RelayRefusal::NoPort)));
}

#[test]
fn without_a_hub_nothing_is_asked_until_one_is_connected() {
    let mut requests = RelayRequests::default();
    let [peer, hub] = names(["a", "h"]);
    requests.watch(&peer, at(0));
    requests.hub_connected(&hub, at(1));
    assert_eq!(requests.next_due(), Some(at(3)), "three seconds are due to the direct path");
    requests.take_due(at(3));
    assert_eq!(requests.next_hub(&peer, &[], at(3)), None);
    requests.hub_connected(&hub, at(5));
    assert_eq!(requests.take_due(at(5)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, std::slice::from_ref(&hub), at(5)), Some(hub));
}

#[test]
fn both_ends_choose_the_hub_whose_name_comes_first_while_it_is_connected() {
    let [peer, h1, h2] = names(["a", "h1", "h2"]);
    let both = [h1.clone(), h2.clone()];
    for first in [true, false] {
        let mut requests = RelayRequests::default();
        requests.agree(&peer, at(0));
        let order = if first { [&h1, &h2] } else { [&h2, &h1] };
        let opened = order.map(|hub| requests.opened(&peer, relay(hub, 24_000), &both, at(1)));
        assert_eq!(opened, [Opened::New, if first { Opened::Ignored } else { Opened::New }]);
        assert_eq!(requests.relay(&peer), Some(&relay(&h1, 24_000)));
        assert_eq!(requests.opened(&peer, relay(&h1, 24_000), &both, at(2)), Opened::Known);
        assert_eq!(requests.opened(&peer, relay(&h2, 24_000), std::slice::from_ref(&h2), at(3)), Opened::New);
    }
}

#[test]
fn a_relay_that_brings_no_tunnel_gives_way_to_that_of_the_next_hub() {
    let [peer, h1, h2] = names(["a", "h1", "h2"]);
    let both = [h1.clone(), h2.clone()];
    let mut requests = RelayRequests::default();
    requests.watch(&peer, at(0));
    assert_eq!(requests.opened(&peer, relay(&h1, 24_000), &both, at(3)), Opened::New);
    assert_eq!(requests.opened(&peer, relay(&h2, 24_000), &both, at(12)), Opened::Ignored);
    assert_eq!(requests.opened(&peer, relay(&h2, 24_000), &both, at(13)), Opened::New);
    // A refusal removes the relay of the hub that refuses.
    assert_eq!(requests.opened(&peer, relay(&h1, 24_000), &both, at(14)), Opened::New);
    requests.refused(&peer, &h1, RelayRefusal::NotReachable, &both, at(15));
    assert_eq!(requests.opened(&peer, relay(&h2, 24_000), &both, at(15)), Opened::New);
    // While the tunnel uses a relay, the relay of a hub whose name comes later does not replace
    // it.
    requests.relayed(&peer, relay(&h1, 24_000), at(16));
    assert_eq!(requests.opened(&peer, relay(&h2, 24_000), &both, at(100)), Opened::Ignored);
}

#[test]
fn a_relay_that_nobody_needs_is_ignored() {
    let mut requests = RelayRequests::default();
    let [peer, hub] = names(["a", "h"]);
    assert_eq!(requests.opened(&peer, relay(&hub, 24_000), std::slice::from_ref(&hub), at(0)), Opened::Ignored);
    assert!(!requests.contains(&peer) && !requests.forget(&peer));
    requests.refused(&peer, &hub, RelayRefusal::HubLimit, &[], at(0));
    assert_eq!((requests.refusal(&peer), requests.next_due()), (None, None));
}

#[test]
fn a_hub_is_asked_at_once_for_a_silent_peer_and_soon_after_this_node_has_moved() {
    let mut requests = RelayRequests::default();
    let ([peer], hubs) = (names(["a"]), names(["h1", "h2"]));
    requests.moved(&peer, at(5));
    assert_eq!((requests.next_due(), requests.lost_since(&peer)), (Some(at(5) + AFTER_MOVE), Some(at(5))));
    assert!(!requests.forget(&peer), "the peer has answered");
    assert_eq!((requests.next_due(), requests.lost_since(&peer)), (None, None));
    requests.moved(&peer, at(6));
    requests.silent(&peer, at(6));
    assert_eq!(requests.take_due(at(6)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, &hubs, at(6)).as_ref(), Some(&hubs[0]));
    assert_eq!(requests.next_due(), Some(at(16)), "the next hub is asked then");
    requests.relayed(&peer, relay(&hubs[0], 24_000), at(7));
    requests.moved(&peer, at(8));
    assert_eq!((requests.next_due(), requests.lost_since(&peer)), (Some(at(187)), None), "the relay follows");
    // Without a connected hub nobody is asked, and a tunnel that is given up then is watched.
    let mut requests = RelayRequests::default();
    requests.silent(&peer, at(0));
    assert_eq!(requests.take_due(at(0)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, &[], at(0)), None);
    requests.watch(&peer, at(1));
    assert_eq!(requests.next_due(), Some(at(4)));
}

#[test]
fn a_peer_has_twice_the_time_of_the_first_hub_to_answer_at_a_new_address() {
    let [peer, silent] = names(["a", "b"]);
    let after = |millis: u64| at(5) + Duration::from_millis(millis);
    for (answered, due) in [(10, 110), (50, 150), (140, 280), (200, 300)] {
        let mut requests = RelayRequests::default();
        requests.moved(&peer, at(5));
        requests.hub_answered(after(1));
        assert_eq!(requests.next_due(), Some(after(300)), "this node does not send from the address yet");
        requests.await_hub(at(5));
        assert_eq!(requests.awaits_hub_since(after(answered)), Some(at(5)));
        requests.hub_answered(after(answered));
        assert_eq!((requests.next_due(), requests.awaits_hub_since(after(answered))), (Some(after(due)), None));
        requests.hub_answered(after(answered + 1));
        assert_eq!(requests.next_due(), Some(after(due)), "only the first answer counts");
    }
    // A hub that has been asked is not asked again at once.
    let mut requests = RelayRequests::default();
    requests.silent(&silent, at(5));
    requests.take_due(at(5));
    requests.next_hub(&silent, &[PeerName::new("h")], at(5));
    requests.await_hub(at(5));
    requests.hub_answered(after(50));
    assert_eq!(requests.next_due(), Some(at(15)));
    requests.await_hub(at(20));
    assert_eq!(requests.awaits_hub_since(at(21)), None, "peers have had their time");
}

#[test]
fn a_view_that_comes_while_a_relay_opens_does_not_end_it_until_the_direct_path_has_answered() {
    let mut requests = RelayRequests::default();
    let [peer, hub] = names(["a", "h"]);
    assert!(!requests.may_need_relay(&peer, |_| true, at(9)), "the peer has not asked");
    // The peer has moved and requests a relay. To this node, the tunnel is up and direct.
    requests.agree(&peer, at(10));
    requests.opened(&peer, relay(&hub, 24_000), std::slice::from_ref(&hub), at(10));
    let heard_at = |heard: u64| move |since: Instant| at(heard) <= since;
    assert!(requests.may_need_relay(&peer, heard_at(9), at(11)), "the view has come");
    assert!(!requests.may_need_relay(&peer, heard_at(11), at(11)), "the new address has answered");
    assert!(!requests.may_need_relay(&peer, heard_at(9), at(20)), "the relay has not helped");
    assert_eq!(requests.take_due(at(20)), std::slice::from_ref(&peer));
}

#[test]
fn a_relayed_peer_is_tried_directly_every_three_minutes_and_soon_after_its_addresses_change() {
    let mut requests = RelayRequests::default();
    let [peer, hub] = names(["a", "h"]);
    let hubs = [hub.clone()];
    requests.watch(&peer, at(0));
    requests.relayed(&peer, relay(&hub, 24_000), at(5));
    requests.relayed(&peer, relay(&hub, 24_000), at(6));
    assert_eq!(requests.next_due(), Some(at(185)));
    requests.take_due(at(185));
    assert_eq!(requests.next_hub(&peer, &hubs, at(185)), Some(hub.clone()));
    assert!(requests.may_try_direct(&peer, at(186)));
    assert!(!requests.may_try_direct(&peer, at(187)), "not at each word of the hub");
    assert_eq!(requests.next_due(), Some(at(366)));
    for second in 187..1000 {
        requests.addresses_changed(&peer, at(second));
    }
    assert_eq!(requests.next_due(), Some(at(196)), "at most once in ten seconds");
    assert!(requests.forget(&peer));
    assert!(!requests.may_try_direct(&peer, at(1000)));
    assert_eq!(requests.next_due(), None);
}

#[test]
fn a_relayed_peer_that_is_lost_is_watched_anew_and_a_restarted_hub_is_asked_at_once() {
    let mut requests = RelayRequests::default();
    let [peer, hub, other] = names(["a", "h", "i"]);
    requests.relayed(&peer, relay(&hub, 24_000), at(0));
    requests.hub_connected(&other, at(10));
    assert_eq!(requests.next_due(), Some(at(180)), "that hub does not relay");
    requests.hub_connected(&hub, at(20));
    assert_eq!(requests.take_due(at(20)), std::slice::from_ref(&peer));
    assert_eq!(requests.relayed_by(&hub), std::slice::from_ref(&peer));
    assert_eq!(requests.relayed_by(&other), []);
    assert_eq!(requests.next_hub(&peer, std::slice::from_ref(&hub), at(20)), Some(hub.clone()));
    assert_eq!(requests.opened(&peer, relay(&hub, 24_002), &[hub], at(21)), Opened::New);
    requests.try_again(&peer, at(21));
    assert_eq!(requests.take_due(at(31)), std::slice::from_ref(&peer), "the tunnel still uses the old port");
    requests.watch(&peer, at(50));
    assert_eq!(requests.next_due(), Some(at(53)));
}

#[test]
fn when_the_hub_that_relays_leaves_the_others_are_asked_at_once() {
    let [peer, h1, h2, h3] = names(["a", "h1", "h2", "h3"]);
    let left = [h2.clone(), h3.clone()];
    let mut requests = RelayRequests::default();
    requests.relayed(&peer, relay(&h1, 24_000), at(0));
    requests.hub_leaving(&h3, at(10));
    assert_eq!(requests.next_due(), Some(at(180)), "that hub does not relay");
    requests.hub_leaving(&h1, at(20));
    assert_eq!(requests.take_due(at(20)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, &left, at(20)), Some(h2.clone()));
    requests.refused(&peer, &h2, RelayRefusal::HubLimit, &left, at(20));
    assert_eq!(requests.take_due(at(20)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, &left, at(20)), Some(h3.clone()));
    assert_eq!(requests.opened(&peer, relay(&h3, 24_000), &left, at(21)), Opened::New);
    requests.try_again(&peer, at(21));
    requests.relayed(&peer, relay(&h3, 24_000), at(21));
    assert_eq!(requests.next_due(), Some(at(31)));
    // Without another hub, the tunnel stays where it is.
    requests.hub_leaving(&h3, at(30));
    assert_eq!(requests.take_due(at(30)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, &[], at(30)), None);
    // The hub has started again.
    requests.hub_connected(&h3, at(35));
    assert_eq!(requests.take_due(at(35)), std::slice::from_ref(&peer));
    assert_eq!(requests.next_hub(&peer, std::slice::from_ref(&h3), at(35)), Some(h3));
}

#[test]
fn the_hub_of_a_relay_in_use_is_asked_again_until_it_answers() {
    let mut requests = RelayRequests::default();
    let [peer, hub] = names(["a", "h"]);
    let hubs = [hub.clone()];
    requests.relayed(&peer, relay(&hub, 24_000), at(0));
    requests.hub_connected(&hub, at(20));
    let mut asked = vec![];
    while let Some(now) = requests.next_due().filter(|now| *now < at(800)) {
        requests.take_due(now);
        assert_eq!(requests.next_hub(&peer, &hubs, now), Some(hub.clone()));
        // A restarted hub refuses while the other node is not connected to it.
        requests.refused(&peer, &hub, RelayRefusal::NotReachable, &hubs, now);
        asked.push(now);
    }
    assert_eq!(asked, [20, 30, 50, 90, 170, 330, 510, 690].map(at));
    assert!(requests.may_try_direct(&peer, at(690)), "the hub has answered");
    assert_eq!(requests.next_due(), Some(at(870)));
    requests.take_due(at(870));
    assert_eq!(requests.next_hub(&peer, &hubs, at(870)), Some(hub));
    assert_eq!(requests.next_due(), Some(at(880)));
}

#[test]
fn connections_to_a_relay_that_end_again_and_again_are_asked_for_ever_more_rarely() {
    let mut requests = RelayRequests::default();
    let ([peer], hubs) = (names(["a"]), names(["h1", "h2"]));
    requests.relayed(&peer, relay(&hubs[1], 1), at(0));
    let mut now = at(10);
    let mut waits = Vec::new();
    for _ in 0..12 {
        requests.connection_ended(&peer, now);
        let due = requests.next_due().unwrap();
        waits.push(due.saturating_since(now));
        assert_eq!(requests.take_due(due), std::slice::from_ref(&peer));
        assert_eq!(requests.next_hub(&peer, &hubs, due).as_ref(), Some(&hubs[1]), "the hub of the relay");
        now = due;
    }
    assert!(waits[0] <= AFTER_END && waits[0] >= AFTER_END / 2, "{waits:?}");
    assert!(waits[11] >= MAX_WAIT / 2 && waits[11] <= MAX_WAIT, "{waits:?}");
    // After a connection that has lasted, it is soon again.
    now = now + MAX_WAIT + MAX_WAIT;
    requests.connection_ended(&peer, now);
    assert!(requests.next_due().is_some_and(|due| due <= now + AFTER_END));
    requests.connection_ended(&PeerName::new("nobody"), now);
}

#[test]
fn a_relay_in_use_is_kept_against_that_of_a_hub_whose_name_comes_later() {
    let mut requests = RelayRequests::default();
    let ([peer], hubs) = (names(["a"]), names(["h1", "h2"]));
    assert!(!requests.takes(&peer, &hubs[0], &hubs, at(0)), "none is needed");
    requests.relayed(&peer, relay(&hubs[0], 1), at(0));
    assert!(!requests.takes(&peer, &hubs[1], &hubs, at(100)));
    assert!(requests.takes(&peer, &hubs[0], &hubs, at(100)));
    assert!(requests.takes(&peer, &hubs[1], &hubs[1..], at(100)), "the first hub is not connected");
}
