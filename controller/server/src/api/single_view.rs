//! Sends a node's view once. A reader that does not take it loses its connection, as the reader of
//! a stream does, because the controller keeps the view in memory until it is read.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use edge_types::NodeName;
use hyper::body::Bytes;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::caller::Caller;
use super::error::ApiError;

/// Time within which a reader must take a line of a stream, or a single view; otherwise its
/// connection is closed.
pub(super) const SLOWEST_READER: Duration = Duration::from_secs(20);
/// Maximum number of views that are sent to one node at the same time. A node reads the stream; a
/// single view is for people who look for a fault.
const MOST_AT_ONCE: u32 = 2;
/// Bytes of a view that the HTTP server takes at once. It keeps the last two parts until the reader
/// takes them; the time limit does not hold for those.
const PART: usize = 4 * 1024;

/// The nodes to which single views are being sent, with their number; at most one entry for each
/// connected node. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct SingleViews(Arc<Mutex<HashMap<NodeName, u32>>>);

/// A view that is being sent. It counts until it is dropped.
#[derive(Debug)]
pub(super) struct Sending {
    views: SingleViews,
    node: NodeName,
}

impl SingleViews {
    /// Counts a view that is sent to a node. Refuses if the node does not read its earlier ones.
    pub(super) fn begin(&self, node: &NodeName) -> Result<Sending, ApiError> {
        let mut nodes = self.nodes();
        let count = nodes.entry(node.clone()).or_default();
        if *count >= MOST_AT_ONCE {
            return Err(ApiError::TooManyStreams { node: node.clone(), most: MOST_AT_ONCE as usize });
        }
        *count += 1;
        Ok(Sending { views: self.clone(), node: node.clone() })
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeName, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut nodes = self.views.nodes();
        if let Some(count) = nodes.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&self.node);
            }
        }
    }
}

/// Returns the response with a view in JSON. Closes the caller's connection if the view is not read
/// in time.
pub(super) fn respond(json: Vec<u8>, sending: Sending, caller: Caller) -> Response {
    // The server drops the body, and `reading` with it, when the reader has taken all parts but the
    // last two, or when the connection ends.
    let (reading, read) = oneshot::channel::<Infallible>();
    let node = sending.node.clone();
    let limit = async move {
        if tokio::time::timeout(SLOWEST_READER, read).await.is_err() {
            tracing::warn!(%node, "cut off: it did not read its view within {} s", SLOWEST_READER.as_secs());
            caller.connection.cancel();
        }
    };
    tokio::spawn(limit.in_current_span());
    let length = json.len();
    let parts = (Bytes::from(json), sending, reading);
    let body = futures_util::stream::unfold(parts, async |(mut json, sending, reading)| {
        let part = json.split_to(PART.min(json.len()));
        (!part.is_empty()).then(|| (Ok::<_, Infallible>(part), (json, sending, reading)))
    });
    let headers = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    (headers, Body::from_stream(body)).into_response()
}
