//! Checks whether the caller has access to a route before the request body is read. The column
//! `access` in the table of routes defines the rules. `caller` identifies the caller and implements
//! the checks, and this module applies those that the route requires.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::Version;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use edge_controller_domain::registry::Registry;
use edge_types::NodeName;
use http_body_util::BodyExt;

use super::body::Node;
use super::caller::{Caller, CallerIdentity};
use super::error::ApiError;
use super::request_span;
use super::route::Access;
use crate::live_config::LiveConfig;

/// The access checks for a route.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) registry: Registry,
    pub(super) live: Arc<LiveConfig>,
    pub(super) access: Access,
    /// Whether the path names a node.
    pub(super) names_node: bool,
}

/// Maximum number of octets that are still read from the body of a refused request, and the time
/// limit for that. If the connection ended while the caller still sends, the caller would lose the
/// response.
const DISCARDED: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(2);

/// Passes on requests from callers that have access.
pub(super) async fn authorize(
    State(authorization): State<Authorization>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    match authorization.check(&caller, &mut parts).await {
        Ok(()) => Ok(next.run(Request::from_parts(parts, body)).await),
        Err(refusal) => {
            // HTTP/2 ends only the stream, not the connection.
            if parts.version < Version::HTTP_2 && !body.is_end_stream() {
                tokio::spawn(tokio::time::timeout(PATIENCE, discard(body)));
            }
            Err(refusal)
        }
    }
}

/// Reads a body and discards it.
async fn discard(mut body: Body) {
    let mut left = DISCARDED;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, |data| data.len())) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

impl Authorization {
    /// Returns the node that the path names.
    async fn node(&self, parts: &mut Parts) -> Result<Option<NodeName>, ApiError> {
        match self.names_node {
            true => Node::from_request_parts(parts, &()).await.map(|Node(node)| Some(node)),
            false => Ok(None),
        }
    }

    async fn check(&self, caller: &Caller, parts: &mut Parts) -> Result<(), ApiError> {
        match (self.access, &caller.identity) {
            (Access::Anyone, _) => Ok(()),
            // This check is first, so that an unauthenticated caller gets no information about
            // other errors.
            (_, CallerIdentity::Anonymous) => Err(ApiError::NoCertificate),
            (Access::Operator, _) => {
                caller.require_operator()?;
                if let Some(node) = self.node(parts).await? {
                    request_span::set_node(caller, &node);
                }
                Ok(())
            }
            (Access::Node | Access::NodeWithGrace | Access::NodeOrOperator, _) => {
                let node = self.node(parts).await?;
                let (state, now) = (self.registry.read().await, self.registry.clock.now());
                match (self.access, node) {
                    (Access::Node, Some(node)) => caller.require_node(&state, &node, now).map(drop),
                    (Access::NodeWithGrace, Some(node)) => {
                        let grace = self.live.now().config.certificate_grace();
                        caller.require_node_with_grace(&state, &node, now, grace).map(drop)
                    }
                    (_, Some(node)) => {
                        caller.require_node_or_operator(&state, &node, now)?;
                        request_span::set_node(caller, &node);
                        Ok(())
                    }
                    (_, None) => caller.require_registered(&state, now),
                }
            }
        }
    }
}
