//! The edges that have a tunnel to one hub and not to another. Cloud nodes must not route to such
//! an edge through a hub that it does not reach.
//!
//! Each edge reports the hubs that it does not reach, and so decides only about packets to its own
//! pods. A hub does not report edges: it cannot tell an edge that does not reach it from one that
//! is switched off.

use std::collections::{BTreeMap, BTreeSet};

use edge_types::api::MOST_UNREACHED_HUBS;
use edge_types::{NodeName, Role};

use super::{MOST_RECORDED_EDGES, MOST_UNREACHED_EDGES, NodeRecord, State, ViewerChange};

impl State {
    /// Returns those of the hubs which an edge does not reach that are recorded. A hub that already
    /// lacks [`MOST_RECORDED_EDGES`] is left out, so that the loss of a hub is not recorded ten
    /// thousand times.
    pub fn usable_unreached_hubs(&self, edge: &NodeRecord, hubs: &[NodeName]) -> BTreeSet<NodeName> {
        let is_hub = |name: &&NodeName| self.node(name).is_some_and(|node| node.role == Role::Hub);
        let has_room = |name: &&NodeName| {
            self.unreached_edges()
                .get(*name)
                .is_none_or(|edges| edges.len() < MOST_RECORDED_EDGES || edges.contains(&edge.name))
        };
        if edge.role != Role::Edge {
            return BTreeSet::new();
        }
        hubs.iter().take(MOST_UNREACHED_HUBS).filter(is_hub).filter(has_room).cloned().collect()
    }

    /// Returns the edges that do not reach a hub, by hub. No set is empty. Edges that have not
    /// reported since may still name a hub that is deregistered.
    pub fn unreached_edges(&self) -> &BTreeMap<NodeName, BTreeSet<NodeName>> {
        self.index.unreached()
    }

    /// Records the hubs that an edge does not reach. The views of cloud nodes change, unless the
    /// hub lacks too many edges before and afterwards.
    pub(super) fn note_unreached_hubs(&mut self, before: Option<&NodeRecord>, after: Option<&NodeRecord>) {
        let Some(name) = after.or(before).map(|node| node.name.clone()) else { return };
        let of = |node: Option<&NodeRecord>| -> BTreeSet<NodeName> {
            node.into_iter().flat_map(NodeRecord::unreached_hubs).cloned().collect()
        };
        let (old, new) = (of(before), of(after));
        let mut visible = false;
        for hub in old.symmetric_difference(&new) {
            let count = |state: &Self| state.unreached_edges().get(hub).map_or(0, BTreeSet::len);
            let fewest = count(self);
            self.index.set_unreached(hub, &name, new.contains(hub));
            visible |= fewest.min(count(self)) <= MOST_UNREACHED_EDGES;
        }
        if visible {
            self.note_cloud_nodes();
        }
    }

    /// Records that a node has another role, is registered, or is deregistered. If edges do not
    /// reach it, the views of cloud nodes change when it becomes a hub or is no hub any more.
    pub(super) fn note_role(&mut self, name: &NodeName, before: Option<Role>, after: Option<Role>) {
        let was_or_is_hub = (before == Some(Role::Hub)) != (after == Some(Role::Hub));
        if was_or_is_hub && self.unreached_edges().contains_key(name) {
            self.note_cloud_nodes();
        }
    }

    /// Records that the part about the node itself changes in the views of all cloud nodes.
    pub(super) fn note_cloud_nodes(&mut self) {
        for name in self.index.of_role(Role::Cloud) {
            self.changed_views.note_viewer(name, ViewerChange::OwnPart);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Change;
    use super::*;

    fn node(name: &str, role: Role, unreached: &[&str]) -> NodeRecord {
        let mut record = NodeRecord::new(name.parse().unwrap(), role, 0);
        record.unreached_hubs = unreached.iter().map(|hub| hub.parse().unwrap()).collect();
        record
    }

    fn put(state: &mut State, record: NodeRecord) -> bool {
        let cloud: NodeName = "cloud".parse().unwrap();
        state.take_changed_views();
        state.apply(Change::PutNode(record));
        state.take_changed_views().viewers.contains_key(&cloud)
    }

    #[test]
    fn beyond_the_limit_neither_records_nor_views_change() {
        let mut state = State::default();
        for (name, role) in [("hub-1", Role::Hub), ("hub-2", Role::Hub), ("cloud", Role::Cloud)] {
            put(&mut state, node(name, role, &[]));
        }
        let hub: NodeName = "hub-1".parse().unwrap();
        let usable = |state: &State, edge: &str| {
            state.usable_unreached_hubs(&node(edge, Role::Edge, &[]), std::slice::from_ref(&hub))
        };
        for number in 0..MOST_RECORDED_EDGES {
            let edge = format!("edge-{number}");
            assert_eq!(usable(&state, &edge), [hub.clone()].into());
            let changes_views = put(&mut state, node(&edge, Role::Edge, &["hub-1"]));
            assert_eq!(changes_views, number <= MOST_UNREACHED_EDGES, "{edge}");
        }
        assert!(usable(&state, "edge-more").is_empty(), "the hub is avoided as a whole");
        assert_eq!(usable(&state, "edge-0"), [hub.clone()].into(), "what is recorded stays");
        // Another replica may have recorded one more.
        assert!(!put(&mut state, node("edge-more", Role::Edge, &["hub-1"])));
        assert!(!put(&mut state, node("edge-more", Role::Edge, &[])));
        // An edge that comes and goes changes no view.
        assert!(!put(&mut state, node("edge-0", Role::Edge, &[])));
        assert_eq!(usable(&state, "edge-more"), [hub.clone()].into());
        assert!(!put(&mut state, node("edge-0", Role::Edge, &["hub-1"])));
        // Half of them reach the hub again.
        let changed: Vec<usize> = (0..MOST_UNREACHED_EDGES)
            .filter(|number| put(&mut state, node(&format!("edge-{number}"), Role::Edge, &[])))
            .collect();
        assert_eq!(changed, [MOST_UNREACHED_EDGES - 1]);
        state.take_changed_views();
        state.apply(Change::DeleteNode(format!("edge-{MOST_UNREACHED_EDGES}").parse().unwrap()));
        assert!(state.take_changed_views().viewers.contains_key(&"cloud".parse().unwrap()));
        assert_eq!(state.unreached_edges()[&hub].len(), MOST_UNREACHED_EDGES - 1);
    }

    #[test]
    fn a_hub_that_is_deregistered_or_registered_again_changes_the_views_of_cloud_nodes() {
        let mut state = State::default();
        for (name, role) in [("hub-1", Role::Hub), ("hub-2", Role::Hub), ("cloud", Role::Cloud)] {
            put(&mut state, node(name, role, &[]));
        }
        put(&mut state, node("edge-1", Role::Edge, &["hub-1"]));
        let own_part = |state: &mut State| {
            let changed = state.take_changed_views().viewers.remove(&"cloud".parse::<NodeName>().unwrap());
            changed == Some(ViewerChange::OwnPart)
        };
        state.take_changed_views();
        state.apply(Change::DeleteNode("hub-1".parse().unwrap()));
        assert!(own_part(&mut state));
        state.apply(Change::PutNode(node("hub-1", Role::Hub, &[])));
        assert!(own_part(&mut state));
        state.apply(Change::DeleteNode("hub-2".parse().unwrap()));
        assert!(!own_part(&mut state), "every edge reaches it");
    }

    #[test]
    fn only_edges_have_hubs_that_they_do_not_reach_and_only_registered_hubs_count() {
        let mut state = State::default();
        for (name, role) in [("hub-1", Role::Hub), ("edge-2", Role::Edge)] {
            put(&mut state, node(name, role, &[]));
        }
        let named: Vec<NodeName> = ["edge-2", "hub-1", "hub-9"].map(|name| name.parse().unwrap()).into();
        let usable = |name, role| state.usable_unreached_hubs(&node(name, role, &[]), &named);
        assert_eq!(usable("edge-1", Role::Edge), ["hub-1".parse().unwrap()].into());
        assert!(usable("hub-2", Role::Hub).is_empty() && usable("cloud", Role::Cloud).is_empty());
        put(&mut state, node("hub-2", Role::Hub, &["hub-1"]));
        assert!(state.unreached_edges().is_empty(), "a node that was an edge before");
    }
}
