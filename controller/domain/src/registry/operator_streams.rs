//! Counts the streams by which the operator reads views of nodes. They are not streams of the node:
//! a node that is away does not count as connected because the operator looks at its view.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use edge_types::NodeName;

/// The number of the operator's streams of each node's view; only nodes with at least one.
#[derive(Debug, Clone, Default)]
pub(super) struct OperatorStreams(Arc<Mutex<HashMap<NodeName, usize>>>);

/// One stream of the operator. It counts until it is dropped.
#[derive(Debug)]
pub struct OperatorStream {
    streams: OperatorStreams,
    node: NodeName,
}

impl OperatorStreams {
    pub(super) fn count(&self, node: &NodeName) -> usize {
        self.streams().get(node).copied().unwrap_or(0)
    }

    pub(super) fn begin(&self, node: &NodeName) -> OperatorStream {
        *self.streams().entry(node.clone()).or_default() += 1;
        OperatorStream { streams: self.clone(), node: node.clone() }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<NodeName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OperatorStream {
    fn drop(&mut self) {
        let mut streams = self.streams.streams();
        if let Some(count) = streams.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.node);
            }
        }
    }
}
