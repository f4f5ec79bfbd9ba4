//! Tests between which nodes tunnels are set up. The IKE endpoints use the certificates that the
//! controller issued and the peers in its views.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edge_agent::desired::Desired;
use edge_agent::membership::Membership;
use edge_ike::{ChildId, Endpoint, EndpointConfig, Environment, Event, Identity, Instant, PeerConfig, PeerName};
use edge_types::{Peer, Role};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;

use crate::lab::{Agent, Controller, Node as Machine};

/// The functions of a node's kernel that IKE needs.
#[derive(Default)]
struct Kernel {
    next_spi: u32,
    reserved: BTreeSet<u32>,
    children: BTreeMap<ChildId, PeerName>,
    errors: Vec<String>,
}

impl Environment for Kernel {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        SystemRandom::new().fill(bytes).unwrap();
    }

    fn random_is_from_system(&self) -> bool {
        true
    }

    #[expect(clippy::disallowed_methods, reason = "the peer of this test has no other clock")]
    fn unix_time(&self) -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    }

    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        self.next_spi += 1;
        self.reserved.insert(0x1000 + self.next_spi);
        Some(0x1000 + self.next_spi)
    }

    fn release_spi(&mut self, _: &PeerName, _: IpAddr, spi: u32) {
        assert!(self.reserved.remove(&spi));
    }
}

impl Kernel {
    fn carry_out(&mut self, event: &Event) {
        match event {
            Event::ChildUp { peer, child, .. } | Event::ChildRekeyed { peer, new: child, .. } => {
                assert!(self.reserved.remove(&child.inbound_spi));
                self.children.insert(child.id, peer.clone());
            }
            Event::ChildDown { child, .. } => drop(self.children.remove(child)),
            Event::PeerFailed { error, .. } | Event::Refused { error, .. } => self.errors.push(error.to_string()),
            _ => {}
        }
    }
}

struct Node {
    name: &'static str,
    endpoint: Endpoint,
    kernel: Kernel,
    peers: Vec<PeerName>,
}

/// A network without latency, on which every node has an address.
#[derive(Default)]
struct Wire {
    nodes: Vec<Node>,
    now: Duration,
}

/// Returns a node's address, derived from the last letter of its name.
fn address(name: &str) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, name.as_bytes()[name.len() - 1]]), 4500)
}

impl Wire {
    /// Adds a node with these tunnels. The node initiates immediately.
    fn add(&mut self, name: &'static str, tunnels: Vec<PeerConfig>) {
        let mut node = Node {
            name,
            endpoint: Endpoint::new(EndpointConfig::default()),
            kernel: Kernel::default(),
            peers: tunnels.iter().map(|peer| peer.name.clone()).collect(),
        };
        for peer in tunnels {
            node.endpoint.set_peer(peer, Instant::new(self.now), &mut node.kernel).unwrap();
        }
        self.nodes.push(node);
    }

    /// Applies the tunnels of a node's current view.
    fn update(&mut self, name: &str, tunnels: Vec<PeerConfig>) {
        let now = Instant::new(self.now);
        let node = self.nodes.iter_mut().find(|node| node.name == name).unwrap();
        for peer in tunnels {
            node.endpoint.set_peer(peer, now, &mut node.kernel).unwrap();
        }
        while let Some(event) = node.endpoint.poll_event() {
            node.kernel.carry_out(&event);
        }
    }

    /// Handles events and delivers datagrams until none are pending.
    fn carry(&mut self) {
        let now = Instant::new(self.now);
        loop {
            let mut sent = Vec::new();
            for Node { name, endpoint, kernel, .. } in &mut self.nodes {
                while let Some(event) = endpoint.poll_event() {
                    kernel.carry_out(&event);
                }
                let from = |port| SocketAddr::new(address(name).ip(), port);
                sent.extend(std::iter::from_fn(|| endpoint.poll_transmit()).map(|it| (from(it.local.port()), it)));
            }
            if sent.is_empty() {
                return;
            }
            for (from, transmit) in sent {
                let to = self.nodes.iter_mut().find(|node| address(node.name).ip() == transmit.remote.ip());
                if let Some(Node { endpoint, kernel, .. }) = to {
                    endpoint.handle(&transmit.payload, transmit.remote, from, now, kernel);
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.carry();
        while let Some(next) = self.nodes.iter().filter_map(|node| node.endpoint.poll_timeout()).min()
            && next.since_start() <= end
        {
            self.now = self.now.max(next.since_start());
            for Node { endpoint, kernel, .. } in &mut self.nodes {
                endpoint.handle_timeout(Instant::new(self.now), kernel);
            }
            self.carry();
        }
        self.now = end;
    }

    /// Returns the pairs of nodes with a tunnel.
    fn tunnels(&self) -> BTreeSet<(String, String)> {
        let of = |node: &Node| node.kernel.children.values().map(|peer| (node.name.into(), peer.to_string())).collect();
        self.nodes.iter().flat_map::<Vec<_>, _>(of).collect()
    }

    fn errors(&self, name: &str) -> &[String] {
        &self.nodes.iter().find(|node| node.name == name).unwrap().kernel.errors
    }

    /// Removes all peers of all nodes, and asserts that no state is left.
    fn end(mut self) {
        let now = Instant::new(self.now);
        for Node { endpoint, kernel, peers, .. } in &mut self.nodes {
            peers.iter().for_each(|peer| endpoint.remove_peer(peer, now, kernel));
        }
        self.run(Duration::from_secs(60));
        for Node { name, endpoint, kernel, .. } in &self.nodes {
            assert!(kernel.children.is_empty() && kernel.reserved.is_empty(), "something is left at {name}");
            assert_eq!(endpoint.poll_timeout(), None, "{name} waits for something");
        }
    }
}

/// Returns the tunnels of a membership, with the peers' addresses on the [`Wire`].
fn tunnels(agent: &Agent, membership: &Membership) -> Vec<PeerConfig> {
    let desired = Desired::compute(&agent.node.config, &[], Some(membership));
    let placed = |peer: PeerConfig| PeerConfig { remotes: vec![address(peer.name.as_str())], ..peer };
    desired.tunnels.values().map(|tunnel| placed(PeerConfig::clone(&tunnel.peer))).collect()
}

/// Returns the membership with an additional peer in its view. This peer does not come from the
/// controller.
fn with_peer(membership: &Membership, name: &str, role: Role) -> Membership {
    let mut view = (*membership.view).clone();
    let peer = Peer {
        name: name.parse().unwrap(),
        role,
        endpoints: Vec::new(),
        segments: Vec::new(),
        networks: Vec::new(),
        mapped: vec![],
        tcp_port: None,
        on_demand_in: Default::default(),
        certificates_from: 0,
    };
    view.peers.insert(peer.into());
    Membership { view: Arc::new(view), ..membership.clone() }
}

async fn label(controller: &Controller, node: &str, community: &str) {
    let path = format!("/v1/nodes/{node}/labels");
    controller.operator("PATCH", &path, json!({"fabedge/edge-community": community})).await;
}

async fn sees(agent: &Agent, peers: &[&str]) -> Membership {
    let names = |m: &Membership| m.view.peers.iter().map(|peer| peer.name.to_string()).collect::<Vec<_>>();
    agent.membership(&format!("a view of {peers:?}"), |m| names(m) == peers).await
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_the_views_authenticate_each_other_and_no_other_node_has_a_tunnel() {
    let controller = Controller::start().await;
    let mut agents = Vec::new();
    for (name, role) in [("cloud-1", Role::Hub), ("edge-2", Role::Edge), ("edge-3", Role::Edge), ("edge-4", Role::Edge)]
    {
        let node = controller.invite(name, role).await;
        agents.push((name, node.start(), node));
    }
    for (_, agent, _) in &agents {
        agent.joined().await;
    }
    for node in ["edge-2", "edge-3"] {
        label(&controller, node, "alpha").await;
    }
    let mut wire = Wire::default();
    let views: [&[&str]; 4] =
        [&["edge-2", "edge-3", "edge-4"], &["cloud-1", "edge-3"], &["cloud-1", "edge-2"], &["cloud-1"]];
    for ((name, agent, _), peers) in agents.iter().zip(views) {
        wire.add(name, tunnels(agent, &sees(agent, peers).await));
    }
    wire.run(SOON);
    let expected = [("cloud-1", "edge-2"), ("cloud-1", "edge-3"), ("cloud-1", "edge-4"), ("edge-2", "edge-3")];
    let expected = expected.iter().flat_map(|(one, other)| [(one, other), (other, one)]);
    assert_eq!(wire.tunnels(), expected.map(|(one, other)| (one.to_string(), other.to_string())).collect());
    wire.end();
    for (_, agent, _) in agents {
        agent.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_certificate_opens_nothing_at_a_node_whose_view_does_not_name_its_holder() {
    let controller = Controller::start().await;
    let (one, two) = (controller.edge("edge-1").await, controller.edge("edge-2").await);
    let ((agent, _), (leaver, _)) = (one.start_as_member().await, two.start_as_member().await);
    for node in ["edge-1", "edge-2"] {
        label(&controller, node, "alpha").await;
    }
    // The deregistered node keeps its view, and its certificate stays valid for days.
    let kept = sees(&leaver, &["edge-1"]).await;
    sees(&agent, &["edge-2"]).await;
    controller.operator("DELETE", "/v1/nodes/edge-2", json!(null)).await;
    let without = sees(&agent, &[]).await;
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&agent, &without));
    wire.add("edge-2", tunnels(&leaver, &kept));
    wire.run(SOON);
    assert!(wire.tunnels().is_empty());
    let words = "no peer is configured here";
    assert!(wire.errors("edge-1").iter().any(|error| error.contains(words)), "{:?}", wire.errors("edge-1"));
    wire.end();
    // The result is the same if there is another peer with which that node could negotiate a
    // cipher.
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&agent, &with_peer(&without, "edge-3", Role::Edge)));
    wire.add("edge-2", tunnels(&leaver, &kept));
    wire.run(SOON);
    assert!(wire.tunnels().is_empty());
    let refused = r#""edge-2" asks for "edge-1"; no peer with this remote_id"#;
    assert!(wire.errors("edge-1").iter().any(|error| error.contains(refused)), "{:?}", wire.errors("edge-1"));
    let answer = r#"the peer does not accept that we are "edge-2""#;
    assert!(wire.errors("edge-2").iter().any(|error| error.contains(answer)), "{:?}", wire.errors("edge-2"));
    wire.end();
    agent.end().await;
    leaver.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edges_certificate_passes_neither_for_a_hubs_nor_for_another_nodes() {
    let controller = Controller::start().await;
    let (one, two) = (controller.edge("edge-1").await, controller.edge("edge-2").await);
    let ((agent, honest), (hostile, own)) = (one.start_as_member().await, two.start_as_member().await);
    let claim = with_peer(&own, "edge-1", Role::Edge);

    // The node claims to be a hub, under its own name.
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&agent, &with_peer(&honest, "edge-2", Role::Hub)));
    wire.add("edge-2", tunnels(&hostile, &claim));
    wire.run(SOON);
    assert!(wire.tunnels().is_empty());
    let words = "expected the URI edge-cni://hub/edge-2 in the peer's certificate, which is for";
    assert!(wire.errors("edge-1").iter().any(|error| error.contains(words)), "{:?}", wire.errors("edge-1"));
    wire.end();

    // The node claims to be an existing hub.
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&agent, &with_peer(&honest, "cloud-9", Role::Hub)));
    let mut claimed = tunnels(&hostile, &claim);
    claimed[0].local_id = Identity::Fqdn("cloud-9".into());
    wire.add("edge-2", claimed);
    wire.run(SOON);
    assert!(wire.tunnels().is_empty());
    let words = r#"the peer says it is "cloud-9", its certificate is for"#;
    assert!(wire.errors("edge-1").iter().any(|error| error.contains(words)), "{:?}", wire.errors("edge-1"));
    wire.end();
    agent.end().await;
    hostile.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_a_hub_that_vanishes_from_the_view_stay_guarded_until_a_hub_has_them() {
    let controller = Controller::with_networks("\"10.244.0.0/16\"").await;
    let (first, edge) = (controller.invite("cloud-1", Role::Hub).await, controller.edge("edge-2").await);
    let (hub, (agent, _)) = (first.start(), edge.start_as_member().await);
    let before = sees(&agent, &["cloud-1"]).await;
    let network = "10.244.0.0/16".parse().unwrap();
    let of = |agent: &Agent, m: &Membership| Desired::compute(&agent.node.config, &[], Some(m));
    assert_eq!(*of(&agent, &before).remote_networks.all(), [network]);
    controller.operator("DELETE", "/v1/nodes/cloud-1", json!(null)).await;
    let without = sees(&agent, &[]).await;
    assert_eq!(of(&agent, &without).former_networks, [network]);
    hub.end().await;
    agent.end().await;
    // A restart changes nothing.
    let agent = edge.start();
    let again = sees(&agent, &[]).await;
    assert_eq!(of(&agent, &again).former_networks, [network]);
    let other = controller.invite("cloud-3", Role::Hub).await;
    let hub = other.start();
    let another = sees(&agent, &["cloud-3"]).await;
    let desired = of(&agent, &another);
    assert_eq!((desired.former_networks, desired.remote_networks.all().to_vec()), (vec![], vec![network]));
    hub.end().await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_name_another_one_has_now_loses_its_tunnels_and_gets_none() {
    let controller = Controller::start().await;
    let (one, two) = (controller.edge("edge-1").await, controller.edge("edge-2").await);
    let ((agent, _), (loser, _)) = (one.start_as_member().await, two.start_as_member().await);
    for node in ["edge-1", "edge-2"] {
        label(&controller, node, "alpha").await;
    }
    let (before, kept) = (sees(&agent, &["edge-2"]).await, sees(&loser, &["edge-1"]).await);
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&agent, &before));
    wire.add("edge-2", tunnels(&loser, &kept));
    wire.run(SOON);
    assert_eq!(wire.tunnels().len(), 2);
    // Another machine takes over the name of the node, first by joining with the operator's token
    // for that name, then by joining after the name was released.
    let mut from = before.view.peers[0].certificates_from;
    for deregister in [false, true] {
        if deregister {
            controller.operator("DELETE", "/v1/nodes/edge-2", json!(null)).await;
            controller.clock.advance(5);
        }
        let winner = Machine::new("edge-2", &controller);
        winner.put_token(&controller.token(Role::Edge, Some("edge-2")).await);
        let (winner_agent, _) = winner.start_as_member().await;
        label(&controller, "edge-2", "alpha").await;
        let of_peer = |m: &Membership| m.view.peers.first().map(|peer| peer.certificates_from);
        let updated = agent.membership("the revocation", |m| of_peer(m) > Some(from)).await;
        from = of_peer(&updated).unwrap();
        wire.update("edge-1", tunnels(&agent, &updated));
        assert!(
            !wire.tunnels().iter().any(|(node, _)| node == "edge-1"),
            "before anything is heard from the other one"
        );
        wire.run(SOON);
        assert!(wire.tunnels().is_empty(), "{:?}", wire.tunnels());
        let words = r#"the certificate of "edge-2" with serial "#;
        assert!(wire.errors("edge-1").iter().any(|error| error.contains(words)), "{:?}", wire.errors("edge-1"));
        let mut other = Wire::default();
        other.add("edge-1", tunnels(&agent, &updated));
        other.add("edge-2", tunnels(&winner_agent, &sees(&winner_agent, &["edge-1"]).await));
        other.run(SOON);
        assert_eq!(other.tunnels().len(), 2, "the new machine is accepted: {:?}", other.errors("edge-1"));
        winner_agent.end().await;
    }
    agent.end().await;
    loser.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_which_only_one_knows_a_new_authority_authenticate_each_other() {
    let controller = Controller::start().await;
    let (one, two) = (controller.edge("edge-1").await, controller.edge("edge-2").await);
    let ((away, _), (agent, _)) = (one.start_as_member().await, two.start_as_member().await);
    for node in ["edge-1", "edge-2"] {
        label(&controller, node, "alpha").await;
    }
    let (before, old) = (sees(&away, &["edge-2"]).await, sees(&agent, &["edge-1"]).await);
    controller.operator("POST", "/v1/ca/rollover", json!(null)).await;
    let renewed = agent.membership("a new certificate", |m| m.credentials.chain.len() == 2).await;
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&away, &before));
    wire.add("edge-2", tunnels(&agent, &old));
    wire.run(SOON);
    let up = wire.tunnels();
    wire.update("edge-2", tunnels(&agent, &renewed));
    wire.run(SOON);
    assert_eq!((up.len(), wire.tunnels()), (2, up), "a tunnel does not notice");
    wire.end();
    let mut wire = Wire::default();
    wire.add("edge-1", tunnels(&away, &before));
    wire.add("edge-2", tunnels(&agent, &renewed));
    wire.run(SOON);
    assert_eq!(wire.tunnels().len(), 2, "{:?} {:?}", wire.errors("edge-1"), wire.errors("edge-2"));
    wire.end();
    away.end().await;
    agent.end().await;
}
