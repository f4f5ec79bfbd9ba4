//! Tests that the controller's requests to measure paths reach the agent, and that the reports
//! reach the operator.

use edge_agent::membership::Measurement;
use edge_types::connectivity::{MeasurementReport, PathMeasurement};
use serde_json::{Value, json};

use crate::lab::{Agent, Controller, soon};

async fn next(agent: &mut Agent) -> Measurement {
    soon("a request to measure", agent.node.measurements.recv()).await.expect("the controller client runs")
}

fn check(controller: &Controller) -> impl Future<Output = Vec<Value>> + use<> {
    controller.operator_lines("/v1/connectivity", json!({"nodes": ["a", "b"], "most_paths": 10, "count": 3}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_measure_reaches_the_agent_and_its_report_the_operator() {
    let controller = Controller::start().await;
    let nodes = [controller.edge("a").await, controller.edge("b").await];
    let (mut a, _) = nodes[0].start_as_member().await;
    let (mut b, _) = nodes[1].start_as_member().await;
    let check = tokio::spawn(check(&controller));
    for agent in [&mut a, &mut b] {
        let Measurement { request, report } = next(agent).await;
        assert!(request.targets.is_empty());
        report.send(MeasurementReport { id: request.id, addresses: vec![], paths: vec![], refused: None }).unwrap();
    }
    for agent in [&mut a, &mut b] {
        let Measurement { request, report } = next(agent).await;
        assert_eq!((request.count, request.targets.len()), (3, 1));
        let target = &request.targets[0];
        assert_eq!(target.addresses.len(), 2, "one of each family: {target:?}");
        let path = |address: &std::net::IpAddr| PathMeasurement {
            node: target.node.clone(),
            tunnel: None,
            address: Some(*address),
            sent: 3,
            received: 0,
            round_trip: None,
            mtu: None,
            bits_per_second: None,
            error: None,
        };
        let paths = target.addresses.iter().map(path).collect();
        report.send(MeasurementReport { id: request.id, addresses: vec![], paths, refused: None }).unwrap();
    }
    let lines = soon("the end of the check", check).await.unwrap();
    let verdicts: Vec<&str> = lines.iter().filter_map(|line| line["verdict"].as_str()).collect();
    assert_eq!(verdicts, ["separate"; 4], "{lines:?}");
    assert_eq!(lines.last().unwrap()["type"], "end");
    a.end().await;
    b.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_says_so() {
    let controller = Controller::start().await;
    let nodes = [controller.edge("a").await, controller.edge("b").await];
    let (mut a, _) = nodes[0].start_as_member().await;
    let (b, _) = nodes[1].start_as_member().await;
    // The part of agent b that measures has ended.
    let edge_agent::membership::NodeChannels { measurements, .. } = b.node;
    drop(measurements);
    let check = tokio::spawn(check(&controller));
    let Measurement { request, report } = next(&mut a).await;
    report.send(MeasurementReport { id: request.id, addresses: vec![], paths: vec![], refused: None }).unwrap();
    // Agent a drops the second request without a report.
    drop(next(&mut a).await);
    let lines = soon("the end of the check", check).await.unwrap();
    let why: Vec<&str> = lines.iter().filter_map(|line| line["why"].as_str()).collect();
    assert_eq!(why.len(), 2, "{lines:?}");
    assert!(why.contains(&"a: the agent is ending"), "{why:?}");
    assert!(why.contains(&"b: the agent is ending"), "{why:?}");
    a.end().await;
}
