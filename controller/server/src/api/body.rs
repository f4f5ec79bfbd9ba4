//! Extracts a handler's input after [`super::authorization`]: a JSON body, limited in size and
//! time, and the node that the path names.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::{HeaderMap, header, request::Parts};
use edge_types::NodeName;
use edge_types::view_frames::MAX_FROM_NODE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Maximum size of a request body, in bytes. The largest real bodies are certificate requests of
/// about 1 KiB, apart from lists of members.
const LIMIT: usize = MAX_FROM_NODE;
/// Maximum size of the list of a community's members, in bytes: 10,000 of the longest names, as
/// many members as a `Community` may list. The controller authorizes the operator before it reads
/// the body. Kubernetes itself refuses objects above 1.5 MiB (etcd).
pub(super) const MEMBERS_LIMIT: usize = 2560 * 1024;
/// Time limit for a body to arrive.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The JSON body of a request, of at most `MAX` bytes.
pub(super) struct Json<T, const MAX: usize = LIMIT>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync, const MAX: usize> FromRequest<S> for Json<T, MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        let body = Limited::new(request.into_body(), MAX).collect();
        let body = tokio::time::timeout(TIMEOUT, body).await.map_err(|_| ApiError::TooSlow(TIMEOUT.as_secs()))?;
        let bytes = body
            .map_err(|error| {
                if error.is::<LengthLimitError>() {
                    ApiError::TooLarge(MAX)
                } else {
                    ApiError::BadJson(error.to_string())
                }
            })?
            .to_bytes();
        serde_json::from_slice(&bytes).map(Json).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => ApiError::BadValue(error.to_string()),
            _ => ApiError::BadJson(error.to_string()),
        })
    }
}

/// Refuses a body that is declared as something other than JSON, without reading it.
pub(super) fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let declared = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
    match declared.filter(|value| value.split(';').next().map(str::trim) != Some("application/json")) {
        Some(other) => Err(ApiError::MediaType(other.into())),
        None => Ok(()),
    }
}

/// The node that the path names (`{node}`).
pub(super) struct Node(pub(super) NodeName);

impl<S: Send + Sync> FromRequestParts<S> for Node {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|e| ApiError::BadValue(e.body_text()))?;
        text.parse().map(Node).map_err(|e: edge_types::NameError| ApiError::BadValue(e.to_string()))
    }
}
