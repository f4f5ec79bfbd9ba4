//! Applies the revocations of a view that cannot be stored.

use std::collections::HashMap;
use std::sync::Arc;

use edge_types::{NodeName, NodeView, Peer, SharedList, SharedPeer};
use tracing::warn;

use super::client::ControllerClient;
use crate::state_dir::StateDirError;

impl ControllerClient {
    /// Applies the revocations of a view that cannot be stored, for example because the disk is
    /// full, and keeps the view to try again. `status` and the operator see why it waits. After a
    /// restart the revocations are not in force until the controller sends the view again.
    pub(super) fn keep_unstored_view(
        &self,
        current: &mut Option<Arc<NodeView>>,
        view: Arc<NodeView>,
        error: &StateDirError,
    ) {
        let version = view.version;
        if let Some(revised) = current.as_deref().and_then(|current| with_revocations(current, &view)) {
            let revised = Arc::new(revised);
            *current = Some(revised.clone());
            self.membership.send_if_modified(|membership| match membership {
                Some(membership) => {
                    membership.view = revised;
                    true
                }
                None => false,
            });
        }
        let why = format!("view {version} cannot be stored, and only its revocations are in force: {error}");
        // Logged once, however many views come while the disk is full.
        if self.status.borrow().refused_view.is_none() {
            warn!("{why}");
        }
        self.set_refused_view(Some(view), Some(why));
        self.store_failed.notify_one();
    }
}

/// Returns `current` with only the revocations of `now` applied: the peers that `now` does not name
/// are removed, and the certificates that `now` rejects are rejected. `None` if `now` revokes
/// nothing. The result permits nothing that `current` does not permit, so it may be in force
/// without being on disk.
fn with_revocations(current: &NodeView, now: &NodeView) -> Option<NodeView> {
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
