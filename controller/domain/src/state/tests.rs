use edge_types::CommunityTunnels;

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
    state.take_changed_views();
    state
}

#[test]
fn peers_are_hubs_and_members_of_the_same_communities() {
    let state = cluster();
    let peers =
        |name: &str| names(state.peers_of(state.node(&name.parse().unwrap()).unwrap()).into_iter().cloned().collect());
    assert_eq!(peers("a1"), ["a2", "hub"]);
    assert_eq!(peers("a2"), ["a1", "b1", "hub"]);
    assert_eq!(peers("c1"), ["hub"]);
    assert_eq!(peers("hub"), ["a1", "a2", "b1", "c1"]);
    assert_eq!(peers("cloud"), ["hub"]);
}

/// Returns one line for each changed view: the viewer, `self` if only its own part changed, `all`
/// if it gets the whole view, and the peers that changed.
fn changed_views(state: &mut State) -> Vec<String> {
    let ChangedViews { changed_nodes, mut moved, viewers } = state.take_changed_views();
    for peer in changed_nodes {
        for group in state.groups_of(state.node(&peer).unwrap()) {
            moved.entry(group).or_default().insert(peer.clone());
        }
    }
    let mut lines: BTreeMap<NodeName, BTreeSet<NodeName>> = BTreeMap::new();
    for (group, peers) in moved {
        for viewer in state.group_viewers(&group) {
            let others = peers.iter().filter(|peer| *peer != viewer).cloned();
            lines.entry(viewer.clone()).or_default().extend(others);
        }
    }
    lines.extend(
        viewers
            .keys()
            .filter(|name| !lines.contains_key(*name))
            .map(|name| (name.clone(), [].into()))
            .collect::<Vec<_>>(),
    );
    let show = |(viewer, peers): (NodeName, BTreeSet<NodeName>)| match viewers.get(&viewer) {
        Some(ViewerChange::WholeView | ViewerChange::Registered) => Some(format!("{viewer}: all")),
        None if peers.is_empty() => None,
        own => {
            let own = own.map(|_| "self".to_owned());
            let parts: Vec<String> = own.into_iter().chain(peers.into_iter().map(String::from)).collect();
            Some(format!("{viewer}: {}", parts.join(" ")))
        }
    };
    lines.into_iter().filter_map(show).collect()
}

#[test]
fn a_change_alters_only_the_views_in_which_the_node_is() {
    let mut state = cluster();
    let mut a1 = state.node(&"a1".parse().unwrap()).unwrap().clone();
    state.apply(Change::PutNode(a1.clone()));
    assert!(changed_views(&mut state).is_empty(), "nothing changed");
    a1.reported = vec!["192.0.2.1".parse().unwrap()];
    a1.port = 4500;
    state.apply(Change::PutNode(a1));
    assert_eq!(changed_views(&mut state), ["a2: a1", "hub: a1"]);
    state.apply(Change::PutNode(node("b1", Role::Edge, "alpha")));
    assert_eq!(changed_views(&mut state), ["a1: b1", "a2: b1", "b1: all"], "the hub sees b1 as before");
    state.apply(Change::DeleteNode("a2".parse().unwrap()));
    assert_eq!(changed_views(&mut state), ["a1: a2", "b1: a2", "hub: a2"]);
    state.apply(Change::DeleteNode("c1".parse().unwrap()));
    state.apply(Change::PutNode(node("c1", Role::Cloud, "")));
    let c1 = state.take_changed_views().viewers[&"c1".parse::<NodeName>().unwrap()];
    assert_eq!(c1, ViewerChange::Registered, "nothing of what the former c1 saw counts for this one");
    assert_eq!(state.communities().count(), 1);
}

#[test]
fn a_listed_community_counts_as_a_label_does_and_may_list_nodes_before_they_join() {
    let mut state = cluster();
    let gamma = |members: &[&str]| {
        let members = members.iter().map(|name| name.parse().unwrap()).collect();
        Change::PutCommunity(CommunityRecord::new("gamma".parse().unwrap(), members))
    };
    state.apply(gamma(&["c1", "later"]));
    assert_eq!(changed_views(&mut state), ["c1: all"]);
    state.apply(Change::PutNode(node("later", Role::Edge, "")));
    assert_eq!(changed_views(&mut state), ["c1: later", "hub: later", "later: all"]);
    state.apply(gamma(&["c1", "a1", "later"]));
    assert_eq!(changed_views(&mut state), ["a1: all", "c1: a1", "later: a1"]);
    state.apply(Change::DeleteCommunity("gamma".parse().unwrap()));
    let peers = |name: &str| names(state.peers_of(&state.nodes[&name.parse().unwrap()]).into_iter().cloned().collect());
    assert_eq!(
        (peers("c1"), peers("later"), peers("a1")),
        (vec!["hub".into()], vec!["hub".into()], vec!["a2".into(), "hub".into()])
    );
}

#[test]
fn a_list_of_thousands_of_members_is_recorded_once_for_the_community_and_not_once_for_each_pair() {
    let mut state = State::default();
    let members: BTreeSet<NodeName> = (0..3000).map(|n| format!("n{n}").parse().unwrap()).collect();
    members.iter().for_each(|name| state.apply(Change::PutNode(node(name.as_str(), Role::Edge, ""))));
    state.take_changed_views();
    let community = CommunityRecord::new("alpha".parse().unwrap(), members.clone());
    for change in [Change::PutCommunity(community), Change::DeleteCommunity("alpha".parse().unwrap())] {
        state.apply(change);
        let changed = state.take_changed_views();
        assert_eq!(changed.peers().count(), members.len());
        assert_eq!(changed.viewers.len(), members.len());
        assert!(changed.viewers.values().all(|change| *change == ViewerChange::WholeView));
    }
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
fn a_segment_that_changes_hands_alters_the_views_of_both_holders_and_of_their_viewers() {
    let mut state = cluster();
    let row = |node: &str, released_at| {
        let network = "10.77.0.0/26".parse().unwrap();
        SegmentRecord::new(network, node.parse().unwrap(), "r".into(), 0, released_at)
    };
    state.apply(Change::GrantSegment(row("a1", None)));
    assert_eq!(changed_views(&mut state), ["a1: self", "a2: a1", "hub: a1"]);
    state.apply(Change::PutSegment(row("b1", None)));
    assert_eq!(changed_views(&mut state), ["a1: self", "a2: a1 b1", "b1: self", "hub: a1 b1"]);
    state.apply(Change::PutSegment(row("b1", Some(5))));
    assert_eq!(changed_views(&mut state), ["a2: b1", "b1: self", "hub: b1"]);
    state.apply(Change::DeleteSegment(row("b1", None).network));
    assert!(changed_views(&mut state).is_empty());
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
        Change::GrantSegment(SegmentRecord::new(network, "new".parse().unwrap(), "r".into(), 1, None)),
        Change::PutCommunity(CommunityRecord::new("gamma".parse().unwrap(), members)),
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

#[test]
fn a_decision_about_a_communitys_tunnels_changes_its_members_for_members_and_not_for_hubs() {
    let mut state = cluster();
    let set = |name: &str, members: &[&str], tunnels| {
        let members = members.iter().map(|name| name.parse().unwrap()).collect();
        Change::PutCommunity(CommunityRecord { name: name.parse().unwrap(), members, tunnels })
    };
    let decided = |state: &State, name: &str| {
        let decided = state.on_demand_in(&state.nodes[&name.parse::<NodeName>().unwrap()]);
        decided.into_iter().map(|(name, waits)| format!("{name} {waits}")).collect::<Vec<_>>()
    };
    // a1 and a2 are members of alpha by their labels. b1 sees a2 through beta.
    state.apply(set("alpha", &[], CommunityTunnels::OnDemand));
    assert_eq!(changed_views(&mut state), ["a1: a2", "a2: a1", "b1: a2"]);
    assert_eq!((decided(&state, "a1"), decided(&state, "b1")), (vec!["alpha true".to_owned()], vec![]));
    // One that enters is changed for those who knew it, by list or by label.
    state.apply(set("alpha", &["b1"], CommunityTunnels::OnDemand));
    assert_eq!(changed_views(&mut state), ["a1: b1", "a2: b1", "b1: all"]);
    state.apply(Change::PutNode(node("c1", Role::Edge, "alpha")));
    state.take_changed_views();
    state.apply(Change::PutNode(node("c1", Role::Edge, "")));
    assert_eq!(changed_views(&mut state), ["a1: c1", "a2: c1", "b1: c1", "c1: all"]);
    // Another decision, and one that leaves at the same time.
    state.apply(set("alpha", &[], CommunityTunnels::Eager));
    assert_eq!(changed_views(&mut state), ["a1: a2 b1", "a2: a1 b1", "b1: all"]);
    assert_eq!((decided(&state, "a1"), decided(&state, "b1")), (vec!["alpha false".to_owned()], vec![]));
    state.apply(Change::DeleteCommunity("alpha".parse().unwrap()));
    assert_eq!(changed_views(&mut state), ["a1: a2", "a2: a1", "b1: a2"]);
    assert_eq!(decided(&state, "a1"), [""; 0]);
    // Hubs are members of no community.
    state.apply(set("alpha", &["hub"], CommunityTunnels::Eager));
    assert_eq!(decided(&state, "hub"), [""; 0]);
}
