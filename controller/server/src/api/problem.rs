//! Writes errors as HTTP responses (RFC 9457) and into the log.

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use edge_types::api::PROBLEM_MEDIA_TYPE;

use super::caller::{Caller, CallerIdentity};
use super::error::ApiError;
use crate::logs;
use crate::observe::requests::ProblemKind;

/// The log text of an error. The text is passed to [`log`], which has the caller's address, in the
/// extensions of the response.
#[derive(Clone, Debug)]
struct LoggedError {
    status: u16,
    text: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Serialising a struct of strings never fails.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let kind = axum::Extension(ProblemKind(self.name()));
        let logged = axum::Extension(LoggedError { status: problem.status, text: problem.detail });
        let mut response = (status, kind, logged, [(header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], body).into_response();
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Logs errors, with the address of the caller. Runs as middleware.
pub(super) async fn log(caller: Caller, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let kind = response.extensions().get::<ProblemKind>().map_or("", |kind| kind.0);
    let Some(LoggedError { status, text }) = response.extensions_mut().remove::<LoggedError>() else { return response };
    let may_tell = match (&caller.identity, kind) {
        (CallerIdentity::Operator, _) => true,
        (CallerIdentity::Anonymous | CallerIdentity::Unrecognised(_), _) => logs::may_log_stranger(),
        // A caller whose certificate no longer counts is also unauthenticated.
        (_, "node-deregistered" | "certificate-superseded" | "certificate-expired") => logs::may_log_stranger(),
        _ => logs::may_log_node(),
    };
    if !may_tell {
        return response;
    }
    let text = logs::shortened(&text);
    match status {
        // This is not an error of the controller, which withholds segments on purpose.
        503 if kind == "segments-withheld" => tracing::info!(from = %caller, kind, "refused: {text}"),
        500.. => tracing::error!(from = %caller, kind, "{text}"),
        _ => tracing::info!(from = %caller, kind, "refused: {text}"),
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_controller_domain::segments::GrantsPaused;

    #[test]
    fn a_refusal_that_ends_by_itself_says_when_to_ask_again() {
        let paused = GrantsPaused { restored_at: 0, until: 600, missing: 1, named: vec!["edge-1".into()] };
        let response = ApiError::from(paused).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[header::RETRY_AFTER]),
            (503, &"10".parse().unwrap())
        );
        assert!(!ApiError::NodeOnly.into_response().headers().contains_key(header::RETRY_AFTER));
    }
}
