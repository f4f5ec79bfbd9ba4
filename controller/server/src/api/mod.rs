//! The HTTP API below `/v1`, for nodes (over mutual TLS) and for the operator (over the admin
//! socket).
//!
//! - [`caller`]: identifies the caller and implements the access checks. [`authorization`]: applies
//!   the checks of a route before a body is read.
//! - [`join`] (with [`service_account`]), [`report`], [`segments`], [`view`] (with
//!   [`single_view`], [`line_slot`] and [`view_upgrade`]): handle the requests from nodes.
//! - [`connectivity`]: checks whether nodes reach each other, by measurements that the nodes make.
//! - [`claim_reporter`]: writes log lines and Events about segments that nodes claim to hold.
//! - [`operator`], [`ca`], [`archive`], [`page_sessions`], [`status`] (with [`node_infos`]): handle
//!   the requests from the operator.
//! - [`routes`]: the table of all routes, each a [`route`]. The router and the document in
//!   [`openapi`] are made from this table.
//! - [`state`]: the parts of the server that handlers can use.
//! - [`body`]: reads JSON bodies within limits; [`unauthenticated_body`]: reads bodies from callers
//!   that may have no certificate. [`problem`]: writes errors as RFC 9457 problem documents.
//! - [`request_span`]: the span of a request, which names the node in the log.

mod archive;
mod authorization;
mod body;
mod ca;
pub mod caller;
mod claim_reporter;
mod connectivity;
mod error;
mod join;
pub(crate) mod line_slot;
mod node_infos;
mod openapi;
mod operator;
mod page_sessions;
mod problem;
mod report;
mod request_span;
mod route;
mod routes;
mod segments;
mod service_account;
mod single_view;
mod state;
mod status;
mod unauthenticated_body;
mod view;
pub(crate) mod view_upgrade;

pub use error::ApiError;
pub use node_infos::ReplicaName;
pub use page_sessions::ServedPage;
pub use routes::openapi_document;
pub use state::Services;
pub use status::Overview;

use axum::Router;
use axum::extract::{FromRef, Request};

use crate::observe;
use authorization::Authorization;
use state::ApiState;

/// Makes the router for all routes, and the overview that the router serves.
pub fn router(services: Services) -> (Router, Overview) {
    let (registry, live, metrics) = (services.registry.clone(), services.live.clone(), services.metrics.clone());
    let state = ApiState::from(services);
    let overview = Overview::from_ref(&state);
    let router = routes::routes().into_iter().fold(Router::new(), |router, route| {
        let authorization = Authorization {
            registry: registry.clone(),
            live: live.clone(),
            access: route.access,
            names_node: route.path.contains("{node}"),
        };
        let handler =
            route.handler.route_layer(axum::middleware::from_fn_with_state(authorization, authorization::authorize));
        router.route(route.path, handler)
    });
    let router = router
        .fallback(async |request: Request| ApiError::NoSuchPath(request.uri().path().into()))
        .method_not_allowed_fallback(async |request: Request| ApiError::Method {
            method: request.method().to_string(),
            path: request.uri().path().into(),
        })
        .layer(axum::middleware::from_fn_with_state(metrics, observe::requests::count))
        .layer(axum::middleware::from_fn(problem::log))
        .layer(axum::middleware::from_fn(request_span::within))
        .with_state(state);
    (router, overview)
}
