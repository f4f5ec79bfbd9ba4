//! Who may ask for what, judged before anything of a request's body is read: from the column `by` of the table of operations.

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::App;
use super::body::Node;
use super::caller::{Caller, Identity};
use super::operations::By;
use crate::refusal::Refusal;

/// An operation, as far as this is concerned.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) app: App,
    pub(super) by: By,
    /// Whether its path names a node.
    pub(super) names_node: bool,
}

/// Lets through whom the operation is for.
pub(super) async fn judge(
    State(gate): State<Gate>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let (mut parts, body) = request.into_parts();
    let Gate { app, by, names_node } = gate;
    match (by, &caller.identity) {
        (By::Anyone, _) => {}
        // First: a stranger learns nothing of what else is wrong.
        (_, Identity::Nobody) => return Err(Refusal::NoCertificate),
        (By::Operator, _) => caller.operator()?,
        (By::Node | By::NodeOrOperator, _) => {
            let node = match names_node {
                true => Some(Node::from_request_parts(&mut parts, &()).await?.0),
                false => None,
            };
            let (view, now) = (app.registry.read().await, app.registry.clock.now());
            match (by, node) {
                (By::Node, Some(node)) => drop(caller.is(&view, &node, now)?),
                (_, Some(node)) => caller.may_see(&view, &node, now)?,
                (_, None) => caller.is_known(&view, now)?,
            }
        }
    }
    Ok(next.run(Request::from_parts(parts, body)).await)
}
