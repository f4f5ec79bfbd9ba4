//! Counts the requests of the API.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use super::metrics::{ActionLabels, KindLabels, Metrics, RequestLabels, RouteLabels};

/// The kind of problem in an error response. It is passed to [`count`] in the extensions of the
/// response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProblemKind(pub(crate) &'static str);

/// Counts requests. Runs as middleware.
pub(crate) async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    // The route's path with placeholders, so that the label contains no node's name.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = method_label(request.method());
    let begun = Instant::now();
    let response = next.run(request).await;
    let took = begun.elapsed();
    let kind = response.extensions().get::<ProblemKind>().map(|kind| kind.0);
    let outcome = match (route.as_str(), kind) {
        (JOIN, None) => Some("issued"),
        (RENEW, None) => Some("renewed"),
        (JOIN | RENEW, Some(_)) => Some("refused"),
        _ => None,
    };
    if let Some(action) = outcome.filter(|_| method == "POST") {
        metrics.certificates.get_or_create(&ActionLabels { action }).inc();
    }
    if let Some(kind) = kind.filter(|_| route == JOIN) {
        metrics.join_refusals.get_or_create(&KindLabels { kind }).inc();
    }
    metrics.durations.get_or_create(&RouteLabels { route: route.clone(), method }).observe(took.as_secs_f64());
    metrics.requests.get_or_create(&RequestLabels { route, method, status: response.status().as_u16() }).inc();
    response
}

const JOIN: &str = "/v1/join";
const RENEW: &str = "/v1/nodes/{node}/certificate";

/// Returns the metric label for an HTTP method. A caller can invent methods, and the number of
/// series must not grow with them.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
