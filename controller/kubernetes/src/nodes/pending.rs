//! Holds registered nodes without their Node object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use edge_types::NodeName;
use tokio::time::Instant;

/// Maximum number of nodes that a message names.
const NAMED: usize = 10;

/// Registered nodes for which the operator must confirm the deregistration. There are at most as
/// many as registered nodes.
#[derive(Debug, Clone, Default)]
pub struct PendingDeregistrations(Arc<Mutex<BTreeSet<NodeName>>>);

impl PendingDeregistrations {
    /// Returns whether the operator must confirm the deregistration of this node.
    pub fn contains(&self, node: &NodeName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// Returns a message with the nodes and the command that confirms their deregistration; `None`
    /// if there are no nodes.
    pub fn note(&self) -> Option<String> {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named: Vec<&str> = asked.iter().take(NAMED).map(NodeName::as_str).collect();
        let more = if asked.len() > NAMED { ", ..." } else { "" };
        (!asked.is_empty()).then(|| {
            format!(
                "{} registered node(s) have no Node object any more ({}{more}), too many at once to believe it: they stay; to deregister them, \
                 edge-controller node deregister --confirm",
                asked.len(),
                named.join(", ")
            )
        })
    }

    /// Replaces the nodes that wait for confirmation. Returns those that were added.
    pub(super) fn set(&self, nodes: BTreeSet<NodeName>) -> Vec<NodeName> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = nodes.difference(&asked).cloned().collect();
        *asked = nodes;
        new
    }
}

/// A node without its Node object.
#[derive(Debug)]
pub(super) struct DeletedNode {
    /// UID of the deleted object.
    pub(super) uid: String,
    pub(super) since: Instant,
    /// Whether another Node now has the deleted Node's name.
    pub(super) replaced: bool,
    /// Whether the API server has confirmed the deletion for this name.
    pub(super) confirmed: bool,
}

impl DeletedNode {
    pub(super) fn new(uid: String) -> Self {
        Self { uid, since: Instant::now(), replaced: false, confirmed: false }
    }

    pub(super) fn replaced(uid: String) -> Self {
        Self { replaced: true, confirmed: true, ..Self::new(uid) }
    }
}

/// All nodes without their Node object.
pub(super) type DeletedNodes = BTreeMap<NodeName, DeletedNode>;
