//! Tests view streams on connections that have left HTTP, and the requests in their frames.

use std::net::Ipv4Addr;
use std::time::Duration;

use edge_types::api::ViewEvent;
use edge_types::view_frames::{MAX_FROM_NODE, NodeFrame, header};
use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::frame_connection::{FrameConnection, ask_for_upgrade};
use crate::harness::{Cloud, Node, kind, monitoring_page};
use crate::process::{Program, text};
use crate::strangers::AttackTarget;

/// Maximum number of connections of one node.
const OF_ONE_NODE: usize = 8;

/// Time limit for what happens at once. A node that sends nothing is cut off later.
const SOON: Duration = Duration::from_secs(10);

async fn row(cloud: &Cloud, name: &str) -> Value {
    let (_, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    nodes.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone()
}

async fn until_not_connected(cloud: &Cloud, name: &str) {
    while row(cloud, name).await["connected"] == true {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_connection_that_has_left_http_brings_the_view_its_changes_and_heartbeats() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let mut stream = FrameConnection::open(&hub, "&changes=true").await;
    let view = stream.view().await;
    assert_eq!(view.peers[0].name.as_str(), "edge-1");
    assert_eq!(row(&cloud, "hub").await["connected"], true);
    assert_eq!(edge.report(&["192.0.2.7"], 4500).await.0, 204);
    let ViewEvent::Change(change) = stream.news().await else { panic!("only the change is sent") };
    let view = change.apply_to(view).unwrap();
    assert_eq!(view.peers[0].endpoints[0].address.to_string(), "192.0.2.7:4500");
    while !matches!(stream.line().await, Some(ViewEvent::Heartbeat { version }) if version == view.version) {}
    drop(stream);
    until_not_connected(&cloud, "hub").await;
    assert!(row(&cloud, "hub").await["last_seen"].is_i64());
}

#[tokio::test]
async fn a_request_in_a_frame_is_checked_carried_out_and_counted_as_one_by_http() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let (mut of_hub, mut stream) = (FrameConnection::open(&hub, "").await, FrameConnection::open(&edge, "").await);
    of_hub.view().await;
    let answer = stream.ask(NodeFrame::Report, json!({"addresses": ["192.0.2.7"], "port": 4500})).await;
    assert_eq!(answer, (204, Value::Null));
    assert_eq!(of_hub.view().await.peers[0].endpoints.len(), 1);
    let refused = stream.ask(NodeFrame::Report, json!({"addresses": [], "port": 0})).await;
    assert_eq!(kind(&refused), (422, "bad-value"));
    let refused = stream.ask(NodeFrame::Measurement, json!({"id": "none", "addresses": [], "paths": []})).await;
    assert_eq!(kind(&refused), (404, "no-such-measurement"));
    stream.send(NodeFrame::Report as u8, b"{\"addr").await;
    assert_eq!(kind(&stream.answer().await.unwrap()), (400, "bad-json"));
    // A later release may send requests that this one does not know.
    stream.send(77, b"{}").await;
    assert_eq!(stream.answer().await, Some((501, Value::Null)));
    // A refusal that repeats what was sent may be too long for a frame.
    let refused = stream.ask(NodeFrame::Report, json!({"addresses": [], "port": "x".repeat(20_000)})).await;
    assert_eq!(refused, (422, Value::Null));
    for _ in 0..3 {
        stream.send(NodeFrame::Ping as u8, b"").await;
    }
    for _ in 0..3 {
        assert_eq!(stream.answer().await, Some((204, Value::Null)));
    }
    let (_, metrics) = monitoring_page(cloud.server.observe[0], "/metrics").await;
    for (route, method, status, count) in [
        ("/v1/nodes/{node}/view", "GET", 101, 2),
        ("/v1/nodes/{node}", "PUT", 204, 1),
        ("/v1/nodes/{node}", "PUT", 422, 2),
        ("/v1/nodes/{node}", "PUT", 400, 1),
        ("/v1/nodes/{node}/measurements", "POST", 404, 1),
    ] {
        let series = |line: &&str| {
            let labels = [format!("route=\"{route}\""), format!("method=\"{method}\""), format!("status=\"{status}\"")];
            line.starts_with("edge_controller_requests_total{") && labels.iter().all(|label| line.contains(label))
        };
        let line = metrics.lines().find(series).unwrap_or_else(|| panic!("{route} {status}: {metrics}"));
        assert!(line.ends_with(&format!(" {count}")), "{line}");
    }
}

#[tokio::test]
async fn what_a_node_sends_right_behind_its_request_for_the_upgrade_is_answered() {
    let cloud = Cloud::start().await;
    let edge = cloud.node("edge", "edge-1").await;
    let mut stream = edge.connect_tls().await;
    let head =
        "GET /v1/nodes/edge-1/view?watch=true HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: edge-view\r\n\r\n";
    stream
        .write_all(
            &[head.as_bytes(), &header(NodeFrame::Ping as u8, 0), &header(NodeFrame::Report as u8, 2)[..3]].concat(),
        )
        .await
        .unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    let mut stream = FrameConnection::upgraded(stream);
    assert_eq!(stream.answer().await, Some((204, Value::Null)));
    stream.send_raw(&[&header(NodeFrame::Report as u8, 2)[3..], b"{}"].concat()).await;
    assert_eq!(kind(&stream.answer().await.unwrap()), (422, "bad-value"));
    assert!(stream.view().await.peers.is_empty());
}

#[tokio::test]
async fn only_a_registered_node_is_upgraded_and_only_for_its_own_view() {
    let cloud = Cloud::start().await;
    let (one, _two) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    let path = "/v1/nodes/edge-1/view?watch=true";
    let target = AttackTarget::of_cloud(&cloud);
    let mut stranger = target.open(Ipv4Addr::LOCALHOST, b"http/1.1").await.unwrap();
    assert!(ask_for_upgrade(&mut stranger, path).await.starts_with("HTTP/1.1 401 "));
    let mut foreign = one.connect_tls().await;
    assert!(ask_for_upgrade(&mut foreign, "/v1/nodes/edge-2/view?watch=true").await.starts_with("HTTP/1.1 403 "));
    // A view that is sent once, and the operator's stream, stay in HTTP.
    let mut once = one.connect_tls().await;
    assert!(ask_for_upgrade(&mut once, "/v1/nodes/edge-1/view").await.starts_with("HTTP/1.1 200 "));
    let mut operator = UnixStream::connect(cloud.directory.path().join("admin.sock")).await.unwrap();
    assert!(ask_for_upgrade(&mut operator, path).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(row(&cloud, "edge-1").await["connected"], false);
    let mut deregistered = one.connect_tls().await;
    assert_eq!(cloud.deregister("edge-1").await.0, 200);
    assert!(ask_for_upgrade(&mut deregistered, path).await.starts_with("HTTP/1.1 403 "));
    let mut again = one.connect_tls().await;
    assert!(ask_for_upgrade(&mut again, path).await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn a_node_that_is_deregistered_while_connected_is_cut_off_and_counts_for_nothing() {
    let cloud = Cloud::start().await;
    let (hub, edge) = (cloud.node("hub", "hub").await, cloud.node("edge", "edge-1").await);
    let (mut of_hub, mut stream) = (FrameConnection::open(&hub, "").await, FrameConnection::open(&edge, "").await);
    assert_eq!(of_hub.view().await.peers.len(), 1);
    stream.view().await;
    assert_eq!(cloud.deregister("edge-1").await.0, 200);
    assert!(of_hub.view().await.peers.is_empty());
    timeout(SOON, stream.ended()).await.unwrap();
    let (_, nodes) = cloud.operator(Method::GET, "/v1/nodes", None).await;
    assert_eq!(nodes.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn frames_with_impossible_lengths_end_the_connection_and_the_longest_one_does_not() {
    let cloud = Cloud::start().await;
    let edge = cloud.node("edge", "edge-1").await;
    for length in [MAX_FROM_NODE + 1, 1 << 24, u32::MAX as usize] {
        let mut stream = FrameConnection::open(&edge, "").await;
        stream.view().await;
        stream.send_raw(&header(NodeFrame::Report as u8, length)).await;
        timeout(SOON, stream.ended()).await.unwrap();
    }
    let mut stream = FrameConnection::open(&edge, "").await;
    stream.send(NodeFrame::Report as u8, &vec![b' '; MAX_FROM_NODE]).await;
    assert_eq!(kind(&stream.answer().await.unwrap()), (400, "bad-json"));
    // The node is gone in the middle of a frame.
    stream.send_raw(&header(NodeFrame::Report as u8, 1000)).await;
    stream.send_raw(b"{").await;
    drop(stream);
    until_not_connected(&cloud, "edge-1").await;
}

#[tokio::test]
async fn of_many_upgraded_connections_of_one_node_the_oldest_are_cut_and_another_node_loses_none() {
    let cloud = Cloud::start().await;
    let (greedy, other) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    let mut of_other = FrameConnection::open(&other, "").await;
    of_other.view().await;
    let mut open = Vec::new();
    for _ in 0..3 * OF_ONE_NODE {
        let mut stream = FrameConnection::open(&greedy, "").await;
        stream.view().await;
        open.push(stream);
    }
    let kept = open.split_off(2 * OF_ONE_NODE);
    for cut in open {
        cut.ended().await;
    }
    cloud.label("edge-1", Some("alpha")).await;
    for mut stream in kept {
        assert_eq!(stream.view().await.communities.len(), 1, "each of its connections has each change");
    }
    cloud.label("edge-2", Some("beta")).await;
    of_other.view().await;
}

#[tokio::test]
async fn a_node_on_a_connection_that_does_not_read_is_cut_off() {
    // A hub with many networks, so that the view is large. It is sent whole at each change.
    let networks: Vec<String> = (0..1024).map(|n| format!("\"172.{}.{}.0/24\"", 16 + n / 256, n % 256)).collect();
    let hub = format!("cluster_ranges = [\"10.77.0.0/24\"]\n[hub.h]\nnetworks = [{}]", networks.join(", "));
    let cloud = Cloud::with(&hub).await;
    let (_hub, edge) = (cloud.node("hub", "h").await, cloud.node("edge", "edge-1").await);
    let slow = FrameConnection::open(&edge, "").await;
    for change in 0.. {
        if row(&cloud, "edge-1").await["connected"] == false {
            break;
        }
        // The kernel's buffers of the connection fill, then the line in the slot waits.
        cloud.label("edge-1", Some(if change % 2 == 0 { "alpha" } else { "beta" })).await;
        if change > 400 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let (_, metrics) = monitoring_page(cloud.server.observe[0], "/metrics").await;
    assert!(metrics.contains("edge_controller_view_streams_ended_total{why=\"cut-off\"} 1"), "{metrics}");
    slow.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_stops_says_goodbye_in_a_frame_and_ends_also_if_the_node_goes_on_sending() {
    let mut program = Program::new();
    program.start();
    let token = text(&program.run(&["token", "create", "--role", "edge"]).stdout).parse().unwrap();
    let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
    let node = Node::join(program.addresses[0], ca, &token, "edge-1").await;
    let mut stream = FrameConnection::open(&node, "").await;
    stream.view().await;
    let mut server = program.server.take().unwrap();
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    let mut last = None;
    loop {
        // Frames that arrive after the last line must not make the kernel drop that line.
        let sent = stream.stream.write_all(&header(NodeFrame::Ping as u8, 0)).await;
        match stream.line().await {
            Some(line) => last = Some(line),
            None => break,
        }
        drop(sent);
    }
    assert!(matches!(&last, Some(ViewEvent::Goodbye { reason }) if reason == "it is stopping"), "{last:?}");
    let status = tokio::task::spawn_blocking(move || server.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    let log = program.log();
    assert!(log.contains("stopped") && !log.contains("still open"), "{log}");
}
