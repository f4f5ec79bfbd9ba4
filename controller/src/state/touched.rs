//! Whose view changes touch, and which part of it: so that a node is told what changed, and not all that it may know.

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

/// [`Touched`] of every node that a series of changes concerns.
#[derive(Debug, Default)]
pub struct TouchedBy(BTreeMap<NodeName, Touched>);

impl TouchedBy {
    /// `peer` is seen differently by all of `viewers`.
    pub(super) fn peer<'a>(&mut self, viewers: impl IntoIterator<Item = &'a NodeName>, peer: &NodeName) {
        for viewer in viewers {
            self.0.entry(viewer.clone()).or_default().peers.insert(peer.clone());
        }
    }

    /// `viewer` sees each of `peers` differently.
    pub(super) fn peers_of<'a>(&mut self, viewer: &NodeName, peers: impl IntoIterator<Item = &'a NodeName>) {
        let mut peers = peers.into_iter().peekable();
        if peers.peek().is_some() {
            self.0.entry(viewer.clone()).or_default().peers.extend(peers.cloned());
        }
    }

    /// `viewer`'s own part changed.
    pub(super) fn own(&mut self, viewer: &NodeName) {
        self.0.entry(viewer.clone()).or_default().own = true;
    }

    /// `viewer` was not there before.
    pub(super) fn new_viewer(&mut self, viewer: &NodeName) {
        let touched = self.0.entry(viewer.clone()).or_default();
        (touched.new, touched.own) = (true, true);
    }

    /// `viewer` is no more.
    pub(super) fn forget(&mut self, viewer: &NodeName) {
        self.0.remove(viewer);
    }

    /// All of it; nothing is left.
    pub(super) fn take(&mut self) -> BTreeMap<NodeName, Touched> {
        std::mem::take(&mut self.0)
    }
}
