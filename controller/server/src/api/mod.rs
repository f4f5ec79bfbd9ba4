//! The HTTP API below `/v1`, for nodes (over mutual TLS) and for the operator (over the admin
//! socket).
//!
//! - [`caller`]: who calls, and what that one may do; [`gate`]: judged before a body is read.
//! - [`join`] (with [`service_account`]), [`nodes`], [`segments`], [`view`]: what nodes ask for.
//! - [`claims`]: segments that nodes say they hold.
//! - [`operator`], [`ca`], [`backup`]: what the operator asks for.
//! - [`operations`]: all of these with what they take and give, of which the router and [`openapi`]
//!   are made.
//! - [`state`]: which part of the server a handler may ask for.
//! - [`body`], [`problem`]: JSON in, RFC 9457 problem documents out; [`strangers`]: bodies of those
//!   who cannot be judged before.

mod backup;
mod body;
mod ca;
pub mod caller;
mod claims;
mod error;
mod gate;
mod join;
mod nodes;
pub mod openapi;
mod operations;
mod operator;
mod problem;
mod segments;
mod service_account;
mod state;
mod strangers;
mod view;

pub use error::ApiError;
pub use state::Services;

use axum::Router;
use axum::extract::Request;

use crate::observe;
use gate::Gate;
use state::ApiState;

/// All paths.
pub fn router(services: Services) -> Router {
    let (registry, metrics) = (services.registry.clone(), services.metrics.clone());
    let router = operations::all().into_iter().fold(Router::new(), |router, operation| {
        let gate = Gate { registry: registry.clone(), by: operation.by, names_node: operation.path.contains("{node}") };
        let handler = operation.handler.route_layer(axum::middleware::from_fn_with_state(gate, gate::judge));
        router.route(operation.path, handler)
    });
    router
        .fallback(async |request: Request| ApiError::NoSuchPath(request.uri().path().into()))
        .method_not_allowed_fallback(async |request: Request| ApiError::Method {
            method: request.method().to_string(),
            path: request.uri().path().into(),
        })
        .layer(axum::middleware::from_fn_with_state(metrics, observe::requests::count))
        .layer(axum::middleware::from_fn(problem::log))
        .with_state(ApiState::from(services))
}
