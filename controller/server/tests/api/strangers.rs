//! Tests what strangers (peers that have not shown a node's certificate) cost the controller with
//! many connections and unfinished requests.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use crate::harness::{Cloud, Connection, Node, detail, kind, tls};
use crate::process::Program;
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Number of strangers' connections.
const CONNECTIONS: usize = 1000;
/// Maximum memory for all of these connections.
const MOST: u64 = 64 * 1024 * 1024;

/// The address at which strangers reach a controller.
#[derive(Clone)]
pub(crate) struct AttackTarget {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) ca: CertificateDer<'static>,
}

impl AttackTarget {
    pub(crate) fn of(program: &Program) -> Self {
        let ca = CertificateDer::from_pem_file(program.path("state/ca.crt")).unwrap();
        Self { address: program.addresses[0], ca }
    }

    pub(crate) fn of_cloud(cloud: &Cloud) -> Self {
        Self { address: cloud.address(), ca: cloud.ca() }
    }

    /// Opens a connection without a certificate from this address.
    pub(crate) async fn open(&self, from: Ipv4Addr, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect(self.address).await?;
        let mut config = (*tls(self.ca.clone(), None)).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("cloud.test").unwrap(), stream).await
    }
}

/// Returns the nth address of the loopback interface.
pub(crate) fn host(nth: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f01_0000 + u32::try_from(nth).unwrap())
}

/// Makes a frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Makes a header with a name of HPACK's static table or a literal one, not indexed (RFC 7541
/// section 6.2.2).
fn literal(name: &[u8], value: &str) -> Vec<u8> {
    [name, &[u8::try_from(value.len()).unwrap()], value.as_bytes()].concat()
}

/// Makes the head of `POST /v1/join`.
fn head_of_join() -> Vec<u8> {
    let (path, authority, media) = (&[0x04][..], &[0x01][..], &[0x0f, 0x10][..]);
    let method_and_scheme = vec![0x83, 0x87];
    [method_and_scheme, literal(path, "/v1/join"), literal(authority, "cloud.test"), literal(media, "application/json")]
        .concat()
}

/// Makes a body that starts and ends like a join but is not valid.
fn half_a_body(length: usize) -> Vec<u8> {
    let mut body = br#"{"token":""#.to_vec();
    body.resize(length, b'a');
    body
}

/// Sends everything but the last bytes, over HTTP/1.1.
async fn slowly_by_http_1(target: &AttackTarget, from: Ipv4Addr, length: usize) -> Option<TlsStream<TcpStream>> {
    let mut stream = target.open(from, b"http/1.1").await.ok()?;
    // The server has completed the handshake. A different limit applies to bytes that arrive with
    // the end of the handshake.
    head_of_response(&mut stream, "GET /v1/nodes HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = format!(
        "POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        length + 100
    );
    // The connection may be closed before it has sent everything.
    let _ = stream.write_all(&[head.into_bytes(), half_a_body(length)].concat()).await;
    let _ = stream.flush().await;
    Some(stream)
}

/// Ignores the server's settings over HTTP/2: sends as much as the first window of a connection
/// allows, on several streams.
async fn carelessly_by_http_2(target: &AttackTarget, from: Ipv4Addr) -> Option<TlsStream<TcpStream>> {
    let mut stream = target.open(from, b"h2").await.ok()?;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.ok()?;
    stream.flush().await.ok()?;
    // Reads the head of the server's SETTINGS frame. By then the server has completed the
    // handshake.
    stream.read_exact(&mut [0; 9]).await.ok()?;
    let mut sent = Vec::new();
    for nth in 0..4 {
        sent.extend(frame(HEADERS, END_HEADERS, 2 * nth + 1, &head_of_join()));
        sent.extend(frame(DATA, 0, 2 * nth + 1, &half_a_body(16_000)));
    }
    let _ = stream.write_all(&sent).await;
    let _ = stream.flush().await;
    Some(stream)
}

/// Uses HTTP/2 correctly: as many streams, and as much data on each, as the server accepts.
async fn politely_by_http_2(target: &AttackTarget, from: Ipv4Addr) -> Option<tokio::task::JoinSet<()>> {
    let stream = target.open(from, b"h2").await.ok()?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = handshake.ok()?;
    let mut requests = tokio::task::JoinSet::new();
    requests.spawn(async move { drop(connection.await) });
    for _ in 0..16 {
        let mut sender = sender.clone();
        requests.spawn(async move {
            let part = Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(half_a_body(60_000))));
            let body = StreamBody::new(futures_util::stream::iter([part]).chain(futures_util::stream::pending()));
            let request = Request::post("https://cloud.test/v1/join").header("content-type", "application/json");
            if let Ok(response) = sender.send_request(request.body(body).unwrap()).await {
                assert!([403, 408, 413, 503].contains(&response.status().as_u16()), "{}", response.status());
                let _ = response.into_body().collect().await;
            }
        });
    }
    Some(requests)
}

/// Returns the value of a line of `/proc/PID/status`, in bytes.
fn memory(program: &Program, line: &str) -> u64 {
    let pid = program.server.as_ref().unwrap().id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("{line}: {status}"));
    value.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_strangers_with_half_sent_bodies_take_little_memory_and_keep_no_node_out() {
    let mut program = Program::new();
    program.start();
    let target = AttackTarget::of(&program);
    let token = |node: &str| {
        let output = program.run(&["token", "create", "--role", "edge", "--node", node]);
        crate::process::text(&output.stdout).parse::<edge_types::JoinToken>().unwrap()
    };
    let node = Node::join(target.address, target.ca.clone(), &token("edge-1"), "edge-1").await;
    let (mut open, later) = (node.connect().await.unwrap(), token("edge-2"));
    let base = memory(&program, "VmRSS:");

    let kinds = (0..CONNECTIONS).map(|nth| {
        let (target, from) = (target.clone(), host(nth));
        async move {
            match nth % 8 {
                0 => (slowly_by_http_1(&target, from, 16_000).await, None),
                1 => (slowly_by_http_1(&target, from, 60_000).await, None),
                2 => (None, politely_by_http_2(&target, from).await),
                _ => (carelessly_by_http_2(&target, from).await, None),
            }
        }
    });
    let mut strangers: Vec<_> = futures_util::stream::iter(kinds).buffer_unordered(64).collect().await;
    let connected = strangers.iter().filter(|(raw, polite)| raw.is_some() || polite.is_some()).count();
    assert_eq!(connected, CONNECTIONS, "all of them were let in");

    let path = "/v1/nodes/edge-1/segments";
    assert_eq!(open.ask(Method::GET, path, None).await.0, 200, "a node goes on");
    assert_eq!(node.request_segments("r", &["ipv4"]).await.0, 200, "and comes back");
    Node::join(target.address, target.ca.clone(), &later, "edge-2").await;

    // Waits until all HTTP/1.1 connections are refused for their size or slowness, or closed for
    // newer ones.
    let mut refused = 0;
    for (raw, _) in &mut strangers {
        let Some(raw) = raw.as_mut().filter(|raw| raw.get_ref().1.alpn_protocol() == Some(b"http/1.1")) else {
            continue;
        };
        let mut response = Vec::new();
        let _ = raw.read_to_end(&mut response).await;
        refused += usize::from(response.starts_with(b"HTTP/1.1 4") || response.starts_with(b"HTTP/1.1 503"));
    }
    assert!(refused > 0);
    let most = memory(&program, "VmHWM:").saturating_sub(base);
    eprintln!("{CONNECTIONS} strangers took {} KiB above {} KiB", most / 1024, base / 1024);
    assert!(most < MOST, "{} KiB above {} KiB", most / 1024, base / 1024);
    assert_eq!(open.ask(Method::GET, path, None).await.0, 200);
}

/// Sends a request on an HTTP/1.1 connection and reads the head of the response; nothing else is
/// sent in the meantime.
pub(crate) async fn head_of_response(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut response = Vec::new();
    while !response.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut part = [0; 512];
        let count = stream.read(&mut part).await.unwrap();
        assert!(count > 0, "{request}: {}", String::from_utf8_lossy(&response));
        response.extend_from_slice(&part[..count]);
    }
    String::from_utf8(response).unwrap()
}

#[tokio::test]
async fn whoever_may_not_is_refused_before_a_body_has_arrived() {
    let cloud = Cloud::start().await;
    let (a, _b) = (cloud.node("edge", "a").await, cloud.node("edge", "b").await);
    let target = AttackTarget::of_cloud(&cloud);
    for (request, of_stranger, of_node) in [
        ("PUT /v1/nodes/b", 401, 403),
        ("POST /v1/nodes/b/segments", 401, 403),
        ("POST /v1/nodes/b/certificate", 401, 403),
        ("PATCH /v1/nodes/b/labels", 401, 403),
        ("PUT /v1/communities/alpha", 401, 403),
        ("POST /v1/tokens", 401, 403),
        // The request is refused before the server checks its certificate or its path.
        ("PUT /v1/nodes/Not_A_Name", 401, 422),
        ("POST /v1/other", 404, 404),
    ] {
        let text = format!("{request} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{{");
        let mut stranger = target.open(host(1), b"http/1.1").await.unwrap();
        let response = head_of_response(&mut stranger, &text).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {of_stranger}")), "{request}: {response}");
        let response = head_of_response(&mut a.connect_tls().await, &text).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {of_node}")), "{request}: {response}");
    }
}

#[tokio::test]
async fn who_was_refused_early_may_send_the_rest_and_ask_again() {
    let cloud = Cloud::start().await;
    let mut stranger = AttackTarget::of_cloud(&cloud).open(host(1), b"http/1.1").await.unwrap();
    let (length, head) = (10_000, "PUT /v1/nodes/b HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n");
    assert!(head_of_response(&mut stranger, head).await.starts_with("HTTP/1.1 401"));
    stranger.write_all(&half_a_body(length)).await.unwrap();
    let again = head_of_response(&mut stranger, "GET /v1/nodes HTTP/1.1\r\nhost: x\r\n\r\n").await;
    // The body of the first response may arrive with the head of the second.
    assert!(again.contains("HTTP/1.1 401"), "{again}");
}

#[tokio::test]
async fn the_document_of_the_api_is_for_nodes_and_the_operator_and_costs_a_stranger_nothing() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let mut stranger = Connection::open(&cloud, None).await.unwrap();
    let refused = stranger.ask(Method::GET, "/v1/openapi.json", None).await;
    assert_eq!(kind(&refused), (401, "certificate-required"));
    let mut of_node = node.connect().await.unwrap();
    let document = edge_controller::api::openapi_document();
    assert_eq!(of_node.ask(Method::GET, "/v1/openapi.json", None).await, (200, document.clone()));
    assert_eq!(cloud.operator(Method::GET, "/v1/openapi.json", None).await, (200, document));
    cloud.deregister("edge-1").await;
    let refused = of_node.ask(Method::GET, "/v1/openapi.json", None).await;
    assert_eq!(kind(&refused), (403, "node-deregistered"));
}

#[tokio::test]
async fn a_member_has_few_streams_of_its_view_and_may_ask_for_it_nevertheless() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let (mut one, mut other) = (node.connect().await.unwrap(), node.connect().await.unwrap());
    let (path, mut streams) = ("/v1/nodes/edge-1/view?watch=true", Vec::new());
    for nth in 0..16 {
        let connection = if nth % 2 == 0 { &mut one } else { &mut other };
        let stream = connection.send(Method::GET, path, Default::default()).await.unwrap();
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    assert_eq!(kind(&one.ask(Method::GET, path, None).await), (429, "too-many-streams"));
    assert_eq!(other.ask(Method::GET, "/v1/nodes/edge-1/view", None).await.0, 200);
}

#[tokio::test]
async fn a_stranger_who_asks_without_end_is_cut_off_and_a_node_is_not() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let (mut stranger, mut of_node) = (Connection::open(&cloud, None).await.unwrap(), node.connect().await.unwrap());
    let mut asked = 0;
    while stranger.try_ask(Method::GET, "/v1/nodes", None).await.is_ok() {
        asked += 1;
        assert!(asked <= 200, "it is not cut off");
    }
    for _ in 0..300 {
        assert_eq!(of_node.ask(Method::GET, "/v1/nodes/edge-1/view", None).await.0, 200);
    }
    // A peer with a certificate that is no longer valid is a stranger.
    cloud.deregister("edge-1").await;
    let (mut former, mut asked) = (node.connect().await.unwrap(), 0);
    while let Ok(response) = former.try_ask(Method::GET, "/v1/nodes/edge-1/view", None).await {
        assert_eq!(kind(&response), (403, "node-deregistered"));
        asked += 1;
        assert!(asked <= 200, "it is not cut off");
    }
}

/// Sends this repeatedly, with the number of the next stream, until the server accepts no more. The
/// connection must be closed.
async fn until_cut_off(target: &AttackTarget, first: &[u8], again: impl Fn(u32) -> Vec<u8>) {
    let mut stream = target.open(host(2), b"h2").await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), first].concat()).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    // The responses are read, so that only the sent data counts.
    let reading = tokio::spawn(async move { drop(reading.read_to_end(&mut Vec::new()).await) });
    let mut sent = 0_u32;
    while writing.write_all(&again(sent)).await.is_ok() && !reading.is_finished() {
        sent += 1;
        assert!(sent < 1_000_000, "it takes everything");
    }
    reading.await.unwrap();
}

#[tokio::test]
async fn floods_of_http_2_end_the_connection_and_nothing_else() {
    let cloud = Cloud::start().await;
    let node = cloud.node("edge", "edge-1").await;
    let mut open = node.connect().await.unwrap();
    let (target, path) = (AttackTarget::of_cloud(&cloud), "/v1/nodes/edge-1/view");
    // Headers that never end (CVE-2024-27983 and similar).
    let header = literal(b"\0\x01x", &"y".repeat(100));
    until_cut_off(&target, &frame(HEADERS, END_STREAM, 1, &head_of_join()), |_| frame(CONTINUATION, 0, 1, &header))
        .await;
    // Empty frames, which add no length.
    until_cut_off(&target, &frame(HEADERS, END_STREAM, 1, &head_of_join()), |_| frame(CONTINUATION, 0, 1, &[])).await;
    // Requests that are cancelled at once (CVE-2023-44487).
    until_cut_off(&target, &[], |nth| {
        let stream = 2 * nth + 1;
        let cancel = 8_u32.to_be_bytes();
        [frame(HEADERS, END_HEADERS, stream, &head_of_join()), frame(RST_STREAM, 0, stream, &cancel)].concat()
    })
    .await;
    // Empty DATA frames.
    until_cut_off(&target, &frame(HEADERS, END_HEADERS, 1, &head_of_join()), |_| frame(DATA, 0, 1, &[])).await;
    // Frames that each cost the server a response.
    until_cut_off(&target, &[], |_| frame(PING, 0, 0, &[7; 8]).repeat(100)).await;
    until_cut_off(&target, &[], |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]).repeat(100)).await;
    // More streams than a stranger may have, all unfinished.
    until_cut_off(&target, &[], |nth| frame(HEADERS, END_HEADERS, 2 * nth + 1, &head_of_join())).await;
    assert_eq!(open.ask(Method::GET, path, None).await.0, 200);
    assert_eq!(node.ask(Method::GET, "/view", None).await.0, 200);
}

#[tokio::test]
async fn headers_that_are_too_many_are_refused_by_both_protocols() {
    let cloud = Cloud::start().await;
    let target = AttackTarget::of_cloud(&cloud);
    let mut stranger = target.open(host(4), b"http/1.1").await.unwrap();
    // The server has completed the handshake. A different limit applies to bytes that arrive with
    // the end of the handshake.
    head_of_response(&mut stranger, "GET /v1/nodes HTTP/1.1\r\nhost: x\r\n\r\n").await;
    // The bytes fit into one TLS record. Bytes that the server does not read reset the connection,
    // and the response would be lost.
    let many = format!("GET /v1/nodes HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-a: 0123456789\r\n".repeat(200));
    let response = head_of_response(&mut stranger, &many).await;
    assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    let stream = target.open(host(4), b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let long = format!("https://cloud.test/v1/{}", "x".repeat(8 * 1024));
    let response = sender.send_request(Request::get(long).body(http_body_util::Empty::<Bytes>::new()).unwrap()).await;
    assert!(response.as_ref().map_or(true, |response| response.status() == 431), "{response:?}");
}

#[tokio::test]
async fn a_handshake_that_grows_without_end_is_cut_off_by_its_size() {
    let mut program = Program::new();
    program.start();
    let mut stream = TcpStream::connect(program.addresses[0]).await.unwrap();
    // A ClientHello (RFC 8446 section 4) that claims 61,440 bytes, in records of 4 KiB.
    let mut hello = vec![1, 0, 0xf0, 0, 3, 3];
    hello.resize(4096, 0);
    for _ in 0..5 {
        // The connection may be closed before the end.
        let _ = stream.write_all(&[&[22, 3, 1, 0x10, 0], hello.as_slice()].concat()).await;
        hello.fill(0);
    }
    let _ = stream.read_to_end(&mut Vec::new()).await;
    program.stop();
    let log = program.log();
    assert!(log.contains("the peer sent more than 16384 bytes in its handshake"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_twenty_lines_of_the_log_a_second_and_the_rest_is_counted() {
    let mut program = Program::new();
    program.start();
    let (target, started) = (AttackTarget::of(&program), Instant::now());
    let without_tls = async || {
        let mut stream = TcpStream::connect(target.address).await.unwrap();
        // The server may have closed it already.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    'until_counted: loop {
        let mut stranger = target.open(host(7), b"http/1.1").await.unwrap();
        // As many requests as a stranger may make on one connection.
        for _ in 0..100 {
            without_tls().await;
            head_of_response(&mut stranger, "GET /v1/nodes HTTP/1.1\r\nhost: x\r\n\r\n").await;
            let log = program.last_words(usize::MAX);
            let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
            let of_both = [lines("TLS handshake failed"), lines("refused: ")];
            // The log was read before the clock.
            let most = 20 * (started.elapsed().as_secs() as usize + 1);
            assert!(of_both.iter().sum::<usize>() <= most, "more than {most} lines: {log}");
            if of_both.iter().all(|count| *count > 0) && lines(" lines about strangers were left out") > 0 {
                break 'until_counted;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_lines_with_addresses_and_without_what_strangers_send() {
    let mut program = Program::new();
    program.start();
    let target = AttackTarget::of(&program);
    let output = program.run(&["token", "create", "--role", "edge", "--node", "edge-1"]);
    let token = crate::process::text(&output.stdout).parse().unwrap();
    let node = Node::join(target.address, target.ca.clone(), &token, "edge-1").await;
    for body in [
        r#"{"token":"marker.marker","node":"marker","csr":"marker"}"#,
        r#"{"token":"marker.marker","node":"Marker\u001b[2J\nmarker","csr":"marker"}"#,
        r#"{"service_account_token":"marker.marker.marker","node":"marker","csr":"marker"}"#,
        r#"{"token":["marker\nmarker"],"node":"marker"}"#,
        "marker",
    ] {
        let mut stranger = target.open(host(5), b"http/1.1").await.unwrap();
        let length = body.len();
        let request = format!("POST /v1/join HTTP/1.1\r\nhost: marker\r\ncontent-length: {length}\r\n\r\n{body}");
        let response = head_of_response(&mut stranger, &request).await;
        assert!(response.starts_with("HTTP/1.1 4"), "{response}");
    }
    let mut stranger = target.open(host(6), b"http/1.1").await.unwrap();
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "p".repeat(6000));
    head_of_response(&mut stranger, &long).await;
    let evil = "ipv4`\nINFO forged: \u{1b}[2J\u{202e}";
    let refused = node.request_segments("r", &[evil]).await;
    assert!(refused.0 == 422 && detail(&refused).contains("forged"), "{refused:?}");
    let id = "r\nINFO forged";
    assert_eq!(node.request_segments(id, &["ipv4"]).await.0, 200);
    program.stop();
    let log = program.log();
    assert!(!log.to_lowercase().contains("marker"), "{log}");
    assert!(!log.contains(['\u{1b}', '\u{202e}']) && !log.lines().any(|line| line.starts_with("INFO forged")), "{log}");
    assert!(
        log.contains("\\nINFO forged: ") && log.contains("[2J\\u202e") && log.contains("from=127.0.0.1 (node edge-1)"),
        "{log}"
    );
    let of_stranger: Vec<&str> = log.lines().filter(|line| line.contains("refused: ")).collect();
    assert!(of_stranger.iter().filter(|line| line.contains("from=127.1.0.5")).count() == 5, "{log}");
    assert!(of_stranger.iter().any(|line| line.contains("from=127.1.0.6") && line.contains("ppp... ")), "{log}");
    assert!(log.lines().all(|line| line.len() < 1000), "{log}");
}
