//! Refusals as HTTP answers (RFC 9457).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use edge_types::api::PROBLEM_MEDIA_TYPE;

use crate::observe::requests::ProblemKind;
use crate::refusal::Refusal;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.problem();
        if problem.status >= 500 {
            tracing::error!(kind = problem.kind, "{self}");
        } else {
            tracing::info!(kind = problem.kind, "refused: {self}");
        }
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of strings always serialises.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let kind = axum::Extension(ProblemKind(self.name()));
        (status, kind, [(header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], body).into_response()
    }
}
