//! Simulates nodes: each opens a connection for its view, which leaves HTTP as those of agents do,
//! and reads its view stream. Other requests use connections with HTTP/2.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_types::view_frames::{
    AnswerHead, ControllerFrame, HEADER, MAX_FROM_CONTROLLER, NODE_PING_SECONDS, NodeFrame, PROTOCOL, header,
    parse_header,
};
use futures_util::{StreamExt, stream};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::{Cluster, Node};

/// Number of nodes that connect at the same time.
const AT_ONCE: usize = 64;
/// Number of bytes at the beginning of a line that are examined.
const LOOK: usize = 4096;

/// A line that arrived on a view stream.
pub(crate) struct ReceivedLine {
    pub(crate) at: Instant,
    /// The beginning of the line.
    pub(crate) line: Vec<u8>,
}

impl ReceivedLine {
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.line.starts_with(format!("{{\"type\":\"{kind}\"").as_bytes())
    }

    pub(crate) fn holds(&self, text: &str) -> bool {
        self.line.windows(text.len()).any(|part| part == text.as_bytes())
    }
}

/// A connection with HTTP/2.
pub(crate) struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub(crate) async fn open(address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(secure(address, tls).await))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn ask(&mut self, method: Method, path: &str, body: Option<Value>) -> Response<Incoming> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder().method(method).uri(format!("https://127.0.0.1{path}"));
        let request = request.header("content-type", "application/json").body(Full::from(body)).expect("a request");
        self.0.ready().await.expect("a connection");
        let response = self.0.send_request(request).await.expect("a response");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response
    }
}

/// Opens a connection with TLS alone.
pub(crate) async fn secure(address: SocketAddr, tls: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    TlsConnector::from(tls).connect(ServerName::try_from("127.0.0.1").expect("a name"), stream).await.expect("TLS")
}

/// Runs work for every node, many at the same time. Returns the results in node order.
pub(crate) async fn each<'a, T, F: Future<Output = T>>(
    cluster: &'a Cluster,
    work: impl Fn(usize, &'a Node) -> F,
) -> Vec<T> {
    stream::iter(cluster.nodes.iter().enumerate())
        .map(|(index, node)| work(index, node))
        .buffered(AT_ONCE)
        .collect()
        .await
}

/// A node's connection with its view stream. It has left HTTP, as those of agents do.
#[derive(Clone)]
pub(crate) struct ViewConnection(mpsc::Sender<Report>);

/// A report that is sent, and what is told that it was answered.
struct Report(Vec<u8>, oneshot::Sender<()>);

impl ViewConnection {
    /// Opens a node's view stream and sends its lines to `heard`.
    pub(crate) async fn open(
        address: SocketAddr,
        tls: &ClientConfig,
        name: &str,
        heard: mpsc::UnboundedSender<ReceivedLine>,
    ) -> Self {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut stream = secure(address, Arc::new(tls)).await;
        let head = format!(
            "GET /v1/nodes/{name}/view?watch=true&changes=true HTTP/1.1\r\nhost: 127.0.0.1\r\n\
             connection: upgrade\r\nupgrade: {PROTOCOL}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("a connection");
        stream.flush().await.expect("a connection");
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            response.push(stream.read_u8().await.expect("a response"));
        }
        assert!(response.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&response));
        let (to_send, reports) = mpsc::channel(1);
        tokio::spawn(run(stream, reports, heard));
        Self(to_send)
    }

    /// Sends a report, and waits for the answer.
    pub(crate) async fn report(&self, report: &Value) {
        let (answer, answered) = oneshot::channel();
        self.0.send(Report(report.to_string().into_bytes(), answer)).await.expect("a connection");
        answered.await.expect("an answer");
    }
}

/// Sends reports and pings until the connection is dropped.
async fn run(
    stream: TlsStream<TcpStream>,
    mut reports: mpsc::Receiver<Report>,
    heard: mpsc::UnboundedSender<ReceivedLine>,
) {
    let (reader, mut writer) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel(1);
    let reading = tokio::spawn(read_frames(reader, answers, heard));
    let mut pings = tokio::time::interval(Duration::from_secs(NODE_PING_SECONDS));
    pings.reset();
    let mut waiting: VecDeque<Option<oneshot::Sender<()>>> = VecDeque::new();
    loop {
        let (kind, body) = tokio::select! {
            answer = answered.recv() => {
                let Some(()) = answer else { break };
                // Nothing waits for the answer to a ping.
                let answered = waiting.pop_front().expect("a request");
                answered.map_or(Ok(()), |answered| answered.send(())).expect("a reporter");
                continue;
            }
            report = reports.recv() => {
                let Some(Report(body, answer)) = report else { break };
                waiting.push_back(Some(answer));
                (NodeFrame::Report, body)
            }
            _ = pings.tick() => {
                waiting.push_back(None);
                (NodeFrame::Ping, Vec::new())
            }
        };
        let frame = [&header(kind as u8, body.len())[..], &body].concat();
        writer.write_all(&frame).await.expect("a connection");
        writer.flush().await.expect("a connection");
    }
    reading.abort();
}

/// Reads frames until the connection ends.
async fn read_frames(
    mut reader: ReadHalf<TlsStream<TcpStream>>,
    answers: mpsc::Sender<()>,
    heard: mpsc::UnboundedSender<ReceivedLine>,
) {
    let mut line = Vec::new();
    loop {
        let mut head = [0; HEADER];
        if reader.read_exact(&mut head).await.is_err() {
            return;
        }
        let (kind, length) = parse_header(head, MAX_FROM_CONTROLLER).expect("a frame");
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await.expect("a whole frame");
        let at = Instant::now();
        if kind == ControllerFrame::Answer as u8 {
            let (head, _) = AnswerHead::split(&payload).expect("an answer");
            assert_eq!(head.status, 204);
            if answers.send(()).await.is_err() {
                return;
            }
            continue;
        }
        let mut data = &payload[..];
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (rest, next) = data.split_at(end + 1);
            look(&mut line, rest);
            data = next;
            // The measurement may have ended.
            let _ = heard.send(ReceivedLine { at, line: std::mem::take(&mut line) });
        }
        look(&mut line, data);
    }
}

fn look(line: &mut Vec<u8>, more: &[u8]) {
    let room = LOOK.saturating_sub(line.len());
    line.extend_from_slice(&more[..more.len().min(room)]);
}
