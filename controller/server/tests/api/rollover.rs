//! Tests rollover and retirement of the authority while nodes are connected, and node names that
//! pass to another machine.

use crate::harness::{Cloud, Connection, Node, detail, kind, request_of};
use edge_controller_domain::ca::{hex, request::hash};
use edge_types::NodeView;
use hyper::Method;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

async fn roll_over(cloud: &Cloud) -> Value {
    let (status, new) = cloud.operator(Method::POST, "/v1/ca/rollover", None).await;
    assert_eq!((status, &new["state"]), (201, &json!("active")), "{new}");
    new
}

async fn authorities(cloud: &Cloud) -> Vec<Value> {
    cloud.operator(Method::GET, "/v1/ca", None).await.1.as_array().unwrap().clone()
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    X509Certificate::from_der(der).unwrap().1
}

/// Returns the start of validity of a node's certificate.
fn begins(node: &Node) -> i64 {
    parsed(&node.leaf).validity().not_before.timestamp()
}

async fn view_of(node: &Node) -> NodeView {
    let (status, view) = node.ask(Method::GET, "/view", None).await;
    assert_eq!(status, 200, "{view}");
    serde_json::from_value(view).unwrap()
}

#[tokio::test]
async fn a_rollover_cuts_nobody_off_tells_everybody_and_old_tokens_still_do() {
    let cloud = Cloud::start().await;
    let (old_root, token) = (cloud.ca(), cloud.token("edge", None).await);
    let node = cloud.node("edge", "edge-1").await;
    let mut stream = node.watch().await;
    let before = stream.view().await;
    let new = roll_over(&cloud).await;
    assert_eq!(new["id"], hex(&hash(parsed(&cloud.ca()).public_key().raw)).as_str());
    let received = stream.view().await;
    assert!(received.version > before.version);
    assert_eq!((received.trust_anchors.len(), &received.trust_anchors[1]), (2, &before.trust_anchors[0]));
    assert_eq!(new["certificate"], received.trust_anchors[0].as_str(), "the first anchor is the one that signs");
    // This node still trusts only the old authority and uses one of its certificates.
    let renewed = node.renew(&cloud, &KeyPair::generate().unwrap()).await;
    assert!(parsed(&renewed.leaf).verify_signature(Some(parsed(&cloud.ca()).public_key())).is_ok());
    assert_eq!(renewed.ask(Method::GET, "/view", None).await.0, 200);
    // A token pins the signing authority at the time of its creation, and the chain has both
    // authorities.
    let chain = Connection::open(&cloud, None).await.unwrap().chain;
    assert!(chain.iter().any(|shown| hash(parsed(shown).public_key().raw) == token.ca_hash && *shown == old_root));
    assert_eq!(chain.last(), Some(&cloud.ca()));
    let key = KeyPair::generate().unwrap();
    let (status, joined) = cloud.join(&token, "edge-2", &request_of(&key)).await;
    assert_eq!((status, joined["trust_anchors"].as_array().unwrap().len()), (200, 2));
    let later = cloud.token("edge", None).await;
    assert_ne!(later.ca_hash, token.ca_hash);
    // After a restart the state is unchanged.
    drop(stream);
    let cloud = cloud.restart().await;
    let mut node = node;
    node.move_to(&cloud);
    assert_eq!(view_of(&node).await.trust_anchors, received.trust_anchors);
}

#[tokio::test]
async fn an_old_authority_is_retired_when_nobody_needs_it_any_more_and_its_connections_end() {
    let cloud = Cloud::start().await;
    let (node, token) = (cloud.node("edge", "edge-1").await, cloud.token("edge", None).await);
    let old = authorities(&cloud).await[0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/ca/{}", &old[..12]);
    let retire = async || cloud.operator(Method::DELETE, &path, None).await;
    let refused = retire().await;
    assert_eq!(kind(&refused), (409, "authority-active"));
    assert_eq!(kind(&cloud.operator(Method::DELETE, "/v1/ca/00000000", None).await), (404, "no-such-authority"));
    roll_over(&cloud).await;
    let refused = retire().await;
    assert_eq!(kind(&refused), (409, "authority-needed"));
    assert!(detail(&refused).contains("node edge-1") && detail(&refused).contains(&token.id), "{}", detail(&refused));
    let renewed = node.renew(&cloud, &KeyPair::generate().unwrap()).await;
    assert_eq!(authorities(&cloud).await[0]["needed_by"], json!(["edge-1"]), "the response may have been lost");
    assert_eq!(renewed.report(&["192.0.2.1"], 4500).await.0, 204);
    let row = &authorities(&cloud).await[0];
    assert_eq!((&row["needed_by"], &row["pinned_by"]), (&json!([]), &json!([token.id])));
    cloud.operator(Method::DELETE, &format!("/v1/tokens/{}", token.id), None).await;
    let (still_old, mut stream) = (node.watch().await, renewed.watch().await);
    stream.view().await;
    let (status, retired) = retire().await;
    assert_eq!((status, &retired["id"], &retired["state"]), (200, &json!(old), &json!("retired")), "{retired}");
    still_old.ended().await;
    assert_eq!(stream.view().await.trust_anchors.len(), 1);
    let listed = authorities(&cloud).await;
    assert_eq!((&listed[0]["state"], &listed[1]["state"]), (&json!("retired"), &json!("active")));
    let refused = match node.connect().await {
        Ok(mut connection) => {
            tokio::spawn(async move { connection.ask(Method::GET, "/v1/nodes/edge-1/view", None).await }).await.is_err()
        }
        Err(_) => true,
    };
    assert!(refused, "TLS knows the old authority no more");
}

#[tokio::test]
async fn who_still_needed_an_authority_that_was_retired_by_force_joins_anew() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let old = authorities(&cloud).await[0]["id"].as_str().unwrap().to_owned();
    let stream = node.watch().await;
    roll_over(&cloud).await;
    let (status, _) = cloud.operator(Method::DELETE, &format!("/v1/ca/{old}?force=true"), None).await;
    assert_eq!(status, 200);
    stream.ended().await;
    let token = cloud.token("edge", Some("edge-1")).await;
    let key = KeyPair::generate().unwrap();
    let (status, body) = cloud.join(&token, "edge-1", &request_of(&key)).await;
    assert_eq!(status, 200, "{body}");
    let back = Node::new(&cloud, "edge-1", body["certificate"].as_str().unwrap(), &key);
    assert_eq!(view_of(&back).await.segments.len(), 2, "its segments are still its own");
}

#[tokio::test]
async fn peers_hear_at_once_that_the_certificates_of_a_name_that_changed_hands_are_revoked() {
    let cloud = Cloud::start().await;
    let (a, b) = (cloud.node("edge", "a").await, cloud.node("edge", "b").await);
    cloud.label("a", Some("alpha")).await;
    cloud.label("b", Some("alpha")).await;
    let mut stream = a.watch().await;
    let from = |view: &NodeView| view.peers.iter().find(|peer| peer.name.as_str() == "b").unwrap().certificates_from;
    let first = from(&stream.view().await);
    assert_eq!(first, begins(&b));
    // A renewal by the node itself revokes nothing.
    let renewed = b.renew(&cloud, &KeyPair::generate().unwrap()).await;
    assert_eq!(from(&view_of(&a).await), first);
    // However often a node renews, its certificate's `notBefore` is not later than that of the next
    // owner of its name.
    let mut latest = renewed;
    for _ in 0..5 {
        latest = latest.renew(&cloud, &KeyPair::generate().unwrap()).await;
    }
    // Another machine takes over the name, within the same second.
    let token = cloud.token("edge", Some("b")).await;
    assert_eq!(from(&view_of(&a).await), first);
    let key = KeyPair::generate().unwrap();
    let (_, body) = cloud.join(&token, "b", &request_of(&key)).await;
    let taken = Node::new(&cloud, "b", body["certificate"].as_str().unwrap(), &key);
    let received = from(&stream.view().await);
    assert_eq!(received, begins(&taken));
    assert!(begins(&latest) < received && begins(&b) < received);
    // The name is deregistered and given to a third machine.
    cloud.deregister("b").await;
    assert!(stream.view().await.peers.is_empty());
    cloud.clock.advance(10);
    let third = cloud.node("edge", "b").await;
    cloud.label("b", Some("alpha")).await;
    let received = from(&stream.view().await);
    assert_eq!(received, begins(&third));
    assert!(begins(&taken) < received);
}

#[tokio::test]
async fn a_renewal_whose_answer_was_lost_is_answered_by_the_same_certificate_also_across_a_rollover() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let (key, serial) = (KeyPair::generate().unwrap(), |node: &Node| parsed(&node.leaf).raw_serial().to_vec());
    let (lost, again) = (node.renew(&cloud, &key).await, node.renew(&cloud, &key).await);
    assert_eq!(serial(&lost), serial(&again));
    assert_eq!(parsed(&lost.leaf).validity(), parsed(&again.leaf).validity());
    roll_over(&cloud).await;
    let rolled = node.renew(&cloud, &key).await;
    assert_ne!(serial(&rolled), serial(&lost));
    assert_eq!(kind(&lost.ask(Method::GET, "/view", None).await), (403, "certificate-superseded"));
    for counts in [&node, &rolled] {
        assert_eq!(counts.ask(Method::GET, "/view", None).await.0, 200);
    }
    // A repeated renewal with a certificate that is no longer valid fails.
    rolled.renew(&cloud, &KeyPair::generate().unwrap()).await;
    let replayed = node.ask(Method::POST, "/certificate", Some(json!({"csr": request_of(&key)}))).await;
    assert_eq!(kind(&replayed), (403, "certificate-superseded"));
}

#[tokio::test]
async fn a_node_whose_certificate_ended_while_it_was_away_comes_back_with_a_token_for_its_name() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let mut open = node.connect().await.unwrap();
    // In TLS 1.3 a client finishes its handshake before the server has seen its certificate.
    assert_eq!(open.ask(Method::GET, "/v1/nodes/edge-1/view", None).await.0, 200);
    // The certificate is valid for 7 days and can be renewed for 7 more.
    cloud.clock.advance(14 * 24 * 3600);
    let late = open.ask(Method::POST, "/v1/nodes/edge-1/certificate", Some(json!({"csr": "x"}))).await;
    assert_eq!(kind(&late), (403, "certificate-expired"));
    assert!(detail(&late).contains("token bound to its name"), "{}", detail(&late));
    let token = cloud.token("edge", Some("edge-1")).await;
    let key = KeyPair::generate().unwrap();
    let (status, body) = cloud.join(&token, "edge-1", &request_of(&key)).await;
    assert_eq!(status, 200, "{body}");
    let back = Node::new(&cloud, "edge-1", body["certificate"].as_str().unwrap(), &key);
    assert_eq!(view_of(&back).await.segments.len(), 2);
    roll_over(&cloud).await;
    assert_eq!(authorities(&cloud).await[0]["needed_by"], json!(["edge-1"]));
    cloud.clock.advance(8 * 24 * 3600);
    assert_eq!(authorities(&cloud).await[0]["needed_by"], json!(["edge-1"]), "it can still be renewed");
    cloud.clock.advance(7 * 24 * 3600);
    assert_eq!(authorities(&cloud).await[0]["needed_by"], json!([]), "what has ended needs no authority");
}

#[tokio::test]
async fn no_authority_is_begun_beside_nodes_that_trust_another_one() {
    let cloud = Cloud::start().await;
    cloud.node("edge", "edge-1").await;
    let lose = |state: &std::path::Path| {
        for name in ["ca.json", "ca.crt"] {
            std::fs::remove_file(state.join(name)).unwrap();
        }
    };
    let error = cloud.restart_refused(lose).await;
    assert!(error.contains("not stored any more") && error.contains("backup"), "{error}");
    let (cloud, other) = (Cloud::start().await, Cloud::start().await);
    cloud.node("edge", "edge-1").await;
    let foreign = std::fs::read(other.directory.path().join("state/ca.json")).unwrap();
    let error = cloud.restart_refused(|state| std::fs::write(state.join("ca.json"), foreign).unwrap()).await;
    assert!(error.contains("not stored any more"), "{error}");
    // If no node trusts the old authority yet, a new one does no harm.
    let before = other.ca();
    lose(&other.directory.path().join("state"));
    assert_ne!(other.restart().await.ca(), before);
}
