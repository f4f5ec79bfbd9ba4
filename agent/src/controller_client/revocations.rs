//! Applies the revocations of a view that cannot be stored.

use std::collections::HashMap;

use edge_types::{NodeName, NodeView, Peer, SharedList, SharedPeer};

/// Returns `current` with only the revocations of `now` applied: the peers that `now` does not name
/// are removed, and the certificates that `now` rejects are rejected. `None` if `now` revokes
/// nothing. The result permits nothing that `current` does not permit, so it may be in force
/// without being on disk.
pub(super) fn with_revocations(current: &NodeView, now: &NodeView) -> Option<NodeView> {
    let from: HashMap<&NodeName, i64> = now.peers.iter().map(|peer| (&peer.name, peer.certificates_from)).collect();
    let revised = |peer: &SharedPeer| {
        let certificates_from = peer.certificates_from.max(*from.get(&peer.name)?);
        if certificates_from == peer.certificates_from {
            return Some(peer.clone());
        }
        Some(SharedPeer::from(Peer { certificates_from, ..Peer::clone(peer) }))
    };
    let peers: SharedList<SharedPeer> = current.peers.iter().filter_map(revised).collect();
    (peers != current.peers).then(|| NodeView { peers, ..current.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_view::{edge_peer as peer, empty_view};

    fn view(version: u64, ranges: &[&str]) -> NodeView {
        NodeView { version, cluster_ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(), ..empty_view() }
    }

    #[test]
    fn revocations_are_taken_from_a_view_and_nothing_else() {
        let mut current = view(4, &["10.77.0.0/16"]);
        current.peers = vec![
            peer("edge-2", "10.77.0.64/26", 5),
            peer("edge-3", "10.77.0.128/26", 0),
            peer("edge-4", "10.77.0.192/26", 30),
        ]
        .into();
        let mut now = view(7, &["10.77.0.0/16", "10.99.0.0/16"]);
        now.peers = vec![
            peer("edge-2", "10.77.1.64/26", 20),
            peer("edge-4", "10.77.0.192/26", 10),
            peer("edge-5", "10.99.0.0/26", 0),
        ]
        .into();
        let revised = with_revocations(&current, &now).unwrap();
        let kept = vec![peer("edge-2", "10.77.0.64/26", 20), peer("edge-4", "10.77.0.192/26", 30)];
        assert_eq!(revised, NodeView { peers: kept.into(), ..current.clone() });
        now.peers = current.peers.clone();
        assert_eq!(with_revocations(&current, &now), None);
    }
}
