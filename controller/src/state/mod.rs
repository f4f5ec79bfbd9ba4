//! All that the controller knows, in memory, with the indexes that its questions need; a copy of what the store holds.
//!
//! - [`records`]: the rows themselves and [`Change`], the only way in which they change.
//! - [`State`]: the rows with their indexes, and which nodes' views a change concerns.

mod index;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use edge_types::{NodeName, Role};

pub use records::{Certificate, Change, NodeRecord, Redemption, Snapshot, TokenRecord};

use crate::segments::Ledger;
use index::Index;

/// Rows and indexes.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<NodeName, NodeRecord>,
    tokens: BTreeMap<String, TokenRecord>,
    ledger: Ledger,
    index: Index,
    /// Nodes whose view may have changed since [`State::take_concerned`].
    concerned: BTreeSet<NodeName>,
}

impl State {
    /// Builds the state from what the store holds. Concerns nobody: nobody watches yet.
    pub fn load(snapshot: Snapshot) -> Self {
        let mut state = Self::default();
        state.tokens.extend(snapshot.tokens.into_iter().map(|token| (token.id.clone(), token)));
        snapshot.segments.into_iter().for_each(|row| state.ledger.insert(row));
        for node in snapshot.nodes {
            state.index.insert(&node);
            state.nodes.insert(node.name.clone(), node);
        }
        state
    }

    /// A registered node.
    pub fn node(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.get(name)
    }

    /// All registered nodes, by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// A token.
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    /// All tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// Who holds which segment.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The same, for choosing the next grant.
    pub fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Members of every community, by its name.
    pub fn communities(&self) -> impl Iterator<Item = (&edge_types::Community, &BTreeSet<NodeName>)> {
        self.index.communities()
    }

    /// Nodes that a node may talk to.
    pub fn peers_of(&self, node: &NodeRecord) -> BTreeSet<&NodeName> {
        let mut peers = BTreeSet::new();
        match node.role {
            Role::Edge => {
                peers.extend(self.index.of_role(Role::Hub));
                for community in &node.communities {
                    peers.extend(self.index.members(community).filter(|member| **member != node.name));
                }
            }
            Role::Hub => peers.extend(self.index.of_role(Role::Edge)),
            Role::Cloud => peers.extend(self.index.of_role(Role::Hub)),
        }
        peers
    }

    /// Nodes that see this one in their view: the other direction of [`State::peers_of`].
    fn audience_of(&self, node: &NodeRecord) -> BTreeSet<NodeName> {
        let mut audience = BTreeSet::new();
        match node.role {
            Role::Edge => {
                audience.extend(self.index.of_role(Role::Hub).cloned());
                for community in &node.communities {
                    audience.extend(self.index.members(community).filter(|member| **member != node.name).cloned());
                }
            }
            Role::Hub => {
                audience.extend(self.index.of_role(Role::Edge).cloned());
                audience.extend(self.index.of_role(Role::Cloud).cloned());
            }
            Role::Cloud => {}
        }
        audience
    }

    /// Applies one change, and notes whose view it concerns.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutNode(node) => self.put_node(node),
            Change::DeleteNode(name) => {
                if let Some(old) = self.nodes.remove(&name) {
                    self.concerned.extend(self.audience_of(&old));
                    self.concerned.remove(&name);
                    self.index.remove(&old);
                }
            }
            Change::PutToken(token) => {
                self.tokens.insert(token.id.clone(), token);
            }
            Change::DeleteToken(id) => {
                self.tokens.remove(&id);
            }
            Change::ClaimSegment(row) | Change::PutSegment(row) => {
                let holder = row.node.clone();
                self.ledger.insert(row);
                if let Some(node) = self.nodes.get(&holder) {
                    let audience = self.audience_of(node);
                    self.concerned.extend(audience);
                    self.concerned.insert(holder);
                }
            }
            Change::DeleteSegment(network) => self.ledger.remove(&network),
        }
    }

    fn put_node(&mut self, node: NodeRecord) {
        let name = node.name.clone();
        let old = self.nodes.get(&name).cloned();
        let before = old.as_ref().map(|old| self.audience_of(old)).unwrap_or_default();
        if let Some(old) = &old {
            self.index.remove(old);
        }
        self.index.insert(&node);
        let after = self.audience_of(&node);
        let seen_differently =
            old.as_ref().is_none_or(|old| old.role != node.role || old.endpoints() != node.endpoints());
        if seen_differently {
            self.concerned.extend(before.iter().chain(&after).cloned());
        } else {
            self.concerned.extend(before.symmetric_difference(&after).cloned());
        }
        if old.is_none_or(|old| old.role != node.role || old.communities != node.communities) {
            self.concerned.insert(name.clone());
        }
        self.nodes.insert(name, node);
    }

    /// Nodes whose view may have changed since the last call.
    pub fn take_concerned(&mut self) -> BTreeSet<NodeName> {
        std::mem::take(&mut self.concerned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role, label: &str) -> NodeRecord {
        let mut node = NodeRecord::new(name.parse().unwrap(), role, 0);
        node.set_labels([(edge_types::name::COMMUNITY_LABEL.to_owned(), label.to_owned())].into()).unwrap();
        node
    }

    fn names(set: BTreeSet<NodeName>) -> Vec<String> {
        set.into_iter().map(String::from).collect()
    }

    fn cluster() -> State {
        let mut state = State::default();
        for record in [
            node("hub", Role::Hub, ""),
            node("cloud", Role::Cloud, ""),
            node("a1", Role::Edge, "alpha"),
            node("a2", Role::Edge, "alpha_beta"),
            node("b1", Role::Edge, "beta"),
            node("c1", Role::Edge, ""),
        ] {
            state.apply(Change::PutNode(record));
        }
        state.take_concerned();
        state
    }

    #[test]
    fn peers_are_hubs_and_members_of_the_same_communities() {
        let state = cluster();
        let peers = |name: &str| {
            names(state.peers_of(state.node(&name.parse().unwrap()).unwrap()).into_iter().cloned().collect())
        };
        assert_eq!(peers("a1"), ["a2", "hub"]);
        assert_eq!(peers("a2"), ["a1", "b1", "hub"]);
        assert_eq!(peers("c1"), ["hub"]);
        assert_eq!(peers("hub"), ["a1", "a2", "b1", "c1"]);
        assert_eq!(peers("cloud"), ["hub"]);
    }

    #[test]
    fn a_change_concerns_only_those_who_see_it() {
        let mut state = cluster();
        let mut a1 = state.node(&"a1".parse().unwrap()).unwrap().clone();
        state.apply(Change::PutNode(a1.clone()));
        assert!(names(state.take_concerned()).is_empty(), "nothing changed");
        a1.reported = vec!["192.0.2.1".parse().unwrap()];
        state.apply(Change::PutNode(a1));
        assert_eq!(names(state.take_concerned()), ["a2", "hub"]);
        state.apply(Change::PutNode(node("b1", Role::Edge, "alpha")));
        assert_eq!(names(state.take_concerned()), ["a1", "b1"], "a2 saw b1 before and sees it still");
        state.apply(Change::DeleteNode("a2".parse().unwrap()));
        assert_eq!(names(state.take_concerned()), ["a1", "b1", "hub"]);
        assert_eq!(state.communities().count(), 1);
    }
}
