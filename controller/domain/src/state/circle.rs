//! Who sees whom, by groups: a node that looks different is noted once for each of its groups, and
//! not once for each of a thousand viewers.

use edge_types::{Community, NodeName, Role};

use super::{NodeRecord, State};

/// Nodes that are seen by the same others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Circle {
    /// All hubs: edges and cloud nodes see them.
    Hubs,
    /// All edges: hubs see them.
    Edges,
    /// The members of a community, who see each other.
    Members(Community),
}

impl State {
    /// Circles in which a node is seen.
    pub fn circles_of(&self, node: &NodeRecord) -> Vec<Circle> {
        match node.role {
            Role::Hub => vec![Circle::Hubs],
            Role::Edge => {
                let members = self.communities_of(node).into_iter().map(Circle::Members);
                std::iter::once(Circle::Edges).chain(members).collect()
            }
            Role::Cloud => Vec::new(),
        }
    }

    /// Circles that a node sees: all of its peers are in them.
    pub fn circles_seen_by(&self, node: &NodeRecord) -> Vec<Circle> {
        match node.role {
            Role::Hub => vec![Circle::Edges],
            Role::Edge => {
                let members = self.communities_of(node).into_iter().map(Circle::Members);
                std::iter::once(Circle::Hubs).chain(members).collect()
            }
            Role::Cloud => vec![Circle::Hubs],
        }
    }

    /// Nodes that see a circle.
    pub fn viewers_of<'a>(&'a self, circle: &Circle) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
        match circle {
            Circle::Hubs => Box::new(self.index.of_role(Role::Edge).chain(self.index.of_role(Role::Cloud))),
            Circle::Edges => Box::new(self.index.of_role(Role::Hub)),
            Circle::Members(community) => Box::new(self.index.members(community)),
        }
    }

    /// How many nodes are in a circle.
    pub fn size_of(&self, circle: &Circle) -> usize {
        match circle {
            Circle::Hubs => self.index.count_of_role(Role::Hub),
            Circle::Edges => self.index.count_of_role(Role::Edge),
            Circle::Members(community) => self.index.count_members(community),
        }
    }
}
