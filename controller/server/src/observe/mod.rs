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

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::api::App;

/// Media type of what [`scrape`] writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The three paths of the listener.
pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/healthz", get(async |State(app): State<App>| health::answer(app.health.alive(&app).await, Vec::new())))
        .route(
            "/readyz",
            get(async |State(app): State<App>| {
                health::answer(app.health.ready(&app).await, app.health.notes(&app).await)
            }),
        )
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n"))
        .with_state(app)
}

async fn metrics(State(app): State<App>) -> Response {
    match scrape::scrape(&app).await {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write metrics: {error}\n")).into_response(),
    }
}
