//! The connection on which this node follows its view, and sends its reports. It begins with
//! HTTP/1.1 and leaves HTTP if the controller agrees ([`view_frames`]). With an earlier controller
//! it is the HTTP/2 connection that other requests share.

use std::net::IpAddr;

use edge_types::NodeName;
use edge_types::view_frames::{NodeFrame, PROTOCOL};
use hyper::{Method, Uri};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio::sync::mpsc;
use tracing::debug;

use super::error::ControllerError;
use super::http::HttpClient;
use super::http_connection::Connection;
use super::view_frames::{self, FrameRequest};
use super::view_lines::NdjsonLines;

/// A connection on which the view is, or will be, followed.
#[derive(Debug, Clone)]
pub(super) struct ViewConnection {
    /// The controller's URL.
    pub(super) url: Uri,
    /// This node's address on the TCP connection.
    pub(super) local: IpAddr,
    requests: Requests,
}

/// How requests are sent.
#[derive(Debug, Clone)]
enum Requests {
    Http(Connection),
    Frames(mpsc::Sender<FrameRequest>),
}

impl ViewConnection {
    /// Opens a connection.
    pub(super) async fn open(http: &HttpClient) -> Result<Self, ControllerError> {
        http.view_connection().await.map(Self::over_http)
    }

    fn over_http(connection: Connection) -> Self {
        Self { url: connection.url.clone(), local: connection.local, requests: Requests::Http(connection) }
    }

    /// Requests the view stream at `path`. Returns its lines, and the connection on which the
    /// stream is. That is another one if the controller does not upgrade this one.
    pub(super) async fn follow(self, http: &HttpClient, path: &str) -> Result<(Self, NdjsonLines), ControllerError> {
        let Requests::Http(connection) = &self.requests else {
            return Err(ControllerError::Unacceptable("the view is already followed on this connection".into()));
        };
        if let Some(upgraded) = http.upgrade(connection, path, PROTOCOL).await? {
            let (requests, parts) = view_frames::start(self.url.clone(), upgraded, http.clock());
            return Ok((Self { requests: Requests::Frames(requests), ..self }, NdjsonLines::of_frames(parts)));
        }
        let shared = if connection.is_http2() {
            connection.clone()
        } else {
            debug!(url = %self.url, "the controller does not upgrade the connection; the view is followed by HTTP/2");
            http.connection().await?
        };
        let body = http.stream(&shared, path).await?;
        Ok((Self::over_http(shared), NdjsonLines::of_body(body)))
    }

    /// Sends a request of this node, and waits until the controller has carried it out.
    pub(super) async fn request(
        &self,
        http: &HttpClient,
        kind: NodeFrame,
        node: &NodeName,
        body: &impl Serialize,
    ) -> Result<(), ControllerError> {
        match &self.requests {
            Requests::Frames(requests) => view_frames::request(requests, &self.url, kind, body).await,
            Requests::Http(connection) => {
                let Some((method, path)) = kind.route(node) else { return Ok(()) };
                let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
                http.call_on::<IgnoredAny>(connection, method, &path, body).await.map(drop)
            }
        }
    }

    /// Returns whether the connection has left HTTP.
    pub(super) fn has_left_http(&self) -> bool {
        matches!(&self.requests, Requests::Frames(_))
    }

    /// Returns whether the connection has ended. The lines of the stream then end with the reason.
    pub(super) fn has_ended(&self) -> bool {
        matches!(&self.requests, Requests::Frames(requests) if requests.is_closed())
    }
}
