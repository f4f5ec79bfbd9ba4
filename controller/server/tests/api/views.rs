//! Tests what nodes see, and when changes reach them.

use crate::harness::{Cloud, kind};
use edge_types::api::ViewEvent;
use edge_types::{AddressSource, NodeView};
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn peers(view: &NodeView) -> Vec<&str> {
    view.peers.iter().map(|peer| peer.name.as_str()).collect()
}

#[tokio::test]
async fn every_role_sees_whom_it_may_talk_to_and_hubs_front_the_clouds_networks() {
    let cloud = Cloud::start().await;
    let (hub, other) = (cloud.node("hub", "hub").await, cloud.node("cloud", "cloud-2").await);
    let edge = cloud.node("edge", "edge-1").await;
    let view = edge.watch().await.view().await;
    assert_eq!(peers(&view), ["hub"]);
    assert_eq!(view.peers[0].networks, ["10.244.0.0/16".parse().unwrap()]);
    assert!(view.networks.is_empty());
    assert_eq!(view.cluster_ranges.len(), 2);
    assert!(view.trust_anchors[0].contains("BEGIN CERTIFICATE"));
    let view = hub.watch().await.view().await;
    assert_eq!((peers(&view), view.networks.len()), (vec!["edge-1"], 1));
    assert_eq!(view.peers[0].segments.len(), 2);
    assert_eq!(peers(&other.watch().await.view().await), ["hub"]);
}

#[tokio::test]
async fn labels_join_and_part_nodes_by_pushed_views() {
    let cloud = Cloud::start().await;
    let (a, b) = (cloud.node("edge", "a").await, cloud.node("edge", "b").await);
    let mut stream = a.watch().await;
    let first = stream.view().await;
    assert!(peers(&first).is_empty());
    cloud.label("b", Some("alpha_beta")).await;
    cloud.label("a", Some("alpha")).await;
    let second = stream.view().await;
    assert_eq!(peers(&second), ["b"]);
    assert!(second.version > first.version);
    let (_, communities) = cloud.operator(Method::GET, "/v1/communities", None).await;
    assert_eq!(communities[0]["members"], serde_json::json!(["a", "b"]));
    assert_eq!(b.request_segments("r", &["ipv4"]).await.0, 200);
    assert_eq!(stream.view().await.peers[0].segments.len(), 3, "a grant is sent to the community");
    cloud.label("b", None).await;
    assert!(peers(&stream.view().await).is_empty());
}

#[tokio::test]
async fn endpoints_are_those_reported_and_the_one_that_was_seen() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let mut stream = hub.watch().await;
    assert!(stream.view().await.peers[0].endpoints.is_empty(), "a peer without endpoints is a peer");
    // Addresses in a cluster range and in the cloud's networks, some with another meaning on other
    // machines, and one twice. The controller sees one of these as the source.
    let addresses = [
        "192.0.2.1",
        "10.77.0.1",
        "10.244.0.10",
        "fe80::1",
        "127.0.0.1",
        "169.254.169.254",
        "::ffff:192.0.2.1",
        "2001:db8::1",
    ];
    assert_eq!(edge.report(&addresses, 4500).await.0, 204);
    let endpoints = stream.view().await.peers[0].endpoints.clone();
    let said: Vec<(String, AddressSource)> = endpoints.iter().map(|e| (e.address.to_string(), e.source)).collect();
    assert_eq!(
        said,
        [("192.0.2.1:4500".into(), AddressSource::Reported), ("[2001:db8::1]:4500".into(), AddressSource::Reported),]
    );
    assert_eq!(kind(&edge.report(&["192.0.2.1"], 0).await), (422, "bad-value"));
    // A hub may be in a network that it fronts.
    assert_eq!(hub.report(&["10.244.0.10"], 4500).await.0, 204);
    let (_, view) = edge.ask(Method::GET, "/view", None).await;
    assert_eq!(view["peers"][0]["endpoints"][0]["address"], "10.244.0.10:4500");
}

#[tokio::test]
async fn a_node_with_forty_addresses_gets_a_view_and_its_peers_a_few_of_them() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let mut stream = hub.watch().await;
    stream.view().await;
    let many: Vec<String> = (0..40).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(edge.report(&many, 4500).await.0, 204);
    let endpoints = stream.view().await.peers[0].endpoints.clone();
    let received: Vec<String> = endpoints.iter().map(|endpoint| endpoint.address.ip().to_string()).collect();
    assert!(
        received.len() <= 8
            && !received.is_empty()
            && many.starts_with(&received.iter().map(String::as_str).collect::<Vec<_>>()),
        "{received:?}"
    );
    assert_eq!(edge.ask(Method::GET, "/view", None).await.0, 200);
}

#[tokio::test]
async fn a_node_that_says_another_address_at_every_moment_sends_its_peers_to_few_of_them_and_to_the_last() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let mut stream = hub.watch().await;
    stream.view().await;
    let last = "198.51.100.200";
    for n in 0..100 {
        let third_party = if n == 99 { last.to_owned() } else { format!("198.51.100.{n}") };
        assert_eq!(edge.report(&[&third_party], 4500).await.0, 204);
    }
    let mut received = Vec::new();
    while received.last().is_none_or(|address| address != last) {
        let endpoints = stream.view().await.peers[0].endpoints.clone();
        received.extend(endpoints.iter().map(|endpoint| endpoint.address.ip().to_string()));
    }
    assert!(received.len() <= 12, "{} of a hundred: {received:?}", received.len());
}

#[tokio::test]
async fn what_does_not_concern_a_node_is_not_told_it_and_heartbeats_show_life() {
    let cloud = Cloud::start().await;
    let (a, b) = (cloud.node("edge", "a").await, cloud.node("edge", "b").await);
    let mut stream = a.watch().await;
    let version = stream.view().await.version;
    cloud.label("b", Some("beta")).await;
    b.report(&["192.0.2.2"], 4500).await;
    a.report(&["192.0.2.1"], 4500).await;
    match stream.line().await {
        Some(ViewEvent::Heartbeat { version: held }) => assert_eq!(held, version),
        other => panic!("expected a heartbeat, got {other:?}"),
    }
}

#[tokio::test]
async fn versions_rise_across_a_restart_and_everything_is_as_it_was() {
    let cloud = Cloud::start().await;
    let (mut a, _b) = (cloud.node("edge", "a").await, cloud.node("edge", "b").await);
    for node in ["a", "b"] {
        cloud.label(node, Some("alpha")).await;
    }
    a.report(&["192.0.2.1"], 4500).await;
    let mut stream = a.watch().await;
    let mut before = stream.view().await;
    let cloud = cloud.restart().await;
    stream.ended().await;
    a.move_to(&cloud);
    let mut after = a.watch().await.view().await;
    assert!(after.version > before.version, "{} after {}", after.version, before.version);
    (before.version, after.version) = (0, 0);
    assert_eq!(after, before);
}

#[tokio::test]
async fn several_streams_of_one_node_hear_the_same_and_the_operator_sees_that_it_is_connected() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "a").await;
    let connected = async || cloud.operator(Method::GET, "/v1/nodes", None).await.1[0]["connected"].clone();
    assert_eq!(connected().await, false);
    let (mut one, mut two) = (node.watch().await, node.watch().await);
    assert_eq!(one.view().await, two.view().await);
    assert_eq!(connected().await, true);
    cloud.label("a", Some("alpha")).await;
    assert_eq!(one.view().await, two.view().await);
}

#[tokio::test]
async fn deregistration_ends_the_streams_and_leaves_other_views() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let (mut of_hub, mut of_edge) = (hub.watch().await, edge.watch().await);
    assert_eq!(peers(&of_hub.view().await), ["edge-1"]);
    of_edge.view().await;
    assert_eq!(cloud.deregister("edge-1").await.0, 200);
    assert!(peers(&of_hub.view().await).is_empty());
    of_edge.ended().await;
    assert_eq!(kind(&cloud.deregister("edge-1").await), (404, "no-such-node"));
}

#[tokio::test]
async fn http_1_1_serves_as_well_for_those_who_look_by_hand() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let mut stream = node.connect_tls().await;
    stream.write_all(b"GET /v1/nodes/edge-1/view?watch=true HTTP/1.1\r\nhost: cloud.test\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    while !seen.contains("\"type\":\"heartbeat\"") {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).await.unwrap();
        assert_ne!(length, 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert!(seen.starts_with("HTTP/1.1 200 OK") && seen.contains("application/x-ndjson"), "{seen}");
    assert!(seen.contains("\"type\":\"view\""), "{seen}");
}

#[tokio::test]
async fn a_community_may_be_listed_before_its_members_join() {
    let cloud = Cloud::start().await;
    let listed = serde_json::json!({"members": ["edge-1", "edge-2"]});
    assert_eq!(cloud.operator(Method::PUT, "/v1/communities/alpha", Some(listed.clone())).await.0, 204);
    let (one, _two) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    let (_, view) = one.ask(Method::GET, "/view", None).await;
    assert_eq!(view["peers"][0]["name"], "edge-2");
    let cloud = cloud.restart().await;
    for body in [serde_json::json!({}), serde_json::json!({"tunnels": "lazy"})] {
        let (status, problem) = cloud.operator(Method::PUT, "/v1/communities/alpha", Some(body)).await;
        assert_eq!(status, 422, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("neither members nor tunnels") || detail.contains("`on-demand`"), "{detail}");
    }
    let mut one = one;
    one.move_to(&cloud);
    for (word, decided) in [("on-demand", Some(true)), ("eager", Some(false)), ("auto", None)] {
        let body = serde_json::json!({"tunnels": word});
        assert_eq!(cloud.operator(Method::PUT, "/v1/communities/alpha", Some(body)).await.0, 204);
        let (_, view) = one.ask(Method::GET, "/view", None).await;
        assert_eq!(view["peers"][0]["on_demand_in"]["alpha"].as_bool(), decided, "{word}");
        assert_eq!(view["peers"][0].get("on_demand_in").is_some(), decided.is_some(), "{word}");
    }
    assert_eq!(cloud.operator(Method::DELETE, "/v1/communities/alpha", None).await.0, 204);
    let (_, view) = one.ask(Method::GET, "/view", None).await;
    assert_eq!(view["peers"].as_array().map(Vec::len), Some(0));
    for bad in ["-a", "a_b", "%20", "a..b", "a.-b"] {
        let response = cloud.operator(Method::PUT, &format!("/v1/communities/{bad}"), Some(listed.clone())).await;
        assert_eq!(response.0, 422, "{bad}");
    }
    let odd = serde_json::json!({"members": ["A b"]});
    assert_eq!(cloud.operator(Method::PUT, "/v1/communities/alpha", Some(odd)).await.0, 422);
}

#[tokio::test]
async fn a_community_may_list_ten_thousand_of_the_longest_names_and_a_larger_list_is_refused_with_its_limit() {
    let cloud = Cloud::start().await;
    let part = "x".repeat(63);
    let name = |index: usize| format!("{index:05}{}.{part}.{part}.{}", &part[5..], &part[2..]);
    assert_eq!(name(1).len(), 253);
    let listed = |count| {
        let names = (0..count).map(name).chain(["edge-1".into(), "edge-2".into()]);
        serde_json::json!({"members": names.collect::<Vec<_>>()})
    };
    assert_eq!(cloud.operator(Method::PUT, "/v1/communities/alpha", Some(listed(9_998))).await.0, 204);
    let (one, _two) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    assert_eq!(one.ask(Method::GET, "/view", None).await.1["peers"][0]["name"], "edge-2");
    let (status, problem) = cloud.operator(Method::PUT, "/v1/communities/alpha", Some(listed(10_300))).await;
    assert_eq!(status, 413, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("2621440 bytes"), "{problem}");
    let patch = serde_json::json!({"x": "y".repeat(70_000)});
    let (status, _) = cloud.operator(Method::PATCH, "/v1/nodes/edge-1/labels", Some(patch)).await;
    assert_eq!(status, 413, "other requests have the smaller limit");
}
