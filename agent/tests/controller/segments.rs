//! Tests segment requests: one request for several pods, the same response for repeated requests,
//! and spare segments.

use edge_types::agent_protocol::{AgentRequest, AgentResponse};
use edge_types::api::Family;
use serde_json::json;

use crate::lab::{Controller, Node, exists, stock, until};

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_wait_for_the_same_family_are_served_by_one_request() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    let full = stock(&node.segments(), Family::V4, 61);
    let pods: Vec<_> = (0..20).map(|_| agent.ask(AgentRequest::RequestSegment { stock: vec![full] })).collect();
    for pod in pods {
        assert_eq!(pod.await.unwrap(), AgentResponse::Done);
    }
    assert_eq!(controller.ledger("edge-1").await.len(), 3);
    assert_eq!(node.segments().segments.len(), 3, "it stands there once the plugin hears Done");
    assert!(!exists(node.file("application.json")));
    let view = agent.membership("the view with it", |m| m.view.segments.len() == 3).await.view;
    assert_eq!(node.segments().segments, view.segments);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_for_both_families_brings_both() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    let file = node.segments();
    let both = vec![stock(&file, Family::V4, 61), stock(&file, Family::V6, 254)];
    assert_eq!(agent.ask_and_wait(AgentRequest::RequestSegment { stock: both }).await, AgentResponse::Done);
    assert_eq!(controller.ledger("edge-1").await.len(), 4);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_response_was_lost_is_repeated_and_grants_nothing_twice() {
    let controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    agent.kill().await;
    // The power fails after the request was sent. The request is on disk, but the response is not.
    let request = json!({"request_id": "0123456789abcdef", "families": ["ipv4"]}).to_string();
    std::fs::write(node.file("application.json"), &request).unwrap();
    let agent = node.start();
    agent.membership("the segment", |m| m.view.segments.len() == 3).await;
    until("the end of the request", || async { !exists(node.file("application.json")) }).await;
    agent.kill().await;
    // The same request is sent again, as if the first response had been lost.
    std::fs::write(node.file("application.json"), &request).unwrap();
    let agent = node.start();
    until("the same answer", || async { !exists(node.file("application.json")) }).await;
    assert_eq!(controller.ledger("edge-1").await.len(), 3);
    assert_eq!(node.segments().segments.len(), 3);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_controller_a_pod_gets_an_error_in_time_and_the_request_is_answered_later() {
    let mut controller = Controller::start().await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    controller.stop().await;
    agent.status("the loss", |status| !status.connected).await;
    let full = AgentRequest::RequestSegment { stock: vec![stock(&node.segments(), Family::V4, 61)] };
    let AgentResponse::Failed { reason, temporary: true } = agent.ask_and_wait(full).await else {
        panic!("not a failure that may pass")
    };
    assert!(reason.contains("cannot be reached"), "{reason}");
    assert!(exists(node.file("application.json")));
    controller.start_again().await;
    until("the answer", || async { node.segments().segments.len() == 3 }).await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_is_kept_as_pods_take_addresses() {
    let controller = Controller::start().await;
    let mut node = controller.edge("edge-1").await;
    node.spare = 1;
    let (agent, _) = node.start_as_member().await;
    let first = node.segments();
    assert_eq!(first.segments.len(), 2, "unused segments are their own spare");
    let taken = AgentRequest::AddressesTaken { stock: vec![stock(&first, Family::V4, 1)] };
    assert_eq!(agent.ask_and_wait(taken.clone()).await, AgentResponse::Done);
    until("the spare", || async { node.segments().segments.len() == 3 }).await;
    // Reporting the same count again after the spare segment was granted does not cause a second
    // request.
    assert_eq!(agent.ask_and_wait(taken).await, AgentResponse::Done);
    let full = AgentRequest::RequestSegment { stock: vec![stock(&first, Family::V4, 61)] };
    assert_eq!(agent.ask_and_wait(full).await, AgentResponse::Done);
    let all_of_one = AgentRequest::AddressesTaken { stock: vec![stock(&node.segments(), Family::V4, 62)] };
    assert_eq!(agent.ask_and_wait(all_of_one).await, AgentResponse::Done);
    until("the next spare", || async { node.segments().segments.len() == 4 }).await;
    assert_eq!(controller.ledger("edge-1").await.len(), 4);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_range_is_reported_to_the_pod_and_in_the_status_and_the_other_family_still_grows() {
    let controller = Controller::with_ranges("\"10.77.0.0/26\", \"fd77::/48\"").await;
    let node = controller.edge("edge-1").await;
    let (agent, _) = node.start_as_member().await;
    let file = node.segments();
    let full = AgentRequest::RequestSegment { stock: vec![stock(&file, Family::V4, 61)] };
    let AgentResponse::Failed { reason, temporary: false } = agent.ask_and_wait(full).await else {
        panic!("not a lasting failure")
    };
    assert!(reason.contains("10.77.0.0/26"), "{reason}");
    agent.error_with("10.77.0.0/26").await;
    assert!(!exists(node.file("application.json")), "it was answered");
    let other = AgentRequest::RequestSegment { stock: vec![stock(&file, Family::V6, 254)] };
    assert_eq!(agent.ask_and_wait(other).await, AgentResponse::Done);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_has_joined_an_agent_gives_pods_a_temporary_error() {
    let controller = Controller::start().await;
    let node = Node::new("edge-1", &controller);
    let agent = node.start();
    agent.error().await;
    let none = edge_types::agent_protocol::Stock { family: Family::V4, free: 0, leased: 0 };
    let answer = agent.ask_and_wait(AgentRequest::RequestSegment { stock: vec![none] }).await;
    let AgentResponse::Failed { reason, temporary: true } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("has not joined"), "{reason}");
    agent.end().await;
}
