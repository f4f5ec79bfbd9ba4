//! Tests that a configured CHILD_SA that a peer lacks is always created again.

use super::*;
use crate::child_sas::ChildUse;
use crate::event::ChildId;
use crate::sa::QueuedRequest;
use crate::wire::{ExchangeType, Header};

fn is_request(transmit: &Transmit, exchange: ExchangeType) -> bool {
    let message = transmit.payload.strip_prefix(&[0; 4]).unwrap_or(&transmit.payload);
    Header::decode(message).is_ok_and(|header| header.exchange == exchange && !header.response)
}

fn children(pair: &Pair, us: usize) -> Vec<ChildId> {
    pair.ends[us].endpoint.snapshot()[0].children.iter().map(|child| child.sa.id).collect()
}

/// Queues a DELETE for a CHILD_SA at one end.
fn delete_child(pair: &mut Pair, us: usize, id: ChildId) {
    let spi = pair.ends[us].endpoint.peers.values().next().unwrap().sas[0];
    pair.call(us, |endpoint, now, env| endpoint.queue_request(spi, QueuedRequest::DeleteChild(id), now, env));
}

fn assert_not_stranded(pair: &Pair) {
    for end in &pair.ends {
        assert_eq!(end.endpoint.stranded_peers(), Vec::new());
    }
}

/// We have rekeyed a CHILD_SA, and our DELETE for the old one is in transit. At the same time the
/// peer deletes the new one. A CHILD_SA must be created again.
#[test]
fn a_deletion_of_the_new_child_sa_that_crosses_ours_of_the_old_one_is_made_good() {
    for us in 0..2 {
        let mut pair = Pair::new();
        pair.configs[1 - us].initiate = false;
        pair.start();
        pair.run_for(5 * SECOND);
        let them = 1 - us;
        let old = children(&pair, them);
        pair.tap = Box::new(move |from, sent| from != us || !is_request(sent, ExchangeType::Informational));
        let name = PeerName::new(NAMES[them]);
        assert!(pair.call(us, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
        let new = *children(&pair, them).iter().find(|id| !old.contains(id)).expect("it is rekeyed");
        delete_child(&mut pair, them, new);
        pair.tap = Box::new(|_, _| true);
        for _ in 0..30 {
            pair.run_for(SECOND);
            assert_not_stranded(&pair);
        }
        assert!(pair.is_connected(), "initiator {us}: {:?}", pair.ends[us].events);
    }
}

/// Our DELETE of the old CHILD_SA waits until a liveness check has been answered. In the meantime
/// the peer deletes the new CHILD_SA. The old one must stay.
#[test]
fn a_child_sa_whose_deletion_waits_stays_if_the_one_beside_it_goes() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    pair.run_for(5 * SECOND);
    let (old, theirs) = (children(&pair, 0), children(&pair, 1));
    let name = PeerName::new(NAMES[1]);
    pair.tap = Box::new(|from, _| from == 1);
    assert!(pair.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
    assert!(pair.call(0, |endpoint, now, env| endpoint.check_liveness(&name, now, env)));
    let is_check = |sent: &Transmit| is_request(sent, ExchangeType::Informational);
    pair.tap = Box::new(move |from, sent| from == 1 || !is_check(sent));
    pair.run_for(2 * SECOND);
    let new = *children(&pair, 1).iter().find(|id| !theirs.contains(id)).expect("it is rekeyed");
    delete_child(&mut pair, 1, new);
    pair.tap = Box::new(|_, _| true);
    let live = |pair: &Pair| {
        let children = pair.ends[0].endpoint.snapshot()[0].children.clone();
        children.iter().filter(|child| child.usage == ChildUse::InUse).map(|child| child.sa.id).collect::<Vec<_>>()
    };
    assert_eq!(live(&pair), old);
    // The rekey is repeated.
    pair.run_for(30 * SECOND);
    assert_ne!(live(&pair), old);
    assert!(pair.is_connected());
    let made = pair.ends[0].events.iter().filter(|event| matches!(event, Event::ChildUp { .. })).count();
    assert_eq!(made, 1, "{:?}", pair.ends[0].events);
}

/// Both ends delete the only CHILD_SA at the same time. It must be created again.
#[test]
fn crossing_deletions_of_the_only_child_sa_are_made_good() {
    //= RFC 7296 1.4.1 MUST 4: deletions cross
    let mut pair = Pair::new().one_sided();
    pair.start();
    let (a, b) = (children(&pair, 0)[0], children(&pair, 1)[0]);
    pair.tap = Box::new(|_, _| false);
    delete_child(&mut pair, 0, a);
    delete_child(&mut pair, 1, b);
    pair.tap = Box::new(|_, _| true);
    for _ in 0..30 {
        pair.run_for(SECOND);
        assert_not_stranded(&pair);
    }
    assert!(pair.is_connected());
}

/// The peer reports that it does not have the CHILD_SA that we rekey, and deletes another CHILD_SA
/// while our request is in transit. The missing CHILD_SA must be replaced.
#[test]
fn a_child_sa_that_the_peer_has_lost_is_replaced_whatever_it_deletes_meanwhile() {
    //= RFC 7296 2.25 SHOULD 7: a lost CHILD_SA is made again
    let mut pair = Pair::new().one_sided();
    pair.start();
    // B removes its CHILD_SA without a DELETE.
    let peer = pair.ends[1].endpoint.peers.values_mut().next().unwrap();
    peer.child_sas.clear(DownReason::Failed, &mut crate::output::Output::default());
    let name = PeerName::new(NAMES[1]);
    assert!(pair.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
    for _ in 0..30 {
        pair.run_for(SECOND);
        assert_not_stranded(&pair);
    }
    assert!(pair.is_connected(), "{:?}", pair.ends[0].events);
}

/// In IKE_AUTH the peer creates the IKE SA but no CHILD_SA.
#[test]
fn an_ike_sa_without_a_child_sa_gets_one_as_soon_as_the_peer_allows_it() {
    for initiator in 0..2 {
        let mut pair = Pair::new();
        pair.configs[initiator].initiate = true;
        pair.configs[1 - initiator].initiate = false;
        let good = pair.configs[1 - initiator].child.proposals.clone();
        pair.configs[1 - initiator].child.proposals[0].ciphers = vec![Cipher::ChaCha20Poly1305];
        pair.start();
        for _ in 0..20 {
            pair.run_for(SECOND);
            assert_not_stranded(&pair);
        }
        pair.configs[1 - initiator].child.proposals = good;
        pair.configure(1 - initiator);
        pair.run_for(30 * SECOND);
        assert!(pair.is_connected(), "initiator {initiator}");
    }
}

/// Deletes all CHILD_SAs at end `us`, but not the IKE SA.
fn delete_children(pair: &mut Pair, us: usize) {
    for id in children(pair, us) {
        delete_child(pair, us, id);
    }
}

#[test]
fn a_child_sa_that_the_peer_deletes_alone_is_made_again_at_once() {
    //= RFC 7296 1.4.1 MUST 1: both directions go
    let mut pair = Pair::new().one_sided();
    pair.start();
    pair.run_for(5 * SECOND);
    delete_children(&mut pair, 1);
    pair.run_for(Duration::from_millis(100));
    assert!(pair.is_connected(), "{:?}", pair.ends[0].events);
    assert_eq!(pair.ike_sas(0), 1, "on the same IKE SA");
}

#[test]
fn a_peer_that_goes_on_deleting_child_sas_is_asked_more_and_more_seldom() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    pair.run_for(5 * SECOND);
    let made = |pair: &Pair| pair.ends[0].events.iter().filter(|event| matches!(event, Event::ChildUp { .. })).count();
    let before = made(&pair);
    for _ in 0..600 {
        delete_children(&mut pair, 1);
        pair.run_for(SECOND / 10);
    }
    let times = made(&pair) - before;
    assert!((5..=12).contains(&times), "{times} times in a minute");
    pair.run_for(11 * SECOND);
    assert!(pair.is_connected());
    // A CHILD_SA that has existed for some seconds is created again immediately.
    pair.run_for(3 * SECOND);
    delete_children(&mut pair, 1);
    pair.run_for(Duration::from_millis(100));
    assert!(pair.is_connected());
}

#[test]
fn a_packet_brings_a_child_sa_on_an_ike_sa_that_has_none_although_the_peer_usually_begins() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    pair.run_for(5 * SECOND);
    // The initiator is no longer configured to initiate, and deletes the CHILD_SA.
    pair.configs[0].initiate = false;
    pair.configure(0);
    delete_children(&mut pair, 0);
    pair.run_for(SECOND);
    assert!(!pair.is_connected());
    let name = PeerName::new(NAMES[0]);
    pair.call(1, |endpoint, now, env| endpoint.connect(&name, now, env));
    pair.run_for(Duration::from_millis(100));
    assert!(pair.is_connected(), "{:?}", pair.ends[1].events);
}

/// A rekey has left a deadline for deletions by the peer. It passes while a CHILD_SA is created
/// again in place of one that the peer has deleted.
#[test]
fn an_ike_sa_that_creates_its_child_sa_again_outlives_the_deadline_of_an_earlier_rekey() {
    let mut pair = Pair::new().one_sided();
    pair.start();
    pair.run_for(5 * SECOND);
    let ike = |pair: &Pair| pair.ends[0].endpoint.snapshot()[0].ike_sas[0].ike;
    let before = ike(&pair);
    let name = PeerName::new(NAMES[1]);
    assert!(pair.call(0, |endpoint, now, env| endpoint.rekey_children(&name, now, env)));
    pair.run_for(Duration::from_millis(14_900));
    pair.tap = Box::new(|from, sent| from != 0 || !is_request(sent, ExchangeType::CreateChildSa));
    let id = children(&pair, 1)[0];
    delete_child(&mut pair, 1, id);
    pair.run_for(SECOND);
    pair.tap = Box::new(|_, _| true);
    pair.run_for(20 * SECOND);
    assert!(pair.is_connected(), "{:?}", pair.ends[0].events);
    assert_eq!(ike(&pair), before);
}
