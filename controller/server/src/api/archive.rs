//! Serves the archive of everything that the controller stores, for the operator.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use edge_controller_domain::archive::{Archive, Chunks};
use edge_controller_domain::ca::Ca;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::state::Snapshot;

use super::caller::Caller;
use super::error::ApiError;

pub(super) async fn download(
    State(registry): State<Registry>,
    State(ca): State<Arc<Ca>>,
    caller: Caller,
) -> Result<Response, ApiError> {
    caller.require_operator()?;
    let ca = ca.document().await.map_err(|e| ApiError::Store(e.to_string()))?;
    let now = registry.clock.now();
    // The rows are copied at one moment, so that a slow reader delays no other request.
    let state = registry.read().await;
    let rows = Snapshot {
        nodes: state.nodes().cloned().collect(),
        tokens: state.tokens().cloned().collect(),
        segments: state.ledger().rows().cloned().collect(),
        communities: state.listed_communities().cloned().collect(),
        revision: state.revision(),
        time: now,
    };
    drop(state);
    let archive = Archive::new(now, rows, ca);
    tracing::info!(content = archive.summary(), "backup");
    let pieces = futures_util::stream::iter(Chunks::from(archive).map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pieces)).into_response())
}
