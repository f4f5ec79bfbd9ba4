//! The HTTP API below `/v1`, for nodes (over mutual TLS) and for the operator (over the admin
//! socket).
//!
//! - [`caller`]: who calls, and what that one may do; [`gate`]: judged before a body is read.
//! - [`join`], [`nodes`], [`segments`], [`view`]: what nodes ask for.
//! - [`claims`]: segments that nodes say they hold.
//! - [`operator`], [`ca`], [`backup`]: what the operator asks for.
//! - [`operations`]: all of these with what they take and give, of which the router and [`openapi`]
//!   are made.
//! - [`body`], [`problem`]: JSON in, RFC 9457 problem documents out; [`strangers`]: bodies of those
//!   who cannot be judged before.

mod backup;
mod body;
mod ca;
pub mod caller;
mod claims;
mod gate;
mod join;
mod nodes;
pub mod openapi;
mod operations;
mod operator;
mod problem;
mod segments;
mod strangers;
mod view;

use std::sync::Arc;

pub use segments::application;
pub use strangers::Bodies;

use axum::Router;
use axum::extract::Request;
use edge_controller_domain::ca::Ca;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::Conflicts;
use edge_controller_domain::tunnel_reports::TunnelReports;
use edge_controller_kubernetes::client::Obstacles;
use edge_controller_kubernetes::events::Events;
use edge_controller_kubernetes::label_trust::LabelTrust;
use edge_controller_kubernetes::nodes::Asked;
use edge_controller_kubernetes::reviews::Reviews;
use edge_controller_kubernetes::token_review::Reviewer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::live_config::{ConfigInForce, LiveConfig};
use crate::observe::{self, Health, Metrics};
use crate::refusal::Refusal;
use gate::Gate;

/// What all handlers need.
pub struct Context {
    /// The state and how it changes.
    pub registry: Registry,
    /// Signs certificates.
    pub ca: Arc<Ca>,
    /// What the configuration says.
    pub live: Arc<LiveConfig>,
    /// Asks the API server about service account tokens, where nodes may join by them.
    pub reviewer: Option<Reviewer>,
    /// Turns for that.
    pub reviews: Reviews,
    /// Bodies of strangers that arrive.
    pub bodies: Bodies,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether all loops run.
    pub health: Health,
    /// What does not work at the API server of Kubernetes.
    pub obstacles: Obstacles,
    /// Tells events on objects of Kubernetes.
    pub events: Events,
    /// Tunnels, as nodes report them.
    pub tunnels: TunnelReports,
    /// What nodes say they hold and do not.
    pub conflicts: Conflicts,
    /// Whether labels of Node objects put nodes into communities.
    pub label_trust: watch::Sender<LabelTrust>,
    /// Nodes of which the operator is asked whether they are gone.
    pub asked: Asked,
    /// Cancelled when the server stops: ends the view streams.
    pub stopping: CancellationToken,
}

impl Context {
    /// What the configuration says now.
    pub fn settings(&self) -> Arc<ConfigInForce> {
        self.live.now()
    }
}

/// Shared by all handlers.
pub type App = Arc<Context>;

/// All paths.
pub fn router(app: App) -> Router {
    let router = operations::all().into_iter().fold(Router::new(), |router, operation| {
        let gate = Gate { app: app.clone(), by: operation.by, names_node: operation.path.contains("{node}") };
        let handler = operation.handler.route_layer(axum::middleware::from_fn_with_state(gate, gate::judge));
        router.route(operation.path, handler)
    });
    router
        .fallback(async |request: Request| Refusal::NoSuchPath(request.uri().path().into()))
        .method_not_allowed_fallback(async |request: Request| Refusal::Method {
            method: request.method().to_string(),
            path: request.uri().path().into(),
        })
        .layer(axum::middleware::from_fn_with_state(app.metrics.clone(), observe::requests::count))
        .layer(axum::middleware::from_fn(problem::log))
        .with_state(app)
}
