use edge_ike::ChildName;
use edge_types::Role;
use edge_xfrm::events::{Event, EventSocket};
use edge_xfrm::{Reqid, Selector};
use interop_tests::netns::{is_in_namespaces, is_root_or_skips, passes_in_namespaces, run};

use super::*;
use crate::config::DEFAULT_CHILD;
use crate::desired::tests::{config, membership, peer};
use crate::desired::{PeerReqids, TunnelEnds};

const COUNTS: &str = "tunnels::kernel_policies::tests::requests_among_ten_and_among_a_thousand";
const FOREIGN: &str = "tunnels::kernel_policies::tests::policies_beside_a_foreign_one";
const GUARDS: &str = "tunnels::kernel_policies::tests::guards_that_are_impossible_or_not_desired";
const KNOWN: DesiredCompleteness = DesiredCompleteness { complete: true, settled: true };

#[test]
fn an_event_of_one_of_a_thousand_peers_sends_the_kernel_as_many_requests_as_of_one_of_ten() {
    if is_root_or_skips() {
        passes_in_namespaces(COUNTS);
    }
}

#[test]
fn a_foreign_policy_stays_and_ours_is_installed_when_it_is_gone() {
    if is_root_or_skips() {
        passes_in_namespaces(FOREIGN);
    }
}

#[test]
fn the_last_guard_that_was_possible_stays_and_a_former_one_is_deleted_when_its_time_is_over() {
    if is_root_or_skips() {
        passes_in_namespaces(GUARDS);
    }
}

fn hub(name: &PeerName) -> bool {
    name.as_str().starts_with("hub-")
}

/// An edge with two hubs that front the same network, and with other edges as peers.
struct Node {
    desired: Desired,
    ends: BTreeMap<PeerName, TunnelEnds>,
    policies: KernelPolicies,
    xfrm: Xfrm,
    incidents: Incidents,
}

impl Node {
    fn new(edges: usize) -> Self {
        let mut peers: Vec<_> = (0..edges)
            .map(|number| {
                let segment = format!("10.77.{}.{}/30", 16 + number / 64, number % 64 * 4);
                peer(&format!("edge-{number}"), Role::Edge, "203.0.113.2:4500", &[&segment], &[])
            })
            .collect();
        for hub in ["hub-1", "hub-2"] {
            peers.push(peer(hub, Role::Hub, "203.0.113.1:4500", &[], &["10.244.0.0/16"]));
        }
        let view = membership(Role::Edge, &["10.77.1.0/26"], &[], peers);
        let mut node = Self {
            desired: Desired::compute(&config(""), &[], Some(&view)),
            ends: BTreeMap::new(),
            policies: KernelPolicies::default(),
            xfrm: Xfrm::open().unwrap(),
            incidents: Incidents::default(),
        };
        node.policies.update_guard(&node.desired.guard, &node.incidents);
        for name in node.desired.tunnels.keys().cloned().collect::<Vec<_>>() {
            node.update(&name);
        }
        node.reconcile();
        node
    }

    fn update(&mut self, name: &PeerName) {
        let number = self.desired.tunnels.keys().position(|known| known == name).unwrap_or_default();
        let reqids = Reqid::tunnel(u32::try_from(number).unwrap())
            .map(|outbound| PeerReqids { outbound, inbound: if hub(name) { Reqid::FROM_HUBS } else { outbound } });
        let ends = self.ends.get(name).cloned();
        let state = if ends.as_ref().is_some_and(|ends| ends.up) { TunnelState::Up } else { TunnelState::Down };
        let child = ChildName::new(DEFAULT_CHILD);
        let children: Vec<ChildEnds> = reqids.map(|reqids| ChildEnds { child, reqids, ends }).into_iter().collect();
        self.policies.update_peer(name, &self.desired, &children, state, &self.incidents);
    }

    fn reconcile(&mut self) {
        self.policies.reconcile(&mut self.xfrm, &self.incidents, KNOWN, Instant::default());
    }

    /// Handles an event for a peer and returns the number of requests to the kernel. `ends` is the
    /// peer's address, and whether its tunnel is up.
    fn event(&mut self, name: &str, ends: Option<(&str, bool)>) -> u32 {
        let name = PeerName::new(name);
        let child = self.desired.tunnels.get(&name).map(|tunnel| tunnel.peer.child.clone());
        match ends.zip(child) {
            None => drop(self.ends.remove(&name)),
            Some(((remote, up), child)) => {
                let ends = TunnelEnds {
                    local: "192.0.2.1".parse().unwrap(),
                    remote: remote.parse().unwrap(),
                    local_selectors: child.local,
                    remote_selectors: child.remote,
                    next_layer: child.next_layer,
                    mode: child.mode,
                    up,
                };
                self.ends.insert(name.clone(), ends);
            }
        }
        let before = self.xfrm.requests_sent();
        self.update(&name);
        self.policies.install_changes(&mut self.xfrm, &self.incidents);
        self.xfrm.requests_sent() - before
    }

    /// Acts as another program: deletes one of the agent's policies, changes another one, and adds
    /// one with one of the agent's reqids. Waits for the kernel's notifications and corrects the
    /// policies. Returns the number of requests for the correction.
    fn damage_and_repair(&mut self, inward: &str) -> u32 {
        let template = format!("tmpl src 0.0.0.0 dst 0.0.0.0 proto esp mode tunnel reqid {}", 0xec00_0005_u32);
        let mut events = EventSocket::open().unwrap();
        run(&format!("ip xfrm policy delete dir in {inward}"));
        run(&format!("ip xfrm policy update dir fwd {inward} priority 9 {template}"));
        run(&format!("ip xfrm policy add dir fwd src 192.0.2.0/24 dst 10.77.1.0/26 {template}"));
        let mut keys = BTreeSet::new();
        while let Some(event) = events.next().unwrap() {
            match event {
                Event::PolicyChanged(policy) | Event::PolicyDeleted(policy) => drop(keys.insert(policy.key())),
                _ => {}
            }
        }
        assert_eq!(keys.len(), 3);
        let before = self.xfrm.requests_sent();
        let undone = self.policies.reconcile_keys(&keys, &mut self.xfrm, &self.incidents, KNOWN, Instant::default());
        assert!(!undone);
        let requests = self.xfrm.requests_sent() - before;
        self.assert_installed();
        requests
    }

    /// Fails unless the kernel has exactly the desired policies.
    fn assert_installed(&mut self) {
        let desired: Vec<Policy> = self.policies.desired.policies().copied().collect();
        let plan = reconcile::policies(&desired, &self.xfrm.policies().unwrap());
        assert!(plan.is_empty(), "{plan:?}");
    }
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn requests_among_ten_and_among_a_thousand() {
    if !is_in_namespaces() {
        return;
    }
    let counts = [10, 1000].map(|edges| {
        let mut node = Node::new(edges);
        let mut counts = Vec::new();
        for (peer, ends) in [
            ("edge-5", Some(("203.0.113.5", true))),
            ("edge-5", Some(("203.0.113.9", true))),
            ("edge-5", Some(("203.0.113.9", false))),
            ("hub-1", Some(("203.0.113.1", true))),
            ("hub-2", Some(("203.0.113.2", true))),
            ("hub-1", Some(("203.0.113.1", false))),
            ("edge-5", None),
        ] {
            counts.push(node.event(peer, ends));
            node.assert_installed();
        }
        counts.push(node.damage_and_repair("src 10.77.16.24/30 dst 10.77.1.0/26"));
        node.desired.tunnels.remove(&PeerName::new("edge-5"));
        counts.push(node.event("edge-5", None));
        node.assert_installed();
        let incidents: Vec<String> = node.incidents.latest().into_iter().map(|incident| incident.what).collect();
        assert!(
            incidents.len() == 3
                && incidents.iter().all(|what| what.contains("another program") || what.contains("not desired")),
            "{incidents:?}"
        );
        // The next run must begin without policies in the kernel.
        run("ip xfrm policy flush");
        counts
    });
    assert_eq!(counts[0], counts[1]);
    assert_eq!(counts[0][2], 0, "an edge that is down has no competitor");
    assert!(counts[0].iter().all(|count| *count <= 40), "{counts:?}");
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn policies_beside_a_foreign_one() {
    if !is_in_namespaces() {
        return;
    }
    let selector = "dir out src 10.77.1.0/26 dst 10.77.16.20/30";
    let mut node = Node::new(10);
    run(&format!("ip xfrm policy add {selector} priority 7"));
    let foreign_is_there = |node: &mut Node| {
        let policies = node.xfrm.policies().unwrap();
        policies
            .iter()
            .any(|policy| policy.priority == 7 && policy.selector.destination().to_string() == "10.77.16.20/30")
    };
    node.event("edge-5", Some(("203.0.113.5", true)));
    assert!(foreign_is_there(&mut node));
    let named = node.incidents.latest();
    assert!(named.len() == 1 && named[0].what.contains("10.77.16.20/30"), "{named:?}");
    // The other program's policy stays when the peer's address changes and when the tunnel goes
    // down.
    node.event("edge-5", Some(("203.0.113.9", true)));
    node.event("edge-5", None);
    assert!(foreign_is_there(&mut node));
    node.event("edge-5", Some(("203.0.113.5", true)));
    run(&format!("ip xfrm policy delete {selector}"));
    node.reconcile();
    node.assert_installed();
}

#[test]
#[ignore = "runs in a namespace, started by the test before"]
fn guards_that_are_impossible_or_not_desired() {
    if !is_in_namespaces() {
        return;
    }
    let mut node = Node::new(1);
    let range = "10.77.0.0/16".parse().unwrap();
    let blocks = |node: &mut Node| {
        let policies = node.xfrm.policies().unwrap();
        let of_range = policies.iter().filter(|policy| policy.blocks && policy.selector.destination() == range);
        of_range.filter(|policy| policy.direction == Direction::Out && policy.priority == priority::BLOCK).count()
    };
    assert_eq!(blocks(&mut node), 1);
    // The cloud's network would open the whole range.
    let too_wide = GuardConfig { networks: vec!["10.0.0.0/8".parse().unwrap()], ..node.desired.guard.clone() };
    node.policies.update_guard(&too_wide, &node.incidents);
    node.reconcile();
    assert_eq!(blocks(&mut node), 1, "the last guard stays");
    assert!(node.incidents.latest()[0].what.contains("10.0.0.0/8"), "{:?}", node.incidents.latest());

    // The agent begins with such a configuration.
    node.policies = KernelPolicies::default();
    node.policies.update_guard(&too_wide, &node.incidents);
    node.reconcile();
    assert_eq!(blocks(&mut node), 1, "the range is blocked");
    let own = |policy: &&Policy| policy.selector.destination().to_string() == "10.77.1.0/26";
    assert!(node.policies.desired.policies().filter(own).any(|policy| policy.action == Action::Allow));

    // A guard policy of a former range, and an unrelated notification in between.
    let range = "10.99.0.0/16".parse().unwrap();
    let former = Policy::block(Direction::Out, Selector::new("0.0.0.0/0".parse().unwrap(), range).unwrap());
    node.xfrm.install_policy(&former).unwrap();
    let is_there = |node: &mut Node| node.xfrm.holders(&[former]).unwrap()[0].is_some();
    let at = |milliseconds| Instant::new(Duration::from_millis(milliseconds));
    node.policies.reconcile(&mut node.xfrm, &node.incidents, KNOWN, at(1000));
    let unrelated = BTreeSet::from([(Direction::Out, former.selector.reversed())]);
    for milliseconds in [2000, 10_999] {
        node.policies.reconcile_keys(&unrelated, &mut node.xfrm, &node.incidents, KNOWN, at(milliseconds));
    }
    assert!(is_there(&mut node));
    node.policies.reconcile(&mut node.xfrm, &node.incidents, KNOWN, at(10_999));
    assert!(is_there(&mut node), "the plugin installs a guard before the view names its segment");
    node.policies.reconcile(&mut node.xfrm, &node.incidents, KNOWN, at(11_000));
    assert!(!is_there(&mut node));
}
