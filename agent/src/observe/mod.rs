//! What monitoring sees of the agent: `/healthz`, `/readyz` and `/metrics` in plain HTTP, on the
//! addresses of `[observe]`. Nothing here is secret.
//!
//! - [`server`]: the listeners.
//! - [`probes`]: `/healthz` and `/readyz`.
//! - [`metrics`]: `/metrics`, made from the document of `status`.
//! - [`traffic`]: adds up the counters of SAs that come and go.

mod metrics;
mod probes;
mod server;
mod traffic;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::admin::server::AdminCall;
use crate::admin::{AdminRequest, AdminResponse};
use crate::status::Status;
use traffic::Traffic;

/// How long a document is used again. It is made for all peers, so many scrapers must not cost
/// more than one.
const REUSE: Duration = Duration::from_secs(2);
/// How long the agent may take to make a document.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Serves the addresses of `[observe]` until the agent ends. `requests` leads to the handler of the
/// admin socket.
pub(crate) async fn serve(
    addresses: Vec<SocketAddr>,
    peer_series: usize,
    needs_view: bool,
    requests: mpsc::Sender<AdminCall>,
) {
    let observer =
        Arc::new(Observer { requests, peer_series, needs_view, latest: Mutex::new((None, Traffic::default())) });
    server::serve(addresses, observer).await;
}

/// The last document, when it was made, and the traffic until then.
type Latest = (Option<(Instant, Arc<Status>)>, Traffic);

/// What the three paths read.
struct Observer {
    requests: mpsc::Sender<AdminCall>,
    /// Most peers with series of their own.
    peer_series: usize,
    /// Whether the node must have a view to be ready.
    needs_view: bool,
    latest: Mutex<Latest>,
}

impl Observer {
    /// The document of `status`, not older than [`REUSE`]. `None` if the agent does not make one in
    /// time.
    async fn status(&self) -> Option<Arc<Status>> {
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

    async fn request(&self) -> Option<Status> {
        let (to, response) = oneshot::channel();
        self.requests.send((AdminRequest::Status, to)).await.ok()?;
        match response.await.ok()? {
            AdminResponse::Status { status } => Some(*status),
            AdminResponse::Done | AdminResponse::Failed { .. } => None,
        }
    }
}
