//! Tests view streams that send only changes, and that continue where an earlier stream ended.

use edge_types::api::ViewEvent;
use edge_types::{NodeView, ViewChange};
use http_body_util::{BodyExt, Full};
use hyper::Method;

use crate::harness::{Cloud, Node, kind};

fn put(change: &ViewChange) -> Vec<&str> {
    change.put.iter().map(|peer| peer.name.as_str()).collect()
}

fn gone(change: &ViewChange) -> Vec<&str> {
    change.gone.iter().map(|name| name.as_str()).collect()
}

/// Returns the view without a stream.
async fn now(node: &Node) -> NodeView {
    let (status, body) = node.ask(Method::GET, "/view", None).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_value(body).unwrap()
}

/// Makes three members of one community.
async fn community(cloud: &Cloud) -> [Node; 3] {
    let nodes = [cloud.node("edge", "a").await, cloud.node("edge", "b").await, cloud.node("edge", "c").await];
    for name in ["a", "b", "c"] {
        cloud.label(name, Some("alpha")).await;
    }
    nodes
}

#[tokio::test]
async fn after_the_first_view_only_what_changes_is_told() {
    let cloud = Cloud::start().await;
    let [a, b, _c] = community(&cloud).await;
    let mut stream = a.watch_with("&changes=true").await;
    let (mut view, _) = stream.first().await;
    assert_eq!(view.peers.len(), 2);

    b.report(&["192.0.2.7"], 4500).await;
    let change = stream.change().await;
    assert_eq!((put(&change), gone(&change), change.own.is_some()), (vec!["b"], vec![], false));
    view = change.apply_to(view).unwrap();
    assert_eq!(view, now(&a).await);

    cloud.label("a", Some("alpha_beta")).await;
    let (whole, _) = stream.first().await;
    assert_eq!(whole.communities.len(), 2, "a node whose communities change gets the whole view");
    view = whole;
    assert_eq!(view, now(&a).await);

    cloud.deregister("c").await;
    let change = stream.change().await;
    assert_eq!((put(&change), gone(&change), change.own.is_some()), (vec![], vec!["c"], false));
    view = change.apply_to(view).unwrap();
    assert_eq!(view, now(&a).await);
}

#[tokio::test]
async fn whoever_comes_back_is_told_what_changed_meanwhile_in_one_line_or_nothing() {
    let cloud = Cloud::start().await;
    let [a, b, c] = community(&cloud).await;
    let (view, epoch) = a.watch_with("&changes=true").await.first().await;
    b.report(&["192.0.2.7"], 4500).await;
    c.report(&["192.0.2.8"], 4500).await;
    b.report(&["192.0.2.9"], 4500).await;
    let from = view.version;
    let mut stream = a.watch_with(&format!("&changes=true&from={from}&epoch={epoch}")).await;
    let change = stream.change().await;
    assert_eq!(put(&change), ["b", "c"]);
    let view = change.apply_to(view).unwrap();
    assert_eq!(view, now(&a).await);
    drop(stream);

    let from = view.version;
    let mut stream = a.watch_with(&format!("&changes=true&from={from}&epoch={epoch}")).await;
    match stream.line().await {
        Some(ViewEvent::Heartbeat { version }) => assert_eq!(version, from),
        other => panic!("nothing had changed, but {other:?} came"),
    }
    cloud.label("c", None).await;
    assert_eq!(gone(&stream.change().await), ["c"]);
}

#[tokio::test]
async fn whoever_comes_from_another_run_or_too_long_ago_gets_the_whole_view() {
    let cloud = Cloud::start().await;
    let [mut a, mut b, _c] = community(&cloud).await;
    let (view, epoch) = a.watch_with("&changes=true").await.first().await;
    let cloud = cloud.restart().await;
    a.move_to(&cloud);
    b.move_to(&cloud);
    let from = view.version;
    let mut stream = a.watch_with(&format!("&changes=true&from={from}&epoch={epoch}")).await;
    let (view, other) = stream.first().await;
    assert_ne!(epoch, other);
    assert_eq!(view.peers.len(), 2);
    // More changes than the controller remembers.
    for _ in 0..50 {
        cloud.label("b", None).await;
        cloud.label("b", Some("alpha")).await;
    }
    b.report(&["192.0.2.7"], 99).await;
    let from = view.version;
    let (view, _) = a.watch_with(&format!("&changes=true&from={from}&epoch={other}")).await.first().await;
    assert_eq!(view, now(&a).await);
    // The open stream still got the change.
    let moved = |change: &edge_types::ViewChange| {
        change.put.iter().flat_map(|peer| &peer.endpoints).any(|endpoint| endpoint.address.port() == 99)
    };
    while !moved(&stream.change().await) {}
}

#[tokio::test]
async fn a_version_that_the_store_never_had_is_answered_with_what_it_has() {
    let cloud = Cloud::start().await;
    let [a, ..] = community(&cloud).await;
    let (view, epoch) = a.watch_with("&changes=true").await.first().await;
    let from = view.version + 1000;
    for parameters in [format!("&from={from}"), format!("&changes=true&from={from}&epoch={epoch}")] {
        assert_eq!(a.watch_with(&parameters).await.first().await.0, view);
    }
}

#[tokio::test]
async fn a_node_that_claims_later_versions_again_and_again_must_wait_and_no_other_node() {
    let cloud = Cloud::start().await;
    let [a, b, _c] = community(&cloud).await;
    let (view, epoch) = a.watch_with("&changes=true").await.first().await;
    let claim = format!("&from={}", u64::MAX);
    // These streams use up the burst.
    for _ in 0..16 {
        a.watch_with(&claim).await.first().await;
    }
    let refused = a.ask(Method::GET, &format!("/view?watch=true{claim}"), None).await;
    assert_eq!(kind(&refused), (429, "too-often"));
    b.watch_with(&claim).await.first().await;
    b.report(&["192.0.2.7"], 4500).await;
    let from = format!("&changes=true&from={}&epoch={epoch}", view.version);
    assert_eq!(put(&a.watch_with(&from).await.change().await), ["b"], "a true version is still accepted");
}

#[tokio::test]
async fn a_reader_that_is_slower_than_the_changes_gets_them_joined_and_holds_up_nobody() {
    let cloud = Cloud::start().await;
    let [a, _b, c] = community(&cloud).await;
    let mut slow = a.watch_slowly("&changes=true").await;
    let mut quick = c.watch_with("&changes=true").await;
    quick.first().await;
    let mut received = 0;
    for _ in 0..10 {
        cloud.label("b", None).await;
        assert_eq!(quick.change().await.gone.len(), 1);
        cloud.label("b", Some("alpha")).await;
        assert_eq!(put(&quick.change().await), ["b"]);
    }
    let mut view = slow.first().await.0;
    while view.version < now(&a).await.version {
        view = slow.change().await.apply_to(view).unwrap();
        received += 1;
    }
    assert_eq!(view, now(&a).await);
    assert!(received < 20, "one line each for {received} of 20 changes");
}

#[tokio::test]
async fn a_reader_that_stops_reading_is_cut_off() {
    let cloud = Cloud::start().await;
    let [a, b, _c] = community(&cloud).await;
    let slow = a.watch_slowly("&changes=true").await;
    b.report(&["192.0.2.7"], 4500).await;
    // The server drops the connection only after its time limit for a slow reader.
    let connected = async || cloud.operator(Method::GET, "/v1/nodes", None).await.1[0]["connected"].clone();
    while connected().await == true {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    slow.ended().await;
}

#[tokio::test]
async fn a_node_that_does_not_read_the_views_it_asks_for_gets_two_and_is_cut_off() {
    // A view of more parts than the HTTP server keeps.
    let networks: Vec<String> = (0..1024).map(|n| format!("\"172.{}.{}.0/24\"", 16 + n / 256, n % 256)).collect();
    let hub = format!("cluster_ranges = [\"10.77.0.0/24\"]\n[hub.h]\nnetworks = [{}]", networks.join(", "));
    let cloud = Cloud::with(&hub).await;
    let (hub, edge) = (cloud.node("hub", "h").await, cloud.node("edge", "b").await);
    let mut connection = hub.connect_slowly().await;
    let mut unread = Vec::new();
    for _ in 0..2 {
        unread.push(connection.send(Method::GET, "/v1/nodes/h/view", Full::default()).await.unwrap());
    }
    let refused = hub.ask(Method::GET, "/view", None).await;
    assert_eq!(kind(&refused), (429, "too-many-streams"));
    now(&edge).await;
    // The server drops the connection only after its time limit for a slow reader.
    while hub.ask(Method::GET, "/view", None).await.0 != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for response in unread {
        response.into_body().collect().await.expect_err("only a part of it arrived");
    }
    for _ in 0..5 {
        assert_eq!(now(&hub).await.networks.len(), 1024);
    }
}
