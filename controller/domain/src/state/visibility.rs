//! The rule that decides which nodes a node has in its view.
//!
//! [`Visibility::of`] is the only definition of the rule. The peers of a node, its viewers and its
//! groups follow from it.

use edge_types::{Community, Role};

/// The nodes that nodes of one role have in their views.
pub(super) struct Visibility {
    /// The roles whose nodes are visible to every node of this role.
    pub(super) sees_roles: &'static [Role],
    /// Whether nodes of this role can be members of communities. Members of one community see each
    /// other.
    pub(super) joins_communities: bool,
}

/// Every role, for the rules that are read from the peer's side.
pub(super) const ROLES: [Role; 3] = [Role::Edge, Role::Hub, Role::Cloud];

impl Visibility {
    /// Returns the rule for a role. No node sees itself.
    pub(super) const fn of(role: Role) -> Self {
        match role {
            Role::Edge => Self { sees_roles: &[Role::Hub], joins_communities: true },
            Role::Hub => Self { sees_roles: &[Role::Edge], joins_communities: false },
            Role::Cloud => Self { sees_roles: &[Role::Hub], joins_communities: false },
        }
    }

    /// Returns whether a node sees every node of this role.
    pub(super) fn sees(&self, role: Role) -> bool {
        self.sees_roles.contains(&role)
    }
}

/// Returns the roles of the nodes that see every node of this role.
pub(super) fn roles_that_see(role: Role) -> impl Iterator<Item = Role> {
    ROLES.into_iter().filter(move |viewer| Visibility::of(*viewer).sees(role))
}

/// A set of nodes with the same viewers. A change of one node is recorded once for each of its
/// groups, and not once for each of a thousand viewers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VisibilityGroup {
    /// All nodes of a role.
    Role(Role),
    /// The members of a community.
    Community(Community),
}
