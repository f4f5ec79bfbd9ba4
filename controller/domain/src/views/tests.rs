use std::collections::BTreeMap;
use std::sync::Arc;

use edge_types::api::ViewEvent;
use edge_types::name::COMMUNITY_LABEL;
use edge_types::{Community, CommunityTunnels};
use proptest::prelude::*;

use super::*;
use crate::ca::{Ca, Files};
use crate::clock::Clock;
use crate::registry::Registry;
use crate::segments::SegmentRecord;
use crate::state::{Change, CommunityRecord, NodeObject};
use crate::store::StoreError;
use crate::store::embedded::Embedded;

/// One event in the history of a cluster.
#[derive(Debug, Clone)]
enum Event {
    Change(Vec<Change>),
    /// Every view may have changed.
    Refresh,
}

fn name() -> impl Strategy<Value = NodeName> {
    (0..6u8).prop_map(|n| format!("n{n}").parse().unwrap())
}

fn label() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "alpha", "beta", "alpha_beta"])
}

fn node() -> impl Strategy<Value = Change> {
    let role = prop::sample::select(vec![Role::Edge, Role::Edge, Role::Edge, Role::Hub, Role::Hub, Role::Cloud]);
    // Some of them overlap, and one of them no hub fronts.
    let pods = vec!["10.244.0.0/23", "10.244.0.0/24", "10.244.1.0/24", "10.244.1.128/25", "10.245.0.0/24"];
    let pods = prop::collection::vec(prop::sample::select(pods), 0..3);
    let object = prop::option::of((label(), pods));
    let unreached = prop::collection::btree_set(name(), 0..2);
    let address = (0..3u8, unreached);
    (name(), role, label(), object, address, 0..2i64).prop_map(|(name, role, label, object, address, joined_at)| {
        let (address, unreached) = address;
        let mut record = NodeRecord::new(name, role, joined_at);
        record.set_labels([(COMMUNITY_LABEL.to_owned(), label.to_owned())].into()).unwrap();
        record.object = object.map(|(label, pods)| NodeObject {
            uid: "u".into(),
            communities: label.split('_').filter(|name| !name.is_empty()).map(|name| name.parse().unwrap()).collect(),
            pod_networks: pods.into_iter().map(|network| network.parse().unwrap()).collect(),
            ..NodeObject::default()
        });
        record.reported = vec![[192, 0, 2, address].into()];
        record.port = 4500;
        record.unreached_hubs = unreached;
        Change::PutNode(record)
    })
}

fn change() -> impl Strategy<Value = Change> {
    let network = || (0..4u8).prop_map(|n| format!("10.77.{n}.0/24").parse().unwrap());
    let segment = (network(), name(), prop::option::of(5..6i64)).prop_map(|(network, node, released)| {
        Change::PutSegment(SegmentRecord::new(network, node, "r".into(), 0, released))
    });
    let community = || prop::sample::select(vec!["alpha", "gamma"]).prop_map(|name| name.parse::<Community>().unwrap());
    let tunnels =
        prop::sample::select(vec![CommunityTunnels::Auto, CommunityTunnels::Eager, CommunityTunnels::OnDemand]);
    let list = (community(), prop::collection::btree_set(name(), 0..4), tunnels)
        .prop_map(|(name, members, tunnels)| Change::PutCommunity(CommunityRecord { name, members, tunnels }));
    prop_oneof![
        6 => node(),
        2 => name().prop_map(Change::DeleteNode),
        4 => segment,
        1 => network().prop_map(Change::DeleteSegment),
        2 => list,
        1 => community().prop_map(Change::DeleteCommunity),
    ]
}

/// Generates an event and the nodes that read their views after it.
fn step() -> impl Strategy<Value = (Event, Vec<bool>)> {
    let event = prop_oneof![
        15 => prop::collection::vec(change(), 1..4).prop_map(Event::Change),
        1 => Just(Event::Refresh),
    ];
    (event, prop::collection::vec(prop::bool::weighted(0.4), 6))
}

async fn view_builder() -> ViewBuilder {
    let directory = tempfile::tempdir().unwrap();
    let now = Clock::system().now();
    let ca = Ca::open(Box::new(Files::new(directory.path(), now)), None, now).await.unwrap();
    let networks = ClusterNetworks {
        ranges: vec!["10.77.0.0/16".parse().unwrap()],
        fronted: vec!["10.244.0.0/16".parse().unwrap()],
        hub_pod_networks: true,
        ..ClusterNetworks::default()
    };
    ViewBuilder::new(networks, SegmentPrefix::default(), 0, Arc::new(ca))
}

#[tokio::test]
async fn whatever_stands_in_a_record_peers_get_few_addresses_that_they_can_use_and_the_one_that_was_seen() {
    let builder = view_builder().await;
    let addresses = |record: &NodeRecord| {
        let endpoints = builder.endpoints(record);
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    let mut record = NodeRecord::new("a".parse().unwrap(), Role::Edge, 0);
    let public = ["127.0.0.1", "169.254.169.254:80", "10.244.0.1", "10.77.0.1", "203.0.113.1:4501", "203.0.113.2"];
    let public_addresses = public.map(|address| address.parse().unwrap()).into();
    record.object = Some(NodeObject { uid: "u".into(), public_addresses, ..NodeObject::default() });
    // More addresses than this release keeps, as an earlier release stored them.
    record.reported = (0..32).map(|n| [192, 0, 2, n].into()).chain(["::1".parse().unwrap()]).collect();
    record.observed = Some([198, 51, 100, 7].into());
    record.port = 4500;
    let expected = ["203.0.113.1:4501", "203.0.113.2:4500"].map(str::to_owned);
    let expected = expected.into_iter().chain((0..5).map(|n| format!("192.0.2.{n}:4500")));
    assert_eq!(addresses(&record), expected.chain(["198.51.100.7:4500".to_owned()]).collect::<Vec<_>>());
    record.observed = Some([127, 0, 0, 1].into());
    assert!(addresses(&record).iter().all(|address| !address.starts_with("127.")) && addresses(&record).len() == 8);
    // The address of a hub may lie in a network that hubs front, but not in a cluster range.
    record.role = Role::Hub;
    assert_eq!(addresses(&record)[0], "10.244.0.1:4500");
    assert!(!addresses(&record).contains(&"10.77.0.1:4500".to_owned()));
}

#[tokio::test]
async fn peers_get_the_mapped_addresses_that_they_can_use_beside_the_endpoints() {
    let (builder, name) = (view_builder().await, |name: &str| name.parse::<NodeName>().unwrap());
    let mut state = State::default();
    state.apply(Change::PutNode(NodeRecord::new(name("hub"), Role::Hub, 0)));
    let mut edge = NodeRecord::new(name("edge"), Role::Edge, 0);
    (edge.port, edge.observed) = (4500, Some([203, 0, 113, 7].into()));
    let unseen = edge.clone();
    edge.mapped = ["203.0.113.7:61000", "203.0.113.7:4500", "10.77.0.9:61000"].map(|at| at.parse().unwrap()).into();
    assert!(!edge.looks_like(&unseen), "its peers must hear of it");
    state.apply(Change::PutNode(edge));
    let view = builder.view(&state, &name("hub"), 1).unwrap();
    let mapped: Vec<String> = view.peers[0].mapped.iter().map(ToString::to_string).collect();
    assert_eq!(mapped, ["203.0.113.7:61000"], "neither what is known, nor an address of a pod");
}

#[tokio::test]
async fn cloud_nodes_alone_learn_which_segments_are_not_reached_through_a_hub() {
    let (builder, name) = (view_builder().await, |name: &str| name.parse::<NodeName>().unwrap());
    let mut state = State::default();
    for (node, role) in [("hub-1", Role::Hub), ("hub-2", Role::Hub), ("cloud", Role::Cloud), ("edge", Role::Edge)] {
        state.apply(Change::PutNode(NodeRecord::new(name(node), role, 0)));
    }
    let seen = |state: &State, node: &str| {
        let unreached = builder.view(state, &name(node), 1).unwrap().unreached_from;
        serde_json::to_string(&unreached).unwrap()
    };
    let mut report = |edge: u8, segments: u8| {
        let mut record = NodeRecord::new(name(&format!("edge-{edge}")), Role::Edge, 0);
        record.unreached_hubs = [name("hub-1")].into();
        for segment in 0..segments {
            let network = format!("10.77.{edge}.{}/32", segment).parse().unwrap();
            state.apply(Change::PutSegment(SegmentRecord::new(network, record.name.clone(), "r".into(), 0, None)));
        }
        state.apply(Change::PutNode(record));
        ["cloud", "hub-2", "edge"].map(|node| seen(&state, node))
    };
    let nothing = || "{}".to_owned();
    assert_eq!(report(0, 0), [nothing(), nothing(), nothing()], "it has no pods");
    assert_eq!(report(1, 2), [r#"{"hub-1":["10.77.1.0/32","10.77.1.1/32"]}"#.to_owned(), nothing(), nothing()]);
    for edge in 2..=63 {
        assert!(report(edge, 1)[0].contains(&format!(r#""10.77.{edge}.0/32""#)), "{edge}");
    }
    let all = [r#"{"hub-1":["10.77.0.0/16"]}"#.to_owned(), nothing(), nothing()];
    assert_eq!(report(1, 250), all, "too many segments");
    assert_eq!(report(64, 0), all, "too many edges");
    state.apply(Change::DeleteNode(name("hub-1")));
    assert_eq!(seen(&state, "cloud"), nothing(), "the hub is deregistered");
}

#[tokio::test]
async fn the_tcp_port_of_a_hub_is_passed_on_and_that_of_another_node_is_not() {
    let (builder, name) = (view_builder().await, |name: &str| name.parse::<NodeName>().unwrap());
    let mut state = State::default();
    for (node, role) in [("hub", Role::Hub), ("edge", Role::Edge)] {
        let mut record = NodeRecord::new(name(node), role, 0);
        (record.port, record.observed) = (4500, Some([203, 0, 113, 7].into()));
        let silent = record.clone();
        record.tcp_port = Some(443);
        assert!(!record.looks_like(&silent), "its peers must hear of it");
        state.apply(Change::PutNode(record));
    }
    let port_of_peer = |node: &str| builder.view(&state, &name(node), 1).unwrap().peers[0].tcp_port;
    assert_eq!((port_of_peer("edge"), port_of_peer("hub")), (Some(443), None));
}

#[tokio::test]
async fn a_hub_fronts_the_network_of_its_own_pods_unless_an_older_hub_has_it() {
    let (builder, name) = (view_builder().await, |name: &str| name.parse::<NodeName>().unwrap());
    let mut state = State::default();
    let put = |state: &mut State, node: &str, role: Role, joined_at: i64, pods: &[&str]| {
        let mut record = NodeRecord::new(name(node), role, joined_at);
        let pod_networks = pods.iter().map(|network| network.parse().unwrap()).collect();
        record.object = Some(NodeObject { uid: "u".into(), pod_networks, ..NodeObject::default() });
        state.apply(Change::PutNode(record));
    };
    let fronted = |state: &State, hub: &str| {
        let view = builder.view(state, &name("edge"), 1).unwrap();
        let peer = view.peers.iter().find(|peer| peer.name == name(hub)).unwrap();
        assert_eq!(peer.networks, builder.view(state, &name(hub), 1).unwrap().networks, "in its own view too");
        peer.networks.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    put(&mut state, "edge", Role::Edge, 0, &["10.244.8.0/24"]);
    put(&mut state, "cloud-1", Role::Hub, 1, &["10.244.1.0/24", "fd00:244:0:1::/64"]);
    put(&mut state, "cloud-3", Role::Hub, 2, &["10.244.3.0/24"]);
    assert!(
        builder.view(&state, &name("edge"), 1).unwrap().networks.is_empty(),
        "a node that is no hub fronts nothing"
    );
    // No hub of this cluster fronts an IPv6 network.
    assert_eq!(fronted(&state, "cloud-1"), ["10.244.0.0/16", "10.244.1.0/24"]);
    assert_eq!(fronted(&state, "cloud-3"), ["10.244.0.0/16", "10.244.3.0/24"]);
    // A hub that joined later takes nothing, and what it does not get it takes from nobody.
    put(&mut state, "a-hub", Role::Hub, 3, &["10.244.2.0/23", "10.244.9.0/24"]);
    put(&mut state, "cloud-2", Role::Hub, 4, &["10.244.2.0/24"]);
    assert_eq!(fronted(&state, "a-hub"), ["10.244.0.0/16", "10.244.9.0/24"]);
    assert_eq!(fronted(&state, "cloud-3"), ["10.244.0.0/16", "10.244.3.0/24"]);
    assert_eq!(fronted(&state, "cloud-2"), ["10.244.0.0/16", "10.244.2.0/24"]);
    // Of two hubs that joined in the same second, the first by name has the network.
    put(&mut state, "cloud-2", Role::Hub, 3, &["10.244.9.0/24"]);
    assert_eq!(fronted(&state, "cloud-2"), ["10.244.0.0/16"]);
    // The network is free once its hub is deregistered.
    state.take_changed_views();
    state.apply(Change::DeleteNode(name("a-hub")));
    assert_eq!(fronted(&state, "cloud-2"), ["10.244.0.0/16", "10.244.9.0/24"]);
    let changed = state.take_changed_views();
    assert!(changed.changed_nodes.contains(&name("cloud-2")) && changed.viewers.contains_key(&name("cloud-2")));
}

#[tokio::test]
async fn a_hub_keeps_the_networks_of_its_pods_when_its_record_comes_without_them() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let registry = Registry::start(store, Clock::system(), true).await.unwrap();
    let builder = view_builder().await;
    let name: NodeName = "hub".parse().unwrap();
    let networks_after = async |role: Role, uid: &str, pods: &[&str]| {
        let mut record = NodeRecord::new(name.clone(), role, 1);
        let pod_networks = pods.iter().map(|network| network.parse().unwrap()).collect();
        record.object = Some(NodeObject { uid: uid.into(), pod_networks, ..NodeObject::default() });
        registry.change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())]))).await.unwrap();
        let state = registry.read().await;
        builder.view(&state, &name, 1).unwrap().networks.len()
    };
    assert_eq!(networks_after(Role::Hub, "u", &["10.244.1.0/24"]).await, 2);
    assert_eq!(networks_after(Role::Hub, "u", &[]).await, 2, "an earlier release has written it");
    assert_eq!(networks_after(Role::Hub, "another", &[]).await, 1, "it is another Node");
    assert_eq!(networks_after(Role::Hub, "another", &["10.244.2.0/24"]).await, 2);
    networks_after(Role::Edge, "another", &[]).await;
    assert_eq!(networks_after(Role::Hub, "another", &[]).await, 1, "an edge's record keeps nothing");
}

/// Returns the line that a node reads on its stream.
fn line(builder: &ViewBuilder, state: &StateGuard<'_>, node: &NodeName, known: Option<u64>) -> Option<String> {
    let line = match known.and_then(|known| Some((known, state.changed_since(node, known)?))) {
        Some((known, touched)) => ViewEvent::Change(builder.view_change(state, node, known, &touched)?),
        None => ViewEvent::View { epoch: None, view: Box::new(builder.view_json(state, node)?) },
    };
    Some(serde_json::to_string(&line).unwrap())
}

async fn try_history(history: Vec<(Event, Vec<bool>)>) -> Result<(), TestCaseError> {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let registry = Registry::start(store, Clock::system(), true).await.unwrap();
    let builder = view_builder().await;
    let mut held: BTreeMap<NodeName, NodeView> = BTreeMap::new();
    for (event, looking) in history {
        match event {
            Event::Change(changes) => {
                registry.change(move |_| Ok::<_, StoreError>(((), changes.clone()))).await.unwrap()
            }
            Event::Refresh => registry.refresh().await,
        }
        let state = registry.read().await;
        held.retain(|name, _| state.node(name).is_some());
        for index in looking.into_iter().enumerate().filter_map(|(index, looks)| looks.then_some(index)) {
            let name: NodeName = format!("n{index}").parse().unwrap();
            let Some(expected) = builder.view(&state, &name, state.revision()) else { continue };
            let known = held.remove(&name);
            let line = line(&builder, &state, &name, known.as_ref().map(|known| known.version)).unwrap();
            let found = match serde_json::from_str::<ViewEvent>(&line).unwrap() {
                ViewEvent::View { view, .. } => *view,
                ViewEvent::Change(change) => change.apply_to(known.unwrap()).expect("a change of what it knows"),
                other => panic!("neither a view nor a change: {other:?}"),
            };
            prop_assert_eq!(&found, &expected, "{}", line);
            held.insert(name, found);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn changes_applied_to_an_old_view_make_the_new_one(history in prop::collection::vec(step(), 1..20)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(try_history(history))?;
    }
}
