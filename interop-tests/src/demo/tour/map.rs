//! Draws a map of nodes, communities and tunnels.

use std::fmt;

/// A node of the map.
pub(super) struct MapNode {
    pub(super) name: String,
    pub(super) role: String,
    pub(super) communities: Vec<String>,
    pub(super) segments: Vec<String>,
    pub(super) connected: bool,
    /// The peers' names, and whether the node reports that the tunnel to the peer is up.
    pub(super) tunnels: Vec<(String, bool)>,
}

/// The nodes, first hubs and cloud nodes, then edges by community.
pub(super) struct Map {
    nodes: Vec<MapNode>,
}

impl Map {
    pub(super) fn new(mut nodes: Vec<MapNode>) -> Self {
        let order = |node: &MapNode| (node.role == "edge", node.communities.is_empty());
        nodes.sort_by(|one, other| {
            let key = |node: &MapNode| (order(node), node.communities.clone(), node.name.clone());
            key(one).cmp(&key(other))
        });
        Self { nodes }
    }

    /// Returns whether both nodes report that their tunnel is up.
    pub(super) fn is_up(&self, one: &str, other: &str) -> bool {
        self.reported(one, other) == Some(true) && self.reported(other, one) == Some(true)
    }

    /// Returns what a node reports about its tunnel to a peer; `None` without a tunnel.
    fn reported(&self, node: &str, peer: &str) -> Option<bool> {
        let node = self.nodes.iter().find(|candidate| candidate.name == node)?;
        node.tunnels.iter().find(|(name, _)| name == peer).map(|(_, up)| *up)
    }

    fn group(node: &MapNode) -> String {
        match (node.role.as_str(), node.communities.as_slice()) {
            ("edge", []) => "edges without a community".to_owned(),
            ("edge", all) => format!("community {}", all.join(" and ")),
            _ => "the cloud".to_owned(),
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or(0);
        let mut last = String::new();
        for node in &self.nodes {
            let group = Self::group(node);
            if group != last {
                writeln!(f, "  {group}")?;
                last = group;
            }
            let state = if node.connected { "connected" } else { "not connected" };
            let segments = if node.segments.is_empty() { "no segment".to_owned() } else { node.segments.join(" ") };
            writeln!(f, "    {:width$}  {:5}  {state:13}  {segments}", node.name, node.role)?;
        }
        writeln!(f, "\n  tunnels: === up, -/- not up")?;
        for (index, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[index + 1..] {
                let either = self.reported(&node.name, &other.name).or(self.reported(&other.name, &node.name));
                if either.is_some() {
                    let line = if self.is_up(&node.name, &other.name) { "===" } else { "-/-" };
                    writeln!(f, "    {:width$} {line} {}", node.name, other.name)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: &str, community: &str, tunnels: &[(&str, bool)]) -> MapNode {
        MapNode {
            name: name.into(),
            role: role.into(),
            communities: Some(community.to_owned()).filter(|name| !name.is_empty()).into_iter().collect(),
            segments: vec![],
            connected: name != "c",
            tunnels: tunnels.iter().map(|(peer, up)| ((*peer).to_owned(), *up)).collect(),
        }
    }

    #[test]
    fn nodes_stand_with_their_community_and_a_tunnel_is_up_if_both_ends_say_so() {
        let map = Map::new(vec![
            node("c", "edge", "", &[("hub", true)]),
            node("b", "edge", "alpha", &[("hub", true), ("a", true)]),
            node("hub", "hub", "", &[("a", true), ("b", false)]),
            node("a", "edge", "alpha", &[("hub", true), ("b", true)]),
        ]);
        let expected = "  the cloud\n    hub  hub    connected      no segment\n  community alpha\n    a    edge   connected      no segment\n    \
                        b    edge   connected      no segment\n  edges without a community\n    c    edge   not connected  no segment\n\n  \
                        tunnels: === up, -/- not up\n    hub === a\n    hub -/- b\n    hub -/- c\n    a   === b\n";
        assert_eq!(map.to_string(), expected);
        assert!(map.is_up("b", "a") && !map.is_up("hub", "c") && !map.is_up("a", "c"));
    }
}
