//! Tests a rollover of the controller's authority, with nodes that are connected, disconnected, or
//! about to join.

use edge_agent::membership::Membership;
use edge_types::Role;
use serde_json::{Value, json};

use crate::lab::{Controller, Node, until};

async fn roll_over(controller: &Controller) {
    controller.operator("POST", "/v1/ca/rollover", Value::Null).await;
}

/// Returns the oldest authority that is not retired.
async fn oldest(controller: &Controller) -> Value {
    let listed = controller.operator("GET", "/v1/ca", Value::Null).await;
    listed.as_array().unwrap().iter().find(|row| row["state"] != "retired").unwrap().clone()
}

/// Returns whether the node has a certificate and the cross certificate, and trusts both
/// authorities.
fn is_rolled_over(membership: &Membership) -> bool {
    (membership.credentials.chain.len(), membership.credentials.trust_anchors.len()) == (2, 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_node_renews_with_the_new_authority_and_does_without_the_old_one() {
    let controller = Controller::start().await;
    let node = Node::new("edge-1", &controller);
    node.put_token(&controller.token(Role::Edge, None).await);
    let agent = node.start();
    let before = agent.membership("segments", |m| m.view.segments.len() == 2).await;
    agent.status("the stream", |status| status.connected).await;
    roll_over(&controller).await;
    let after = agent.membership("a certificate of the new authority", is_rolled_over).await;
    assert!(after.credentials.key != before.credentials.key);
    assert_eq!(after.view.segments, before.view.segments);
    assert_eq!(after.credentials.trust_anchors[1], before.credentials.trust_anchors[0]);
    until("the use of the new certificate", || async { oldest(&controller).await["needed_by"] == json!([]) }).await;
    let path = format!("/v1/ca/{}", oldest(&controller).await["id"].as_str().unwrap());
    controller.operator("DELETE", &path, Value::Null).await;
    let alone = agent.membership("the new authority alone", |m| m.credentials.trust_anchors.len() == 1).await;
    assert_eq!(alone.credentials.trust_anchors[0], after.credentials.trust_anchors[0]);
    assert!(alone.credentials.key == after.credentials.key, "its certificate is of the right authority already");
    agent.end().await;
    let agent = node.start();
    agent.status("the stream after a restart", |status| status.connected && status.last_error.is_none()).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_during_the_rollover_finds_the_controller_and_renews() {
    let controller = Controller::start().await;
    let node = Node::new("edge-1", &controller);
    node.put_token(&controller.token(Role::Edge, None).await);
    let agent = node.start();
    agent.membership("segments", |m| m.view.segments.len() == 2).await;
    agent.end().await;
    roll_over(&controller).await;
    roll_over(&controller).await;
    let agent = node.start();
    let is_of_third = |m: &Membership| (m.credentials.chain.len(), m.credentials.trust_anchors.len()) == (3, 3);
    agent.membership("a certificate of the third authority", is_of_third).await;
    agent.status("the stream", |status| status.connected && status.last_error.is_none()).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_before_the_rollover_lets_a_node_join_after_it() {
    let controller = Controller::start().await;
    let node = Node::new("edge-1", &controller);
    node.put_token(&controller.token(Role::Edge, None).await);
    roll_over(&controller).await;
    let agent = node.start();
    let joined = agent.membership("joining", is_rolled_over).await;
    agent.membership("segments", |m| m.view.segments.len() == 2).await;
    assert_eq!(agent.joined().await.credentials.chain, joined.credentials.chain, "there is nothing to renew");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_the_end_of_its_authority_says_so_and_comes_back_with_a_token_of_the_new_one() {
    let controller = Controller::start().await;
    let node = Node::new("edge-1", &controller);
    node.put_token(&controller.token(Role::Edge, None).await);
    let agent = node.start();
    let before = agent.membership("segments", |m| m.view.segments.len() == 2).await;
    agent.end().await;
    roll_over(&controller).await;
    let path = format!("/v1/ca/{}?force=true", oldest(&controller).await["id"].as_str().unwrap());
    controller.operator("DELETE", &path, Value::Null).await;
    let agent = node.start();
    let error = agent.error_with("not trusted").await;
    assert!(error.contains("join token"), "{error}");
    assert_eq!(agent.joined().await.view, before.view, "its tunnels stay");
    node.put_token(&controller.token(Role::Edge, Some("edge-1")).await);
    let is_new = |m: &Membership| m.credentials.key != before.credentials.key;
    let after = agent.membership("a new membership", is_new).await;
    assert_eq!(after.credentials.trust_anchors.len(), 1);
    agent.membership("its segments", |m| is_new(m) && m.view.segments == before.view.segments).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_hear_that_a_name_is_in_other_hands() {
    let controller = Controller::start().await;
    let (first, second, peer) =
        (Node::new("edge-1", &controller), Node::new("edge-1", &controller), Node::new("cloud-1", &controller));
    first.put_token(&controller.token(Role::Edge, None).await);
    peer.put_token(&controller.token(Role::Hub, None).await);
    let (first_agent, peer_agent) = (first.start(), peer.start());
    first_agent.joined().await;
    let from = |m: &Membership| m.view.peers.first().map(|peer| peer.certificates_from);
    let before = peer_agent.membership("the edge in the view", |m| from(m).is_some()).await;
    second.put_token(&controller.token(Role::Edge, Some("edge-1")).await);
    let second_agent = second.start();
    second_agent.joined().await;
    peer_agent.membership("the revocation", |m| from(m) > from(&before)).await;
    first_agent.error_with("replaced").await;
    for agent in [first_agent, second_agent, peer_agent] {
        agent.end().await;
    }
}
