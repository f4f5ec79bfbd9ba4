//! Computes the nodes that a node sees, the nodes that see it, and the node's groups, all by the
//! rule in [`Visibility`].

use std::collections::BTreeSet;

use edge_types::NodeName;

use super::visibility::{Visibility, VisibilityGroup, roles_that_see};
use super::{NodeRecord, State};

impl State {
    /// Returns whether `node` has `peer` in its view.
    pub fn is_peer(&self, node: &NodeRecord, peer: &NodeRecord) -> bool {
        let (rule, peer_rule) = (Visibility::of(node.role), Visibility::of(peer.role));
        let share_a_community = || {
            rule.joins_communities
                && peer_rule.joins_communities
                && self
                    .each_community_of(node)
                    .any(|of_node| self.each_community_of(peer).any(|other| other == of_node))
        };
        node.name != peer.name && (rule.sees(peer.role) || share_a_community())
    }

    /// Returns the nodes that a node has in its view.
    pub fn peers_of(&self, node: &NodeRecord) -> BTreeSet<&NodeName> {
        let groups = self.groups_seen_by(node);
        let peers = groups.iter().flat_map(|group| self.group_members(group));
        peers.filter(|peer| **peer != node.name).collect()
    }

    /// Returns the groups to which a node belongs.
    pub fn groups_of(&self, node: &NodeRecord) -> Vec<VisibilityGroup> {
        let of_role = roles_that_see(node.role).next().map(|_| VisibilityGroup::Role(node.role));
        of_role.into_iter().chain(self.community_groups(node)).collect()
    }

    /// Returns the groups that a node sees. All of its peers are in them.
    pub fn groups_seen_by(&self, node: &NodeRecord) -> Vec<VisibilityGroup> {
        let roles = Visibility::of(node.role).sees_roles.iter().copied().map(VisibilityGroup::Role);
        roles.chain(self.community_groups(node)).collect()
    }

    /// Returns the groups of the communities of which a node is a member. The members of these
    /// communities see the groups.
    pub(super) fn community_groups(&self, node: &NodeRecord) -> impl Iterator<Item = VisibilityGroup> + use<> {
        let communities = Visibility::of(node.role).joins_communities.then(|| self.communities_of(node));
        communities.into_iter().flatten().map(VisibilityGroup::Community)
    }

    /// Returns the nodes that see a group. The members of a community are among the nodes that see
    /// its group, although no member sees itself.
    pub fn group_viewers<'a>(&'a self, group: &VisibilityGroup) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
        match group {
            VisibilityGroup::Role(role) => Box::new(roles_that_see(*role).flat_map(|role| self.index.of_role(role))),
            VisibilityGroup::Community(community) => Box::new(self.index.members(community)),
        }
    }

    /// Returns the nodes in a group.
    fn group_members<'a>(&'a self, group: &VisibilityGroup) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
        match group {
            VisibilityGroup::Role(role) => Box::new(self.index.of_role(*role)),
            VisibilityGroup::Community(community) => Box::new(self.index.members(community)),
        }
    }

    /// Returns the number of nodes in a group.
    pub fn group_size(&self, group: &VisibilityGroup) -> usize {
        match group {
            VisibilityGroup::Role(role) => self.index.count_of_role(*role),
            VisibilityGroup::Community(community) => self.index.count_members(community),
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_types::Role;
    use edge_types::name::COMMUNITY_LABEL;

    use super::super::visibility::ROLES;
    use super::super::{Change, CommunityRecord};
    use super::*;

    /// Whether a node of the first role sees one of the second: always, never, or only if both are
    /// members of one community. The table is written from the architecture documentation,
    /// independently of the code.
    const EXPECTED: [(Role, Role, &str); 9] = [
        (Role::Edge, Role::Edge, "in one community"),
        (Role::Edge, Role::Hub, "always"),
        (Role::Edge, Role::Cloud, "never"),
        (Role::Hub, Role::Edge, "always"),
        (Role::Hub, Role::Hub, "never"),
        (Role::Hub, Role::Cloud, "never"),
        (Role::Cloud, Role::Edge, "never"),
        (Role::Cloud, Role::Hub, "always"),
        (Role::Cloud, Role::Cloud, "never"),
    ];

    /// Builds a cluster with one node of each role in no community, one in alpha, one in beta and
    /// one in both. The operator lists `edge-none`, `edge-beta`, `hub-none` and `cloud-none` in
    /// gamma.
    fn cluster() -> State {
        let mut state = State::default();
        for role in ROLES {
            for label in ["", "alpha", "beta", "alpha_beta"] {
                let name = format!("{}-{}", role.as_str(), if label.is_empty() { "none" } else { label });
                let mut record = NodeRecord::new(name.replace('_', "-").parse().unwrap(), role, 0);
                record.set_labels([(COMMUNITY_LABEL.to_owned(), label.to_owned())].into()).unwrap();
                state.apply(Change::PutNode(record));
            }
        }
        let members = ["edge-none", "edge-beta", "hub-none", "cloud-none"].map(|name| name.parse().unwrap());
        state.apply(Change::PutCommunity(CommunityRecord::new("gamma".parse().unwrap(), members.into())));
        state
    }

    fn expected(viewer: &NodeRecord, peer: &NodeRecord) -> bool {
        // Computed independently of the code: edge-none and edge-beta share gamma, the other nodes
        // share communities by label.
        let communities = |node: &NodeRecord| match node.name.as_str().split_once('-').unwrap().1 {
            "none" => vec!["gamma"],
            "alpha" => vec!["alpha"],
            "beta" => vec!["beta", "gamma"],
            "alpha-beta" => vec!["alpha", "beta"],
            other => panic!("{other}"),
        };
        let rule = EXPECTED.iter().find(|(one, other, _)| (*one, *other) == (viewer.role, peer.role)).unwrap().2;
        viewer.name != peer.name
            && match rule {
                "always" => true,
                "in one community" => communities(viewer).iter().any(|name| communities(peer).contains(name)),
                _ => false,
            }
    }

    #[test]
    fn peers_viewers_and_groups_agree_with_the_table_for_all_pairs_of_roles() {
        let state = cluster();
        let mut pairs = BTreeSet::new();
        for viewer in state.nodes() {
            for peer in state.nodes() {
                let (sees, pair) = (expected(viewer, peer), format!("{} sees {}", viewer.name, peer.name));
                pairs.insert((viewer.role, peer.role, sees));
                assert_eq!(state.is_peer(viewer, peer), sees, "is_peer: {pair}");
                assert_eq!(state.peers_of(viewer).contains(&peer.name), sees, "peers_of: {pair}");
                if viewer.name == peer.name {
                    continue;
                }
                let (of_peer, seen) = (state.groups_of(peer), state.groups_seen_by(viewer));
                assert_eq!(of_peer.iter().any(|group| seen.contains(group)), sees, "groups_seen_by: {pair}");
                let heard = of_peer.iter().any(|group| state.group_viewers(group).any(|name| *name == viewer.name));
                assert_eq!(heard, sees, "group_viewers: {pair}");
            }
        }
        // Every pair of roles occurs. For the pair whose visibility depends on communities, both
        // results occur.
        assert_eq!(pairs.len(), EXPECTED.len() + 1, "{pairs:?}");
    }

    #[test]
    fn a_group_has_the_members_that_it_counts_and_each_knows_that_it_is_in_it() {
        let state = cluster();
        let groups: BTreeSet<VisibilityGroup> = state.nodes().flat_map(|node| state.groups_of(node)).collect();
        let named = |group: &VisibilityGroup| match group {
            VisibilityGroup::Role(role) => role.as_str().to_owned(),
            VisibilityGroup::Community(community) => community.to_string(),
        };
        let sizes: Vec<(String, usize)> = groups.iter().map(|group| (named(group), state.group_size(group))).collect();
        let expected = [("edge", 4), ("hub", 4), ("alpha", 2), ("beta", 2), ("gamma", 2)];
        assert_eq!(sizes, expected.map(|(name, size)| (name.to_owned(), size)), "no node sees a cloud node");
        for group in &groups {
            let members: BTreeSet<&NodeName> = state.group_members(group).collect();
            let known = state.nodes().filter(|node| state.groups_of(node).contains(group)).map(|node| &node.name);
            assert_eq!(members, known.collect(), "{group:?}");
            assert_eq!(members.len(), state.group_size(group), "{group:?}");
        }
    }
}
