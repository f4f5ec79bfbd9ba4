//! Tests which requests each kind of caller may send.

use crate::harness::{Cloud, Connection, Node, kind, request_of};
use hyper::Method;
use rcgen::KeyPair;
use serde_json::json;

#[tokio::test]
async fn nobody_acts_for_another_node_or_for_the_operator() {
    let cloud = Cloud::start().await;
    let (a, _b) = (cloud.node("edge", "a").await, cloud.node("hub", "b").await);
    let mut of_a = a.connect().await.unwrap();
    let mut nobody = Connection::open(&cloud, None).await.unwrap();
    let segments = json!({"request_id": "r", "families": ["ipv4"]});
    let csr = json!({"csr": request_of(&KeyPair::generate().unwrap())});
    for (method, path, body) in [
        (Method::GET, "/v1/nodes/b/view", None),
        (Method::GET, "/v1/nodes/b/view?watch=true", None),
        (Method::GET, "/v1/nodes/b/segments", None),
        (Method::POST, "/v1/nodes/b/segments", Some(segments)),
        (Method::POST, "/v1/nodes/b/certificate", Some(csr)),
        (Method::PUT, "/v1/nodes/b", Some(json!({"addresses": [], "port": 1}))),
    ] {
        assert_eq!(kind(&of_a.ask(method.clone(), path, body.clone()).await), (403, "foreign-node"), "{path}");
        assert_eq!(kind(&nobody.ask(method, path, body).await), (401, "certificate-required"), "{path}");
    }
    for (method, path, body) in [
        (Method::GET, "/v1/nodes", None),
        (Method::DELETE, "/v1/nodes/a", None),
        (Method::PATCH, "/v1/nodes/a/labels", Some(json!({"fabedge/edge-community": "alpha"}))),
        (Method::GET, "/v1/segments", None),
        (Method::GET, "/v1/communities", None),
        (Method::GET, "/v1/tokens", None),
        (Method::POST, "/v1/tokens", Some(json!({"role": "hub", "ttl_seconds": 60, "uses": 1}))),
        (Method::DELETE, "/v1/tokens/x", None),
        (Method::GET, "/v1/ca", None),
        (Method::POST, "/v1/ca/rollover", None),
        (Method::DELETE, "/v1/ca/0123456789abcdef?force=true", None),
    ] {
        assert_eq!(kind(&of_a.ask(method.clone(), path, body.clone()).await), (403, "operator-only"), "{path}");
        assert_eq!(kind(&nobody.ask(method, path, body).await), (401, "certificate-required"), "{path}");
    }
}

#[tokio::test]
async fn a_deregistered_nodes_certificate_is_refused_on_open_and_on_new_connections() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "a").await;
    let mut open = node.connect().await.unwrap();
    assert_eq!(open.ask(Method::GET, "/v1/nodes/a/view", None).await.0, 200);
    cloud.deregister("a").await;
    assert_eq!(kind(&open.ask(Method::GET, "/v1/nodes/a/view", None).await), (403, "node-deregistered"));
    assert_eq!(kind(&node.request_segments("r", &["ipv4"]).await), (403, "node-deregistered"));
    let csr = json!({"csr": request_of(&KeyPair::generate().unwrap())});
    assert_eq!(kind(&node.ask(Method::POST, "/certificate", Some(csr)).await), (403, "node-deregistered"));
    cloud.node("edge", "a").await;
    let refused = node.ask(Method::GET, "/view", None).await;
    assert_eq!(
        kind(&refused),
        (403, "certificate-superseded"),
        "registered anew, and the old certificate stays refused"
    );
}

#[tokio::test]
async fn a_certificate_of_another_authority_gets_no_connection() {
    let (cloud, other) = (Cloud::start().await, Cloud::start().await);
    cloud.node("edge", "a").await;
    let key = KeyPair::generate().unwrap();
    let token = other.token("edge", None).await;
    let (_, body) = other.join(&token, "a", &request_of(&key)).await;
    let stranger = Node::new(&cloud, "a", body["certificate"].as_str().unwrap(), &key);
    // In TLS 1.3 a client may send before it receives the refusal of its certificate. In that case
    // the first request fails.
    if let Ok(mut connection) = stranger.connect().await {
        let asked = tokio::spawn(async move { connection.ask(Method::GET, "/v1/nodes/a/view", None).await });
        assert!(asked.await.is_err(), "the connection is cut");
    }
}

#[tokio::test]
async fn a_certificate_ends_on_open_connections_too() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "a").await;
    let mut open = node.connect().await.unwrap();
    // In TLS 1.3 a client finishes its handshake before the server has seen its certificate.
    assert_eq!(open.ask(Method::GET, "/v1/nodes/a/view", None).await.0, 200);
    cloud.clock.advance(7 * 24 * 3600);
    assert_eq!(kind(&open.ask(Method::GET, "/v1/nodes/a/view", None).await), (403, "certificate-expired"));
}

/// Seven days: `node_days` and `grace_days` by default.
const WEEK: i64 = 7 * 24 * 3600;

#[tokio::test]
async fn a_certificate_that_ended_within_the_grace_serves_for_its_renewal_and_for_nothing_else() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "a").await;
    cloud.node("edge", "b").await;
    cloud.clock.advance(2 * WEEK - 60);
    for (method, below) in [(Method::GET, "/view"), (Method::GET, "/segments")] {
        assert_eq!(kind(&node.ask(method, below, None).await), (403, "certificate-expired"));
    }
    assert_eq!(kind(&node.report(&["192.0.2.1"], 4500).await), (403, "certificate-expired"));
    let key = KeyPair::generate().unwrap();
    let csr = json!({"csr": request_of(&key)});
    let mut connection = node.connect().await.unwrap();
    let foreign = connection.ask(Method::POST, "/v1/nodes/b/certificate", Some(csr)).await;
    assert_eq!(kind(&foreign), (403, "foreign-node"));
    let renewed = node.renew(&cloud, &key).await;
    assert_eq!(renewed.ask(Method::GET, "/view", None).await.0, 200);
    assert_eq!(renewed.report(&["192.0.2.1"], 4500).await.0, 204);
    // Since its successor was used, the certificate that ended has no grace.
    let again = node.ask(Method::POST, "/certificate", Some(json!({"csr": request_of(&key)}))).await;
    assert_eq!(kind(&again), (403, "certificate-superseded"));
}

#[tokio::test]
async fn after_the_grace_and_without_one_a_certificate_that_ended_is_refused_in_tls() {
    for (segments, wait) in [("", 2 * WEEK + 60), ("[certificates]\ngrace_days = 0", WEEK + 60)] {
        let cloud = Cloud::with(&format!("cluster_ranges = [\"10.77.0.0/24\"]\n{segments}")).await;
        let node = cloud.node("edge", "a").await;
        cloud.clock.advance(wait);
        let csr = json!({"csr": request_of(&KeyPair::generate().unwrap())});
        if let Ok(mut connection) = node.connect().await {
            let asked = connection.try_ask(Method::POST, "/v1/nodes/a/certificate", Some(csr)).await;
            assert!(asked.is_err(), "{segments:?}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn a_deregistered_node_and_a_replaced_certificate_have_no_grace() {
    let cloud = Cloud::start().await;
    let (gone, replaced) = (cloud.node("edge", "a").await, cloud.node("edge", "b").await);
    assert_eq!(cloud.deregister("a").await.0, 200);
    // The node joins again under its name, with another key.
    let token = cloud.token("edge", Some("b")).await;
    assert_eq!(cloud.join(&token, "b", &request_of(&KeyPair::generate().unwrap())).await.0, 200);
    cloud.clock.advance(WEEK + 60);
    let csr = || Some(json!({"csr": request_of(&KeyPair::generate().unwrap())}));
    assert_eq!(kind(&gone.ask(Method::POST, "/certificate", csr()).await), (403, "node-deregistered"));
    assert_eq!(kind(&replaced.ask(Method::POST, "/certificate", csr()).await), (403, "certificate-superseded"));
}

#[tokio::test]
async fn views_tell_the_grace() {
    let cloud = Cloud::with("cluster_ranges = [\"10.77.0.0/24\"]\n[certificates]\ngrace_days = 3").await;
    let (_, view) = cloud.node("edge", "a").await.ask(Method::GET, "/view", None).await;
    assert_eq!(view["certificate_grace_seconds"], json!(3 * 24 * 3600));
}

#[tokio::test]
async fn the_operator_may_look_at_a_view_but_not_act_as_a_node() {
    let cloud = Cloud::start().await;
    cloud.node("edge", "a").await;
    assert_eq!(cloud.operator(Method::GET, "/v1/nodes/a/view", None).await.0, 200);
    assert_eq!(kind(&cloud.operator(Method::GET, "/v1/nodes/x/view", None).await), (404, "no-such-node"));
    let refused = cloud.operator(Method::PUT, "/v1/nodes/a", Some(json!({"addresses": [], "port": 1}))).await;
    assert_eq!(kind(&refused), (403, "node-only"));
}
