//! Tests that applying the changes in the view stream results in the controller's view, also after
//! the stream was interrupted.

use std::net::SocketAddr;

use edge_agent::membership::Membership;
use edge_types::api::TunnelCount;
use edge_types::traffic::TunnelTraffic;
use edge_types::{NodeView, Role};
use serde_json::{Value, json};

use crate::lab::{Agent, Controller, ControllerProxy, Node, until};

/// Returns the controller's current view.
async fn controller_view(controller: &Controller, node: &str) -> NodeView {
    serde_json::from_value(controller.operator("GET", &format!("/v1/nodes/{node}/view"), Value::Null).await).unwrap()
}

/// Waits until the agent has the controller's view, in memory and on disk.
async fn agrees(controller: &Controller, node: &Node, agent: &Agent) -> NodeView {
    let expected = controller_view(controller, node.name).await;
    let held = agent.membership("the controller's view", |m| m.view.version >= expected.version).await;
    let written: NodeView = serde_json::from_slice(&std::fs::read(node.file("view.json")).unwrap()).unwrap();
    assert_eq!((&*held.view, &written), (&expected, &expected));
    expected
}

async fn label(controller: &Controller, node: &str, communities: &str) {
    let patch = json!({"fabedge/edge-community": communities});
    controller.operator("PATCH", &format!("/v1/nodes/{node}/labels"), patch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_add_up_to_the_controllers_view_whatever_happens() {
    let mut controller = Controller::start().await;
    let nodes: Vec<Node> = ["a", "b", "c"].into_iter().map(|name| Node::new(name, &controller)).collect();
    let mut agents = Vec::new();
    for node in &nodes {
        node.put_token(&controller.token(Role::Edge, None).await);
        agents.push(node.start());
        agents.last().unwrap().membership("segments", |m| m.view.segments.len() == 2).await;
    }
    for (name, communities) in [("a", "alpha"), ("b", "alpha"), ("c", "alpha"), ("b", "beta"), ("a", "alpha_beta")] {
        label(&controller, name, communities).await;
        agrees(&controller, &nodes[0], &agents[0]).await;
    }
    assert_eq!(agrees(&controller, &nodes[0], &agents[0]).await.peers.len(), 2);
    controller.stop().await;
    agents[0].status("the loss", |status| !status.connected).await;
    controller.start_again().await;
    label(&controller, "c", "none").await;
    assert_eq!(agrees(&controller, &nodes[0], &agents[0]).await.peers.len(), 1);
    controller.operator("DELETE", "/v1/nodes/b", Value::Null).await;
    assert!(agrees(&controller, &nodes[0], &agents[0]).await.peers.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_connection_to_a_controller_breaks_uses_another_one_and_gets_what_it_missed() {
    let controller = Controller::start().await;
    let proxies = [ControllerProxy::to(&controller).await, ControllerProxy::to(&controller).await];
    let [first, second] = [proxies[0].url(), proxies[1].url()];
    let mut node = Node::new("a", &controller);
    node.url = format!("{first}\", \"{second}");
    node.put_token(&controller.token(Role::Edge, None).await);
    let agent = node.start();
    let on = |url: String| {
        move |status: &edge_agent::membership::ControllerStatus| {
            status.connected && status.url.as_ref().is_some_and(|used| used.trim_end_matches('/') == url)
        }
    };
    agent.status("the first proxy", on(first)).await;
    agent.membership("segments", |m| m.view.segments.len() == 2).await;
    let [one, two] = proxies;
    one.close().await;
    label(&controller, "a", "alpha").await;
    agent.status("the second proxy", on(second.clone())).await;
    assert_eq!(agrees(&controller, &node, &agent).await.communities.len(), 1);
    let one = one.open().await;
    two.close().await;
    label(&controller, "a", "alpha_beta").await;
    agent.status("the first proxy again", on(one.url())).await;
    assert_eq!(agrees(&controller, &node, &agent).await.communities.len(), 2);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_hears_how_the_tunnels_are_at_once_and_whenever_that_changes() {
    let controller = Controller::start().await;
    let node = controller.edge("a").await;
    let agent = node.start();
    agent.joined().await;
    for up in [0, 3, 1] {
        agent.node.tunnels.send_replace(Some(TunnelCount { up, wanted: 3, ..TunnelCount::default() }));
        until("the count to be known", || async {
            controller.nodes().await.iter().any(|row| row["tunnels"] == json!({"up": up, "wanted": 3}))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sees_the_release_the_obstacles_the_tunnels_and_the_traffic_of_a_node_as_they_change() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    let shown = async |what: &str, expected: Value| {
        until(what, || async {
            let shown = &controller.nodes().await[0];
            expected.as_object().unwrap().iter().all(|(key, value)| shown[key] == *value)
        })
        .await;
    };
    shown("the release", json!({"version": env!("CARGO_PKG_VERSION"), "obstacles": [], "tunnels": null})).await;
    let obstacle = "chain FORWARD of ufw drops pods' packets";
    agent.node.obstacles.send_replace(vec![obstacle.into()]);
    shown("the obstacle", json!({"obstacles": [obstacle]})).await;
    agent.node.tunnels.send_replace(Some(TunnelCount { up: 1, wanted: 2, ..TunnelCount::default() }));
    shown("the tunnels", json!({"obstacles": [obstacle], "tunnels": {"up": 1, "wanted": 2}})).await;
    agent.node.obstacles.send_replace(Vec::new());
    shown("its end", json!({"obstacles": [], "tunnels": {"up": 1, "wanted": 2}})).await;
    for received_per_second in [1_000, 0] {
        let traffic = TunnelTraffic { received: 70_000, sent: 5, received_per_second, sent_per_second: 0 };
        agent.node.traffic.send_replace(Some(traffic));
        shown("the traffic", json!({"traffic": traffic, "tunnels": {"up": 1, "wanted": 2}})).await;
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_address_that_a_hub_told_a_node_reaches_its_peers_at_once_and_goes_again() {
    let controller = Controller::start().await;
    let (hub, edge) = (controller.invite("cloud-1", Role::Hub).await, controller.edge("edge-2").await);
    let (hub, edge) = (hub.start(), edge.start());
    edge.joined().await;
    let mapped = |m: &Membership| m.view.peers.iter().flat_map(|peer| peer.mapped.clone()).collect::<Vec<_>>();
    hub.membership("the edge without a mapped address", |m| m.view.peers.len() == 1 && mapped(m).is_empty()).await;
    for addresses in [&["203.0.113.7:61000"][..], &["203.0.113.7:61001", "[2001:db8::7]:61002"], &[]] {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        edge.node.mapped.send_replace(Some(addresses.clone()));
        hub.membership(&format!("{addresses:?}"), |m| mapped(m) == addresses).await;
    }
    hub.end().await;
    edge.end().await;
}
