//! Whose view a change concerns, and which part of it: so that a node is told what changed, and not
//! all that it may know.

use std::collections::{BTreeMap, BTreeSet};

use edge_types::NodeName;

/// The parts of one node's view that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// The node was registered just now. Whatever was known of its view before is another's.
    pub new: bool,
    /// What the view says of the node itself: role, communities, segments.
    pub own: bool,
    /// Peers that came, left, or are seen differently.
    pub peers: BTreeSet<NodeName>,
}

impl Touched {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.new && !self.own && self.peers.is_empty()
    }

    /// Adds what another change touched.
    pub fn join(&mut self, other: &Self) {
        self.new |= other.new;
        self.own |= other.own;
        self.peers.extend(other.peers.iter().cloned());
    }
}

/// What a series of changes touched.
#[derive(Debug, Default)]
pub struct TouchedBy {
    /// Nodes that look different to whoever sees them now.
    pub looks: BTreeSet<NodeName>,
    /// Views that changed besides: of nodes that see others than before, or are seen by others.
    pub views: BTreeMap<NodeName, Touched>,
}

impl TouchedBy {
    /// Whether no view changed.
    pub fn is_empty(&self) -> bool {
        self.looks.is_empty() && self.views.is_empty()
    }

    /// All nodes that somebody sees differently.
    pub fn peers(&self) -> impl Iterator<Item = &NodeName> {
        self.looks.iter().chain(self.views.values().flat_map(|touched| &touched.peers))
    }

    /// `peer` looks different.
    pub(super) fn looks(&mut self, peer: &NodeName) {
        self.looks.insert(peer.clone());
    }

    /// `peer` comes into the views of all of `viewers`, or leaves them.
    pub(super) fn peer<'a>(&mut self, viewers: impl IntoIterator<Item = &'a NodeName>, peer: &NodeName) {
        for viewer in viewers {
            self.views.entry(viewer.clone()).or_default().peers.insert(peer.clone());
        }
    }

    /// Each of `peers` comes into `viewer`'s view, or leaves it.
    pub(super) fn peers_of<'a>(&mut self, viewer: &NodeName, peers: impl IntoIterator<Item = &'a NodeName>) {
        let mut peers = peers.into_iter().peekable();
        if peers.peek().is_some() {
            self.views.entry(viewer.clone()).or_default().peers.extend(peers.cloned());
        }
    }

    /// `viewer`'s own part changed.
    pub(super) fn own(&mut self, viewer: &NodeName) {
        self.views.entry(viewer.clone()).or_default().own = true;
    }

    /// `viewer` was not there before.
    pub(super) fn new_viewer(&mut self, viewer: &NodeName) {
        let touched = self.views.entry(viewer.clone()).or_default();
        (touched.new, touched.own) = (true, true);
    }

    /// `viewer` is no more.
    pub(super) fn forget(&mut self, viewer: &NodeName) {
        self.views.remove(viewer);
    }
}
