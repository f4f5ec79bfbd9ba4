//! A node's connection that has left HTTP, as an agent's does to follow its view.

use std::collections::VecDeque;

use edge_types::api::ViewEvent;
use edge_types::view_frames::{
    AnswerHead, ControllerFrame, HEADER, MAX_FROM_CONTROLLER, NodeFrame, header, parse_header,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::harness::{HttpResponse, Node};

/// The connection, and what it has received that no test has asked for.
pub(crate) struct FrameConnection<S = TlsStream<TcpStream>> {
    pub(crate) stream: S,
    /// The beginning of a line.
    partial: Vec<u8>,
    lines: VecDeque<ViewEvent>,
    answers: VecDeque<HttpResponse>,
}

/// Sends the head of a request for a view stream that asks for the upgrade, and returns the head of
/// the response. `path`: with its parameters.
pub(crate) async fn ask_for_upgrade<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nhost: cloud.test\r\nconnection: upgrade\r\nupgrade: edge-view\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(response).unwrap()
}

impl FrameConnection {
    /// Opens a node's view stream with further parameters: `&name=value`...
    pub(crate) async fn open(node: &Node, parameters: &str) -> Self {
        Self::over(node.connect_tls().await, node, parameters).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameConnection<S> {
    pub(crate) async fn over(mut stream: S, node: &Node, parameters: &str) -> Self {
        let response =
            ask_for_upgrade(&mut stream, &format!("/v1/nodes/{}/view?watch=true{parameters}", node.name)).await;
        assert!(response.starts_with("HTTP/1.1 101 ") && response.contains("upgrade: edge-view"), "{response}");
        Self::upgraded(stream)
    }

    /// Takes a connection that has left HTTP.
    pub(crate) fn upgraded(stream: S) -> Self {
        Self { stream, partial: Vec::new(), lines: VecDeque::new(), answers: VecDeque::new() }
    }

    /// Sends bytes that need not be a frame.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, kind: u8, payload: &[u8]) {
        self.send_raw(&[&header(kind, payload.len())[..], payload].concat()).await;
    }

    /// Sends a request and returns the answer to the oldest request that has none.
    pub(crate) async fn ask(&mut self, kind: NodeFrame, body: Value) -> HttpResponse {
        self.send(kind as u8, body.to_string().as_bytes()).await;
        self.answer().await.expect("the connection goes on")
    }

    /// Returns the next answer; `None` at the end of the connection.
    pub(crate) async fn answer(&mut self) -> Option<HttpResponse> {
        while self.answers.is_empty() {
            self.receive().await?;
        }
        self.answers.pop_front()
    }

    /// Returns the next line; `None` at the end of the connection.
    pub(crate) async fn line(&mut self) -> Option<ViewEvent> {
        while self.lines.is_empty() {
            self.receive().await?;
        }
        self.lines.pop_front()
    }

    /// Returns the next line that is not a heartbeat.
    pub(crate) async fn news(&mut self) -> ViewEvent {
        loop {
            match self.line().await.expect("the stream goes on") {
                ViewEvent::Heartbeat { .. } => {}
                news => return news,
            }
        }
    }

    /// Returns the next whole view.
    pub(crate) async fn view(&mut self) -> edge_types::NodeView {
        match self.news().await {
            ViewEvent::View { view, .. } => *view,
            other => panic!("expected a whole view, got {other:?}"),
        }
    }

    /// Reads until the controller has closed the connection.
    pub(crate) async fn ended(mut self) {
        while self.receive().await.is_some() {}
    }

    /// Receives a frame; `None` at the end of the connection.
    async fn receive(&mut self) -> Option<()> {
        let mut head = [0; HEADER];
        self.stream.read_exact(&mut head).await.ok()?;
        let (kind, length) = parse_header(head, MAX_FROM_CONTROLLER).unwrap();
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.ok()?;
        match ControllerFrame::from_byte(kind).unwrap() {
            ControllerFrame::Stream => {
                self.partial.extend(payload);
                while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.partial.drain(..=end).collect();
                    self.lines.push_back(serde_json::from_slice(&line).unwrap());
                }
            }
            ControllerFrame::Answer => {
                let (head, body) = AnswerHead::split(&payload).unwrap();
                assert!(head.unix_time > 1_793_491_200, "the time is that of the machine");
                let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
                self.answers.push_back((head.status, body));
            }
        }
        Some(())
    }
}
