//! Records which views a change alters and in which part, so that the controller sends each node
//! only the difference.

use std::collections::{BTreeMap, BTreeSet};

use edge_types::NodeName;

/// The parts of one node's view that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangedParts {
    /// Whether the node has just been registered. An earlier view under this name belonged to
    /// another node.
    pub new: bool,
    /// Whether the part about the node itself (role, communities, segments) changed.
    pub own: bool,
    /// Peers that entered the view, left it, or changed.
    pub peers: BTreeSet<NodeName>,
}

impl ChangedParts {
    /// Returns whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.new && !self.own && self.peers.is_empty()
    }

    /// Adds another change to the same view.
    pub fn join(&mut self, other: &Self) {
        self.new |= other.new;
        self.own |= other.own;
        self.peers.extend(other.peers.iter().cloned());
    }
}

/// The effect of a series of changes on all views.
#[derive(Debug, Default)]
pub struct ChangedViews {
    /// Nodes whose viewers see them changed. The viewers are not listed, because they follow from
    /// the node's visibility groups.
    pub changed_nodes: BTreeSet<NodeName>,
    /// Views that changed for another reason: a peer entered or left the view, or the part about
    /// the node itself changed.
    pub views: BTreeMap<NodeName, ChangedParts>,
}

impl ChangedViews {
    /// Returns whether no view changed.
    pub fn is_empty(&self) -> bool {
        self.changed_nodes.is_empty() && self.views.is_empty()
    }

    /// Returns all nodes that changed in at least one view.
    pub fn peers(&self) -> impl Iterator<Item = &NodeName> {
        self.changed_nodes.iter().chain(self.views.values().flat_map(|parts| &parts.peers))
    }

    /// Records that the viewers of `node` see it changed.
    pub(super) fn note_changed(&mut self, node: &NodeName) {
        self.changed_nodes.insert(node.clone());
    }

    /// Records that `peer` enters or leaves the views of all of `viewers`.
    pub(super) fn note_peer<'a>(&mut self, viewers: impl IntoIterator<Item = &'a NodeName>, peer: &NodeName) {
        for viewer in viewers {
            self.views.entry(viewer.clone()).or_default().peers.insert(peer.clone());
        }
    }

    /// Records that each of `peers` enters or leaves the view of `viewer`.
    pub(super) fn note_peers<'a>(&mut self, viewer: &NodeName, peers: impl IntoIterator<Item = &'a NodeName>) {
        let mut peers = peers.into_iter().peekable();
        if peers.peek().is_some() {
            self.views.entry(viewer.clone()).or_default().peers.extend(peers.cloned());
        }
    }

    /// Records that the part of `viewer`'s view about `viewer` itself changed.
    pub(super) fn note_own(&mut self, viewer: &NodeName) {
        self.views.entry(viewer.clone()).or_default().own = true;
    }

    /// Records that `viewer` was registered.
    pub(super) fn note_new(&mut self, viewer: &NodeName) {
        let parts = self.views.entry(viewer.clone()).or_default();
        (parts.new, parts.own) = (true, true);
    }

    /// Drops the changes to the view of `viewer`, which was deregistered.
    pub(super) fn forget(&mut self, viewer: &NodeName) {
        self.views.remove(viewer);
    }
}
