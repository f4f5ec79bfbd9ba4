//! Serves monitoring: `/healthz`, `/readyz` and `/metrics` in plain HTTP, on the addresses in
//! `[observe]`. None of the data is secret.
//!
//! - `server`: the HTTP listeners.
//! - `probes`: the responses to `/healthz` and `/readyz`.
//! - `metrics`: the response to `/metrics`, as OpenMetrics text.
//! - `observer`: the status document, from which all three responses are derived.
//! - `traffic`: the traffic of each peer, summed over all its SAs.

mod metrics;
mod observer;
mod probes;
mod server;
mod traffic;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::admin::server::AdminCall;
use observer::Observer;

/// Serves the addresses in `[observe]` until the agent ends. `requests` is the channel to the
/// handler of the admin socket.
pub(crate) async fn serve(
    addresses: Vec<SocketAddr>,
    peer_series: usize,
    needs_view: bool,
    requests: mpsc::Sender<AdminCall>,
) {
    server::serve(addresses, Arc::new(Observer::new(requests, peer_series, needs_view))).await;
}
