//! Serves monitoring: `/healthz`, `/readyz` and `/metrics` in plain HTTP, on the addresses of
//! `[observe]`. No data here is secret.
//!
//! - `server`: the listeners.
//! - `probes`: `/healthz` and `/readyz`.
//! - `metrics`: `/metrics`.
//! - `observer`: the document of `status` from which all three are made.
//! - `traffic`: adds up the counters of SAs, which rekeys replace.

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

/// Serves the addresses of `[observe]` until the agent ends. `requests` is the channel to the
/// handler of the admin socket.
pub(crate) async fn serve(
    addresses: Vec<SocketAddr>,
    peer_series: usize,
    needs_view: bool,
    requests: mpsc::Sender<AdminCall>,
) {
    server::serve(addresses, Arc::new(Observer::new(requests, peer_series, needs_view))).await;
}
