//! The rule by which nodes have others in their views.
//!
//! [`Visibility::of`] is the only place that says it. The peers of a node, its viewers and its
//! groups follow from it.

use edge_types::{Community, Role};

/// What nodes of one role have in their views.
pub(super) struct Visibility {
    /// They see every node of these roles.
    pub(super) sees_roles: &'static [Role],
    /// They are members of communities: members of one community see each other.
    pub(super) joins_communities: bool,
}

/// Every role, for the rules that are read from the peer's side.
pub(super) const ROLES: [Role; 3] = [Role::Edge, Role::Hub, Role::Cloud];

impl Visibility {
    /// The rule for a role. No node sees itself.
    pub(super) const fn of(role: Role) -> Self {
        match role {
            Role::Edge => Self { sees_roles: &[Role::Hub], joins_communities: true },
            Role::Hub => Self { sees_roles: &[Role::Edge], joins_communities: false },
            Role::Cloud => Self { sees_roles: &[Role::Hub], joins_communities: false },
        }
    }

    /// Whether a node sees every node of this role.
    pub(super) fn sees(&self, role: Role) -> bool {
        self.sees_roles.contains(&role)
    }
}

/// Roles of the nodes that see every node of this role.
pub(super) fn roles_that_see(role: Role) -> impl Iterator<Item = Role> {
    ROLES.into_iter().filter(move |viewer| Visibility::of(*viewer).sees(role))
}

/// Nodes that the same others see. A change of one node is recorded once for each of its groups,
/// and not once for each of a thousand viewers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VisibilityGroup {
    /// All nodes of a role.
    Role(Role),
    /// The members of a community.
    Community(Community),
}
