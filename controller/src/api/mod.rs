//! The HTTP API below `/v1`, for nodes (over mutual TLS) and for the operator (over the admin socket).
//!
//! - [`caller`]: who calls, and what that one may do.
//! - [`join`], [`nodes`], [`segments`], [`view`]: what nodes ask for.
//! - [`operator`], [`ca`], [`backup`]: what the operator asks for.
//! - [`body`], [`problem`]: JSON in, RFC 9457 problem documents out.

mod backup;
mod body;
mod ca;
pub mod caller;
mod join;
mod nodes;
mod operator;
mod problem;
mod segments;
mod view;

use std::sync::Arc;

pub use segments::application;

use axum::Router;
use axum::extract::Request;
use axum::routing::{delete, get, patch, post};
use tokio_util::sync::CancellationToken;

use crate::ca::Ca;
use crate::config::Config;
use crate::kubernetes::client::Obstacles;
use crate::kubernetes::events::Events;
use crate::kubernetes::shown::Tunnels;
use crate::observe::{self, Health, Metrics};
use crate::refusal::Refusal;
use crate::registry::Registry;
use crate::segments::Policy;
use crate::views::Common;

/// What all handlers need.
pub struct Context {
    /// The state and how it changes.
    pub registry: Registry,
    /// Signs certificates.
    pub ca: Arc<Ca>,
    /// As read at start.
    pub config: Config,
    /// How segments are cut.
    pub policy: Policy,
    /// Computes views.
    pub common: Common,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether all loops run.
    pub health: Health,
    /// What does not work at the API server of Kubernetes.
    pub obstacles: Obstacles,
    /// Tells events on objects of Kubernetes.
    pub events: Events,
    /// Tunnels, as nodes report them.
    pub tunnels: Tunnels,
    /// Cancelled when the server stops: ends the view streams.
    pub stopping: CancellationToken,
}

/// Shared by all handlers.
pub type App = Arc<Context>;

/// All paths.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/v1/join", post(join::join))
        .route("/v1/nodes", get(operator::nodes))
        .route("/v1/nodes/{node}", axum::routing::put(nodes::report).delete(operator::deregister))
        .route("/v1/nodes/{node}/certificate", post(join::renew))
        .route("/v1/nodes/{node}/labels", patch(operator::label))
        .route("/v1/nodes/{node}/segments", get(segments::list).post(segments::apply))
        .route("/v1/nodes/{node}/view", get(view::view))
        .route("/v1/segments", get(operator::segments))
        .route("/v1/communities", get(operator::communities))
        .route("/v1/communities/{name}", axum::routing::put(operator::set_community).delete(operator::delete_community))
        .route("/v1/ca", get(ca::list))
        .route("/v1/ca/rollover", post(ca::rollover))
        .route("/v1/ca/{id}", delete(ca::retire))
        .route("/v1/backup", get(backup::backup))
        .route("/v1/tokens", get(operator::tokens).post(operator::create_token))
        .route("/v1/tokens/{id}", delete(operator::delete_token))
        .fallback(async |request: Request| Refusal::NoSuchPath(request.uri().path().into()))
        .method_not_allowed_fallback(async |request: Request| Refusal::Method {
            method: request.method().to_string(),
            path: request.uri().path().into(),
        })
        .layer(axum::middleware::from_fn_with_state(app.metrics.clone(), observe::requests::count))
        .with_state(app)
}
