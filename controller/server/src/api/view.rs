//! Serves a node's view, either once or as a stream of lines until the reader closes it.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::body::Node;
use super::caller::Caller;
use super::error::ApiError;
use super::single_view::{self, SingleViews};
use super::state::CatchUpLimit;
use super::view_lines::{self, Reader, ViewStreams, Watcher};

#[derive(Deserialize, schemars::JsonSchema)]
pub(super) struct Parameters {
    /// Whether the response is a stream of lines that stays open until the reader closes it.
    #[serde(default)]
    watch: bool,
    /// Whether only changes are sent after the first view.
    #[serde(default)]
    changes: bool,
    /// Whether the reader carries out lines of the type `measure`.
    #[serde(default)]
    measures: bool,
    /// The version of the view that the reader has.
    #[serde(default)]
    from: Option<u64>,
    /// The epoch of the version in `from`.
    #[serde(default)]
    epoch: Option<String>,
}

/// Maximum number of streams of its view that a node may have open. The node uses one stream.
/// Others may belong to lost connections until the controller notices the loss; each stream gets
/// every change.
const MOST_STREAMS: usize = 16;

pub(super) async fn view(
    State(streams): State<Arc<ViewStreams>>,
    State(single): State<SingleViews>,
    State(catch_ups): State<CatchUpLimit>,
    caller: Caller,
    Node(node): Node,
    parameters: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(parameters) = parameters.map_err(|e| ApiError::BadValue(e.body_text()))?;
    let state = streams.registry.read().await;
    caller.require_node_or_operator(&state, &node, streams.registry.clock.now())?;
    let missing = || ApiError::NoSuchNode(node.clone());
    if !parameters.watch {
        let view = || streams.live.now().views.view_json(&state, &node).ok_or_else(missing);
        if caller.is_operator() {
            return Ok(axum::Json(view()?).into_response());
        }
        let sending = single.begin(&node)?;
        let view = view()?;
        drop(state);
        // Serialising a view never fails.
        return Ok(single_view::respond(serde_json::to_vec(&view).unwrap_or_default(), sending, caller));
    }
    // Otherwise a node that claims versions that nobody gave it would make the store read all rows
    // again, endlessly.
    if parameters.from.is_some_and(|from| from > state.revision()) && !caller.is_operator() {
        catch_ups.0.take(&node)?;
    }
    if state.view_streams(&node) >= MOST_STREAMS && !caller.is_operator() {
        return Err(ApiError::TooManyStreams { node, most: MOST_STREAMS });
    }
    // An operator who reads the view of a node does not make the node count as connected, and does
    // not measure for it.
    let watcher = match caller.is_operator() {
        true => Watcher::Operator(state.begin_operator_stream(&node)),
        false => Watcher::Node { measures: parameters.measures },
    };
    let changes = state.watch(&node).ok_or_else(missing)?;
    if matches!(watcher, Watcher::Node { .. }) {
        streams.reports.begins(&node, streams.registry.clock.now());
    }
    drop(state);
    let reader = reader(&parameters, streams.registry.epoch());
    let body = view_lines::body(streams, caller, node, reader, watcher, changes);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn reader(parameters: &Parameters, epoch: &str) -> Reader {
    let same_epoch = parameters.changes && parameters.epoch.as_deref() == Some(epoch);
    Reader {
        changes: parameters.changes,
        not_before: parameters.from.unwrap_or(0),
        waits: false,
        known: parameters.from.filter(|_| same_epoch),
    }
}
