//! All that the controller knows, in memory, with the indexes that its questions need; a copy of
//! what the store holds.
//!
//! - [`records`]: the rows themselves and [`Change`], the only way in which they change.
//! - [`circle`]: who sees whom, by groups.
//! - [`departure`]: what takes a node out of the network.
//! - `restored`: who has not reported since a restore.
//! - [`touched`]: whose view a change concerns, and which part of it.
//! - [`State`]: the rows with their indexes.

mod circle;
mod departure;
mod index;
mod records;
mod restored;
mod touched;

use std::collections::{BTreeMap, BTreeSet};

use edge_types::{Communities, Community, NodeName, Role};

pub use circle::Circle;
pub use records::{
    Certificate, Change, CommunityRecord, Key, NodeObject, NodeRecord, PublicAddress, Redemption, Snapshot, TokenRecord,
};
pub use touched::{Touched, TouchedBy};

use crate::segments::{Ledger, Restored, Row};
use index::Index;

/// Rows and indexes.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<NodeName, NodeRecord>,
    tokens: BTreeMap<String, TokenRecord>,
    communities: BTreeMap<Community, CommunityRecord>,
    /// The communities that list a node: `communities` the other way round.
    listed: BTreeMap<NodeName, Communities>,
    ledger: Ledger,
    index: Index,
    trust_node_labels: bool,
    restored: Option<Restored>,
    touched: TouchedBy,
}

/// Whom a node concerns, at one moment.
#[derive(Default)]
struct Around {
    /// Nodes that have it in their view.
    audience: BTreeSet<NodeName>,
    /// Nodes that it has in its view.
    peers: BTreeSet<NodeName>,
}

impl State {
    /// Builds the state from what the store holds. Touches nobody: nobody watches yet.
    /// `trust_node_labels`: whether the labels of Kubernetes' Node objects, which a kubelet may set
    /// on its own, make a node a member of communities.
    pub fn load(snapshot: Snapshot, trust_node_labels: bool) -> Self {
        let mut state = Self { trust_node_labels, ..Self::default() };
        snapshot.communities.into_iter().for_each(|community| state.put_community(community));
        snapshot.tokens.into_iter().for_each(|token| state.put_token(token));
        // Whom each of them touches would be most of the work, and nobody asks.
        for node in snapshot.nodes {
            let communities = state.communities_of(&node);
            state.index.insert(&node, &communities);
            state.nodes.insert(node.name.clone(), node);
        }
        snapshot.segments.into_iter().for_each(|row| state.ledger.insert(row));
        state
    }

    /// The changes that make this state what a snapshot holds.
    pub fn changes_to(&self, snapshot: Snapshot) -> Vec<Change> {
        let Snapshot { nodes, tokens, segments, communities, .. } = snapshot;
        let mut changes = Vec::new();
        let puts: Vec<Change> = communities
            .into_iter()
            .map(Change::PutCommunity)
            .chain(tokens.into_iter().map(Change::PutToken))
            .chain(nodes.into_iter().map(Change::PutNode))
            .chain(segments.into_iter().map(Change::PutSegment))
            .collect();
        let kept: BTreeSet<Key> = puts.iter().map(Change::key).collect();
        let ours = (self.nodes.keys().map(|name| Change::DeleteNode(name.clone())))
            .chain(self.tokens.keys().map(|id| Change::DeleteToken(id.clone())))
            .chain(self.ledger.rows().map(|row| Change::DeleteSegment(row.network)))
            .chain(self.communities.keys().map(|name| Change::DeleteCommunity(name.clone())));
        changes.extend(ours.filter(|change| !kept.contains(&change.key())));
        // What is the same already would be written, and concern somebody, for nothing.
        changes.extend(puts.into_iter().filter(|change| self.inverse(change) != *change));
        changes
    }

    /// Copies of all rows; without revision and time.
    pub fn rows(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            segments: self.ledger.rows().cloned().collect(),
            communities: self.communities.values().cloned().collect(),
            ..Snapshot::default()
        }
    }

    /// A registered node.
    pub fn node(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.get(name)
    }

    /// All registered nodes, by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// Registered nodes of a role.
    pub fn nodes_of_role(&self, role: Role) -> impl Iterator<Item = &NodeRecord> {
        self.index.of_role(role).filter_map(|name| self.nodes.get(name))
    }

    /// A token.
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    /// All tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// Communities with listed members, by name.
    pub fn listed_communities(&self) -> impl Iterator<Item = &CommunityRecord> {
        self.communities.values()
    }

    /// A community with listed members.
    pub fn listed_community(&self, name: &Community) -> Option<&CommunityRecord> {
        self.communities.get(name)
    }

    /// Who holds which segment.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The same, for choosing the next grant.
    pub fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Members of every community, by its name: registered edges, by label or by list.
    pub fn communities(&self) -> impl Iterator<Item = (&Community, &BTreeSet<NodeName>)> {
        self.index.communities()
    }

    /// Communities to which a node belongs: by the operator's labels, by those of its Node object
    /// where they are trusted, and by list.
    pub fn communities_of(&self, node: &NodeRecord) -> Communities {
        let mut all = node.communities.clone();
        if self.trust_node_labels {
            all.extend(node.object.iter().flat_map(|object| object.communities.iter().cloned()));
        }
        all.extend(node.object.iter().flat_map(|object| object.restricted_communities.iter().cloned()));
        all.extend(self.listed.get(&node.name).into_iter().flatten().cloned());
        all
    }

    /// Nodes that a node may talk to.
    pub fn peers_of(&self, node: &NodeRecord) -> BTreeSet<&NodeName> {
        let mut peers = BTreeSet::new();
        match node.role {
            Role::Edge => {
                peers.extend(self.index.of_role(Role::Hub));
                for community in &self.communities_of(node) {
                    peers.extend(self.index.members(community).filter(|member| **member != node.name));
                }
            }
            Role::Hub => peers.extend(self.index.of_role(Role::Edge)),
            Role::Cloud => peers.extend(self.index.of_role(Role::Hub)),
        }
        peers
    }

    /// Whether `node` has `peer` in its view.
    pub fn is_peer(&self, node: &NodeRecord, peer: &NodeRecord) -> bool {
        match (node.role, peer.role) {
            (Role::Edge, Role::Hub) | (Role::Hub, Role::Edge) | (Role::Cloud, Role::Hub) => true,
            (Role::Edge, Role::Edge) => {
                node.name != peer.name && !self.communities_of(node).is_disjoint(&self.communities_of(peer))
            }
            _ => false,
        }
    }

    /// Nodes that see this one in their view: the other direction of [`State::peers_of`].
    fn audience_of(&self, node: &NodeRecord) -> BTreeSet<NodeName> {
        match node.role {
            Role::Edge => self.peers_of(node).into_iter().cloned().collect(),
            Role::Hub => self.index.of_role(Role::Edge).chain(self.index.of_role(Role::Cloud)).cloned().collect(),
            Role::Cloud => BTreeSet::new(),
        }
    }

    fn around(&self, node: &NodeRecord) -> Around {
        let peers = self.peers_of(node).into_iter().cloned().collect();
        Around { audience: self.audience_of(node), peers }
    }

    /// Hashes of the authorities' keys that have signed certificates of registered nodes; without
    /// those that earlier releases did not note.
    pub fn issuers(&self) -> BTreeSet<String> {
        let certificates = self.nodes().flat_map(|record| &record.certificates);
        certificates.map(|certificate| certificate.issuer.clone()).filter(|issuer| !issuer.is_empty()).collect()
    }

    /// Applies one change, and notes whose view it touches.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutNode(node) => self.put_node(node),
            Change::DeleteNode(name) => self.delete_node(&name),
            Change::PutToken(token) => self.put_token(token),
            Change::DeleteToken(id) => drop(self.tokens.remove(&id)),
            Change::ClaimSegment(row) | Change::PutSegment(row) => {
                let before = self.ledger.row(&row.network).cloned();
                self.ledger.insert(row.clone());
                self.touch_holders([before, Some(row)]);
            }
            Change::DeleteSegment(network) => {
                let before = self.ledger.row(&network).cloned();
                self.ledger.remove(&network);
                self.touch_holders([before, None]);
            }
            Change::PutCommunity(community) => self.put_community(community),
            Change::DeleteCommunity(name) => {
                if let Some(old) = self.communities.remove(&name) {
                    old.members.iter().for_each(|member| self.list(member, &name, false));
                }
            }
        }
    }

    /// The change that takes this one back.
    pub fn inverse(&self, change: &Change) -> Change {
        match change.key() {
            Key::Node(name) => match self.nodes.get(&name) {
                Some(node) => Change::PutNode(node.clone()),
                None => Change::DeleteNode(name),
            },
            Key::Token(id) => match self.tokens.get(&id) {
                Some(token) => Change::PutToken(token.clone()),
                None => Change::DeleteToken(id),
            },
            Key::Segment(network) => match self.ledger.row(&network) {
                Some(row) => Change::PutSegment(row.clone()),
                None => Change::DeleteSegment(network),
            },
            Key::Community(name) => match self.communities.get(&name) {
                Some(community) => Change::PutCommunity(community.clone()),
                None => Change::DeleteCommunity(name),
            },
        }
    }

    fn put_token(&mut self, token: TokenRecord) {
        self.tokens.insert(token.id.clone(), token);
    }

    fn put_node(&mut self, node: NodeRecord) {
        let name = node.name.clone();
        let communities = self.communities_of(&node);
        let old = self.nodes.get(&name).cloned();
        let same_place =
            old.as_ref().is_some_and(|old| old.role == node.role && self.communities_of(old) == communities);
        if same_place {
            if old.is_some_and(|old| !old.looks_like(&node)) {
                self.touched.looks(&name);
            }
            self.nodes.insert(name, node);
            return;
        }
        let before = old.as_ref().map(|old| self.around(old)).unwrap_or_default();
        if let Some(old) = &old {
            self.index.remove(old, &self.communities_of(old));
        }
        self.index.insert(&node, &communities);
        let after = self.around(&node);
        if old.as_ref().is_some_and(|old| !old.looks_like(&node)) {
            self.touched.looks(&name);
        }
        self.touch_moved(&name, &before, &after);
        match old {
            Some(_) => self.touched.own(&name),
            None => self.touched.new_viewer(&name),
        }
        self.nodes.insert(name, node);
    }

    fn delete_node(&mut self, name: &NodeName) {
        let Some(old) = self.nodes.remove(name) else { return };
        let audience = self.audience_of(&old);
        self.touched.peer(&audience, name);
        self.touched.forget(name);
        self.index.remove(&old, &self.communities_of(&old));
    }

    fn put_community(&mut self, community: CommunityRecord) {
        let name = community.name.clone();
        let members = community.members.clone();
        let old = self.communities.insert(name.clone(), community).map(|old| old.members).unwrap_or_default();
        old.difference(&members).for_each(|member| self.list(member, &name, false));
        members.difference(&old).for_each(|member| self.list(member, &name, true));
    }

    /// Adds a node to a community's list or takes it off.
    fn list(&mut self, member: &NodeName, community: &Community, add: bool) {
        let node = self.nodes.get(member).cloned();
        let before = node.as_ref().map(|node| (self.around(node), self.communities_of(node)));
        let listed = self.listed.entry(member.clone()).or_default();
        if add {
            listed.insert(community.clone());
        } else {
            listed.remove(community);
            if listed.is_empty() {
                self.listed.remove(member);
            }
        }
        if let (Some(node), Some((before, communities))) = (node, before) {
            self.index.remove(&node, &communities);
            let now = self.communities_of(&node);
            self.index.insert(&node, &now);
            if now != communities {
                let after = self.around(&node);
                self.touch_moved(member, &before, &after);
                self.touched.own(member);
            }
        }
    }

    /// Touches those who see a node, or whom it sees, only before or only after it moved.
    fn touch_moved(&mut self, name: &NodeName, before: &Around, after: &Around) {
        self.touched.peer(before.audience.symmetric_difference(&after.audience), name);
        self.touched.peers_of(name, before.peers.symmetric_difference(&after.peers));
    }

    /// Touches a segment's holders, before and after, and those who see them.
    fn touch_holders(&mut self, rows: [Option<Row>; 2]) {
        let holders: BTreeSet<NodeName> =
            rows.into_iter().flatten().filter(|row| row.released_at.is_none()).map(|row| row.node).collect();
        for holder in holders {
            if self.nodes.contains_key(&holder) {
                self.touched.looks(&holder);
                self.touched.own(&holder);
            }
        }
    }

    /// Whose views changes touched since the last call, and where.
    pub fn take_touched(&mut self) -> TouchedBy {
        std::mem::take(&mut self.touched)
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
        let mut state = State { trust_node_labels: true, ..State::default() };
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
        state.take_touched();
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

    /// `viewer:` with `self` where its own part is touched, and the peers that are.
    fn touched(state: &mut State) -> Vec<String> {
        let TouchedBy { looks, mut views } = state.take_touched();
        for peer in looks {
            for circle in state.circles_of(state.node(&peer).unwrap()) {
                for viewer in state.viewers_of(&circle).filter(|viewer| **viewer != peer) {
                    views.entry(viewer.clone()).or_default().peers.insert(peer.clone());
                }
            }
        }
        let show = |(viewer, touched): (NodeName, Touched)| {
            let own = touched.own.then(|| "self".to_owned());
            let parts: Vec<String> = own.into_iter().chain(touched.peers.into_iter().map(String::from)).collect();
            format!("{viewer}: {}", parts.join(" "))
        };
        views.into_iter().map(show).collect()
    }

    #[test]
    fn a_change_touches_only_those_who_see_it_and_says_what_they_see() {
        let mut state = cluster();
        let mut a1 = state.node(&"a1".parse().unwrap()).unwrap().clone();
        state.apply(Change::PutNode(a1.clone()));
        assert!(touched(&mut state).is_empty(), "nothing changed");
        a1.reported = vec!["192.0.2.1".parse().unwrap()];
        a1.port = 4500;
        state.apply(Change::PutNode(a1));
        assert_eq!(touched(&mut state), ["a2: a1", "hub: a1"]);
        state.apply(Change::PutNode(node("b1", Role::Edge, "alpha")));
        assert_eq!(touched(&mut state), ["a1: b1", "b1: self a1"], "a2 saw b1 before and sees it still");
        state.apply(Change::DeleteNode("a2".parse().unwrap()));
        assert_eq!(touched(&mut state), ["a1: a2", "b1: a2", "hub: a2"]);
        state.apply(Change::DeleteNode("c1".parse().unwrap()));
        state.apply(Change::PutNode(node("c1", Role::Cloud, "")));
        let c1 = &state.take_touched().views[&"c1".parse::<NodeName>().unwrap()];
        assert!(c1.new, "nothing of what the former c1 saw counts for this one");
        assert_eq!(state.communities().count(), 1);
    }

    #[test]
    fn a_listed_community_counts_as_a_label_does_and_may_list_nodes_before_they_join() {
        let mut state = cluster();
        let gamma = |members: &[&str]| {
            let members = members.iter().map(|name| name.parse().unwrap()).collect();
            Change::PutCommunity(CommunityRecord { name: "gamma".parse().unwrap(), members })
        };
        state.apply(gamma(&["c1", "later"]));
        assert_eq!(touched(&mut state), ["c1: self"]);
        state.apply(Change::PutNode(node("later", Role::Edge, "")));
        assert_eq!(touched(&mut state), ["c1: later", "hub: later", "later: self c1 hub"]);
        state.apply(gamma(&["c1", "a1", "later"]));
        assert_eq!(touched(&mut state), ["a1: self c1 later", "c1: a1", "later: a1"]);
        state.apply(Change::DeleteCommunity("gamma".parse().unwrap()));
        let peers =
            |name: &str| names(state.peers_of(&state.nodes[&name.parse().unwrap()]).into_iter().cloned().collect());
        assert_eq!(
            (peers("c1"), peers("later"), peers("a1")),
            (vec!["hub".into()], vec!["hub".into()], vec!["a2".into(), "hub".into()])
        );
    }

    #[test]
    fn labels_of_node_objects_count_only_where_they_are_trusted() {
        for trusted in [true, false] {
            let mut state = State { trust_node_labels: trusted, ..State::default() };
            for name in ["x", "y"] {
                let mut record = node(name, Role::Edge, "");
                let communities = ["alpha".parse().unwrap()].into();
                record.object = Some(NodeObject { uid: name.into(), communities, ..NodeObject::default() });
                state.apply(Change::PutNode(record));
            }
            let x = state.node(&"x".parse().unwrap()).unwrap();
            assert_eq!(state.peers_of(x).len(), usize::from(trusted));
        }
    }

    #[test]
    fn a_segment_that_changes_hands_touches_both_holders_and_their_audiences() {
        let mut state = cluster();
        let row = |node: &str, released_at| {
            let network = "10.77.0.0/26".parse().unwrap();
            Row::new(network, node.parse().unwrap(), "r".into(), 0, released_at)
        };
        state.apply(Change::ClaimSegment(row("a1", None)));
        assert_eq!(touched(&mut state), ["a1: self", "a2: a1", "hub: a1"]);
        state.apply(Change::PutSegment(row("b1", None)));
        assert_eq!(touched(&mut state), ["a1: self", "a2: a1 b1", "b1: self", "hub: a1 b1"]);
        state.apply(Change::PutSegment(row("b1", Some(5))));
        assert_eq!(touched(&mut state), ["a2: b1", "b1: self", "hub: b1"]);
        state.apply(Change::DeleteSegment(row("b1", None).network));
        assert!(touched(&mut state).is_empty());
    }

    #[test]
    fn every_change_can_be_taken_back_and_a_snapshot_is_reached_by_its_differences() {
        let mut state = cluster();
        let snapshot = |state: &State| Snapshot {
            nodes: state.nodes().cloned().collect(),
            tokens: state.tokens().cloned().collect(),
            segments: state.ledger().rows().cloned().collect(),
            communities: state.listed_communities().cloned().collect(),
            ..Snapshot::default()
        };
        assert!(state.changes_to(snapshot(&state)).is_empty());
        let before = snapshot(&state);
        let network = "10.77.0.0/26".parse().unwrap();
        let members = ["c1".parse().unwrap()].into();
        let changes = vec![
            Change::PutNode(node("a1", Role::Hub, "")),
            Change::DeleteNode("a2".parse().unwrap()),
            Change::PutNode(node("new", Role::Edge, "beta")),
            Change::ClaimSegment(Row::new(network, "new".parse().unwrap(), "r".into(), 1, None)),
            Change::PutCommunity(CommunityRecord { name: "gamma".parse().unwrap(), members }),
        ];
        let mut undo = Vec::new();
        for change in &changes {
            undo.push(state.inverse(change));
            state.apply(change.clone());
        }
        let after = snapshot(&state);
        undo.into_iter().rev().for_each(|change| state.apply(change));
        assert!(state.changes_to(before).is_empty());
        assert_eq!(state.changes_to(after).len(), changes.len());
    }
}
