//! Holds a copy of all rows of the store in memory, with indexes over them.
//!
//! - [`State`]: the rows and the indexes. Only [`State::apply`] changes them.
//! - `records`: the rows, and [`Change`], which writes or removes one.
//! - `visibility`: the rule that decides which nodes see each other. `peers`: applies that rule
//!   to find each node's peers.
//! - `changed_views`: records which views a change alters and in which part.
//! - `grants`: plans grants of the segments that nodes request. `claims`: plans the changes that
//!   follow from the segments that nodes claim to hold.
//! - `errors`: the reasons why a node gets no segment, or may not join.
//! - `joining`: plans the record and the segments of a joining node.
//! - `deregistration`: plans the changes that deregister a node.
//! - `unreached_hubs`: the edges that have a tunnel to one hub and not to another.
//! - `after_restore`: applies the effects of a restore to grants and claims.

mod after_restore;
mod changed_views;
mod claims;
mod deregistration;
mod errors;
mod grants;
mod index;
mod joining;
mod peers;
mod records;
mod unreached_hubs;
mod visibility;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use edge_types::network::overlap;
use edge_types::{Communities, Community, IpNetwork, NodeName, Role};

pub use changed_views::{ChangedParts, ChangedViews, ViewerChange};
pub use errors::{JoinError, SegmentError};
pub use joining::RESERVED_NAME;
pub use records::{
    Certificate, Change, CommunityRecord, MOST_RECORDED_EDGES, MOST_UNREACHED_EDGES, NodeObject, NodeRecord,
    PublicAddress, Redemption, RowKey, Snapshot, TokenRecord,
};
pub use visibility::VisibilityGroup;

use crate::segments::{Ledger, Restored, SegmentRecord};
use index::Index;
use visibility::Visibility;

/// All rows in memory, with indexes over them.
#[derive(Debug, Default)]
pub struct State {
    nodes: BTreeMap<NodeName, NodeRecord>,
    tokens: BTreeMap<String, TokenRecord>,
    communities: BTreeMap<Community, CommunityRecord>,
    /// The communities that list a node: the reverse of `communities`.
    listed: BTreeMap<NodeName, Communities>,
    ledger: Ledger,
    index: Index,
    trust_node_labels: bool,
    restored: Option<Restored>,
    changed_views: ChangedViews,
}

/// The groups to which a node belongs and the groups that it sees, at one moment.
#[derive(Default)]
struct NodeGroups {
    of: BTreeSet<VisibilityGroup>,
    seen: BTreeSet<VisibilityGroup>,
}

impl State {
    /// Builds the state from a snapshot of the store. Records no view changes, since nothing
    /// watches views yet. `trust_node_labels`: whether labels of Kubernetes Node objects make a
    /// node a member of communities. A kubelet can set such labels on its own Node object.
    pub fn load(snapshot: Snapshot, trust_node_labels: bool) -> Self {
        let mut state = Self { trust_node_labels, ..Self::default() };
        snapshot.communities.into_iter().for_each(|community| state.put_community(community));
        snapshot.tokens.into_iter().for_each(|token| state.put_token(token));
        // `put_node` would also compute which views each node changes. That is most of the work and
        // not needed while the state is built.
        for node in snapshot.nodes {
            let communities = state.communities_of(&node);
            state.index.insert(&node, &communities);
            node.unreached_hubs().for_each(|hub| state.index.set_unreached(hub, &node.name, true));
            state.nodes.insert(node.name.clone(), node);
        }
        snapshot.segments.into_iter().for_each(|row| state.ledger.insert(row));
        state
    }

    /// Returns the changes that turn this state into the content of a snapshot.
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
        let kept: BTreeSet<RowKey> = puts.iter().map(Change::key).collect();
        let ours = (self.nodes.keys().map(|name| Change::DeleteNode(name.clone())))
            .chain(self.tokens.keys().map(|id| Change::DeleteToken(id.clone())))
            .chain(self.ledger.rows().map(|row| Change::DeleteSegment(row.network)))
            .chain(self.communities.keys().map(|name| Change::DeleteCommunity(name.clone())));
        changes.extend(ours.filter(|change| !kept.contains(&change.key())));
        // A row that is already the same is left out, because writing it would change views without
        // need.
        changes.extend(puts.into_iter().filter(|change| self.inverse(change) != *change));
        changes
    }

    /// Returns copies of all rows. The revision and the time of the snapshot are zero.
    pub fn rows(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            segments: self.ledger.rows().cloned().collect(),
            communities: self.communities.values().cloned().collect(),
            ..Snapshot::default()
        }
    }

    /// Returns the row of a node; `None` if the node is not registered.
    pub fn node(&self, name: &NodeName) -> Option<&NodeRecord> {
        self.nodes.get(name)
    }

    /// Returns all registered nodes, by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// Returns the registered nodes behind `after` in the order of their names; all nodes without
    /// `after`.
    pub fn nodes_after(&self, after: Option<&NodeName>) -> impl Iterator<Item = &NodeRecord> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.nodes.range::<NodeName, _>((from, Bound::Unbounded)).map(|(_, record)| record)
    }

    /// Returns the registered nodes of a role.
    pub fn nodes_of_role(&self, role: Role) -> impl Iterator<Item = &NodeRecord> {
        self.index.of_role(role).filter_map(|name| self.nodes.get(name))
    }

    /// Returns the row of a join token; `None` if the token was never created or is deleted.
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    /// Returns all tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// Returns the communities with listed members, by name.
    pub fn listed_communities(&self) -> impl Iterator<Item = &CommunityRecord> {
        self.communities.values()
    }

    /// Returns a community with listed members.
    pub fn listed_community(&self, name: &Community) -> Option<&CommunityRecord> {
        self.communities.get(name)
    }

    /// Returns the ledger of segments.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the ledger, for choosing the next grant.
    pub fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Returns the members of every community, by community name: registered edges that a label or
    /// a list makes members.
    pub fn communities(&self) -> impl Iterator<Item = (&Community, &BTreeSet<NodeName>)> {
        self.index.communities()
    }

    /// Returns the communities to which a node belongs: by the operator's labels, by labels of its
    /// Node object if node labels are trusted, and by lists.
    pub fn communities_of(&self, node: &NodeRecord) -> Communities {
        self.each_community_of(node).cloned().collect()
    }

    /// Returns the same communities without copies. A community may occur several times.
    fn each_community_of<'a>(&'a self, node: &'a NodeRecord) -> impl Iterator<Item = &'a Community> {
        let by_node_label = node.object.iter().filter(|_| self.trust_node_labels);
        (node.communities.iter())
            .chain(by_node_label.flat_map(|object| &object.communities))
            .chain(node.object.iter().flat_map(|object| &object.restricted_communities))
            .chain(self.listed.get(&node.name).into_iter().flatten())
    }

    /// Returns whether a node may be a member of communities, so that it sees what these decide.
    pub fn is_possible_member(&self, node: &NodeRecord) -> bool {
        Visibility::of(node.role).joins_communities
    }

    /// Returns the communities of a node for which the operator has decided when tunnels are set
    /// up: true if by the first packet.
    pub fn on_demand_in(&self, node: &NodeRecord) -> BTreeMap<Community, bool> {
        if !Visibility::of(node.role).joins_communities {
            return BTreeMap::new();
        }
        let decided = |name: &Community| Some((name.clone(), self.communities.get(name)?.tunnels.on_demand()?));
        self.each_community_of(node).filter_map(decided).collect()
    }

    fn node_groups(&self, node: &NodeRecord) -> NodeGroups {
        let (of, seen) = (self.groups_of(node), self.groups_seen_by(node));
        NodeGroups { of: of.into_iter().collect(), seen: seen.into_iter().collect() }
    }

    /// Returns the key hashes of the authorities that signed the certificates of registered nodes.
    /// Certificates from earlier releases, which did not record the issuer, are left out.
    pub fn issuers(&self) -> BTreeSet<String> {
        let certificates = self.nodes().flat_map(|record| &record.certificates);
        certificates.map(|certificate| certificate.issuer.clone()).filter(|issuer| !issuer.is_empty()).collect()
    }

    /// Applies one change and records which views it changes.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutNode(node) => self.put_node(node),
            Change::DeleteNode(name) => self.delete_node(&name),
            Change::PutToken(token) => self.put_token(token),
            Change::DeleteToken(id) => drop(self.tokens.remove(&id)),
            Change::GrantSegment(row) | Change::PutSegment(row) => {
                let before = self.ledger.row(&row.network).cloned();
                self.ledger.insert(row.clone());
                self.note_segment([before, Some(row)]);
            }
            Change::DeleteSegment(network) => {
                let before = self.ledger.row(&network).cloned();
                self.ledger.remove(&network);
                self.note_segment([before, None]);
            }
            Change::PutCommunity(community) => self.put_community(community),
            Change::DeleteCommunity(name) => {
                if self.communities.contains_key(&name) {
                    self.put_community(CommunityRecord::new(name.clone(), BTreeSet::new()));
                    self.communities.remove(&name);
                }
            }
        }
    }

    /// Returns the change that undoes this one.
    pub fn inverse(&self, change: &Change) -> Change {
        match change.key() {
            RowKey::Node(name) => match self.nodes.get(&name) {
                Some(node) => Change::PutNode(node.clone()),
                None => Change::DeleteNode(name),
            },
            RowKey::Token(id) => match self.tokens.get(&id) {
                Some(token) => Change::PutToken(token.clone()),
                None => Change::DeleteToken(id),
            },
            RowKey::Segment(network) => match self.ledger.row(&network) {
                Some(row) => Change::PutSegment(row.clone()),
                None => Change::DeleteSegment(network),
            },
            RowKey::Community(name) => match self.communities.get(&name) {
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
        let sees_the_same =
            old.as_ref().is_some_and(|old| old.role == node.role && self.communities_of(old) == communities);
        if sees_the_same {
            if old.as_ref().is_some_and(|old| !old.looks_like(&node)) {
                self.changed_views.note_changed(&name);
            }
            self.note_pod_networks(old.as_ref(), Some(&node));
            self.note_unreached_hubs(old.as_ref(), Some(&node));
            self.nodes.insert(name, node);
            return;
        }
        let before = old.as_ref().map(|old| self.node_groups(old)).unwrap_or_default();
        let decided = old.as_ref().map(|old| self.on_demand_in(old));
        if let Some(old) = &old {
            self.index.remove(old, &self.communities_of(old));
        }
        self.index.insert(&node, &communities);
        let after = self.node_groups(&node);
        let decides_otherwise = decided.is_some_and(|decided| decided != self.on_demand_in(&node));
        if old.as_ref().is_some_and(|old| !old.looks_like(&node)) {
            self.changed_views.note_changed(&name);
        }
        if decides_otherwise {
            self.note_changed_for_members(&node);
        }
        self.note_move(&name, &before, &after);
        if old.is_none() {
            self.changed_views.note_viewer(&name, ViewerChange::Registered);
        }
        self.note_pod_networks(old.as_ref(), Some(&node));
        self.note_unreached_hubs(old.as_ref(), Some(&node));
        self.note_role(&name, old.map(|old| old.role), Some(node.role));
        self.nodes.insert(name, node);
    }

    fn delete_node(&mut self, name: &NodeName) {
        let Some(old) = self.nodes.remove(name) else { return };
        self.changed_views.note_moved(name, self.groups_of(&old));
        self.changed_views.forget(name);
        self.index.remove(&old, &self.communities_of(&old));
        self.note_pod_networks(Some(&old), None);
        self.note_unreached_hubs(Some(&old), None);
        self.note_role(name, Some(old.role), None);
    }

    fn put_community(&mut self, community: CommunityRecord) {
        let (name, tunnels) = (community.name.clone(), community.tunnels);
        let members = community.members.clone();
        let old = self.communities.insert(name.clone(), community);
        let (old, tunnels_before) = old.map(|old| (old.members, old.tunnels)).unwrap_or_default();
        if tunnels != tunnels_before {
            // Nodes that enter the community are noted below.
            let present = self.index.members(&name).filter_map(|member| self.nodes.get(member));
            let present: Vec<NodeRecord> = present.cloned().collect();
            present.iter().for_each(|member| self.note_changed_for_members(member));
        }
        old.difference(&members).for_each(|member| self.set_listed(member, &name, false));
        members.difference(&old).for_each(|member| self.set_listed(member, &name, true));
    }

    /// Adds a node to a community's list or removes it from the list.
    fn set_listed(&mut self, member: &NodeName, community: &Community, add: bool) {
        let node = self.nodes.get(member).cloned();
        let before = node.as_ref().map(|node| (self.node_groups(node), self.communities_of(node)));
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
                if self.communities.get(community).is_some_and(|community| !community.tunnels.is_auto()) {
                    self.note_changed_for_members(&node);
                }
                let after = self.node_groups(&node);
                self.note_move(member, &before, &after);
            }
        }
    }

    /// Records that the members of a node's communities see it changed, and its other viewers do
    /// not: a community's decision about tunnels does not concern hubs.
    fn note_changed_for_members(&mut self, node: &NodeRecord) {
        let groups: Vec<VisibilityGroup> = self.community_groups(node).collect();
        self.changed_views.note_moved(&node.name, groups);
    }

    /// Records that a node's role or communities changed: it enters or leaves groups, and its own
    /// view changes.
    fn note_move(&mut self, name: &NodeName, before: &NodeGroups, after: &NodeGroups) {
        self.changed_views.note_moved(name, before.of.symmetric_difference(&after.of).cloned());
        let sees_the_same = before.seen == after.seen;
        let change = if sees_the_same { ViewerChange::OwnPart } else { ViewerChange::WholeView };
        self.changed_views.note_viewer(name, change);
    }

    /// Records that the pods' networks of a hub changed, or the order in which hubs have them:
    /// another hub with an overlapping network, and every hub whose network overlaps that one's,
    /// may gain or lose its network. The row of the hub itself may already be removed.
    fn note_pod_networks(&mut self, before: Option<&NodeRecord>, after: Option<&NodeRecord>) {
        let claim = |node: &NodeRecord| (node.joined_at, node.pod_networks().to_vec());
        let (old, new) = (before.map(claim).unwrap_or_default(), after.map(claim).unwrap_or_default());
        let networks: Vec<IpNetwork> = old.1.iter().chain(&new.1).copied().collect();
        let Some(hub) = after.or(before).filter(|_| old != new && !networks.is_empty()) else { return };
        if let Some(after) = after
            && old.1 != new.1
        {
            self.changed_views.note_viewer(&after.name, ViewerChange::OwnPart);
        }
        let others = self.nodes_of_role(Role::Hub).filter(|other| other.name != hub.name);
        let others: Vec<&NodeRecord> = others.filter(|other| !other.pod_networks().is_empty()).collect();
        let mut theirs = others.iter().flat_map(|other| other.pod_networks());
        if !theirs.any(|theirs| networks.iter().any(|network| overlap(network, theirs))) {
            return;
        }
        // Overlaps are a mistake and rare, so the hubs between which there are more of them are not
        // searched for.
        let names: Vec<NodeName> = others.iter().map(|other| other.name.clone()).collect();
        for name in after.map(|after| after.name.clone()).into_iter().chain(names) {
            self.changed_views.note_changed(&name);
            self.changed_views.note_viewer(&name, ViewerChange::OwnPart);
        }
    }

    /// Records that the holder of a segment changed: both the former and the new holder change, in
    /// their own views and in those of their viewers.
    fn note_segment(&mut self, rows: [Option<SegmentRecord>; 2]) {
        let holders: BTreeSet<NodeName> =
            rows.into_iter().flatten().filter(|row| row.released_at.is_none()).map(|row| row.node).collect();
        for holder in holders {
            let Some(record) = self.nodes.get(&holder) else { continue };
            if record.unreached_hubs().next().is_some() {
                self.note_cloud_nodes();
            }
            self.changed_views.note_changed(&holder);
            self.changed_views.note_viewer(&holder, ViewerChange::OwnPart);
        }
    }

    /// Returns the changes to all views since the last call.
    pub fn take_changed_views(&mut self) -> ChangedViews {
        std::mem::take(&mut self.changed_views)
    }
}
