//! Computes a hub's desired state from the one before, if only a few edges in the view differ. A
//! hub may have ten thousand edges, and each that joins, moves or leaves changes the view.

use std::sync::{Arc, Weak};

use edge_ike::PeerName;
use edge_types::network::overlap;
use edge_types::{NodeView, Role, SharedPeer};
use ipnetwork::IpNetwork;

use super::remote_networks::is_within;
use super::{Desired, PeerChanges, view_tunnel};
use crate::config::Config;
use crate::membership::Membership;

/// Maximum number of edges that may differ. If there are more, everything is computed again.
const MAX_CHANGES: usize = 64;

/// How a desired state was computed from the one before.
#[derive(Debug, Clone)]
pub struct Step {
    /// The state before. Only its identity matters.
    pub(super) before: Weak<Desired>,
    /// The difference.
    pub(super) changes: PeerChanges,
}

/// An edge before and after a change; `None` if the view does not contain it.
type EdgeChange<'a> = (Option<&'a SharedPeer>, Option<&'a SharedPeer>);

/// Computes the desired state of `now`. `desired` is the state that was computed from `before` with
/// the same configuration. `None` if more than a few edges differ, or anything else that other
/// parts of the state depend on.
pub(super) fn update(
    config: &Config,
    before: &Membership,
    desired: &Arc<Desired>,
    now: &Membership,
) -> Option<Desired> {
    let edges_only = desired.only_segments && config.peers.is_empty() && before.view.role == Role::Hub;
    if !edges_only || !is_same_except_peers(before, now) {
        return None;
    }
    let edges = changed_edges(&before.view, &now.view)?;
    let (local, ranges): (Vec<_>, _) = (now.view.local_networks().collect(), &now.view.cluster_ranges);
    let sides = || edges.iter().flat_map(|(before, now)| before.iter().chain(now).copied());
    // Other peers, and networks that are left out, are reported as problems or concern other peers.
    let is_plain = |peer: &SharedPeer| {
        let is_usual =
            |network: &IpNetwork| is_within(network, ranges) && !local.iter().any(|own| overlap(own, network));
        peer.role == Role::Edge
            && peer.networks.is_empty()
            && peer.name != now.view.node
            && peer.segments.iter().all(is_usual)
    };
    if !sides().all(is_plain) {
        return None;
    }
    let mut new = Desired { view_version: Some(now.view.version), step: None, ..Desired::clone(desired) };
    let mut changes = PeerChanges::default();
    let segments_before = edges.iter().filter_map(|(before, _)| *before).flat_map(|peer| &peer.segments);
    let segments_now = edges.iter().filter_map(|(_, now)| *now).flat_map(|peer| &peer.segments);
    new.remote_networks.change_inside(segments_before, segments_now);
    for (before, now_peer) in &edges {
        if let Some(peer) = now_peer {
            // Tunnels of a hub are never set up on demand.
            let tunnel = view_tunnel(config, now, peer, false);
            let name = tunnel.peer.name.clone();
            if new.tunnels.get(&name).is_none_or(|known| **known != tunnel) {
                new.tunnels.insert(name.clone(), Arc::new(tunnel));
                changes.set.push(name);
            }
        } else if let Some(peer) = before {
            let name = PeerName::new(peer.name.as_str());
            new.tunnels.remove(&name);
            changes.gone.push(name);
        }
    }
    new.step = Some(Step { before: Arc::downgrade(desired), changes });
    Some(new)
}

/// Returns whether everything is the same on which the tunnels of all peers depend.
fn is_same_except_peers(before: &Membership, now: &Membership) -> bool {
    let (old, new) = (&before.view, &now.view);
    Arc::ptr_eq(&before.credentials, &now.credentials)
        && (Arc::ptr_eq(&before.former_networks, &now.former_networks) || before.former_networks == now.former_networks)
        && (&old.node, old.role) == (&new.node, new.role)
        && (&old.cluster_ranges, &old.segments, &old.networks) == (&new.cluster_ranges, &new.segments, &new.networks)
        && old.certificate_grace_seconds == new.certificate_grace_seconds
}

/// Returns the edges that differ. Edges that both views share in memory are not read. `None` if
/// there are more than [`MAX_CHANGES`], or the edges are not in the order of their names.
fn changed_edges<'a>(before: &'a NodeView, now: &'a NodeView) -> Option<Vec<EdgeChange<'a>>> {
    let changes = before.peers.differences(&now.peers, SharedPeer::is_same)?;
    let changes: Vec<EdgeChange<'a>> = changes.take(MAX_CHANGES + 1).collect();
    (changes.len() <= MAX_CHANGES).then_some(changes)
}

#[cfg(test)]
mod tests {
    use edge_types::shared_list::visits;
    use edge_types::{Peer, ViewChange};
    use proptest::prelude::*;

    use super::*;
    use crate::desired::tests::{config, membership, peer};

    fn edge(number: usize, segments: &[usize]) -> SharedPeer {
        let segments: Vec<String> =
            segments.iter().map(|at| format!("10.77.{}.{}/30", 16 + at / 64, at % 64 * 4)).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        peer(&format!("edge-{number:05}"), Role::Edge, "203.0.113.2:4500", &segments, &[]).into()
    }

    fn with_peers(before: &Membership, peers: Vec<SharedPeer>) -> Membership {
        let peers = peers.into();
        let view = NodeView { version: before.view.version + 1, peers, ..NodeView::clone(&before.view) };
        Membership { view: Arc::new(view), ..before.clone() }
    }

    /// Compares the state after a change with the state that is computed as a whole.
    fn assert_same(updated: &Desired, now: &Membership, before: &Arc<Desired>) {
        let whole = Desired::compute(&config(""), &[], Some(now));
        let shown = |desired: &Desired| {
            let desired = Desired { step: None, ..desired.clone() };
            format!("{desired:?}")
        };
        assert_eq!(shown(updated), shown(&whole));
        let (mut by_step, mut by_walk) = (updated.changes_since(before), whole.changes_since(before));
        for changes in [&mut by_step, &mut by_walk] {
            changes.set.sort();
            changes.gone.sort();
        }
        assert_eq!(by_step, by_walk);
    }

    #[test]
    fn a_hub_looks_at_the_edge_that_changed_and_not_at_ten_thousand() {
        let peers: Vec<SharedPeer> = (0..10_000).map(|number| edge(number, &[number])).collect();
        let before = membership(Role::Hub, &["10.77.1.0/26"], &["10.244.0.0/16"], vec![]);
        let before = with_peers(&before, peers.clone());
        let desired = Arc::new(Desired::compute(&config(""), &[], Some(&before)));
        let mut fewer = peers;
        fewer.remove(5000);
        fewer[70] = edge(70, &[11_000]);
        let now = with_peers(&before, fewer);
        // Only the edges that the views do not share in memory are read.
        let read = changed_edges(&before.view, &now.view).unwrap();
        let names: Vec<_> = read.iter().filter_map(|(old, new)| new.or(*old)).map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["edge-00070", "edge-05000"]);
        let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &desired)));
        let step = updated.step.as_ref().expect("the state is not computed as a whole");
        assert_eq!((step.changes.set.len(), step.changes.gone.len()), (1, 1));
        assert_same(&updated, &now, &desired);
        let shared = updated.tunnels.iter().filter(|(name, tunnel)| Arc::ptr_eq(&desired.tunnels[*name], tunnel));
        assert_eq!(shared.count(), 9998, "all other tunnels are those of before");
    }

    #[test]
    fn a_hub_looks_at_as_few_edges_of_ten_thousand_as_of_a_hundred() {
        let looks = |count: usize| {
            let before = membership(Role::Hub, &["10.77.1.0/26"], &["10.244.0.0/16"], vec![]);
            let before = with_peers(&before, (0..count).map(|number| edge(number, &[number])).collect());
            let desired = Arc::new(Desired::compute(&config(""), &[], Some(&before)));
            let change = ViewChange {
                from: before.view.version,
                version: before.view.version + 1,
                own: None,
                put: vec![edge(70, &[11_000])],
                gone: vec![edge(count / 2, &[]).name.clone()],
            };
            let ((), looks) = visits::of(|| {
                let view = change.apply_to(NodeView::clone(&before.view)).unwrap();
                let now = Membership { view: Arc::new(view), ..before.clone() };
                let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &desired)));
                assert_eq!(updated.changes_since(&desired).set.len(), 1);
                assert!(updated.tunnels != desired.tunnels && updated.routed_networks() == desired.routed_networks());
                // Whoever has another state than the one before also looks only at what differs.
                let other = Arc::new(Desired::clone(&desired));
                assert_eq!(updated.changes_since(&other).gone.len(), 1);
            });
            looks
        };
        let (few, many) = (looks(100), looks(10_000));
        assert!(many <= 4 * few && many < 2000, "{few} of a hundred, {many} of ten thousand");
    }

    #[test]
    fn what_concerns_more_than_a_few_edges_is_computed_as_a_whole() {
        let base = membership(Role::Hub, &["10.77.1.0/26"], &[], vec![]);
        let before = with_peers(&base, (0..200).map(|number| edge(number, &[number])).collect());
        let desired = Arc::new(Desired::compute(&config(""), &[], Some(&before)));
        let changed = |change: &dyn Fn(&mut NodeView)| {
            let mut view = NodeView::clone(&before.view);
            change(&mut view);
            Membership { view: Arc::new(view), ..before.clone() }
        };
        let hub = Peer { role: Role::Hub, ..Peer::clone(&edge(7, &[7])) };
        let fronting = peer("edge-00007", Role::Edge, "203.0.113.2:4500", &[], &["10.245.0.0/16"]);
        for (what, now) in [
            ("many", changed(&|view| view.peers = view.peers.iter().skip(100).cloned().collect())),
            ("a hub", changed(&|view| drop(view.peers.insert(hub.clone().into())))),
            ("networks", changed(&|view| drop(view.peers.insert(fronting.clone().into())))),
            ("own segments", changed(&|view| view.segments.push("10.77.2.0/26".parse().unwrap()))),
            ("grace", changed(&|view| view.certificate_grace_seconds += 1)),
            ("ranges", changed(&|view| view.cluster_ranges.push("10.78.0.0/16".parse().unwrap()))),
            ("overlap", changed(&|view| view.networks.push("10.77.16.0/30".parse().unwrap()))),
            ("another order", changed(&|view| view.peers = view.peers.to_vec().into_iter().rev().collect())),
            ("credentials", Membership { credentials: base_credentials(), ..before.clone() }),
        ] {
            let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &desired)));
            assert!(updated.step.is_none(), "{what}");
            assert_same(&updated, &now, &desired);
        }
        // An edge whose segment overlaps this node's is left out and reported.
        let odd = changed(&|view| {
            let odd = peer("edge-00007", Role::Edge, "203.0.113.2:4500", &["10.77.1.4/30"], &[]);
            view.peers.insert(odd.into());
        });
        let updated = Desired::update(&config(""), &[], Some(&odd), Some((&before, &desired)));
        assert!(updated.step.is_none() && !updated.problems.is_empty());
        // Another state than the one before is compared peer by peer.
        let now = changed(&|view| drop(view.peers.remove(&edge(7, &[]).name)));
        let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &desired)));
        assert!(updated.step.is_some());
        assert_same(&updated, &now, &Arc::new(Desired::clone(&desired)));
        assert_eq!(updated.changes_since(&Arc::default()).set.len(), 199);
    }

    fn base_credentials() -> Arc<crate::membership::NodeCredentials> {
        membership(Role::Hub, &[], &[], vec![]).credentials
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn after_any_changes_a_hubs_state_is_the_one_that_is_computed_as_a_whole(
            rounds in prop::collection::vec(
                prop::collection::vec((0..24_usize, prop::option::of(0..3_usize)), 0..5), 1..6,
            ),
        ) {
            let mut before = membership(Role::Hub, &["10.77.1.0/26"], &["10.244.0.0/16"], vec![]);
            let mut peers: std::collections::BTreeMap<usize, SharedPeer> =
                (0..12).map(|number| (number, edge(number, &[number * 4]))).collect();
            before = with_peers(&before, peers.values().cloned().collect());
            let mut desired = Arc::new(Desired::compute(&config(""), &[], Some(&before)));
            for changes in rounds {
                for (number, change) in changes {
                    match change {
                        None => drop(peers.remove(&number)),
                        // Two segments, one of which may be the one that the edge had before.
                        Some(at) => drop(peers.insert(number, edge(number, &[number * 4, number * 4 + 1 + at]))),
                    }
                }
                let now = with_peers(&before, peers.values().cloned().collect());
                let updated = Desired::update(&config(""), &[], Some(&now), Some((&before, &desired)));
                prop_assert!(updated.step.is_some());
                assert_same(&updated, &now, &desired);
                prop_assert!(updated.remote_networks.all().is_ordered());
                (before, desired) = (now, Arc::new(updated));
            }
        }
    }
}
