//! Requests the status document, and what probes need, for monitoring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot};

use super::traffic::Traffic;
use crate::admin::server::{AdminCall, Reply};
use crate::admin::{AdminRequest, AdminResponse, Health};
use crate::status::Status;

/// Time for which a document is reused. Since a document covers all peers, many scrapers must not
/// cost more than one.
const REUSE: Duration = Duration::from_secs(2);
/// Timeout for a response of the agent.
const TIMEOUT: Duration = Duration::from_secs(8);

/// The response while the tunnels' thread or the request handler does not answer.
pub(super) const NO_STATUS: &str = "the agent does not report its state in time";

/// The last document, the time at which it was created, and the traffic until that time.
pub(super) type Latest = (Option<(Instant, Arc<Status>)>, Traffic);

/// The source of the data for `/healthz`, `/readyz` and `/metrics`.
pub(super) struct Observer {
    requests: mpsc::Sender<AdminCall>,
    /// Maximum number of peers with separate time series.
    pub(super) peer_series: usize,
    /// Whether the node must have a view to be ready.
    pub(super) needs_view: bool,
    pub(super) latest: Mutex<Latest>,
}

impl Observer {
    /// Creates an observer. `requests` is the channel to the handler of the admin socket.
    pub(super) fn new(requests: mpsc::Sender<AdminCall>, peer_series: usize, needs_view: bool) -> Self {
        Self { requests, peer_series, needs_view, latest: Mutex::new((None, Traffic::default())) }
    }

    /// Returns a status document that is at most [`REUSE`] old. `None` if the agent does not
    /// provide one in time.
    pub(super) async fn status(&self) -> Option<Arc<Status>> {
        let mut latest = self.latest.lock().await;
        let (document, traffic) = &mut *latest;
        if let Some((made, status)) = document
            && made.elapsed() < REUSE
        {
            return Some(status.clone());
        }
        let status = Arc::new(tokio::time::timeout(TIMEOUT, self.request()).await.ok()??);
        traffic.add(&status.peers);
        *document = Some((Instant::now(), status.clone()));
        Some(status)
    }

    /// Returns what probes need. `None` if the agent does not provide it in time.
    pub(super) async fn health(&self) -> Option<Health> {
        match tokio::time::timeout(TIMEOUT, self.ask(AdminRequest::Health)).await.ok()?? {
            AdminResponse::Health { health } => Some(health),
            _ => None,
        }
    }

    async fn request(&self) -> Option<Status> {
        match self.ask(AdminRequest::Status).await? {
            AdminResponse::Status { status } => Some(*status),
            _ => None,
        }
    }

    async fn ask(&self, request: AdminRequest) -> Option<AdminResponse> {
        let (to, response) = oneshot::channel();
        self.requests.send((request, to)).await.ok()?;
        match response.await.ok()? {
            Reply::Response(response) => Some(response),
            Reply::StatusInParts(_) | Reply::Capture(_) => None,
        }
    }
}
