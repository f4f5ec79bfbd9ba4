//! The span of a request: `request{node=NAME}`. The span contains every log line that a request or
//! a view stream writes, so that the log of one node can be filtered.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use edge_types::NodeName;
use tracing::{Instrument, Span, field};

use super::caller::{Caller, CallerIdentity};

/// Serves a request within its span. Runs as middleware. The span names the node from its
/// certificate. For callers without a certificate, [`set_node`] sets the name.
pub(super) async fn within(caller: Caller, request: Request, next: Next) -> Response {
    let span = tracing::info_span!("request", node = field::Empty);
    if let CallerIdentity::Node(certificate) = &caller.identity {
        span.record("node", field::display(&certificate.name));
    }
    next.run(request).instrument(span).await
}

/// Names the node that the present request is about. If the caller is a node, its certificate has
/// already given the name.
pub(super) fn set_node(caller: &Caller, node: &NodeName) {
    if !matches!(caller.identity, CallerIdentity::Node(_)) {
        Span::current().record("node", field::display(node));
    }
}
