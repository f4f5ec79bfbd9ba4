//! Builds the small message that a node receives when a part of its view changed.

use edge_types::{NodeName, ViewChange};

use super::ViewBuilder;
use crate::registry::{PeerJson, StateGuard};
use crate::state::ChangedParts;

impl ViewBuilder {
    /// Returns the change of a registered node's view from version `from` to now. `changed`
    /// contains the parts that changed since then. `None` if the node is not registered.
    pub fn view_change(
        &self,
        state: &StateGuard<'_>,
        node: &NodeName,
        from: u64,
        changed: &ChangedParts,
    ) -> Option<ViewChange<PeerJson>> {
        let record = state.node(node)?;
        let mut change = ViewChange { from, version: state.revision(), own: None, put: Vec::new(), gone: Vec::new() };
        if changed.own {
            change.own = Some(Box::new(self.own_part(state, record, change.version)));
        }
        for name in &changed.peers {
            match state.node(name).filter(|peer| state.is_peer(record, peer)) {
                Some(peer) => change.put.push(self.peer_json(state, record, peer)?),
                None => change.gone.push(name.clone()),
            }
        }
        Some(change)
    }
}
