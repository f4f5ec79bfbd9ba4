//! The edges to which a cloud node must not route through a hub.

use std::collections::BTreeMap;

use edge_types::{IpNetwork, NodeName, Role};

use super::segments;
use crate::state::{MOST_UNREACHED_EDGES, NodeRecord, State};

/// Maximum number of segments that a hub may lack one by one: four for each edge.
const MOST_NETWORKS: usize = 4 * MOST_UNREACHED_EDGES;

/// Returns for each registered hub the segments of edges that do not reach it, or the cluster's
/// ranges if there are too many. Empty if the viewer is no cloud node.
pub(super) fn of_viewer(
    state: &State,
    viewer: &NodeRecord,
    cluster_ranges: &[IpNetwork],
) -> BTreeMap<NodeName, Vec<IpNetwork>> {
    if viewer.role != Role::Cloud {
        return BTreeMap::new();
    }
    let mut all = BTreeMap::new();
    let is_hub = |name: &NodeName| state.node(name).is_some_and(|node| node.role == Role::Hub);
    for (hub, edges) in state.unreached_edges().iter().filter(|(name, _)| is_hub(name)) {
        let listed = edges.iter().take(MOST_UNREACHED_EDGES).flat_map(|edge| segments(state, edge));
        let mut networks: Vec<IpNetwork> = listed.take(MOST_NETWORKS + 1).collect();
        if edges.len() > MOST_UNREACHED_EDGES || networks.len() > MOST_NETWORKS {
            networks = cluster_ranges.to_vec();
        }
        if !networks.is_empty() {
            all.insert(hub.clone(), networks);
        }
    }
    all
}
