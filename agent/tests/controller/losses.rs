//! Tests the agent's behaviour without the controller and after power cuts.

use edge_agent::membership::ControllerStatus;
use edge_types::{NodeView, Role};
use serde_json::{Value, json};

use crate::lab::{Controller, Node, exists, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn without_the_controller_an_agent_comes_back_from_its_disk_and_finds_the_controller_later() {
    let mut controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.kill().await;
    controller.stop().await;
    let agent = node.start();
    let membership = agent.node.membership.borrow().clone();
    let from_disk = membership.expect("it is published before anybody is asked");
    assert_eq!(from_disk.view, before.view);
    assert!(from_disk.credentials.key == before.credentials.key);
    assert_eq!(agent.node.controller_status.borrow().view_source.as_deref(), Some("disk"));
    let error = agent.error().await;
    assert!(error.contains("cannot be reached"), "{error}");
    controller.start_again().await;
    agent.status("the stream", |status| status.connected && status.last_error.is_none()).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_controller_changes_nothing_and_its_return_brings_what_was_missed() {
    let mut controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    controller.stop().await;
    agent.status("the loss", |status| !status.connected).await;
    assert_eq!(agent.joined().await.view, before.view);
    controller.start_again().await;
    let hub = controller.invite("cloud-1", Role::Hub).await;
    let hub_agent = hub.start();
    hub_agent.joined().await;
    let after = agent.membership("the hub in the view", |m| !m.view.peers.is_empty()).await;
    assert_eq!(after.view.peers[0].name.as_str(), "cloud-1");
    assert!(after.view.version > before.view.version);
    controller.operator("PATCH", "/v1/nodes/edge-1/labels", json!({"fabedge/edge-community": "alpha"})).await;
    agent.membership("the community", |m| !m.view.communities.is_empty()).await;
    agent.end().await;
    hub_agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_view_cannot_be_stored_its_revocations_are_in_force_and_the_rest_follows_later() {
    let controller = Controller::start().await;
    let (hub, edge) = (controller.invite("cloud-1", Role::Hub).await, controller.edge("edge-2").await);
    let (hub_agent, edge_agent) = (hub.start(), edge.start());
    edge_agent.joined().await;
    hub_agent.membership("the edge", |m| m.view.peers.len() == 1).await;
    // A directory in place of the temporary file makes each write fail, as a full disk does.
    std::fs::create_dir(hub.file("view.json.tmp")).unwrap();
    controller.operator("DELETE", "/v1/nodes/edge-2", json!(null)).await;
    hub_agent.membership("no peer", |m| m.view.peers.is_empty()).await;
    // The operator sees it, so the connection must stay.
    let waits = |status: &ControllerStatus| {
        status.connected && status.refused_view.as_ref().is_some_and(|why| why.contains("cannot be stored"))
    };
    let status = hub_agent.status("the view that waits", waits).await;
    let (since, why) = (status.since, status.refused_view.unwrap());
    assert!(why.contains("view.json.tmp"), "{why}");
    until("the operator's sight of it", || async {
        let is_said = |node: &Value| node["refused_view"].as_str().is_some_and(|why| why.contains("cannot be stored"));
        controller.nodes().await.iter().any(is_said)
    })
    .await;
    let stored: NodeView = serde_json::from_slice(&std::fs::read(hub.file("view.json")).unwrap()).unwrap();
    assert_eq!(stored.peers.len(), 1);
    let other = controller.edge("edge-3").await;
    let other_agent = other.start();
    other_agent.joined().await;
    std::fs::remove_dir(hub.file("view.json.tmp")).unwrap();
    let is_other =
        |m: &edge_agent::membership::Membership| m.view.peers.iter().any(|peer| peer.name.as_str() == "edge-3");
    hub_agent.membership("the next edge", is_other).await;
    let is_stored = |status: &ControllerStatus| status.refused_view.is_none();
    let status = hub_agent.status("no view that waits", is_stored).await;
    assert!(status.connected && status.last_error.is_none() && status.since == since, "{status:?}");
    let stored: NodeView = serde_json::from_slice(&std::fs::read(hub.file("view.json")).unwrap()).unwrap();
    assert_eq!(stored.peers.len(), 1);
    assert_eq!(stored.peers[0].name.as_str(), "edge-3");
    for agent in [hub_agent, edge_agent, other_agent] {
        agent.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_view_is_put_aside_and_replaced_by_the_controllers() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    let whole = std::fs::read(node.file("view.json")).unwrap();
    std::fs::write(node.file("view.json"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(node.file("segments.json"), b"").unwrap();
    let agent = node.start();
    assert!(exists(node.file("view.json.damaged")));
    let after = agent.joined().await;
    assert_eq!(after.view, before.view);
    assert_eq!(node.segments().segments, before.view.segments);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_segments_are_written_again_from_the_view_without_the_controller() {
    let mut controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    controller.stop().await;
    std::fs::write(node.file("segments.json"), b"{\"version\"").unwrap();
    let agent = node.start();
    until("the segments", || async { std::fs::read(node.file("segments.json")).is_ok_and(|bytes| bytes.len() > 20) })
        .await;
    assert_eq!(node.segments().segments, before.view.segments);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_on_disk_that_is_another_nodes_is_not_followed() {
    let mut controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let agent = node.start();
    agent.joined().await;
    agent.end().await;
    controller.stop().await;
    let mut view: NodeView = serde_json::from_slice(&std::fs::read(node.file("view.json")).unwrap()).unwrap();
    view.node = "edge-9".parse().unwrap();
    std::fs::write(node.file("view.json"), serde_json::to_vec(&view).unwrap()).unwrap();
    let agent = node.start();
    assert!(agent.node.membership.borrow().is_none());
    assert!(exists(node.file("view.json.damaged")));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_view_from_a_controller_restored_from_a_backup_is_refused_and_said() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.end().await;
    let mut newer = (*before.view).clone();
    newer.version += 1_000_000;
    std::fs::write(node.file("view.json"), serde_json::to_vec(&newer).unwrap()).unwrap();
    let agent = node.start();
    let error = agent.error_with("is older than version").await;
    assert!(error.contains("remove view.json"), "{error}");
    assert_eq!(*agent.joined().await.view, newer);
    agent.status("the stream goes on", |status| status.connected).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_not_whole_stops_the_agent_with_the_file_named_and_untouched() {
    let controller = Controller::start().await;
    let (node, other) = (controller.edge("edge-1").await, controller.edge("edge-2").await);
    for node in [&node, &other] {
        let (agent, _) = node.start_as_member().await;
        agent.end().await;
    }
    let path = node.file("identity.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let others: Value = serde_json::from_slice(&std::fs::read(other.file("identity.json")).unwrap()).unwrap();
    let with = |key: &str, value: &Value| {
        let mut changed = whole.clone();
        changed[key] = value.clone();
        changed.to_string()
    };
    for (content, words) in [
        (String::new(), "it is empty"),
        (whole.to_string()[..100].to_owned(), "cut short"),
        ("\0".repeat(100), "not JSON"),
        (with("version", &json!(0)), "its version is 0"),
        (with("key", &json!("")), "no private key"),
        (with("key", &others["key"]), "another key"),
        (with("certificate", &others["certificate"]), "another key"),
        (with("role", &json!("hub")), "edge-cni://hub/edge-1"),
        (with("trust_anchors", &json!([])), "no trust anchor"),
    ] {
        std::fs::write(&path, &content).unwrap();
        let Err(error) = node.try_start(Default::default()) else { panic!("it started with {content}") };
        let error = error.to_string();
        assert!(error.contains("identity.json") && error.contains(words), "{words}: {error}");
        assert!(error.contains("restore it from a backup") && error.contains("join again"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    let newer = with("version", &json!(9));
    std::fs::write(&path, &newer).unwrap();
    let Err(error) = node.try_start(Default::default()) else { panic!("it started with {newer}") };
    assert!(error.to_string().contains("identity.json is of layout 9, which a newer release wrote"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let Err(error) = node.try_start(Default::default()) else { panic!("it started with a directory") };
    assert!(error.to_string().contains("reading") && error.to_string().contains("identity.json"), "{error}");
    assert_eq!(controller.nodes().await.len(), 2, "nobody has joined anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_controllers_the_first_that_answers_is_used() {
    let controller = Controller::start().await;
    let mut node = controller.edge("edge-1").await;
    // No controller listens on this port.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.url = format!("https://{dead}\", \"{}", controller.url());
    let agent = node.start();
    agent.joined().await;
    let status = agent.status("the stream", |status| status.connected).await;
    assert_eq!(status.url.unwrap().trim_end_matches('/'), controller.url());
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_ends_hands_the_node_to_another_without_an_error() {
    let mut first = Controller::start().await;
    let mut node = Node::new("edge-1", &first);
    node.put_token(&first.token(Role::Edge, None).await);
    let agent = node.start();
    agent.membership("segments", |m| m.view.segments.len() == 2).await;
    agent.end().await;
    let second = first.replica().await;
    node.url = format!("{}\", \"{}", first.url(), second.url());
    let agent = node.start();
    let at = |controller: &Controller| {
        let url = controller.url();
        move |status: &ControllerStatus| {
            status.connected && status.url.as_ref().is_some_and(|at| at.trim_end_matches('/') == url)
        }
    };
    agent.status("the stream of the first", at(&first)).await;
    let mut seen = agent.node.controller_status.clone();
    let elsewhere = at(&second);
    let watched = tokio::spawn(async move {
        let mut errors = Vec::new();
        loop {
            let status = seen.borrow_and_update().clone();
            errors.extend(status.last_error.clone());
            if elsewhere(&status) {
                return errors;
            }
            seen.changed().await.unwrap();
        }
    });
    first.stop().await;
    let errors = soon("the stream of the second", watched).await.unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    agent.end().await;
}
