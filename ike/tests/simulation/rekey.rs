//! Tests rekeys under traffic: by either end, by both ends at the same time, despite loss, and
//! while deletions cross them.

use std::time::Duration;

use edge_ike::Event;
use edge_ike::config::{Group, Timing};
use edge_ike::event::DownReason;

use crate::network::LinkQuality;
use crate::oracle::octets::{Header, exchange};
use crate::peers::{Pair, SECOND};

fn connected(seed: u64, quality: LinkQuality, change: impl Fn(&mut edge_ike::PeerConfig)) -> Pair {
    let mut pair = Pair::new(seed, quality).one_sided().both(change);
    pair.start();
    pair.traffic(3 * SECOND);
    pair.assert_connected();
    pair
}

impl Pair {
    fn rekey_ike(&mut self, node: usize) {
        let name = if node == self.a { self.b_name.clone() } else { self.a_name.clone() };
        assert!(self.network.call(node, |endpoint, now, env| endpoint.rekey_ike(&name, now, env)));
    }

    /// Returns the number of IKE_SA_INIT requests that were sent.
    fn count_inits(&self) -> usize {
        let is_init = |octets: &[u8]| {
            let message = octets.strip_prefix(&[0; 4]).unwrap_or(octets);
            Header::read(message).is_ok_and(|header| header.exchange == exchange::IKE_SA_INIT && !header.response())
        };
        self.network.wire.iter().filter(|(.., octets)| is_init(octets)).count()
    }

    /// Returns how many times an IKE SA was replaced by another at a node.
    fn replaced(&self, node: usize) -> usize {
        let events = self.network.nodes[node].events.iter();
        events.filter(|(_, event)| matches!(event, Event::IkeReplaced { .. })).count()
    }

    fn rekey(&mut self, node: usize) {
        let name = if node == self.a { self.b_name.clone() } else { self.a_name.clone() };
        assert!(self.network.call(node, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
    }

    /// Returns whether a pair of nodes uses a CHILD_SA other than the first one.
    fn rekeyed(&self) -> bool {
        let events = self.network.nodes[self.a].events.iter();
        events.filter(|(_, event)| matches!(event, Event::ChildRekeyed { .. })).count() > 0
    }
}

#[test]
fn a_rekey_by_either_end_loses_nothing() {
    //= RFC 7296 2.8 REQUIRED 3: the old CHILD_SA is deleted
    //= RFC 7296 2.8 REQUIRED 11: the responder sends on the old SA
    for seed in 0..40 {
        let mut pair = connected(seed, LinkQuality::REORDERING, |_| {});
        for node in [pair.a, pair.b] {
            pair.rekey(node);
            pair.traffic(10 * SECOND);
            pair.assert_connected();
        }
        assert!(pair.rekeyed());
        assert!(pair.network.esp_arrived > 1000);
    }
}

#[test]
pub fn both_ends_rekeying_at_once_keep_one_child_sa_and_lose_nothing() {
    //= RFC 7296 2.8.1 MUST 2: packets come through either SA
    //= RFC 7296 2.25.1 SHOULD 2: rekeyed while we rekey it
    for seed in 0..100 {
        let mut pair = connected(seed, LinkQuality::REORDERING, |_| {});
        pair.rekey(pair.a);
        let head_start = Duration::from_millis(pair.network.random.below(150));
        pair.traffic(head_start);
        pair.rekey(pair.b);
        pair.traffic(30 * SECOND);
        assert!(pair.rekeyed());
        pair.assert_connected();
    }
}

#[test]
fn simultaneous_rekeys_in_fair_weather_delete_the_child_sa_with_the_lowest_nonce() {
    //= RFC 7296 2.8.1 SHOULD 3: the lowest nonce goes
    //= RFC 7296 2.8.1 REQUIRED 5: the winner deletes the old SA
    for seed in 0..20 {
        let mut pair = connected(seed, LinkQuality::RELIABLE, |_| {});
        pair.rekey(pair.a);
        pair.rekey(pair.b);
        pair.traffic(10 * SECOND);
        pair.assert_connected();
        // Each end created a CHILD_SA and accepted the other end's. Neither end ever sent with one
        // of these two CHILD_SAs.
        let rekeys = |node: usize| {
            let events = pair.network.nodes[node].events.iter();
            events.filter(|(_, event)| matches!(event, Event::ChildRekeyed { .. })).count()
        };
        assert_eq!(rekeys(pair.a) + rekeys(pair.b), 3, "{}", pair.network.history());
    }
}

#[test]
fn rekeys_despite_loss_lose_no_more_than_the_network_does() {
    //= RFC 7296 2.1 MUST 3: the request is kept
    for seed in 0..40 {
        let mut pair = connected(seed, LinkQuality::RELIABLE, |config| {
            // Allow many transmissions, so that neither end abandons an IKE SA because of loss.
            // That would be correct, but is not the subject of this test.
            config.timing.transmissions = 10;
        });
        pair.network.quality = LinkQuality::LOSSY;
        for _ in 0..3 {
            pair.rekey(pair.a);
            let head_start = Duration::from_millis(pair.network.random.below(3000));
            pair.traffic(head_start);
            if pair.network.random.chance(50) {
                pair.rekey(pair.b);
            }
            pair.traffic(15 * SECOND);
        }
        pair.network.quality = LinkQuality::RELIABLE;
        pair.traffic(40 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn forward_secrecy_takes_a_key_exchange_for_each_rekey() {
    //= RFC 7296 1.3 MUST 1: KEi is in the offer
    let mut pair = connected(1, LinkQuality::RELIABLE, |config| config.child.proposals[0].groups = vec![Group::X25519]);
    pair.rekey(pair.b);
    pair.traffic(8 * SECOND);
    assert!(pair.rekeyed());
    pair.assert_connected();
}

#[test]
fn a_rekey_follows_the_peer_to_the_group_that_it_wants() {
    //= RFC 7296 1.3 MUST 2: KEi is of a likely group
    //= RFC 7296 1.3 MUST 3: INVALID_KE_PAYLOAD names the group
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.child.proposals[0].groups = vec![Group::X25519, Group::P256];
    pair.b_config.child.proposals[0].groups = vec![Group::P256];
    pair.start();
    pair.traffic(2 * SECOND);
    pair.rekey(pair.a);
    pair.traffic(8 * SECOND);
    assert!(pair.rekeyed());
    assert!(pair.network.nodes[pair.a].errors().is_empty());
    pair.assert_connected();
}

#[test]
fn a_rekey_begins_with_the_group_of_the_ike_sa() {
    //= RFC 7296 1.3 MUST 2: KEi is of a likely group
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided();
    pair.a_config.ike_proposals[0].groups = vec![Group::X25519, Group::P256];
    pair.a_config.child.proposals[0].groups = vec![Group::X25519, Group::P256];
    pair.b_config.ike_proposals[0].groups = vec![Group::P256];
    pair.b_config.child.proposals[0].groups = vec![Group::P256];
    pair.start();
    pair.network.run_for(2 * SECOND);
    let before = pair.network.wire.len();
    pair.rekey(pair.a);
    pair.network.run_for(SECOND);
    assert!(pair.rekeyed());
    // CREATE_CHILD_SA and the deletion of the old CHILD_SA. Another guess would cost a round trip.
    assert_eq!(pair.network.wire.len() - before, 4);
}

#[test]
fn a_child_sa_is_rekeyed_by_itself_when_it_grows_old() {
    //= RFC 7296 2.8 REQUIRED 8: rekey in time
    let mut pair = connected(1, LinkQuality::RELIABLE, |config| config.timing.child_lifetime = 20 * SECOND);
    pair.traffic(90 * SECOND);
    let rekeys = pair.network.nodes[pair.a].events.iter();
    let rekeys = rekeys.filter(|(_, event)| matches!(event, Event::ChildRekeyed { .. })).count();
    assert!((3..=10).contains(&rekeys), "{rekeys} rekeys in 90 s at a lifetime of 20 s");
    pair.traffic(10 * SECOND);
}

#[test]
fn an_ike_sa_is_replaced_by_a_new_authentication_without_a_gap() {
    //= RFC 7296 2.8.3 REQUIRED 1: reauthentication is a new IKE SA
    for seed in 0..40 {
        let mut pair = connected(seed, LinkQuality::REORDERING, |_| {});
        let name = pair.b_name.clone();
        assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&name, now, env)));
        pair.traffic(15 * SECOND);
        pair.assert_connected();
        let replaced = |event: &Event| matches!(event, Event::IkeReplaced { .. });
        for node in [pair.a, pair.b] {
            assert_eq!(pair.network.nodes[node].events.iter().filter(|(_, event)| replaced(event)).count(), 1);
        }
    }
}

#[test]
fn both_ends_replacing_their_ike_sa_at_once_leave_one_and_no_gap() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING);
        pair.start();
        pair.traffic(25 * SECOND);
        let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
        assert!(pair.network.call(pair.a, |endpoint, now, env| endpoint.reauthenticate(&b_name, now, env)));
        let head_start = Duration::from_millis(pair.network.random.below(400));
        pair.traffic(head_start);
        assert!(pair.network.call(pair.b, |endpoint, now, env| endpoint.reauthenticate(&a_name, now, env)));
        pair.traffic(40 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn an_ike_sa_is_replaced_by_itself_when_it_grows_old() {
    //= RFC 7296 2.8 REQUIRED 8: rekey in time
    for authenticates in [false, true] {
        let mut pair = connected(1, LinkQuality::RELIABLE, |config| {
            let Timing { ike_lifetime, authentication_lifetime, .. } = &mut config.timing;
            *if authenticates { authentication_lifetime } else { ike_lifetime } = 30 * SECOND;
        });
        let before = pair.count_inits();
        pair.traffic(100 * SECOND);
        let replaced = |event: &Event| matches!(event, Event::IkeReplaced { .. });
        let times = pair.network.nodes[pair.a].events.iter().filter(|(_, event)| replaced(event)).count();
        assert!((3..=5).contains(&times), "{times} times");
        assert_eq!(pair.count_inits() > before, authenticates, "IKE_SA_INIT for a new authentication only");
    }
}

#[test]
fn a_rekey_crossing_the_peers_deletion_of_the_ike_sa_leaves_nothing_behind() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING).one_sided();
        pair.start();
        pair.network.run_for(3 * SECOND);
        pair.assert_connected();
        pair.rekey(pair.a);
        let wait = Duration::from_millis(pair.network.random.below(200));
        pair.network.run_for(wait);
        let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
        pair.network.call(pair.a, |endpoint, now, env| endpoint.terminate(&b_name, now, env));
        pair.network.call(pair.b, |endpoint, now, env| endpoint.terminate(&a_name, now, env));
        pair.network.run_for(40 * SECOND);
        pair.network.assert_tidy();
        for node in [pair.a, pair.b] {
            assert!(pair.network.nodes[node].host.kernel.ike_sas.is_empty());
            assert!(pair.network.nodes[node].endpoint.poll_timeout().is_none(), "nothing is waited for");
        }
    }
}

#[test]
fn an_old_inbound_sa_lingers_after_a_rekey() {
    //= RFC 7296 2.8.1 MUST 2: packets come through either SA
    let mut pair = connected(1, LinkQuality::RELIABLE, |_| {});
    pair.rekey(pair.a);
    pair.traffic(SECOND);
    let down = |pair: &Pair| {
        let events = pair.network.nodes[pair.a].events.iter();
        events
            .filter_map(|(at, event)| match event {
                Event::ChildDown { reason, .. } => Some((*at, *reason)),
                _ => None,
            })
            .next()
    };
    assert_eq!(down(&pair), None);
    let rekeyed_at = pair.network.now - SECOND;
    pair.traffic(10 * SECOND);
    let (at, reason) = down(&pair).unwrap();
    assert_eq!(reason, DownReason::Replaced);
    assert!(at >= rekeyed_at + 5 * SECOND && at < rekeyed_at + 6 * SECOND);
}

#[test]
pub fn the_ages_at_which_child_sas_are_rekeyed_are_spread_over_a_tenth_of_the_lifetime() {
    //= RFC 7296 2.8.1 SHOULD 1: jitter
    // RFC 7296 2.8: the timing SHOULD be jittered, so that both ends rarely start at the same time.
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| {
        config.timing.child_lifetime = 20 * SECOND;
        config.timing.ike_lifetime = 4000 * SECOND;
    });
    pair.start();
    pair.network.run_for(1000 * SECOND);
    let mut ages: Vec<Duration> = pair.network.oracle.rekey_ages().into_iter().map(|age| age.0).collect();
    ages.sort();
    let (Some(first), Some(last)) = (ages.first(), ages.last()) else { panic!("no rekey") };
    assert!(ages.len() >= 40, "{} rekeys", ages.len());
    assert!(*first >= 18 * SECOND && *last <= 20 * SECOND, "between {first:?} and {last:?}");
    assert!(*last - *first > SECOND, "all between {first:?} and {last:?}");
    ages.dedup();
    assert!(ages.len() >= 30, "{} different ages", ages.len());
}

#[test]
pub fn a_redundant_child_sa_goes_and_the_other_stays_when_its_deletion_is_late() {
    //= RFC 7296 2.25.1 SHOULD 3: the redundant one is known
    for seed in 0..8 {
        let mut pair = connected(seed, LinkQuality::RELIABLE, |config| config.timing.transmissions = 10);
        let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
        // Both ends start at such times that each response arrives together with the other end's
        // request. Both new CHILD_SAs are then created at the same instant.
        pair.network.call(pair.a, |endpoint, now, env| endpoint.rekey_children(&b_name, now, env));
        pair.network.now += Duration::from_millis(5);
        pair.network.call(pair.b, |endpoint, now, env| endpoint.rekey_children(&a_name, now, env));
        pair.network.run_for(Duration::from_millis(6));
        // No datagram of `b` arrives until `a` has stopped waiting.
        pair.network.cut.insert((pair.b, pair.a));
        pair.network.run_for(20 * SECOND);
        pair.network.cut.clear();
        pair.network.run_for(60 * SECOND);
        pair.assert_connected();
    }
}

#[test]
pub fn a_rekey_of_the_ike_sa_by_either_end_moves_the_child_sa_and_loses_nothing() {
    //= RFC 7296 2.8 REQUIRED 5: CHILD_SAs move
    for seed in 0..20 {
        let mut pair = connected(seed, LinkQuality::REORDERING, |_| {});
        let inits = pair.count_inits();
        let children = pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name].inbound.clone();
        for (times, node) in [pair.a, pair.b, pair.a].into_iter().enumerate() {
            pair.rekey_ike(node);
            pair.traffic(5 * SECOND);
            pair.assert_connected();
            assert_eq!((pair.replaced(pair.a), pair.replaced(pair.b)), (times + 1, times + 1));
        }
        let now = &pair.network.nodes[pair.a].host.kernel.tunnels[&pair.b_name].inbound;
        assert!(now.keys().eq(children.keys()), "the CHILD_SA stays");
        assert_eq!(pair.count_inits(), inits, "nobody authenticates again");
        // The CHILD_SA can be rekeyed and the peer can be checked on the IKE SA to which the
        // CHILD_SA now belongs.
        pair.rekey(pair.b);
        pair.traffic(10 * SECOND);
        pair.assert_connected();
    }
}

#[test]
pub fn both_ends_rekeying_the_ike_sa_at_once_keep_one_and_lose_nothing() {
    //= RFC 7296 2.8.2 MUST 2: the other one takes the CHILD_SAs
    //= RFC 7296 2.25.2 SHOULD 1: rekeyed while we rekey it
    for seed in 0..60 {
        let mut pair = connected(seed, LinkQuality::REORDERING, |_| {});
        let inits = pair.count_inits();
        pair.rekey_ike(pair.a);
        let head_start = Duration::from_millis(pair.network.random.below(150));
        pair.traffic(head_start);
        pair.rekey_ike(pair.b);
        pair.traffic(25 * SECOND);
        pair.assert_connected();
        assert_eq!(pair.count_inits(), inits);
        pair.rekey(if seed % 2 == 0 { pair.a } else { pair.b });
        pair.traffic(10 * SECOND);
        pair.assert_connected();
    }
}

#[test]
pub fn simultaneous_rekeys_of_the_ike_sa_in_fair_weather_delete_the_one_with_the_lowest_nonce() {
    //= RFC 7296 2.8.2 SHOULD 1: the IKE SA of the lowest nonce goes
    //= RFC 7296 2.25.2 SHOULD 2: the redundant one is known
    for seed in 0..20 {
        let mut pair = connected(seed, LinkQuality::RELIABLE, |_| {});
        pair.rekey_ike(pair.a);
        pair.rekey_ike(pair.b);
        pair.traffic(5 * SECOND);
        pair.assert_connected();
        // The end with the redundant IKE SA never reports it. The other end reports its beginning
        // and its end.
        assert_eq!(pair.replaced(pair.a) + pair.replaced(pair.b), 3, "{}", pair.network.history());
    }
}

#[test]
fn rekeys_of_the_ike_sa_and_of_the_child_sa_that_cross_are_both_made() {
    //= RFC 7296 1.3.2 SHOULD NOT 2: nothing new on the old IKE SA
    // RFC 7296 2.25.2: each end sends TEMPORARY_FAILURE to the other.
    for seed in 0..40 {
        let mut pair = connected(seed, LinkQuality::REORDERING, |_| {});
        pair.rekey_ike(pair.a);
        let head_start = Duration::from_millis(pair.network.random.below(100));
        pair.traffic(head_start);
        pair.rekey(pair.b);
        pair.traffic(40 * SECOND);
        pair.assert_connected();
        assert!(pair.rekeyed(), "{}", pair.network.history());
        assert!(pair.replaced(pair.a) > 0 && pair.replaced(pair.b) > 0, "{}", pair.network.history());
    }
}

#[test]
fn rekeys_of_the_ike_sa_despite_loss_lose_no_more_than_the_network_does() {
    for seed in 0..30 {
        let mut pair = connected(seed, LinkQuality::RELIABLE, |config| config.timing.transmissions = 10);
        pair.network.quality = LinkQuality::LOSSY;
        for _ in 0..3 {
            pair.rekey_ike(pair.a);
            let head_start = Duration::from_millis(pair.network.random.below(3000));
            pair.traffic(head_start);
            if pair.network.random.chance(50) {
                pair.rekey_ike(pair.b);
            }
            pair.traffic(15 * SECOND);
        }
        pair.network.quality = LinkQuality::RELIABLE;
        pair.traffic(60 * SECOND);
        pair.assert_connected();
    }
}

#[test]
fn a_rekey_of_the_ike_sa_crossing_its_deletion_leaves_nothing_behind() {
    //= RFC 7296 2.8.2 REQUIRED 4: DELETE ends our rekey
    //= RFC 7296 2.25.2 SHOULD 4: closed while we rekey it
    for seed in 0..40 {
        let mut pair = Pair::new(seed, LinkQuality::REORDERING).one_sided();
        pair.start();
        pair.network.run_for(3 * SECOND);
        pair.rekey_ike(pair.a);
        if seed % 3 == 0 {
            pair.rekey_ike(pair.b);
        }
        let wait = Duration::from_millis(pair.network.random.below(250));
        pair.network.run_for(wait);
        let (a_name, b_name) = (pair.a_name.clone(), pair.b_name.clone());
        pair.network.call(pair.a, |endpoint, now, env| endpoint.terminate(&b_name, now, env));
        if seed % 2 == 0 {
            pair.network.call(pair.b, |endpoint, now, env| endpoint.terminate(&a_name, now, env));
        }
        pair.network.run_for(60 * SECOND);
        pair.network.assert_tidy();
        for node in [pair.a, pair.b] {
            let kernel = &pair.network.nodes[node].host.kernel;
            assert!(kernel.ike_sas.is_empty(), "seed {seed}: {}", pair.network.history());
            assert!(pair.network.nodes[node].endpoint.poll_timeout().is_none(), "nothing is waited for");
        }
    }
}

#[test]
pub fn a_rekeyed_ike_sa_is_replaced_by_a_new_authentication_in_time() {
    //= RFC 7296 2.8.3 REQUIRED 1: reauthentication is a new IKE SA
    let mut pair = connected(1, LinkQuality::RELIABLE, |config| {
        config.timing.ike_lifetime = 10 * SECOND;
        config.timing.authentication_lifetime = 60 * SECOND;
    });
    let before = pair.count_inits();
    pair.traffic(50 * SECOND);
    assert_eq!(pair.count_inits(), before);
    assert!(pair.replaced(pair.a) >= 4);
    pair.traffic(15 * SECOND);
    assert!(pair.count_inits() > before, "the rekeys do not put it off");
}

#[test]
pub fn groups_that_do_not_fit_at_a_rekey_lose_nothing() {
    // IKE_AUTH has no key exchange for the CHILD_SA, so the mismatch is detected only at the first
    // rekey.
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| {
        config.timing.child_lifetime = 20 * SECOND;
    });
    pair.a_config.child.proposals[0].groups = vec![Group::X25519];
    pair.b_config.child.proposals[0].groups = vec![Group::P256];
    pair.start();
    pair.traffic(2 * SECOND);
    let inits = pair.count_inits();
    pair.traffic(100 * SECOND);
    pair.assert_connected();
    assert!(pair.count_inits() > inits + 3, "each time a new IKE SA brings the CHILD_SA");
}

#[test]
pub fn a_child_sa_that_only_the_peer_deletes_is_back_at_once_and_a_fight_has_a_bound() {
    //= RFC 7296 1.4.1 MUST 3: the named SAs are closed
    let mut foreign = crate::foreign::Foreign::established(1, |config| config.initiate = true);
    let mut asked = Vec::new();
    let mut messages = foreign.request(exchange::INFORMATIONAL, &[crate::foreign::delete_child(foreign.child.0)]);
    let begun = foreign.network.now;
    let mut next = 0xf100;
    while foreign.network.now < begun + 50 * SECOND {
        for message in messages.iter().filter(|message| !message.header.response()) {
            if message.header.exchange == exchange::CREATE_CHILD_SA && message.rekeys().is_none() {
                asked.push(foreign.network.now - begun);
                next += 1;
                let parts = crate::foreign::Foreign::child_parts(next, [7; 32]);
                foreign.answer(message, &parts);
                foreign.request(exchange::INFORMATIONAL, &[crate::foreign::delete_child(next)]);
            } else {
                foreign.answer(message, &[]);
            }
        }
        foreign.network.run_for(SECOND / 10);
        messages = foreign
            .arrived()
            .iter()
            .filter(|octets| octets[18] != exchange::IKE_SA_INIT)
            .map(|octets| foreign.open(octets))
            .collect();
    }
    assert!(asked.first().is_some_and(|first| *first < SECOND / 10), "asked after {asked:?}");
    assert!((5..=11).contains(&asked.len()), "asked after {asked:?}");
}
