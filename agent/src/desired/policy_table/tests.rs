use std::sync::Arc;

use edge_ike::config::{Mode, NextLayer};
use edge_xfrm::guard::{self, GuardConfig};
use edge_xfrm::{Direction, Reqid, Selector};
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::*;
use crate::desired::full_computation::desired_policies;
use crate::desired::tests::{config, edge_with_two_peers, network};
use crate::desired::{ChildEnds, Desired, DesiredTunnel, PeerReqids, PermittedTraffic, TunnelEnds, tunnel_policies};

/// Few networks and peers, so that policies of several peers and of the guard often have the same
/// key.
const NETWORKS: [&str; 8] = [
    "10.77.0.0/16",
    "10.77.1.0/26",
    "10.77.2.0/26",
    "10.244.0.0/16",
    "10.244.3.0/24",
    "0.0.0.0/0",
    "fd77::/48",
    "fd77::100/120",
];
const PEERS: usize = 5;

/// An event that changes the desired policies. Networks are indexes into [`NETWORKS`].
#[derive(Debug, Clone)]
enum TableChange {
    /// The view adds a peer, or changes the networks that it grants to the peer.
    Granted { peer: usize, local: Vec<usize>, remote: Vec<usize> },
    /// The peer becomes a static peer of the configuration.
    Negotiated { peer: usize },
    /// The view no longer names a peer.
    Removed { peer: usize },
    /// A tunnel comes up or goes down, or its addresses or selectors change.
    Ends { peer: usize, ends: Option<Ends> },
    /// The view's ranges, segments or networks change.
    Guard { ranges: Vec<usize>, segments: Vec<usize>, networks: Vec<usize> },
}

#[derive(Debug, Clone)]
struct Ends {
    remote: u8,
    local_selectors: Vec<usize>,
    remote_selectors: Vec<usize>,
    state: TunnelState,
}

fn some_networks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..NETWORKS.len(), 0..3)
}

fn change() -> impl Strategy<Value = TableChange> {
    let peer = || 0..PEERS;
    let state =
        prop::sample::select(vec![TunnelState::Up, TunnelState::Returned, TunnelState::Leaving, TunnelState::Down]);
    let ends = (0..3u8, some_networks(), some_networks(), state).prop_map(
        |(remote, local_selectors, remote_selectors, state)| Ends { remote, local_selectors, remote_selectors, state },
    );
    prop_oneof![
        3 => (peer(), some_networks(), some_networks())
            .prop_map(|(peer, local, remote)| TableChange::Granted { peer, local, remote }),
        1 => peer().prop_map(|peer| TableChange::Negotiated { peer }),
        1 => peer().prop_map(|peer| TableChange::Removed { peer }),
        4 => (peer(), prop::option::weighted(0.8, ends)).prop_map(|(peer, ends)| TableChange::Ends { peer, ends }),
        1 => (some_networks(), some_networks(), some_networks())
            .prop_map(|(ranges, segments, networks)| TableChange::Guard { ranges, segments, networks }),
    ]
}

fn networks(numbers: &[usize]) -> Vec<IpNetwork> {
    numbers.iter().map(|number| network(NETWORKS[*number])).collect()
}

fn name(peer: usize) -> PeerName {
    PeerName::new(&format!("edge-{peer}"))
}

/// Returns the reqids of a peer. Peers 3 and 4 are hubs.
fn reqids(name: &PeerName) -> Option<PeerReqids> {
    let number = name.as_str().trim_start_matches("edge-").parse().unwrap();
    let outbound = Reqid::tunnel(number)?;
    Some(PeerReqids { outbound, inbound: if number >= 3 { Reqid::FROM_HUBS } else { outbound } })
}

/// The input of both computations, and the table, which is updated with each change.
struct Model {
    template: DesiredTunnel,
    desired: Desired,
    ends: BTreeMap<PeerName, TunnelEnds>,
    states: BTreeMap<PeerName, TunnelState>,
    table: PolicyTable,
}

impl Model {
    fn new() -> Self {
        let desired = Desired::compute(&config(""), &[], Some(&edge_with_two_peers()));
        let template = DesiredTunnel::clone(desired.tunnels.values().next().unwrap());
        Self {
            template,
            desired: Desired::default(),
            ends: BTreeMap::new(),
            states: BTreeMap::new(),
            table: PolicyTable::default(),
        }
    }

    /// Applies a change and reports the affected peer to the table.
    fn apply(&mut self, change: &TableChange) {
        match change {
            TableChange::Granted { peer, local, remote } => {
                let (local, remote) = (networks(local), networks(remote));
                self.set_tunnel(*peer, PermittedTraffic::Granted { local, remote });
            }
            TableChange::Negotiated { peer } => self.set_tunnel(*peer, PermittedTraffic::Negotiated),
            TableChange::Removed { peer } => {
                self.desired.tunnels.remove(&name(*peer));
                self.update_peer(&name(*peer));
            }
            TableChange::Ends { peer, ends: None } => {
                self.ends.remove(&name(*peer));
                self.states.remove(&name(*peer));
                self.update_peer(&name(*peer));
            }
            TableChange::Ends { peer, ends: Some(ends) } => {
                let state = &ends.state;
                let ends = TunnelEnds {
                    local: "192.0.2.1".parse().unwrap(),
                    remote: [198, 51, 100, ends.remote].into(),
                    local_selectors: networks(&ends.local_selectors),
                    remote_selectors: networks(&ends.remote_selectors),
                    next_layer: NextLayer::ANY,
                    mode: Mode::Tunnel,
                    up: ends.state != TunnelState::Down,
                };
                self.states.insert(name(*peer), *state);
                self.ends.insert(name(*peer), ends);
                self.update_peer(&name(*peer));
            }
            TableChange::Guard { ranges, segments, networks: fronted } => {
                self.desired.guard = GuardConfig {
                    cluster_ranges: networks(ranges),
                    segments: networks(segments),
                    networks: networks(fronted),
                    bridge_addresses: vec![],
                    sources: Vec::new(),
                };
                self.table.set_guard(&guard::policies(&self.desired.guard).unwrap_or_default());
                for name in self.desired.tunnels.keys().cloned().collect::<Vec<_>>() {
                    self.update_peer(&name);
                }
            }
        }
    }

    fn set_tunnel(&mut self, peer: usize, permitted: PermittedTraffic) {
        let mut tunnel = DesiredTunnel { permitted, ..self.template.clone() };
        Arc::make_mut(&mut tunnel.peer).name = name(peer);
        self.desired.tunnels.insert(name(peer), tunnel.into());
        self.update_peer(&name(peer));
    }

    fn update_peer(&mut self, name: &PeerName) {
        let Some(tunnel) = self.desired.tunnels.get(name) else { return self.table.remove_peer(name) };
        let child = ChildEnds {
            child: tunnel.peer.child.name.clone(),
            reqids: reqids(name).unwrap(),
            ends: self.ends.get(name).cloned(),
        };
        let ranges = &self.desired.guard.cluster_ranges;
        let (policies, _) = tunnel_policies(tunnel, ranges, &[child]);
        self.table.set_peer(name, self.state(name), &policies);
    }

    fn state(&self, name: &PeerName) -> TunnelState {
        self.states.get(name).copied().unwrap_or(TunnelState::Down)
    }

    fn computed_from_nothing(&self) -> BTreeMap<PolicyKey, Policy> {
        desired_policies(&self.desired, reqids, |name| self.ends.get(name).cloned(), |name| self.state(name)).0
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn after_any_changes_the_table_is_what_is_computed_from_nothing(
        changes in prop::collection::vec((change(), any::<bool>()), 1..40)
    ) {
        let mut model = Model::new();
        let mut kernel: BTreeMap<PolicyKey, Policy> = BTreeMap::new();
        for (change, take) in changes {
            model.apply(&change);
            let expected = model.computed_from_nothing();
            let table: BTreeMap<PolicyKey, Policy> =
                model.table.policies().map(|policy| (policy.key(), *policy)).collect();
            prop_assert_eq!(&table, &expected, "after {:?}", change);
            // Changes may be taken after each event, or only after several events.
            if take {
                for change in model.table.take_changes() {
                    prop_assert_ne!(change.before, change.now);
                    prop_assert_eq!(kernel.get(&change.key).copied(), change.before);
                    match change.now {
                        Some(policy) => drop(kernel.insert(change.key, policy)),
                        None => drop(kernel.remove(&change.key)),
                    }
                }
                prop_assert_eq!(&kernel, &expected, "after {:?}", change);
            }
        }
    }
}

/// Returns the peer to which the kernel sends a packet; `None` if it sends the packet nowhere. The
/// policy with the smallest priority decides.
fn receiver(table: &PolicyTable, from: &str, to: &str) -> Option<u32> {
    let matches = |policy: &&Policy| {
        let (source, destination) = (policy.selector.source(), policy.selector.destination());
        policy.direction == Direction::Out
            && source.contains(from.parse().unwrap())
            && destination.contains(to.parse().unwrap())
    };
    match table.policies().filter(matches).min_by_key(|policy| policy.priority)?.action {
        edge_xfrm::Action::Protect(template) => template.reqid.tunnel_number(),
        edge_xfrm::Action::Allow | edge_xfrm::Action::Block => None,
    }
}

#[test]
fn packets_to_the_pods_of_a_hub_go_to_that_hub_and_through_another_one_while_it_has_no_tunnel() {
    let index = |text: &str| NETWORKS.iter().position(|network| *network == text).unwrap();
    let (own, shared, pods) = (index("10.77.1.0/26"), index("10.244.0.0/16"), index("10.244.3.0/24"));
    let (first, second) = (3, 4);
    let mut model = Model::new();
    let state = |peer: usize, state: TunnelState| {
        let ends = Ends { remote: 1, local_selectors: vec![], remote_selectors: vec![], state };
        TableChange::Ends { peer, ends: Some(ends) }
    };
    model.apply(&TableChange::Granted { peer: first, local: vec![own], remote: vec![shared] });
    model.apply(&TableChange::Granted { peer: second, local: vec![own], remote: vec![shared, pods] });
    model.apply(&state(first, TunnelState::Up));
    // From a pod, and from a process whose source is translated later.
    let receivers = |model: &Model| {
        let to = |to| ["10.77.1.1", "192.0.2.9"].map(|from| receiver(&model.table, from, to));
        assert_eq!(to("10.244.3.9")[0], to("10.244.3.9")[1]);
        assert_eq!(to("10.244.9.9")[0], to("10.244.9.9")[1]);
        [to("10.244.3.9")[0], to("10.244.9.9")[0]]
    };
    assert_eq!(receivers(&model), [Some(3), Some(3)], "the second hub was never up");
    model.apply(&state(second, TunnelState::Up));
    assert_eq!(receivers(&model), [Some(4), Some(3)]);
    model.apply(&state(second, TunnelState::Down));
    assert_eq!(receivers(&model), [Some(3), Some(3)]);
    // Packets from those pods are accepted from whichever hub they come.
    let inward = Selector::new(network("10.244.3.0/24"), network("10.77.1.0/26")).unwrap();
    assert!(model.table.get(&(Direction::In, inward)).is_some());
    model.apply(&state(second, TunnelState::Returned));
    assert_eq!(receivers(&model), [Some(4), Some(3)], "no other hub reaches them, so it is used at once");
    // Nothing leaves in clear while no hub has a tunnel.
    model.apply(&state(first, TunnelState::Down));
    model.apply(&state(second, TunnelState::Down));
    assert_eq!(receivers(&model), [Some(3), Some(3)]);
}

#[test]
fn a_peer_that_goes_up_takes_only_the_keys_of_those_it_competes_with() {
    let fronted = network("10.244.0.0/16");
    let inward = Selector::new(fronted, network("10.77.1.0/26")).unwrap();
    let policies = |reqid: u32| [Policy::protect_in(Direction::In, inward, Reqid::tunnel(reqid).unwrap())];
    let own = |number: u32| {
        let own = IpNetwork::new([10, 78, (number / 256) as u8, (number % 256) as u8].into(), 32).unwrap();
        [Policy::protect_in(
            Direction::In,
            Selector::new(own, network("10.77.1.0/26")).unwrap(),
            Reqid::tunnel(number).unwrap(),
        )]
    };
    let mut table = PolicyTable::default();
    for number in 0..1000 {
        table.set_peer(&PeerName::new(&format!("edge-{number}")), TunnelState::Up, &own(number));
    }
    let [first, second] = ["hub-1", "hub-2"].map(PeerName::new);
    table.set_peer(&first, TunnelState::Down, &policies(2001));
    table.set_peer(&second, TunnelState::Down, &policies(2002));
    assert_eq!(table.take_changes().len(), 1001);
    assert_eq!(table.get(&policies(2001)[0].key()), Some(&policies(2001)[0]));
    table.set_peer(&second, TunnelState::Up, &policies(2002));
    let changes = table.take_changes();
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].before, changes[0].now), (Some(policies(2001)[0]), Some(policies(2002)[0])));
    // The policies of a hub that has just come back do not replace the policies of another hub.
    table.set_peer(&first, TunnelState::Returned, &policies(2001));
    assert!(table.take_changes().is_empty());
    // A tunnel that comes up and goes down again between two calls causes no change.
    table.set_peer(&first, TunnelState::Up, &policies(2001));
    table.set_peer(&first, TunnelState::Down, &policies(2001));
    assert!(table.take_changes().is_empty());
}
