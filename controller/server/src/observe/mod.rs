//! Serves data for monitoring: metrics, and whether this process is alive and ready. Monitoring
//! uses plain HTTP on a separate listener, because none of this data is secret. No metric label
//! names a node, so the number of series stays small.
//!
//! - [`Metrics`]: counters that are updated with each event.
//! - [`requests`]: counts each request of the API, with its outcome and duration.
//! - [`MeasuredStore`]: wraps a store to measure its commits.
//! - [`scrape`]: reads gauges from the state and writes all metrics at each scrape.
//! - [`process`]: reads memory, descriptors and processor time of this process.
//! - [`Health`]: the health of this process; [`checks`]: the checks for `/healthz` and `/readyz`.
//! - [`ServerParts`]: the data that checks and scrapes read.

mod checks;
mod health;
mod metrics;
mod process;
pub(crate) mod requests;
mod scrape;
mod server_parts;
mod store;

pub use health::Health;
pub(crate) use metrics::OpenStream;
pub use metrics::{Metrics, StreamEnd};
pub(crate) use server_parts::ServerParts;
pub use store::MeasuredStore;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use edge_types::exposition::Exposition;

/// Makes the router for the three paths.
pub(crate) fn router(server: Arc<ServerParts>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"))
        .with_state(server)
}

async fn healthz(State(server): State<Arc<ServerParts>>) -> Response {
    checks::response(checks::healthz(&server).await, Vec::new())
}

async fn readyz(State(server): State<Arc<ServerParts>>) -> Response {
    let (checks, notes) = checks::readyz(&server).await;
    checks::response(checks, notes)
}

async fn metrics(State(server): State<Arc<ServerParts>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Exposition::accepted(accept);
    match scrape::scrape(&server).await {
        Ok(text) => ([(header::CONTENT_TYPE, format.media_type())], format.write(text)).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write metrics: {error}\n")).into_response(),
    }
}
