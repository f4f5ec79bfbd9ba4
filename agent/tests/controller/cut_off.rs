//! Tests that a view that would cut a node off is refused before any part of it is installed, or is
//! taken back.

use std::time::Duration;

use edge_agent::membership::{ControllerStatus, Membership};
use edge_agent::underlay::Underlay;
use edge_types::Role;

use crate::lab::{Controller, ControllerProxy, Node, exists, soon, until};

const BEFORE: &str = "\"10.77.0.0/16\", \"fd77::/48\"";
/// The cluster ranges, and networks that contain addresses of the node.
const CARELESS: &str = "\"10.77.0.0/16\", \"fd77::/48\", \"192.168.0.0/16\", \"2001:db8::/32\"";
/// The cluster ranges, and a network that conflicts with none of the node's addresses.
const WIDER: &str = "\"10.77.0.0/16\", \"fd77::/48\", \"10.99.0.0/16\"";
const OTHER: &str = "\"10.77.0.0/16\", \"fd77::/48\", \"10.98.0.0/16\"";

fn holds(range: &str) -> impl Fn(&Membership) -> bool {
    let range = range.parse().unwrap();
    move |membership| membership.view.cluster_ranges.contains(&range)
}

fn refuses(words: &'static str) -> impl Fn(&ControllerStatus) -> bool {
    move |status| status.connected && status.refused_view.as_ref().is_some_and(|why| why.contains(words))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_whose_ranges_hold_the_nodes_own_network_is_refused_and_the_operator_sees_why() {
    for (underlay, words) in [
        (
            Underlay { addresses: vec!["192.168.1.10".parse().unwrap()], ..Underlay::default() },
            "192.168.0.0/16 holds this node's own address 192.168.1.10",
        ),
        (Underlay { gateways: vec!["192.168.1.1".parse().unwrap()], ..Underlay::default() }, "its gateway 192.168.1.1"),
        (
            Underlay { resolvers: vec!["2001:db8::53".parse().unwrap()], ..Underlay::default() },
            "2001:db8::/32 holds its name server 2001:db8::53",
        ),
    ] {
        let mut controller = Controller::with_ranges(BEFORE).await;
        let mut node = controller.edge("edge-1").await;
        node.underlay = underlay.clone();
        let (agent, before) = node.start_as_member().await;
        controller.change_ranges(CARELESS).await;
        agent.status("the refusal", refuses(words)).await;
        // The view adds two ranges. In each case, only one of them contains an address of the node.
        let (withheld, other) = if words.contains("2001:db8::/32") {
            ("2001:db8::/32", "192.168.0.0/16")
        } else {
            ("192.168.0.0/16", "2001:db8::/32")
        };
        let part = agent.membership("the other range", holds(other)).await;
        assert!(!holds(withheld)(&part), "{:?}", part.view.cluster_ranges);
        assert_eq!(part.view.version, before.view.version);
        for file in ["view.json", "segments.json"] {
            let on_disk: serde_json::Value = serde_json::from_slice(&std::fs::read(node.file(file)).unwrap()).unwrap();
            assert!(!on_disk["cluster_ranges"].to_string().contains(withheld), "{file}: {on_disk}");
        }
        until("the operator's sight of it", || async {
            controller.nodes().await[0]["refused_view"].as_str().is_some_and(|why| why.contains(words))
        })
        .await;
        // After the node has moved to another network, the view is applied without the operator's
        // help.
        agent.node.uplink.send_modify(|uplink| uplink.underlay.addresses = vec!["198.51.100.7".parse().unwrap()]);
        agent.node.uplink.send_modify(|uplink| uplink.underlay.gateways.clear());
        agent.node.uplink.send_modify(|uplink| uplink.underlay.resolvers.clear());
        agent.membership("the wider view", holds(withheld)).await;
        agent.status("no refusal", |status| status.refused_view.is_none()).await;
        until("the operator's sight of it", || async { controller.nodes().await[0].get("refused_view").is_none() })
            .await;
        agent.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_of_a_view_that_is_refused_are_in_force_although_its_other_part_cannot_be_stored() {
    let mut controller = Controller::with_ranges(BEFORE).await;
    let mut hub = controller.invite("cloud-1", Role::Hub).await;
    hub.underlay.addresses = vec!["192.168.1.10".parse().unwrap()];
    let edge = controller.edge("edge-2").await;
    let (hub_agent, edge_agent) = (hub.start(), edge.start());
    edge_agent.joined().await;
    hub_agent.membership("the edge", |membership| membership.view.peers.len() == 1).await;
    std::fs::create_dir(hub.file("view.json.tmp")).unwrap();
    controller.change_ranges(CARELESS).await;
    hub_agent.status("the view that waits", refuses("cannot be stored")).await;
    controller.operator("DELETE", "/v1/nodes/edge-2", serde_json::json!(null)).await;
    let revoked = hub_agent.membership("no peer", |membership| membership.view.peers.is_empty()).await;
    assert!(!holds("2001:db8::/32")(&revoked));
    std::fs::remove_dir(hub.file("view.json.tmp")).unwrap();
    let part = hub_agent.membership("the other range", holds("2001:db8::/32")).await;
    assert!(part.view.peers.is_empty() && !holds("192.168.0.0/16")(&part));
    hub_agent.status("the refusal", refuses("192.168.0.0/16 holds this node's own address")).await;
    hub_agent.end().await;
    edge_agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_first_join_nothing_of_a_view_that_would_cut_the_node_off_is_installed() {
    let mut controller = Controller::with_ranges(CARELESS).await;
    let mut node = controller.edge("edge-1").await;
    node.underlay.gateways = vec!["192.168.1.1".parse().unwrap()];
    let agent = node.start();
    agent.status("the refusal", refuses("its gateway 192.168.1.1")).await;
    assert!(agent.node.membership.borrow().is_none());
    assert!(!exists(node.file("segments.json")) && !exists(node.file("view.json")));
    // The view that the operator has corrected is applied without a restart.
    controller.change_ranges(BEFORE).await;
    agent.membership("the corrected view", |membership| !holds("192.168.0.0/16")(membership)).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_force_stays_and_later_ones_come_where_somebody_gives_the_node_an_address_within_its_ranges() {
    let mut controller = Controller::with_ranges(BEFORE).await;
    let mut node = controller.edge("edge-1").await;
    let (agent, before) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    // A router advertisement has given the node an address, and a DHCP lease has given it a
    // resolver.
    let given = || vec!["fd77::200:5eff:fe00:5301".parse().unwrap(), "10.77.200.5".parse().unwrap()];
    agent.node.uplink.send_modify(|uplink| uplink.underlay.addresses = given());
    agent.node.uplink.send_modify(|uplink| uplink.underlay.resolvers = vec!["10.77.0.53".parse().unwrap()]);
    agent
        .status("the conflicts", |status| {
            ["10.77.200.5", "fd77::200:5eff:fe00:5301", "its name server 10.77.0.53"]
                .iter()
                .all(|words| status.conflicts.iter().any(|conflict| conflict.contains(words)))
        })
        .await;
    controller
        .operator("PATCH", "/v1/nodes/edge-1/labels", serde_json::json!({"fabedge/edge-community": "alpha"}))
        .await;
    let later = agent.membership("a later view", |membership| !membership.view.communities.is_empty()).await;
    assert!(later.view.version > before.view.version);
    // Networks that a later view adds are still checked.
    agent.node.uplink.send_modify(|uplink| uplink.underlay.gateways = vec!["192.168.1.1".parse().unwrap()]);
    controller.change_ranges(CARELESS).await;
    agent.status("the refusal", refuses("its gateway 192.168.1.1")).await;
    assert_eq!(agent.joined().await.view, later.view);
    agent.end().await;
    // The tunnels also survive a restart without the controller.
    controller.stop().await;
    node.underlay.addresses = given();
    let agent = node.start();
    let status = agent.node.controller_status.borrow().clone();
    assert_eq!(agent.node.membership.borrow().as_ref().map(|membership| membership.view.clone()), Some(later.view));
    assert!(status.conflicts.iter().any(|conflict| conflict.contains("10.77.200.5")), "{status:?}");
    assert_eq!(status.refused_view, None);
    agent.node.uplink.send_modify(|uplink| uplink.underlay.addresses.clear());
    agent.status("no conflict", |status| status.conflicts.is_empty()).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_announces_the_network_that_the_next_view_adds_delays_that_network_alone() {
    let mut controller = Controller::with_ranges(BEFORE).await;
    let (one, two) = (controller.edge("edge-1").await, controller.edge("edge-2").await);
    let ((agent, _), (other, _)) = (one.start_as_member().await, two.start_as_member().await);
    let community = serde_json::json!({"fabedge/edge-community": "alpha"});
    for node in ["edge-1", "edge-2"] {
        controller.operator("PATCH", &format!("/v1/nodes/{node}/labels"), community.clone()).await;
    }
    agent.membership("its peer", |membership| membership.view.peers.len() == 1).await;
    // The router advertisement of a neighbour arrives before the view.
    agent.node.uplink.send_modify(|uplink| uplink.underlay.addresses = vec!["10.99.0.7".parse().unwrap()]);
    controller.change_ranges(WIDER).await;
    agent.status("the refusal", refuses("10.99.0.0/16 holds this node's own address 10.99.0.7")).await;
    until("the operator's sight of it", || async {
        controller.nodes().await[0]["refused_view"].as_str().is_some_and(|why| why.contains("10.99.0.0/16"))
    })
    .await;
    assert!(!holds("10.99.0.0/16")(&agent.joined().await));
    // In the meantime, a revocation takes effect, also on disk.
    controller.operator("DELETE", "/v1/nodes/edge-2", serde_json::json!(null)).await;
    let revoked = agent.membership("the end of its peer", |membership| membership.view.peers.is_empty()).await;
    assert!(!holds("10.99.0.0/16")(&revoked));
    let on_disk: edge_types::NodeView = serde_json::from_slice(&std::fs::read(one.file("view.json")).unwrap()).unwrap();
    assert_eq!(on_disk, *revoked.view);
    // When the address is removed, the whole view is applied.
    agent.node.uplink.send_modify(|uplink| uplink.underlay.addresses.clear());
    agent.membership("the added network", holds("10.99.0.0/16")).await;
    agent.status("no refusal", |status| status.refused_view.is_none()).await;
    agent.end().await;
    other.end().await;
}

/// Creates a member whose view has the former ranges, and which reaches its controller through a
/// proxy.
async fn member_by_proxy() -> (Controller, Node, ControllerProxy) {
    let controller = Controller::with_ranges(BEFORE).await;
    let proxy = ControllerProxy::to(&controller).await;
    let mut node = controller.edge("edge-1").await;
    node.url = proxy.url();
    node.controller_extra = "take_back = \"2s\"";
    (controller, node, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_under_which_the_controller_cannot_be_reached_is_taken_back_and_not_tried_again() {
    let (mut controller, node, proxy) = member_by_proxy().await;
    let (agent, before) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    let mut inputs = agent.controller.segment_inputs();
    let inputs_before = inputs.borrow_and_update().clone();
    controller.change_ranges(WIDER).await;
    agent.membership("the wider view", holds("10.99.0.0/16")).await;
    soon("segments for the wider view", inputs.wait_for(|inputs| *inputs != inputs_before)).await.unwrap();
    proxy.close().await;
    let restored = agent.membership("the view before", |membership| !holds("10.99.0.0/16")(membership)).await;
    assert_eq!(restored.view, before.view);
    soon("segments for the view before", inputs.wait_for(|inputs| *inputs == inputs_before)).await.unwrap();
    let on_disk: edge_types::NodeView =
        serde_json::from_slice(&std::fs::read(node.file("view.json")).unwrap()).unwrap();
    assert_eq!(on_disk, *before.view);
    // With the former view, the controller is reached immediately, so the later view was the cause
    // of the lost connection.
    let proxy = proxy.open().await;
    agent.status("the refusal", refuses("it adds 10.99.0.0/16")).await;
    until("the operator's sight of it", || async {
        controller.nodes().await[0]["refused_view"].as_str().is_some_and(|why| why.contains("10.99.0.0/16"))
    })
    .await;
    assert_eq!(agent.joined().await.view, before.view);
    agent.end().await;
    // After a restart, that view is not tried either, but a different view is.
    let agent = node.start();
    agent.status("the refusal", refuses("it adds 10.99.0.0/16")).await;
    assert_eq!(agent.joined().await.view, before.view);
    controller.change_ranges(OTHER).await;
    agent.membership("another view", holds("10.98.0.0/16")).await;
    until("the confirmation", || async {
        !exists(node.file("view-before.json")) && !exists(node.file("taken-back.json"))
    })
    .await;
    agent.end().await;
    drop(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_was_taken_back_is_not_tried_while_the_controller_is_away_and_comes_again_when_it_is_back() {
    let (mut controller, node, proxy) = member_by_proxy().await;
    let (agent, before) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    controller.change_ranges(WIDER).await;
    agent.membership("the wider view", holds("10.99.0.0/16")).await;
    proxy.close().await;
    agent.membership("the view before", |membership| !holds("10.99.0.0/16")(membership)).await;
    // The change of the uplink causes the view to be validated again, which otherwise happens every
    // minute.
    agent.node.uplink.send_modify(|uplink| uplink.underlay.addresses = vec!["198.51.100.7".parse().unwrap()]);
    let waits = |status: &ControllerStatus| {
        status.refused_view.as_ref().is_some_and(|why| why.contains("judged when the controller is reached again"))
    };
    agent.status("the wait", waits).await;
    assert_eq!(agent.joined().await.view, before.view);
    assert!(!exists(node.file("view-before.json")), "the view is not unconfirmed");
    agent.end().await;
    // The controller was unreachable for a long time, so the view was not the cause.
    let mut noted: serde_json::Value =
        serde_json::from_slice(&std::fs::read(node.file("taken-back.json")).unwrap()).unwrap();
    noted["at"] = (noted["at"].as_u64().unwrap() - 1000).into();
    std::fs::write(node.file("taken-back.json"), noted.to_string()).unwrap();
    let proxy = proxy.open().await;
    let agent = node.start();
    agent.membership("the wider view", holds("10.99.0.0/16")).await;
    agent.end().await;
    drop(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_a_view_cuts_the_node_off_does_not_make_it_stay() {
    let (mut controller, node, proxy) = member_by_proxy().await;
    let (agent, before) = node.start_as_member().await;
    controller.change_ranges(WIDER).await;
    agent.membership("the wider view", holds("10.99.0.0/16")).await;
    proxy.close().await;
    agent.kill().await;
    assert!(exists(node.file("view-before.json")));
    let agent = node.start();
    let restored = agent.membership("the view before", |membership| !holds("10.99.0.0/16")(membership)).await;
    assert_eq!(restored.view.cluster_ranges, before.view.cluster_ranges);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_controller_takes_back_no_view_under_which_it_was_heard_or_that_adds_nothing() {
    let (mut controller, node, proxy) = member_by_proxy().await;
    let (agent, _) = node.start_as_member().await;
    controller.change_ranges(WIDER).await;
    let heard = agent.membership("the wider view", holds("10.99.0.0/16")).await;
    until("the confirmation", || async { !exists(node.file("view-before.json")) }).await;
    // A view that adds no network is not unconfirmed.
    controller
        .operator("PATCH", "/v1/nodes/edge-1/labels", serde_json::json!({"fabedge/edge-community": "alpha"}))
        .await;
    let latest = agent.membership("the community", |membership| !membership.view.communities.is_empty()).await;
    assert!(!exists(node.file("view-before.json")));
    proxy.close().await;
    agent.status("the loss", |status| !status.connected && status.last_error.is_some()).await;
    // This is twice the time after which a view is taken back.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = agent.joined().await;
    assert_eq!(after.view, latest.view);
    assert_eq!(after.view.cluster_ranges, heard.view.cluster_ranges);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_adds_nothing_any_more_leaves_nothing_to_take_back() {
    let mut controller = Controller::with_ranges(BEFORE).await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    agent.status("the stream", |status| status.connected).await;
    controller.change_ranges(WIDER).await;
    agent.membership("the wider view", holds("10.99.0.0/16")).await;
    assert!(exists(node.file("view-before.json")), "the wider view is unconfirmed");
    controller.change_ranges(BEFORE).await;
    agent.membership("the corrected view", |membership| !holds("10.99.0.0/16")(membership)).await;
    assert!(!exists(node.file("view-before.json")), "there is nothing left to take back");
    agent.end().await;
}
