//! Tests that a client that takes more connections than others loses its own connections to new
//! ones.

use std::net::Ipv4Addr;

use crate::harness::{Cloud, Connection, Node};
use crate::process::{Program, text};
use crate::strangers::AttackTarget;
use hyper::Method;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

/// Maximum number of connections without a node's certificate.
const STRANGERS: usize = 1024;
/// Maximum number of connections of one node.
const OF_ONE_NODE: usize = 8;

async fn silent(cloud: &Cloud) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    socket.connect(cloud.address()).await.unwrap()
}

#[tokio::test]
async fn a_host_that_takes_all_places_of_strangers_keeps_no_node_of_another_out() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let mut silent_ones = Vec::new();
    for _ in 0..STRANGERS {
        silent_ones.push(silent(&cloud).await);
    }
    // Connections are accepted in order, so all earlier ones are admitted.
    assert_eq!(node.ask(Method::GET, "/view", None).await.0, 200);
    let ended = silent_ones[0].read(&mut [0]).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "the oldest of that host made room");
    let mut nobody = Connection::open(&cloud, None).await.unwrap();
    assert_eq!(nobody.ask(Method::GET, "/v1/nodes", None).await.0, 401, "who joins has a place too");
}

#[tokio::test]
async fn strangers_from_the_address_of_nodes_cut_none_of_them_off() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let (mut open, mut stream) = (node.connect().await.unwrap(), node.watch().await);
    stream.view().await;
    let mut silent = Vec::new();
    for _ in 0..2 * STRANGERS {
        // A connection is refused if all others are recent. It is closed, perhaps before the client
        // sees it open.
        silent.push(TcpStream::connect(cloud.address()).await);
    }
    assert_eq!(open.ask(Method::GET, "/v1/nodes/edge-1/view", None).await.0, 200);
    cloud.label("edge-1", Some("alpha")).await;
    stream.view().await;
}

#[tokio::test]
async fn a_node_with_too_many_connections_loses_its_oldest_and_no_other_node_loses_any() {
    let cloud = Cloud::start().await;
    let (greedy, other) = (cloud.node("edge", "edge-1").await, cloud.node("edge", "edge-2").await);
    let mut of_other = other.connect().await.unwrap();
    let mut oldest = greedy.watch().await;
    oldest.view().await;
    let mut newer = Vec::new();
    for _ in 0..OF_ONE_NODE {
        newer.push(greedy.connect().await.unwrap());
    }
    oldest.ended().await;
    for connection in &mut newer {
        assert_eq!(connection.ask(Method::GET, "/v1/nodes/edge-1/view", None).await.0, 200);
    }
    assert_eq!(of_other.ask(Method::GET, "/v1/nodes/edge-2/view", None).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_few_files_may_be_open_strangers_leave_some_to_everyone_else() {
    let mut program = Program::new();
    program.files = Some(256);
    program.start();
    let mut silent = Vec::new();
    for nth in 0..600 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 9, 1), 0).into()).unwrap();
        // A connection that is not admitted is closed, perhaps before the client sees it open.
        silent.push(socket.connect(program.addresses[nth % 2]).await);
    }
    let output = program.run(&["token", "create", "--role", "edge", "--node", "edge-1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let target = AttackTarget::of(&program);
    let node = Node::join(target.address, target.ca.clone(), &text(&output.stdout).parse().unwrap(), "edge-1").await;
    assert_eq!(node.ask(Method::GET, "/view", None).await.0, 200);
    program.stop();
    let log = program.log();
    assert!(!log.contains("cannot accept"), "{log}");
}
