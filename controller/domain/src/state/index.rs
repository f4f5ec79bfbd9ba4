//! Indexes registered nodes by role and by community.

use std::collections::{BTreeMap, BTreeSet};

use edge_types::{Communities, Community, NodeName, Role};

use super::records::NodeRecord;
use super::visibility::Visibility;

#[derive(Debug, Default)]
pub(super) struct Index {
    roles: BTreeMap<Role, BTreeSet<NodeName>>,
    communities: BTreeMap<Community, BTreeSet<NodeName>>,
    /// The edges that do not reach a hub, by hub. No set is empty.
    unreached: BTreeMap<NodeName, BTreeSet<NodeName>>,
}

impl Index {
    pub(super) fn insert(&mut self, node: &NodeRecord, communities: &Communities) {
        self.roles.entry(node.role).or_default().insert(node.name.clone());
        if Visibility::of(node.role).joins_communities {
            for community in communities {
                self.communities.entry(community.clone()).or_default().insert(node.name.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, node: &NodeRecord, communities: &Communities) {
        if let Some(names) = self.roles.get_mut(&node.role) {
            names.remove(&node.name);
        }
        for community in communities {
            if let Some(members) = self.communities.get_mut(community) {
                members.remove(&node.name);
                if members.is_empty() {
                    self.communities.remove(community);
                }
            }
        }
    }

    pub(super) fn of_role(&self, role: Role) -> impl Iterator<Item = &NodeName> + use<'_> {
        self.roles.get(&role).into_iter().flatten()
    }

    pub(super) fn members<'a>(&'a self, community: &Community) -> impl Iterator<Item = &'a NodeName> + use<'a> {
        self.communities.get(community).into_iter().flatten()
    }

    pub(super) fn count_of_role(&self, role: Role) -> usize {
        self.roles.get(&role).map_or(0, BTreeSet::len)
    }

    pub(super) fn count_members(&self, community: &Community) -> usize {
        self.communities.get(community).map_or(0, BTreeSet::len)
    }

    /// Records whether an edge reaches a hub.
    pub(super) fn set_unreached(&mut self, hub: &NodeName, edge: &NodeName, unreached: bool) {
        let edges = self.unreached.entry(hub.clone()).or_default();
        if unreached {
            edges.insert(edge.clone());
        } else {
            edges.remove(edge);
        }
        if edges.is_empty() {
            self.unreached.remove(hub);
        }
    }

    pub(super) fn unreached(&self) -> &BTreeMap<NodeName, BTreeSet<NodeName>> {
        &self.unreached
    }

    pub(super) fn communities(&self) -> impl Iterator<Item = (&Community, &BTreeSet<NodeName>)> {
        self.communities.iter()
    }
}
