//! Chooses the paths of a check. In a large cluster it chooses some of them at random, because the
//! number of paths grows with the square of the number of nodes.

use std::collections::BTreeSet;

use edge_types::connectivity::{ConnectivityPlan, ConnectivityRequest};
use edge_types::{Community, NodeName, Role};

use crate::state::{NodeRecord, State};

/// Maximum number of nodes in a check. If there are more, some are chosen at random, each together
/// with some of its peers. Otherwise, hardly any of the checked paths would be permitted.
const MOST_NODES: usize = 200;
/// Maximum number of peers that are chosen together with a node.
const PEERS_WITH_EACH: usize = 9;

/// A path from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The node that sends packets.
    pub from: NodeName,
    /// The node that answers.
    pub to: NodeName,
    /// Whether the two nodes may reach each other.
    pub permitted: bool,
}

/// The paths of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The extent of the check, for the operator.
    pub extent: ConnectivityPlan,
    /// The paths, sorted by the node that sends, then by the node that answers.
    pub paths: Vec<Path>,
}

/// The error for a request that names a node or a community that does not exist, or a node without
/// tunnels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownName {
    /// No node of this name is registered.
    #[error("no node {0} is registered; `edge-controller node list` shows those that are")]
    Node(NodeName),
    /// The node has no tunnels.
    #[error("node {0} has role cloud, and thus no tunnels; name edges and hubs")]
    CloudNode(NodeName),
    /// The community has no registered member.
    #[error("community {0} has no registered member; `edge-controller community list` shows all communities")]
    Community(Community),
    /// A path needs two nodes.
    #[error("only {0} is named, and a path needs two nodes; name another one, or nothing for all nodes")]
    OneNode(NodeName),
}

impl Plan {
    /// Chooses the paths between the nodes that the request names. Paths between two hubs are left
    /// out, because the cloud's own network carries them. Cloud nodes are left out, because they
    /// have no tunnels.
    ///
    /// # Errors
    /// Returns an error if the request names a cloud node, or a node or a community that does not
    /// exist.
    pub fn new(state: &State, request: &ConnectivityRequest) -> Result<Self, UnknownName> {
        let named = named(state, request)?;
        let nodes = sample_nodes(state, &named);
        let mut permitted = Vec::new();
        let mut forbidden = Vec::new();
        for from in &nodes {
            for to in nodes.iter().filter(|to| to.name != from.name) {
                let path = |permitted| Path { from: from.name.clone(), to: to.name.clone(), permitted };
                match state.is_peer(from, to) {
                    true => permitted.push(path(true)),
                    false if from.role == Role::Hub && to.role == Role::Hub => {}
                    false => forbidden.push(path(false)),
                }
            }
        }
        let of_paths = permitted.len() + forbidden.len();
        let most = usize::try_from(request.most_paths).unwrap_or(usize::MAX);
        // Permitted and forbidden paths get half of the places each. If one kind does not need its
        // half, the other kind gets the rest.
        let for_permitted = (most / 2).max(most.saturating_sub(forbidden.len())).max(1).min(permitted.len());
        let for_forbidden = most.saturating_sub(for_permitted);
        sample(&mut permitted, for_permitted);
        sample(&mut forbidden, for_forbidden);
        let mut paths = permitted;
        paths.append(&mut forbidden);
        paths.sort_by(|one, other| (&one.from, &one.to).cmp(&(&other.from, &other.to)));
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let extent = ConnectivityPlan {
            nodes: count(nodes.len()),
            of_nodes: count(named.len()),
            paths: count(paths.len()),
            of_paths: count(of_paths),
        };
        Ok(Self { extent, paths })
    }
}

/// Returns the names of the nodes that the request names, or of all edges and hubs.
fn named(state: &State, request: &ConnectivityRequest) -> Result<BTreeSet<NodeName>, UnknownName> {
    if request.nodes.is_empty() && request.communities.is_empty() {
        let all = state.nodes().filter(|node| node.role != Role::Cloud);
        return Ok(all.map(|node| node.name.clone()).collect());
    }
    let mut named = BTreeSet::new();
    for name in &request.nodes {
        let node = state.node(name).ok_or_else(|| UnknownName::Node(name.clone()))?;
        if node.role == Role::Cloud {
            return Err(UnknownName::CloudNode(name.clone()));
        }
        named.insert(name.clone());
    }
    for community in &request.communities {
        let members = state.communities().find(|(name, _)| *name == community).map(|(_, members)| members);
        let mut registered = members.into_iter().flatten().filter(|name| state.node(name).is_some()).peekable();
        if registered.peek().is_none() {
            return Err(UnknownName::Community(community.clone()));
        }
        named.extend(registered.cloned());
    }
    match named.first() {
        Some(only) if named.len() == 1 => Err(UnknownName::OneNode(only.clone())),
        _ => Ok(named),
    }
}

/// Returns the records of at most [`MOST_NODES`] of the nodes, sorted by name.
fn sample_nodes<'a>(state: &'a State, named: &BTreeSet<NodeName>) -> Vec<&'a NodeRecord> {
    let record = |name: &NodeName| state.node(name);
    if named.len() <= MOST_NODES {
        return named.iter().filter_map(record).collect();
    }
    let mut order: Vec<&NodeName> = named.iter().collect();
    fastrand::shuffle(&mut order);
    let mut chosen: BTreeSet<&NodeName> = BTreeSet::new();
    for node in order.into_iter().filter_map(record) {
        if chosen.len() >= MOST_NODES {
            break;
        }
        let mut peers: Vec<&NodeName> =
            state.peers_of(node).into_iter().filter(|peer| named.contains(*peer) && !chosen.contains(peer)).collect();
        sample(&mut peers, PEERS_WITH_EACH.min(MOST_NODES - 1 - chosen.len()));
        chosen.insert(&node.name);
        chosen.extend(peers);
    }
    chosen.into_iter().filter_map(record).collect()
}

/// Removes all but `count` elements, which are chosen at random.
fn sample<T>(all: &mut Vec<T>, count: usize) {
    if count < all.len() {
        fastrand::shuffle(all);
        all.truncate(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{CommunityRecord, Snapshot};

    /// Returns a state with these nodes, and with a community for each group of edges.
    fn state(hubs: usize, communities: &[&[&str]], alone: &[&str]) -> State {
        let edges = communities.iter().copied().flatten().chain(alone);
        let mut nodes: Vec<NodeRecord> =
            edges.map(|name| NodeRecord::new(name.parse().unwrap(), Role::Edge, 0)).collect();
        nodes.extend((0..hubs).map(|number| NodeRecord::new(format!("hub-{number}").parse().unwrap(), Role::Hub, 0)));
        nodes.push(NodeRecord::new("cloud-1".parse().unwrap(), Role::Cloud, 0));
        let records = communities.iter().enumerate().map(|(number, members)| {
            let members = members.iter().map(|name| name.parse().unwrap()).collect();
            CommunityRecord::new(format!("c{number}").parse().unwrap(), members)
        });
        State::load(Snapshot { nodes, communities: records.collect(), ..Snapshot::default() }, true)
    }

    fn request(nodes: &[&str], communities: &[&str], most_paths: u32) -> ConnectivityRequest {
        ConnectivityRequest {
            nodes: nodes.iter().map(|name| name.parse().unwrap()).collect(),
            communities: communities.iter().map(|name| name.parse().unwrap()).collect(),
            most_paths,
            count: 1,
        }
    }

    fn described(plan: &Plan) -> Vec<String> {
        let path = |path: &Path| format!("{} {} {}", path.from, if path.permitted { "to" } else { "not" }, path.to);
        plan.paths.iter().map(path).collect()
    }

    #[test]
    fn every_pair_is_checked_both_ways_but_two_hubs_and_cloud_nodes_are_left_out() {
        let state = state(2, &[&["a", "b"]], &["c"]);
        let plan = Plan::new(&state, &request(&[], &[], 1000)).unwrap();
        let expected = [
            "a to b",
            "a not c",
            "a to hub-0",
            "a to hub-1",
            "b to a",
            "b not c",
            "b to hub-0",
            "b to hub-1",
            "c not a",
            "c not b",
            "c to hub-0",
            "c to hub-1",
            "hub-0 to a",
            "hub-0 to b",
            "hub-0 to c",
            "hub-1 to a",
            "hub-1 to b",
            "hub-1 to c",
        ];
        assert_eq!(described(&plan), expected);
        assert_eq!(plan.extent, ConnectivityPlan { nodes: 5, of_nodes: 5, paths: 18, of_paths: 18 });
    }

    #[test]
    fn nodes_and_members_of_communities_are_chosen_by_name() {
        let state = state(1, &[&["a", "b"], &["c", "d"]], &[]);
        let plan = |nodes: &[&str], communities: &[&str]| {
            Plan::new(&state, &request(nodes, communities, 1000)).map(|plan| described(&plan))
        };
        assert_eq!(plan(&["a", "c"], &[]).unwrap(), ["a not c", "c not a"]);
        assert_eq!(plan(&[], &["c1"]).unwrap(), ["c to d", "d to c"]);
        assert_eq!(plan(&["c"], &["c1"]).unwrap(), ["c to d", "d to c"]);
        assert_eq!(plan(&["a"], &[]), Err(UnknownName::OneNode("a".parse().unwrap())));
        assert_eq!(plan(&["x"], &[]), Err(UnknownName::Node("x".parse().unwrap())));
        assert_eq!(plan(&["cloud-1"], &[]), Err(UnknownName::CloudNode("cloud-1".parse().unwrap())));
        assert_eq!(plan(&["a"], &["none"]), Err(UnknownName::Community("none".parse().unwrap())));
    }

    #[test]
    fn of_too_many_paths_some_of_each_kind_are_chosen() {
        let state = state(1, &[&["a", "b", "c", "d"]], &["e", "f", "g", "h"]);
        let kinds = |most| {
            let plan = Plan::new(&state, &request(&[], &[], most)).unwrap();
            let permitted = plan.paths.iter().filter(|path| path.permitted).count();
            let distinct: BTreeSet<String> = described(&plan).into_iter().collect();
            assert_eq!(distinct.len(), plan.paths.len());
            (permitted, plan.paths.len() - permitted, plan.extent.of_paths)
        };
        // 12 paths in the community, 16 paths to and from the hub, and 44 forbidden paths.
        assert_eq!(kinds(1000), (28, 44, 72));
        assert_eq!(kinds(72), (28, 44, 72));
        assert_eq!(kinds(70), (28, 42, 72));
        assert_eq!(kinds(20), (10, 10, 72));
        assert_eq!(kinds(1), (1, 0, 72));
    }

    #[test]
    fn of_ten_thousand_nodes_a_few_are_chosen_with_their_peers() {
        let names: Vec<String> = (0..10_000).map(|number| format!("e{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let pairs: Vec<&[&str]> = names.chunks(2).collect();
        let state = state(2, &pairs, &[]);
        let plan = Plan::new(&state, &request(&[], &[], 1000)).unwrap();
        let ConnectivityPlan { nodes, of_nodes, paths, of_paths } = plan.extent;
        assert_eq!((nodes, of_nodes, paths), (200, 10_002, 1000));
        assert!(of_paths < 200 * 200);
        let permitted: Vec<&Path> = plan.paths.iter().filter(|path| path.permitted).collect();
        assert_eq!(permitted.len(), 500);
        assert!(permitted.iter().any(|path| !path.to.as_str().starts_with("hub")), "edges that share a community");
    }
}
