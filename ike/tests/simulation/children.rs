//! Tests several CHILD_SAs under one IKE SA (RFC 7296 1.3.1). Each is created, rekeyed and deleted
//! independently.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::event::PeerErrorKind;
use edge_ike::{ChildId, ChildName, Purpose};

use crate::network::LinkQuality;
use crate::oracle::octets::{Header, exchange};
use crate::peers::{Pair, SECOND, with_children};

impl Pair {
    /// Returns the CHILD_SAs with which a node sends, by purpose.
    fn outbound(&self, node: usize) -> Vec<(Purpose, ChildId)> {
        let peer = if node == self.a { &self.b_name } else { &self.a_name };
        let tunnel = &self.network.nodes[node].host.kernel.tunnels[peer];
        tunnel.outbound.iter().map(|(purpose, sa)| (purpose.clone(), sa.id)).collect()
    }

    /// Checks that both ends have one IKE SA, and this number of CHILD_SAs with the same SPIs.
    fn assert_children(&self, count: usize) {
        let spis = |node: usize, peer, swap: bool| -> BTreeSet<(u32, u32)> {
            let outbound = self.network.nodes[node].host.kernel.tunnels[peer].outbound.values();
            let spis = |sa: &std::sync::Arc<edge_ike::ChildSa>| (sa.inbound_spi, sa.outbound_spi);
            outbound.map(spis).map(|(own, other)| if swap { (other, own) } else { (own, other) }).collect()
        };
        let (a, b) = (spis(self.a, &self.b_name, false), spis(self.b, &self.a_name, true));
        assert_eq!((a.len(), &a), (count, &b), "{}", self.network.history());
        for node in [self.a, self.b] {
            assert_eq!(self.network.nodes[node].host.kernel.ike_sas.len(), 1, "{}", self.network.history());
        }
        self.network.assert_tidy();
    }

    fn call_about_peer(&mut self, node: usize, what: usize) {
        let name = if node == self.a { self.b_name.clone() } else { self.a_name.clone() };
        assert!(self.network.call(node, |endpoint, now, env| match what {
            0 => endpoint.rekey_children(&name, now, env),
            1 => endpoint.rekey_ike(&name, now, env),
            _ => endpoint.reauthenticate(&name, now, env),
        }));
    }
}

fn connected(seed: u64, quality: LinkQuality, children: usize) -> Pair {
    let mut pair = Pair::new(seed, quality).both(|config| with_children(config, children));
    pair.start();
    pair.traffic(12 * SECOND);
    pair.assert_children(children);
    pair
}

#[test]
pub fn each_child_sa_is_rekeyed_by_itself_and_the_others_stay() {
    //= RFC 7296 2.8 REQUIRED 3: the old CHILD_SA is deleted
    for seed in 0..3 {
        let mut pair = connected(seed, LinkQuality::REORDERING, 3);
        for node in [pair.a, pair.b] {
            for index in 0..3 {
                let before = pair.outbound(node);
                let name = if node == pair.a { pair.b_name.clone() } else { pair.a_name.clone() };
                let child = &before[index].0.child;
                assert!(pair.network.call(node, |endpoint, now, env| {
                    let stranger = ChildName::new("no such child");
                    assert!(!endpoint.rekey_children_named(&name, &stranger, now, env));
                    endpoint.rekey_children_named(&name, child, now, env)
                }));
                pair.traffic(10 * SECOND);
                pair.assert_children(3);
                let changed = |at: &usize| pair.outbound(node)[*at] != before[*at];
                assert_eq!((0..3).filter(changed).collect::<Vec<_>>(), [index], "{}", pair.network.history());
            }
        }
    }
}

#[test]
fn both_ends_rekeying_all_child_sas_at_once_lose_nothing() {
    for seed in 0..6 {
        let mut pair = connected(seed, LinkQuality::REORDERING, 3);
        pair.call_about_peer(pair.a, 0);
        let head_start = Duration::from_millis(pair.network.random.below(150));
        pair.traffic(head_start);
        pair.call_about_peer(pair.b, 0);
        pair.traffic(20 * SECOND);
        pair.assert_children(3);
    }
}

#[test]
pub fn a_rekey_of_the_ike_sa_moves_all_child_sas() {
    for seed in 0..4 {
        let mut pair = connected(seed, LinkQuality::REORDERING, 3);
        for node in [pair.a, pair.b] {
            let before = pair.outbound(node);
            pair.call_about_peer(node, 1);
            pair.traffic(20 * SECOND);
            pair.assert_children(3);
            assert_eq!(pair.outbound(node), before);
        }
    }
}

#[test]
pub fn a_new_authentication_makes_all_child_sas_before_the_old_ones_go() {
    for seed in 0..4 {
        let mut pair = connected(seed, LinkQuality::REORDERING, 3);
        for node in [pair.a, pair.b] {
            let before = pair.outbound(node);
            pair.call_about_peer(node, 2);
            pair.traffic(20 * SECOND);
            pair.assert_children(3);
            let after = pair.outbound(node);
            assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{}", pair.network.history());
        }
    }
}

/// Returns the header of an IKE message on the wire, which the non-ESP marker may precede.
fn header(octets: &[u8]) -> Option<Header> {
    Header::read(octets.strip_prefix(&[0; 4]).unwrap_or(octets)).ok()
}

#[test]
fn a_child_sa_of_an_ike_sa_that_is_being_deleted_does_not_take_the_place_of_one_that_is_not_made_yet() {
    let mut pair = connected(1, LinkQuality::RELIABLE, 2);
    let ours = pair.network.nodes[pair.a].host.address;
    let initiators = |pair: &Pair| -> BTreeSet<u64> {
        pair.network.nodes[pair.a].host.kernel.ike_sas.iter().map(|(_, ike)| ike.initiator).collect()
    };
    let first = initiators(&pair);
    // Our DELETE of the first IKE SA does not arrive, so its CHILD_SAs stay.
    let deletes_first = {
        let first = first.clone();
        move |from: SocketAddr, header: &Header| {
            from.ip() == ours && header.exchange == exchange::INFORMATIONAL && first.contains(&header.spis.0)
        }
    };
    let drops = deletes_first.clone();
    pair.network.tap = Some(Box::new(move |from, _, octets| header(octets).is_none_or(|header| !drops(from, &header))));
    pair.call_about_peer(pair.a, 2);
    pair.traffic(SECOND / 5);
    let two = initiators(&pair);
    assert_eq!(two.len(), 2, "{}", pair.network.history());
    // The third IKE SA has to wait for its second CHILD_SA.
    let known = two.clone();
    pair.network.tap = Some(Box::new(move |from, _, octets| {
        let Some(header) = header(octets) else { return true };
        let late = header.exchange == exchange::CREATE_CHILD_SA && !known.contains(&header.spis.0);
        !late && !deletes_first(from, &header)
    }));
    pair.call_about_peer(pair.a, 2);
    pair.traffic(SECOND);
    let all = initiators(&pair);
    assert!(all.len() == 3 && two.is_subset(&all), "an IKE SA has gone: {}", pair.network.history());
    pair.network.tap = None;
    pair.traffic(20 * SECOND);
    pair.assert_children(2);
    assert!(initiators(&pair).is_disjoint(&two), "{}", pair.network.history());
}

/// Makes a pair in which `a` has a child for each pair of two networks on each side, as many
/// appliances have, and `b` has one child for all of them.
fn pair_of_pairs(seed: u64, b_begins: bool) -> Pair {
    let mut pair = Pair::new(seed, LinkQuality::REORDERING);
    let networks = |texts: [&str; 2]| texts.map(|text| text.parse().unwrap()).to_vec();
    let (of_a, of_b) = (networks(["10.1.0.0/24", "10.3.0.0/24"]), networks(["10.2.0.0/24", "10.4.0.0/24"]));
    (pair.b_config.child.local, pair.b_config.child.remote) = (of_b.clone(), of_a.clone());
    (pair.a_config.max_children, pair.b_config.max_children) = (4, 64);
    (pair.a_config.initiate, pair.b_config.initiate) = (true, b_begins);
    let base = pair.a_config.child.clone();
    let pairs = of_a.iter().flat_map(|local| of_b.iter().map(move |remote| (*local, *remote)));
    let mut children = pairs.map(|(local, remote)| {
        let mut child = base.clone();
        (child.name, child.local, child.remote) =
            (ChildName::new(&format!("{local}={remote}")), vec![local], vec![remote]);
        child
    });
    pair.a_config.child = children.next().unwrap();
    pair.a_config.additional_children = children.collect();
    pair
}

#[test]
fn a_peer_may_make_one_child_sa_for_each_pair_of_its_networks() {
    for seed in 0..4 {
        let mut pair = pair_of_pairs(seed, seed % 2 == 1);
        pair.start();
        pair.traffic(20 * SECOND);
        pair.assert_children(4);
        let parts: Vec<String> = pair.outbound(pair.b).into_iter().map(|(purpose, _)| purpose.to_string()).collect();
        assert_eq!(
            parts,
            [
                "net[10.2.0.0/24=10.1.0.0/24]",
                "net[10.2.0.0/24=10.3.0.0/24]",
                "net[10.4.0.0/24=10.1.0.0/24]",
                "net[10.4.0.0/24=10.3.0.0/24]"
            ]
        );
        for node in [pair.b, pair.a] {
            for what in 0..3 {
                pair.call_about_peer(node, what);
                pair.traffic(20 * SECOND);
                pair.assert_children(4);
            }
        }
    }
}

#[test]
pub fn a_child_sa_beyond_the_limit_is_refused_and_the_others_stay() {
    //= RFC 7296 1.3.1 SHOULD NOT 3: a refusal ends no IKE SA
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 3));
    pair.b_config.max_children = 2;
    pair.start();
    pair.traffic(40 * SECOND);
    pair.assert_children(2);
    let [a, b] = [pair.a, pair.b].map(|node| &pair.network.nodes[node]);
    assert_eq!(a.errors().first(), Some(&PeerErrorKind::Notified), "{}", pair.network.history());
    assert_eq!(b.errors().first(), Some(&PeerErrorKind::TooManyChildren));
    let ups = |(_, event): &&(Duration, edge_ike::Event)| matches!(event, edge_ike::Event::IkeUp { .. });
    assert_eq!(a.events.iter().filter(ups).count(), 1, "{}", pair.network.history());
}

#[test]
fn a_child_that_the_peer_does_not_have_is_named_and_made_when_it_has_it() {
    let mut pair = Pair::new(1, LinkQuality::RELIABLE).one_sided().both(|config| with_children(config, 3));
    let missing = pair.b_config.additional_children.remove(0);
    pair.start();
    pair.traffic(20 * SECOND);
    pair.assert_children(2);
    let errors = pair.network.nodes[pair.a].reported_errors();
    let first = errors.first().map(ToString::to_string).unwrap_or_default();
    assert!(first.contains("child net1") && first.contains("TS_UNACCEPTABLE"), "{errors:?}");
    pair.b_config.additional_children.insert(0, missing);
    pair.start_b();
    pair.traffic(20 * SECOND);
    pair.assert_children(3);
    assert_eq!(pair.network.nodes[pair.a].endpoint.snapshot()[0].last_error, None);
}
