//! Looks at all nodes without keeping changes waiting.

use edge_types::NodeName;

use super::{Registry, StateGuard};
use crate::state::NodeRecord;

/// Number of nodes that [`Registry::each_node`] looks at before it unlocks the state.
pub(super) const NODES_AT_ONCE: usize = 256;

impl Registry {
    /// Calls `look` for every registered node, by name. The state is unlocked after each
    /// [`NODES_AT_ONCE`] nodes, so that no change and no view waits for the whole. Each node is
    /// shown as it is when `look` is called for it, and a node that is registered meanwhile may be
    /// left out.
    pub async fn each_node(&self, mut look: impl FnMut(&StateGuard<'_>, &NodeRecord)) {
        let mut last: Option<NodeName> = None;
        loop {
            let state = self.read().await;
            let mut count = 0;
            let mut reached = None;
            for record in state.nodes_after(last.as_ref()).take(NODES_AT_ONCE) {
                look(&state, record);
                count += 1;
                reached = Some(&record.name);
            }
            if count < NODES_AT_ONCE {
                return;
            }
            last = reached.cloned();
            drop(state);
            tokio::task::yield_now().await;
        }
    }
}
