//! Who may ask for what, judged before anything of a request's body is read: from the column `by`
//! of the table of operations.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::Version;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use edge_controller_domain::registry::Registry;
use http_body_util::BodyExt;

use super::body::Node;
use super::caller::{Caller, Identity};
use super::error::ApiError;
use super::routes::Access;

/// An operation, as far as this is concerned.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) registry: Registry,
    pub(super) access: Access,
    /// Whether its path names a node.
    pub(super) names_node: bool,
}

/// What of a refused body is still taken, and for how long: who sends it would lose the answer if
/// the connection ended meanwhile.
const DISCARDED: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets through whom the operation is for.
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
            // HTTP/2 ends the stream alone.
            if parts.version < Version::HTTP_2 && !body.is_end_stream() {
                tokio::spawn(tokio::time::timeout(PATIENCE, discard(body)));
            }
            Err(refusal)
        }
    }
}

/// Reads a body, and keeps nothing of it.
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
    async fn check(&self, caller: &Caller, parts: &mut Parts) -> Result<(), ApiError> {
        match (self.access, &caller.identity) {
            (Access::Anyone, _) => Ok(()),
            // First: a stranger learns nothing of what else is wrong.
            (_, Identity::Nobody) => Err(ApiError::NoCertificate),
            (Access::Operator, _) => caller.require_operator(),
            (Access::Node | Access::NodeOrOperator, _) => {
                let node = match self.names_node {
                    true => Some(Node::from_request_parts(parts, &()).await?.0),
                    false => None,
                };
                let (view, now) = (self.registry.read().await, self.registry.clock.now());
                match (self.access, node) {
                    (Access::Node, Some(node)) => caller.require_node(&view, &node, now).map(drop),
                    (_, Some(node)) => caller.require_node_or_operator(&view, &node, now),
                    (_, None) => caller.require_registered(&view, now),
                }
            }
        }
    }
}
