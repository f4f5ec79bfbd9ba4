//! Handles requests for the page's sessions, which the operator opens on the admin socket.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use edge_controller_domain::page_sessions::PageSessions;
use edge_controller_domain::registry::Registry;
use edge_types::page::PageSession;

use super::caller::Caller;
use super::error::ApiError;

/// The page's sessions and the addresses at which the page is served.
#[derive(Clone)]
pub struct ServedPage {
    /// The open sessions.
    pub sessions: PageSessions,
    /// The page's URL at each of its addresses; empty if the page is not served.
    pub urls: Arc<[String]>,
}

pub(super) async fn open(
    State(registry): State<Registry>,
    State(page): State<ServedPage>,
    caller: Caller,
) -> Result<(StatusCode, axum::Json<PageSession>), ApiError> {
    caller.require_operator()?;
    if page.urls.is_empty() {
        return Err(ApiError::PageNotServed);
    }
    let (credential, expires_at) = page.sessions.open(registry.clock.now())?;
    tracing::info!("session of the page opened");
    let session = PageSession { urls: page.urls.to_vec(), credential: credential.to_string(), expires_at };
    Ok((StatusCode::CREATED, axum::Json(session)))
}

pub(super) async fn end_all(
    State(registry): State<Registry>,
    State(page): State<ServedPage>,
    caller: Caller,
) -> Result<StatusCode, ApiError> {
    caller.require_operator()?;
    let ended = page.sessions.end_all(registry.clock.now());
    tracing::info!(ended, "sessions of the page ended");
    Ok(StatusCode::NO_CONTENT)
}
