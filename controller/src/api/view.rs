//! A node's view: once, or as a stream of lines for as long as it likes.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use edge_types::NodeName;
use edge_types::api::ViewEvent;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::App;
use super::body::Node;
use super::caller::Caller;
use crate::observe::{Ended, OpenStream};
use crate::random;
use crate::refusal::Refusal;

/// A reader that does not take a line within this time is cut off.
const SLOWEST_READER: Duration = Duration::from_secs(20);

/// Streams that are handed over to other controllers in one second when this one stops, and the time in which all must have been.
const HANDED_OVER_A_SECOND: u32 = 2000;
const HANDOVER: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
pub(super) struct Parameters {
    #[serde(default)]
    watch: bool,
}

pub(super) async fn view(
    State(app): State<App>,
    caller: Caller,
    Node(node): Node,
    parameters: Result<Query<Parameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(parameters) = parameters.map_err(|e| Refusal::BadValue(e.body_text()))?;
    let view = app.registry.read().await;
    caller.may_see(&view, &node, app.registry.clock.now())?;
    let missing = || Refusal::NoSuchNode(node.clone());
    if !parameters.watch {
        let now = app.common.view(view.state(), &node, view.revision());
        return Ok(axum::Json(now.ok_or_else(missing)?).into_response());
    }
    let mut changes = view.watch(&node).ok_or_else(missing)?;
    drop(view);
    // The first view is a change like any other.
    changes.mark_changed();
    // One line waits at most. What changes meanwhile is joined into one later view.
    let (lines, taken) = mpsc::channel(1);
    tokio::spawn(push(app, caller, node, changes, lines));
    let body = futures_util::stream::unfold(taken, async |mut taken| {
        taken.recv().await.map(|line: Bytes| (Ok::<_, Infallible>(line), taken))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// Writes lines until the reader leaves, the server stops, or the node may no longer read.
async fn push(app: App, caller: Caller, node: NodeName, mut changes: watch::Receiver<u64>, lines: mpsc::Sender<Bytes>) {
    let stream = app.metrics.stream();
    let mut heartbeat = tokio::time::interval(app.config.heartbeat());
    heartbeat.reset();
    let mut told = 0;
    loop {
        let changed = tokio::select! {
            () = app.stopping.cancelled() => {
                say_goodbye(&lines, &stream).await;
                return stream.end(Ended::Stopping);
            }
            () = lines.closed() => return,
            changed = changes.changed() => match changed {
                Ok(()) => true,
                Err(_) => {
                    tracing::info!(%node, "view stream ended: the node was deregistered");
                    return stream.end(Ended::Refused);
                }
            },
            _ = heartbeat.tick() => false,
        };
        let event = match next(&app, &caller, &node, &mut changes, changed, &mut told).await {
            Ok(event) => event,
            Err(refusal) => {
                tracing::info!(%node, "view stream ended: {refusal}");
                return stream.end(Ended::Refused);
            }
        };
        heartbeat.reset();
        match lines.send_timeout(line(&event), SLOWEST_READER).await {
            Ok(()) => stream.sent(kind(&event)),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                tracing::warn!(%node, "cut off: it did not read its view for {} s", SLOWEST_READER.as_secs());
                caller.connection.cancel();
                return stream.end(Ended::CutOff);
            }
        }
    }
}

/// The word that tells lines apart.
fn kind(event: &ViewEvent) -> &'static str {
    match event {
        ViewEvent::View { .. } => "view",
        ViewEvent::Heartbeat { .. } => "heartbeat",
        ViewEvent::Goodbye { .. } => "goodbye",
    }
}

fn line(event: &ViewEvent) -> Bytes {
    // Views and versions always serialise.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Hands a node over to another controller. Not all of them at the same moment: each is a TLS handshake for those who stay.
async fn say_goodbye(lines: &mpsc::Sender<Bytes>, stream: &OpenStream) {
    let open = u32::try_from(stream.open_now()).unwrap_or(0);
    let all = HANDOVER.min(Duration::from_secs(1) * open / HANDED_OVER_A_SECOND);
    tokio::select! {
        () = tokio::time::sleep(random::jitter(all)) => {}
        () = lines.closed() => return,
    }
    let event = ViewEvent::Goodbye { reason: "it is stopping".into() };
    // Whoever does not take it now is cut off with everything else.
    if lines.send_timeout(line(&event), HANDOVER).await.is_ok() {
        stream.sent(kind(&event));
    }
}

async fn next(
    app: &App,
    caller: &Caller,
    node: &NodeName,
    changes: &mut watch::Receiver<u64>,
    changed: bool,
    told: &mut u64,
) -> Result<ViewEvent, Refusal> {
    let view = app.registry.read().await;
    caller.may_see(&view, node, app.registry.clock.now())?;
    if !changed {
        return Ok(ViewEvent::Heartbeat { version: *told });
    }
    // Nothing is published while we look: what is published later is told later.
    changes.mark_unchanged();
    let version = view.revision();
    *told = version;
    let view = app.common.view(view.state(), node, version).ok_or_else(|| Refusal::NoSuchNode(node.clone()))?;
    Ok(ViewEvent::View { view: Box::new(view) })
}
