//! Records which views a change alters and in which part, so that the controller sends each node
//! only the difference.
//!
//! The record grows with the number of changes, not with the number of viewers: nodes that enter or
//! leave a visibility group are recorded once for the group.

use std::collections::{BTreeMap, BTreeSet};

use edge_types::NodeName;

use super::visibility::VisibilityGroup;

/// The parts of one node's view that changed since an earlier version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangedParts {
    /// Whether the part about the node itself (role, communities, segments) changed.
    pub own: bool,
    /// Peers that entered the view, left it, or changed.
    pub peers: BTreeSet<NodeName>,
}

impl ChangedParts {
    /// Returns whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.own && self.peers.is_empty()
    }
}

/// What changed about a node as a viewer. A later variant includes the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViewerChange {
    /// The part of its view about the node itself.
    OwnPart,
    /// The groups that it sees. It gets the whole view, and so does not hear of nodes that left a
    /// group before it saw that group.
    WholeView,
    /// The node has just been registered. An earlier view under this name belonged to another node.
    Registered,
}

/// The effect of a series of changes on all views.
#[derive(Debug, Default)]
pub struct ChangedViews {
    /// Nodes whose viewers see them changed. The viewers are not listed, because they follow from
    /// the node's visibility groups.
    pub changed_nodes: BTreeSet<NodeName>,
    /// The nodes that entered or left each visibility group, or changed for its viewers alone. A
    /// node that is deregistered leaves all of its groups.
    pub moved: BTreeMap<VisibilityGroup, BTreeSet<NodeName>>,
    /// Nodes whose own views changed for a reason other than a peer.
    pub viewers: BTreeMap<NodeName, ViewerChange>,
}

impl ChangedViews {
    /// Returns all nodes that changed, entered or left in at least one view. A node may occur
    /// several times.
    pub fn peers(&self) -> impl Iterator<Item = &NodeName> {
        self.changed_nodes.iter().chain(self.moved.values().flatten())
    }

    /// Records that the viewers of `node` see it changed.
    pub(super) fn note_changed(&mut self, node: &NodeName) {
        self.changed_nodes.insert(node.clone());
    }

    /// Records that `node` enters or leaves each of `groups`, or that only their viewers see it
    /// changed.
    pub(super) fn note_moved(&mut self, node: &NodeName, groups: impl IntoIterator<Item = VisibilityGroup>) {
        for group in groups {
            self.moved.entry(group).or_default().insert(node.clone());
        }
    }

    /// Records a change of `viewer`'s own view.
    pub(super) fn note_viewer(&mut self, viewer: &NodeName, change: ViewerChange) {
        let known = self.viewers.entry(viewer.clone()).or_insert(change);
        *known = change.max(*known);
    }

    /// Drops the changes to the view of `viewer`, which was deregistered.
    pub(super) fn forget(&mut self, viewer: &NodeName) {
        self.viewers.remove(viewer);
    }
}
