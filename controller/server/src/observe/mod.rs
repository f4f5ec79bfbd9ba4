//! What an operator's monitoring sees: metrics, and whether this process is alive and ready. Plain
//! HTTP on a listener of its own; nothing here is secret and no label names a node, so that the
//! number of series stays bounded.
//!
//! - [`Metrics`]: what is counted as it happens.
//! - [`requests`]: counts every request of the API, its outcome and duration.
//! - [`Measured`]: a store whose commits are measured.
//! - [`scrape`]: what is looked up when it is asked for.
//! - [`process`]: memory, descriptors and processor time of this process.
//! - [`Health`]: `/healthz` and `/readyz`.

mod health;
mod metrics;
mod process;
pub(crate) mod requests;
mod scrape;
mod store;

pub use health::Health;
pub(crate) use metrics::OpenStream;
pub use metrics::{Ended, Metrics};
pub use store::Measured;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use edge_controller_domain::ca::Ca;
use edge_controller_domain::registry::Registry;
use edge_controller_kubernetes::client::Obstacles;
use edge_controller_kubernetes::label_trust::LabelTrust;
use edge_controller_kubernetes::nodes::Asked;
use tokio::sync::watch;

use crate::live_config::LiveConfig;

/// Media type of what [`scrape`] writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is looked at when someone asks.
pub(crate) struct Observed {
    /// The rows, and who is connected.
    pub(crate) registry: Registry,
    /// The configuration in force.
    pub(crate) live: Arc<LiveConfig>,
    /// The authorities.
    pub(crate) ca: Arc<Ca>,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Whether all loops run.
    pub(crate) health: Arc<Health>,
    /// What does not work at the API server of Kubernetes.
    pub(crate) obstacles: Obstacles,
    /// Whether labels of Node objects put nodes into communities.
    pub(crate) label_trust: watch::Receiver<LabelTrust>,
    /// Nodes of which the operator is asked whether they are gone.
    pub(crate) asked: Asked,
}

/// The three paths of the listener.
pub(crate) fn router(observed: Arc<Observed>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"))
        .with_state(observed)
}

async fn healthz(State(observed): State<Arc<Observed>>) -> Response {
    health::answer(health::alive(&observed).await, Vec::new())
}

async fn readyz(State(observed): State<Arc<Observed>>) -> Response {
    health::answer(health::ready(&observed).await, health::notes(&observed).await)
}

async fn metrics(State(observed): State<Arc<Observed>>) -> Response {
    match scrape::scrape(&observed).await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write metrics: {error}\n")).into_response(),
    }
}
