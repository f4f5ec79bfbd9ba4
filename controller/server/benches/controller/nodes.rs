//! Simulates nodes: each opens one HTTP/2 connection, as agents do, and immediately reads a view
//! stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
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

/// A connection.
#[derive(Clone)]
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

/// Opens a node's view stream and sends its lines to `heard`.
pub(crate) async fn follow(connection: &mut Connection, name: &str, heard: mpsc::UnboundedSender<ReceivedLine>) {
    let path = format!("/v1/nodes/{name}/view?watch=true&changes=true");
    let mut body = connection.ask(Method::GET, &path, None).await.into_body();
    tokio::spawn(async move {
        let mut line = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let at = Instant::now();
            let Ok(mut data) = frame.into_data() else { continue };
            while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
                look(&mut line, &data.split_to(end + 1));
                // The measurement may have ended.
                let _ = heard.send(ReceivedLine { at, line: std::mem::take(&mut line) });
            }
            look(&mut line, &data);
        }
    });
}

fn look(line: &mut Vec<u8>, more: &[u8]) {
    let room = LOOK.saturating_sub(line.len());
    line.extend_from_slice(&more[..more.len().min(room)]);
}
