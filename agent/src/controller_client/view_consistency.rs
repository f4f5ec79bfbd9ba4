//! Checks whether a view contradicts itself. If a view differs from a consistent view only by a few
//! peers, the time of the check depends only on the number of these peers.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use edge_types::network::contains;
use edge_types::{IpNetwork, NodeName, NodeView, SharedPeer};

use super::node_identity;

/// The last view that was consistent, with an index of its segments, about 100 bytes for each
/// segment.
#[derive(Debug, Default)]
pub(super) struct ViewConsistency {
    known: Option<ConsistentView>,
}

#[derive(Debug)]
struct ConsistentView {
    view: Arc<NodeView>,
    segments: Segments,
}

/// The segments of all nodes of a view. No two of them overlap.
type Segments = BTreeMap<Position, Holder>;

/// Address and prefix length of a segment, which define the order of the segments. If two networks
/// overlap, one contains the other.
type Position = (IpAddr, u8);

/// The holder of a segment: a peer, or this node (`None`).
type Holder = Option<SharedPeer>;

/// A peer before and after a change; `None` if the view does not contain it.
type PeerChange<'a> = (Option<&'a SharedPeer>, Option<&'a SharedPeer>);

impl ViewConsistency {
    /// Checks a view, and stores it for the next check if it is consistent. Returns the last
    /// consistent view, if it makes the same networks unreachable outside of tunnels: the views
    /// differ in a few peers, which front no networks.
    ///
    /// # Errors
    /// The contradiction, in words.
    pub(super) fn check(&mut self, view: &Arc<NodeView>) -> Result<Option<Arc<NodeView>>, String> {
        if let Some(known) = &mut self.known
            && let Some(changes) = changed_peers(&known.view, view)
        {
            update(&mut known.segments, view, &changes)?;
            let fronts = |peer: Option<&SharedPeer>| peer.is_some_and(|peer| !peer.networks.is_empty());
            let same =
                known.view.role == view.role && !changes.iter().any(|(before, now)| fronts(*before) || fronts(*now));
            let before = std::mem::replace(&mut known.view, view.clone());
            return Ok(same.then_some(before));
        }
        let segments = segments_of(view)?;
        self.known = Some(ConsistentView { view: view.clone(), segments });
        Ok(None)
    }
}

/// Checks a view as a whole.
///
/// # Errors
/// The contradiction, in words.
pub(super) fn check_whole(view: &NodeView) -> Result<(), String> {
    segments_of(view).map(drop)
}

/// Checks a view as a whole and returns its segments.
fn segments_of(view: &NodeView) -> Result<Segments, String> {
    if view.cluster_ranges.is_empty() {
        return Err("it names no cluster range, and so nothing that must not travel in clear".into());
    }
    node_identity::anchors(&view.trust_anchors)?;
    if view.segment_prefix.v4 > 32 || view.segment_prefix.v6 > 128 {
        return Err(format!("its segment prefixes are {} and {}", view.segment_prefix.v4, view.segment_prefix.v6));
    }
    view.cluster_ranges.iter().chain(&view.networks).try_for_each(check_bits)?;
    let mut names = HashSet::from([&view.node]);
    if let Some(peer) = view.peers.iter().find(|peer| !names.insert(&peer.name)) {
        return Err(format!("it names {} twice", peer.name));
    }
    let mut segments = Segments::new();
    for segment in &view.segments {
        add_segment(&mut segments, view, segment, None)?;
    }
    for peer in &view.peers {
        add_peer(&mut segments, view, peer)?;
    }
    Ok(segments)
}

/// Applies the changes to the segments of the previous view. After an error the segments are
/// unchanged.
fn update(segments: &mut Segments, view: &NodeView, changes: &[PeerChange<'_>]) -> Result<(), String> {
    for (before, _) in changes {
        remove_peer(segments, *before);
    }
    let added = changes.iter().filter_map(|(_, now)| *now);
    let outcome = added.clone().try_for_each(|peer| {
        if peer.name == view.node {
            return Err(format!("it names {} twice", peer.name));
        }
        add_peer(segments, view, peer)
    });
    if outcome.is_err() {
        added.for_each(|peer| remove_peer(segments, Some(peer)));
        for peer in changes.iter().filter_map(|(before, _)| *before) {
            segments.extend(peer.segments.iter().map(|segment| (position(segment), Some(peer.clone()))));
        }
    }
    outcome
}

/// Returns the peers that differ. `None` if the peers of a view are not in the order of their
/// names, each once, or if the views also differ in another field that the check reads. Peers that
/// both views share in memory are not compared.
fn changed_peers<'a>(before: &'a NodeView, now: &'a NodeView) -> Option<Vec<PeerChange<'a>>> {
    let same = before.node == now.node
        && before.cluster_ranges == now.cluster_ranges
        && before.segments == now.segments
        && before.networks == now.networks
        && before.trust_anchors == now.trust_anchors
        && before.segment_prefix == now.segment_prefix;
    let changes = before.peers.differences(&now.peers, SharedPeer::is_same).filter(|_| same)?;
    Some(changes.collect())
}

fn position(segment: &IpNetwork) -> Position {
    (segment.network(), segment.prefix())
}

fn remove_peer(segments: &mut Segments, peer: Option<&SharedPeer>) {
    for segment in peer.into_iter().flat_map(|peer| &peer.segments) {
        let at = position(segment);
        if segments.get(&at).is_some_and(|holder| holder.as_ref().map(|held| &held.name) == peer.map(|peer| &peer.name))
        {
            segments.remove(&at);
        }
    }
}

fn add_peer(segments: &mut Segments, view: &NodeView, peer: &SharedPeer) -> Result<(), String> {
    peer.networks.iter().try_for_each(check_bits)?;
    peer.segments.iter().try_for_each(|segment| add_segment(segments, view, segment, Some(peer)))
}

/// Adds a segment. Fails if the segment lies outside of all cluster ranges, where it would not be
/// guarded, or overlaps another segment. If two nodes had the same addresses, one would receive the
/// other's traffic.
fn add_segment(
    segments: &mut Segments,
    view: &NodeView,
    segment: &IpNetwork,
    peer: Option<&SharedPeer>,
) -> Result<(), String> {
    check_bits(segment)?;
    let name = |holder: Option<&SharedPeer>| -> NodeName {
        holder.map_or_else(|| view.node.clone(), |holder| holder.name.clone())
    };
    if !view.cluster_ranges.iter().any(|range| contains(range, segment)) {
        return Err(format!("segment {segment} of {} lies outside every cluster range", name(peer)));
    }
    let at = position(segment);
    // The other segments do not overlap each other, so only the neighbours can overlap this one.
    let neighbours = [segments.range(..=at).next_back(), segments.range(at..).next()];
    for ((address, prefix), holder) in neighbours.into_iter().flatten() {
        let Ok(other) = IpNetwork::new(*address, *prefix) else { continue };
        if edge_types::network::overlap(&other, segment) {
            return Err(format!(
                "segment {other} of {} overlaps segment {segment} of {}",
                name(holder.as_ref()),
                name(peer)
            ));
        }
    }
    segments.insert(at, peer.cloned());
    Ok(())
}

fn check_bits(network: &IpNetwork) -> Result<(), String> {
    if network.ip() == network.network() {
        return Ok(());
    }
    Err(format!("{network} has bits set beyond its prefix"))
}

#[cfg(test)]
mod tests {
    use edge_types::shared_list::visits;
    use edge_types::{Peer, Role, ViewChange};

    use super::super::view_validation::{Validated, validate_with};
    use super::*;
    use crate::test_view::{anchor, empty_view};

    fn segment(number: u32) -> IpNetwork {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + (number << 6));
        format!("{address}/26").parse().unwrap()
    }

    fn peer(name: &str, segments: &[IpNetwork]) -> SharedPeer {
        let peer = Peer {
            name: name.parse().unwrap(),
            role: Role::Edge,
            endpoints: vec![],
            segments: segments.to_vec(),
            networks: vec![],
            mapped: vec![],
            tcp_port: None,
            on_demand_in: Default::default(),
            certificates_from: 0,
        };
        peer.into()
    }

    fn numbered(number: u32) -> SharedPeer {
        peer(&format!("n-{number:05}"), &[segment(number)])
    }

    fn view(peers: Vec<SharedPeer>) -> NodeView {
        let peers = peers.into();
        NodeView {
            version: 1,
            cluster_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            segments: vec!["10.255.0.0/26".parse().unwrap()],
            peers,
            trust_anchors: vec![anchor()],
            ..empty_view()
        }
    }

    fn changed(view: &NodeView, put: Vec<SharedPeer>, gone: &[&str]) -> Arc<NodeView> {
        let gone = gone.iter().map(|name| name.parse().unwrap()).collect();
        let change = ViewChange { from: view.version, version: view.version + 1, own: None, put, gone };
        Arc::new(change.apply_to(view.clone()).unwrap())
    }

    #[test]
    fn of_ten_thousand_peers_only_those_that_changed_are_looked_at() {
        let before = view((0..10_000).map(numbered).collect());
        let after = changed(&before, vec![peer("n-00700", &[segment(20_000)]), numbered(30_000)], &["n-05000"]);
        let changes = changed_peers(&before, &after).unwrap();
        let name = |peer: Option<&SharedPeer>| peer.map(|peer| peer.name.to_string()).unwrap_or_default();
        let names: Vec<_> = changes.iter().map(|(before, now)| (name(*before), name(*now))).collect();
        let text = |name: &str| name.to_owned();
        assert_eq!(
            names,
            [(text("n-00700"), text("n-00700")), (text("n-05000"), String::new()), (String::new(), text("n-30000"))]
        );
    }

    #[test]
    fn a_change_is_checked_at_the_same_cost_with_a_hundred_peers_and_with_ten_thousand() {
        let looks = |count: u32| {
            let before = Arc::new(view((0..count).map(numbered).collect()));
            let mut consistency = ViewConsistency::default();
            consistency.check(&before).unwrap();
            let (same_networks, looks) = visits::of(|| {
                let after = changed(&before, vec![peer("n-00070", &[segment(20_000)])], &["n-00050"]);
                validate_with(&after.node, after.role, Some(&before), &after, || {
                    consistency.check(&after).map(|before| assert!(before.is_some()))
                })
            });
            assert_eq!(same_networks, Ok(Validated::New));
            looks
        };
        let (few, many) = (looks(100), looks(10_000));
        assert!(many <= 4 * few && many < 1000, "{few} of a hundred, {many} of ten thousand");
    }

    #[test]
    fn a_change_is_refused_for_what_the_whole_view_would_be_refused_and_leaves_no_trace() {
        let first = Arc::new(view((0..200).map(numbered).collect()));
        let mut consistency = ViewConsistency::default();
        consistency.check(&first).unwrap();
        let outside = peer("n-00007", &["172.16.0.0/26".parse().unwrap()]);
        let odd = peer("n-00007", &["10.9.0.1/26".parse().unwrap()]);
        for (put, gone, expected) in [
            (vec![numbered(300)], vec![], None),
            (vec![], vec!["n-00003", "n-00199"], None),
            (vec![peer("n-00007", &[segment(8)])], vec![], Some("overlaps")),
            (vec![peer("n-00007", &["10.0.0.0/16".parse().unwrap()])], vec![], Some("overlaps")),
            (vec![peer("n-00007", &["10.0.2.0/27".parse().unwrap()])], vec![], Some("overlaps")),
            (vec![peer("n-00007", &["10.255.0.0/26".parse().unwrap()])], vec![], Some("edge-1")),
            (vec![peer("n-00007", &[segment(7), segment(7)])], vec![], Some("overlaps")),
            (vec![peer("n-00400", &[segment(400)]), peer("n-00401", &[segment(400)])], vec![], Some("overlaps")),
            (vec![outside], vec![], Some("outside every cluster range")),
            (vec![odd], vec![], Some("beyond its prefix")),
            (vec![peer("edge-1", &[])], vec![], Some("edge-1 twice")),
            // Two nodes exchange their segments, and another node receives the segment of a node
            // that is removed.
            (vec![peer("n-00007", &[segment(8)]), peer("n-00008", &[segment(7)])], vec![], None),
            (vec![peer("n-00010", &[segment(10), segment(11)])], vec!["n-00011"], None),
        ] {
            let next = changed(&first, put, &gone);
            let found = consistency.check(&next);
            assert_eq!(found.is_err(), check_whole(&next).is_err(), "{found:?}");
            assert_eq!(found.is_err(), expected.is_some(), "{found:?}");
            if let (Err(found), Some(expected)) = (&found, expected) {
                assert!(found.contains(expected), "{found}");
            }
            // The index is the same as an index that is computed from the whole view.
            let held = consistency.known.as_ref().unwrap();
            assert_eq!(held.segments, segments_of(&held.view).unwrap());
            consistency.check(&first).unwrap();
        }
    }

    #[test]
    fn peers_without_networks_leave_the_networks_as_they_are_and_a_hub_does_not() {
        let first = Arc::new(view((0..20).map(numbered).collect()));
        let mut consistency = ViewConsistency::default();
        assert_eq!(consistency.check(&first).unwrap(), None, "there is no view before");
        let mut same_as_before = |before: &Arc<NodeView>, now: &Arc<NodeView>| {
            let found = consistency.check(now).unwrap();
            found.is_some_and(|found| Arc::ptr_eq(&found, before))
        };
        let second = changed(&first, vec![numbered(30), peer("n-00003", &[segment(40)])], &["n-00007"]);
        assert!(same_as_before(&first, &second));
        let hub = Peer {
            role: Role::Hub,
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            ..Peer::clone(&peer("hub", &[]))
        };
        let with_hub = changed(&second, vec![hub.clone().into()], &[]);
        assert!(!same_as_before(&second, &with_hub), "a hub comes");
        let moved = Peer { networks: vec!["10.245.0.0/16".parse().unwrap()], ..hub };
        let with_other = changed(&with_hub, vec![moved.into()], &[]);
        assert!(!same_as_before(&with_hub, &with_other), "its networks change");
        let without = changed(&with_other, vec![], &["hub"]);
        assert!(!same_as_before(&with_other, &without), "it goes");
        let mut ranges = NodeView::clone(&without);
        ranges.cluster_ranges.push("172.16.0.0/16".parse().unwrap());
        assert!(!same_as_before(&without, &Arc::new(ranges)));
    }

    #[test]
    fn a_name_that_comes_twice_is_noticed_in_any_order() {
        let mut consistency = ViewConsistency::default();
        let (a, b, c) = (peer("a", &[]), peer("b", &[]), peer("c", &[]));
        let mut odd = view(vec![c.clone(), a.clone()]);
        consistency.check(&Arc::new(odd.clone())).unwrap();
        odd.peers.extend([b.clone(), peer("c", &[])]);
        assert_eq!(consistency.check(&Arc::new(odd.clone())).unwrap_err(), "it names c twice");
        odd.peers = vec![a.clone(), b.clone(), c.clone()].into();
        consistency.check(&Arc::new(odd.clone())).unwrap();
        for peers in [vec![a.clone(), b.clone(), c.clone(), c.clone()], vec![b, a, c.clone(), c]] {
            odd.peers = peers.into();
            assert_eq!(consistency.check(&Arc::new(odd.clone())).unwrap_err(), "it names c twice");
        }
    }

    #[test]
    fn anything_but_peers_that_changes_is_checked_with_the_whole_view() {
        let first = view((0..20).map(numbered).collect());
        let mut consistency = ViewConsistency::default();
        consistency.check(&Arc::new(first.clone())).unwrap();
        let mut own = first.clone();
        own.segments = vec![segment(4)];
        assert!(consistency.check(&Arc::new(own)).unwrap_err().contains("overlaps"));
        let mut ranges = first.clone();
        ranges.cluster_ranges = vec!["10.0.0.0/25".parse().unwrap()];
        assert!(consistency.check(&Arc::new(ranges)).unwrap_err().contains("outside"));
        let mut anchors = first;
        anchors.trust_anchors.clear();
        assert!(consistency.check(&Arc::new(anchors)).unwrap_err().contains("trust anchor"));
    }
}
