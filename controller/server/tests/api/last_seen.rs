//! Tests that a controller with the embedded store keeps the times when nodes were last seen across
//! restarts.

use hyper::Method;
use serde_json::Value;

use crate::harness::{Cloud, watch_as_operator};

async fn last_seen(cloud: &Cloud, name: &str) -> Value {
    let (status, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    assert_eq!(status, 200, "{nodes}");
    nodes.as_array().unwrap().iter().find(|node| node["name"] == name).unwrap()["last_seen"].clone()
}

#[tokio::test]
async fn a_restarted_controller_knows_when_nodes_were_last_seen() {
    let cloud = Cloud::start().await;
    let mut node = cloud.node("edge", "edge-1").await;
    cloud.node("edge", "never").await;
    let gone = cloud.node("edge", "gone").await;
    for node in [&node, &gone] {
        assert_eq!(node.report(&["192.0.2.1"], 4500).await.0, 204);
    }
    let before = last_seen(&cloud, "edge-1").await;
    assert!(before.is_i64(), "{before}");
    assert_eq!(cloud.deregister("gone").await.0, 200);
    let cloud = cloud.restart().await;
    assert_eq!(last_seen(&cloud, "edge-1").await, before);
    assert_eq!(last_seen(&cloud, "never").await, Value::Null);
    let file = cloud.directory.path().join("state/last-seen.json");
    assert!(!std::fs::read_to_string(&file).unwrap().contains("gone"), "it is not registered any more");

    // A connected node counts as seen until the controller ends.
    node.move_to(&cloud);
    let stream = node.watch().await;
    let cloud = cloud.restart().await;
    drop(stream);
    let seen = last_seen(&cloud, "edge-1").await;
    assert!(seen.as_i64() >= before.as_i64(), "{seen}");

    // A file that cannot be read does not prevent the start.
    let cloud = cloud.restart_after(|state| std::fs::write(state.join("last-seen.json"), "{").unwrap()).await;
    assert_eq!(last_seen(&cloud, "edge-1").await, Value::Null);
    cloud.server.stop().await;
}

#[tokio::test]
async fn a_node_whose_view_the_operator_reads_is_not_connected_for_that() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let path = "/v1/nodes/edge-1/view?watch=true";
    // More streams than a node may have.
    let mut streams = Vec::new();
    for _ in 0..17 {
        streams.push(watch_as_operator(&cloud, path).await);
    }
    let connected = async || cloud.operator(Method::GET, "/v1/nodes", None).await.1[0]["connected"].clone();
    assert_eq!((connected().await, last_seen(&cloud, "edge-1").await), (Value::Bool(false), Value::Null));
    let stream = node.watch().await;
    assert_eq!(connected().await, true);
    drop((stream, streams));
}
