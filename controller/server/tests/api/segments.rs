//! Tests segment requests and the later state of the segments.

use crate::harness::{Cloud, detail, kind};
use hyper::Method;
use serde_json::json;

#[tokio::test]
async fn a_retry_with_the_same_id_gets_the_same_segments_and_one_row() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let first = node.request_segments("r-1", &["ipv4", "ipv6"]).await;
    assert_eq!(first, (200, json!({"segments": ["10.77.0.64/26", "fd77::100/120"]})));
    assert_eq!(node.request_segments("r-1", &["ipv6", "ipv4"]).await, first);
    assert_eq!(kind(&node.request_segments("r-1", &["ipv4"]).await), (409, "request-id-reused"));
    let (_, rows) = cloud.operator(Method::GET, "/v1/segments", None).await;
    assert_eq!(rows.as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn segment_requests_of_many_nodes_at_once_never_overlap() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/20\"]\nv4_prefix = 28\nmin_per_node = 0").await;
    let mut nodes = Vec::new();
    for index in 0..8 {
        nodes.push(cloud.node("edge", &format!("edge-{index}")).await);
    }
    let segment_requests = nodes.iter().flat_map(|node| {
        (0..8).map(move |round| async move {
            node.request_segments(&format!("r{round}"), &["ipv4"]).await.1["segments"][0].to_string()
        })
    });
    let granted = futures_util::future::join_all(segment_requests).await;
    let distinct: std::collections::BTreeSet<&String> = granted.iter().collect();
    assert_eq!(distinct.len(), 64);
}

#[tokio::test]
async fn a_full_range_says_who_holds_what_and_grants_nothing_of_the_request() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/24\", \"fd77::/119\"]").await;
    let (one, two) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    let refused = one.request_segments("r-1", &["ipv4", "ipv6"]).await;
    assert_eq!(kind(&refused), (409, "range-exhausted"));
    assert!(detail(&refused).contains("IPv6"), "{}", detail(&refused));
    assert_eq!(
        two.request_segments("r-1", &["ipv4"]).await.0,
        200,
        "the IPv4 half of the refused request was not taken"
    );
    assert_eq!(one.request_segments("r-2", &["ipv4"]).await.0, 200);
    let refused = one.request_segments("r-3", &["ipv4"]).await;
    assert!(detail(&refused).contains("edge-1 holds 2, edge-2 holds 2"), "{}", detail(&refused));
}

#[tokio::test]
async fn limits_and_families_are_kept() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/24\"]\nmax_per_node = 2").await;
    let node = cloud.node("edge", "edge-1").await;
    assert_eq!(kind(&node.request_segments("r-1", &["ipv6"]).await), (409, "no-such-family"));
    assert_eq!(node.request_segments("r-2", &["ipv4"]).await.0, 200);
    assert_eq!(kind(&node.request_segments("r-3", &["ipv4"]).await), (409, "too-many-segments"));
    for (id, families) in [("", vec!["ipv4"]), ("r-4", vec![]), ("r-5", vec!["ipv5"]), (&"x".repeat(129), vec!["ipv4"])]
    {
        assert_eq!(kind(&node.request_segments(id, &families).await), (422, "bad-value"));
    }
}

#[tokio::test]
async fn a_node_that_asks_in_vain_again_and_again_must_wait_and_no_other_node() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/24\"]\nmax_per_node = 2").await;
    let (node, other) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    assert_eq!(node.request_segments("r-1", &["ipv4"]).await.0, 200);
    // The burst.
    for n in 0..16 {
        let refused = node.request_segments(&format!("vain-{n}"), &["ipv4"]).await;
        assert_eq!(kind(&refused), (409, "too-many-segments"));
    }
    assert_eq!(kind(&node.request_segments("vain", &["ipv4"]).await), (429, "too-often"));
    assert_eq!(other.request_segments("r-1", &["ipv4"]).await.0, 200);
}

#[tokio::test]
async fn a_node_has_its_minimum_of_each_family_when_it_has_joined() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/20\", \"fd77::/112\"]\nmin_per_node = 3").await;
    let node = cloud.node("edge", "edge-1").await;
    let segments = node.watch().await.view().await.segments;
    assert_eq!(segments.iter().filter(|segment| segment.is_ipv4()).count(), 3, "{segments:?}");
    assert_eq!(segments.len(), 6, "{segments:?}");
}

#[tokio::test]
async fn segments_of_a_deregistered_node_wait_out_the_quarantine_and_then_that_very_one_is_granted() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/25\"]").await;
    let (mut one, _two) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    let (_, released) = cloud.deregister("edge-2").await;
    assert_eq!((&released[0]["segment"], &released[0]["state"]), (&json!("10.77.0.64/26"), &json!("quarantined")));
    // The rest of the quarantine is longer than this test.
    cloud.clock.advance(50);
    let refused = one.request_segments("r-1", &["ipv4"]).await;
    assert_eq!(kind(&refused), (409, "range-exhausted"));
    assert!(detail(&refused).contains("1 in quarantine, the first until"), "{}", detail(&refused));
    let cloud = cloud.restart().await;
    one.move_to(&cloud);
    cloud.clock.advance(50);
    assert_eq!(one.request_segments("r-1", &["ipv4"]).await, (200, json!({"segments": ["10.77.0.64/26"]})));
    let (_, rows) = cloud.operator(Method::GET, "/v1/segments", None).await;
    assert_eq!((&rows[1]["node"], &rows[1]["state"]), (&json!("edge-1"), &json!("held")));
    let past = &rows[1]["past"][0];
    assert_eq!((&past["node"], &past["released_at"]), (&json!("edge-2"), &released[0]["released_at"]), "{rows}");
    assert!(past["granted_at"].as_i64() <= past["released_at"].as_i64() && rows[1]["released_at"].is_null());
}
