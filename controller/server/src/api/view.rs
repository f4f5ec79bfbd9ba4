//! Serves a node's view, either once or as a stream of lines until the reader closes it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use edge_controller_domain::clock::Clock;
use edge_controller_domain::connectivity::{Measurer, Measurers};
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::random;
use edge_controller_domain::registry::{OperatorStream, PeerJson, Registry};
use edge_types::NodeName;
use edge_types::api::ViewEvent;
use edge_types::connectivity::MeasurementRequest;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::body::Node;
use super::caller::Caller;
use super::error::ApiError;
use super::line_slot::{LineReceiver, LineSender, ReaderGone, line_slot};
use super::single_view::{self, SLOWEST_READER, SingleViews};
use super::state::{CatchUpLimit, from_substates};
use super::view_upgrade::{UpgradedView, ViewUpgrade};
use crate::live_config::LiveConfig;
use crate::logs;
use crate::observe::{Metrics, OpenStream, StreamEnd};

/// Number of streams per second that this controller hands over to other controllers when it stops,
/// and the time limit for all streams.
const HANDED_OVER_A_SECOND: u32 = 2000;
const HANDOVER: Duration = Duration::from_secs(5);

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

type Line = ViewEvent<PeerJson>;

/// The parts of the server that a stream needs.
#[derive(Clone)]
pub(super) struct ViewStreams {
    registry: Registry,
    live: Arc<LiveConfig>,
    reports: NodeReports,
    measurers: Measurers,
    catch_ups: CatchUpLimit,
    single: SingleViews,
    stopping: CancellationToken,
}

from_substates!(ViewStreams { registry, live, reports, measurers, catch_ups, single, stopping });

pub(super) async fn view(
    State(streams): State<ViewStreams>,
    State(metrics): State<Metrics>,
    upgrade: Option<Extension<ViewUpgrade>>,
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
        let sending = streams.single.begin(&node)?;
        let view = view()?;
        drop(state);
        // Serialising a view never fails.
        return Ok(single_view::respond(serde_json::to_vec(&view).unwrap_or_default(), sending, caller));
    }
    // Otherwise a node that claims versions that nobody gave it would make the store read all rows
    // again, endlessly.
    if parameters.from.is_some_and(|from| from > state.revision()) && !caller.is_operator() {
        streams.catch_ups.0.take(&node)?;
    }
    if state.view_streams(&node) >= MOST_STREAMS && !caller.is_operator() {
        return Err(ApiError::TooManyStreams { node, most: MOST_STREAMS });
    }
    // An operator who reads the view of a node does not make the node count as connected.
    let by_operator = caller.is_operator().then(|| state.begin_operator_stream(&node));
    let mut changes = state.watch(&node).ok_or_else(missing)?;
    // The receiver is marked as changed, so that the first view is sent.
    changes.mark_changed();
    let seen = by_operator.is_none().then(|| (streams.reports.clone(), streams.registry.clock.clone()));
    if let Some((reports, clock)) = &seen {
        reports.begins(&node, clock.now());
    }
    drop(state);
    // At most one line waits. Changes in the meantime become one later line.
    let (lines, taken) = line_slot();
    let output = Output { lines, stream: metrics.stream() };
    let reader = Reader::new(&parameters, streams.registry.epoch());
    // Only the node itself measures, not an operator who reads its view.
    let measures = parameters.measures && !caller.is_operator();
    let mut measurer = measures.then(|| streams.measurers.register(&node));
    let upgrade = upgrade.map(|Extension(upgrade)| (upgrade, node.clone()));
    let mut open = OpenView { seen, node, changes, _by_operator: by_operator };
    let work = async move {
        let OpenView { node, changes, .. } = &mut open;
        send_lines(&streams, caller, node, reader, changes, measurer.as_mut(), output).await;
    };
    let work = work.in_current_span();
    if let Some((upgrade, node)) = upgrade {
        return Ok(upgrade.hand_over(UpgradedView { node, lines: taken, work: Box::pin(work) }));
    }
    tokio::spawn(work);
    let body = futures_util::stream::unfold(taken, async |mut taken: LineReceiver| {
        taken.take().await.map(|line: Bytes| (Ok::<_, Infallible>(line), taken))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// A stream that is open. When it is dropped, the time until which the node was seen is recorded,
/// before `changes` is dropped, which marks the node as no longer connected.
struct OpenView {
    /// `None` if an operator reads the view.
    seen: Option<(NodeReports, Clock)>,
    node: NodeName,
    changes: watch::Receiver<u64>,
    _by_operator: Option<OperatorStream>,
}

impl Drop for OpenView {
    fn drop(&mut self) {
        if let Some((reports, clock)) = &self.seen {
            reports.ends(&self.node, clock.now());
        }
    }
}

/// Where a stream's lines go.
struct Output {
    lines: LineSender,
    stream: OpenStream,
}

/// The parameters of a reader and the version of the view that the reader has.
struct Reader {
    /// Whether the reader requested only changes after its first view.
    changes: bool,
    /// The version that the reader has from another replica or an earlier run. The reader gets no
    /// older view. 0 once this replica's state contains that version.
    not_before: u64,
    /// Whether the reader waits until this replica's state contains that version. The wait is
    /// logged once.
    waits: bool,
    /// The version in this epoch that the reader has; `None` if the reader needs a whole view.
    known: Option<u64>,
}

impl Reader {
    fn new(parameters: &Parameters, epoch: &str) -> Self {
        let same_epoch = parameters.changes && parameters.epoch.as_deref() == Some(epoch);
        let known = parameters.from.filter(|_| same_epoch);
        Self { changes: parameters.changes, not_before: parameters.from.unwrap_or(0), waits: false, known }
    }
}

/// Sends lines until the reader closes the stream, the server stops, or the node may no longer read
/// its view.
async fn send_lines(
    streams: &ViewStreams,
    caller: Caller,
    node: &NodeName,
    mut reader: Reader,
    changes: &mut watch::Receiver<u64>,
    mut measurer: Option<&mut Measurer>,
    Output { lines, stream }: Output,
) {
    let mut heartbeat = tokio::time::interval(streams.live.now().config.heartbeat());
    heartbeat.reset();
    loop {
        let mut request = None;
        let quiet = tokio::select! {
            () = streams.stopping.cancelled() => {
                Box::pin(send_goodbye(&lines, &stream)).await;
                return stream.end(StreamEnd::Stopping);
            }
            () = lines.closed() => return,
            changed = changes.changed() => match changed {
                Ok(()) => false,
                Err(_) => {
                    tracing::info!(%node, "view stream ended: the node was deregistered");
                    return stream.end(StreamEnd::Refused);
                }
            },
            _ = heartbeat.tick() => true,
            next = next_request(measurer.as_deref_mut()) => {
                request = Some(next);
                false
            }
        };
        let next = match request {
            Some(request) => {
                let state = streams.registry.read().await;
                let allowed = caller.require_node_or_operator(&state, node, streams.registry.clock.now());
                allowed.map(|()| Some(Line::Measure(*request)))
            }
            // The future is boxed, because the stream waits nearly always, and not for this.
            None => Box::pin(next_line(streams, &caller, node, &mut reader, changes)).await,
        };
        let event = match next {
            Ok(Some(event)) => event,
            Ok(None) if quiet => Line::Heartbeat { version: reader.known.unwrap_or(0) },
            Ok(None) => continue,
            Err(refusal) => {
                tracing::info!(%node, "view stream ended: {refusal}");
                return stream.end(StreamEnd::Refused);
            }
        };
        heartbeat.reset();
        let sent = match lines.try_put(line(&event)) {
            Ok(None) => Ok(Ok(())),
            Ok(Some(line)) => Box::pin(tokio::time::timeout(SLOWEST_READER, lines.put(line))).await,
            Err(ReaderGone) => Ok(Err(ReaderGone)),
        };
        match sent {
            Ok(Ok(())) => stream.sent(kind(&event)),
            Ok(Err(ReaderGone)) => return,
            Err(_) => {
                tracing::warn!(%node, "cut off: it did not read its view for {} s", SLOWEST_READER.as_secs());
                caller.connection.cancel();
                return stream.end(StreamEnd::CutOff);
            }
        }
    }
}

/// Waits for the next request to this stream's node. Never returns if the reader does not carry out
/// requests.
async fn next_request(measurer: Option<&mut Measurer>) -> Box<MeasurementRequest> {
    match measurer {
        Some(measurer) => measurer.next().await,
        None => std::future::pending().await,
    }
}

/// Returns the kind of a line, for the metrics.
fn kind(event: &Line) -> &'static str {
    match event {
        Line::View { .. } => "view",
        Line::Change(_) => "change",
        Line::Heartbeat { .. } => "heartbeat",
        Line::Measure(_) => "measure",
        Line::Goodbye { .. } => "goodbye",
    }
}

fn line(event: &Line) -> Bytes {
    // Serialising views and versions never fails.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Tells the node to connect to another controller. The streams end one after the other, because
/// each of them costs the other controllers a TLS handshake.
async fn send_goodbye(lines: &LineSender, stream: &OpenStream) {
    let open = u32::try_from(stream.open_now()).unwrap_or(0);
    let all = HANDOVER.min(Duration::from_secs(1) * open / HANDED_OVER_A_SECOND);
    tokio::select! {
        () = tokio::time::sleep(random::jitter(all)) => {}
        () = lines.closed() => return,
    }
    let event = Line::Goodbye { reason: "it is stopping".into() };
    // A reader that does not take the line in time loses its connection when the server ends.
    if let Ok(Ok(())) = tokio::time::timeout(HANDOVER, lines.put(line(&event))).await {
        stream.sent(kind(&event));
    }
}

/// Returns the next line; `None` if nothing changed.
async fn next_line(
    streams: &ViewStreams,
    caller: &Caller,
    node: &NodeName,
    reader: &mut Reader,
    changes: &mut watch::Receiver<u64>,
) -> Result<Option<Line>, ApiError> {
    // The future is boxed, because this case is rare and would make each stream larger.
    if reader.not_before != 0 && !Box::pin(caught_up(streams, node, reader)).await {
        changes.mark_unchanged();
        caller.require_node_or_operator(&streams.registry.read().await, node, streams.registry.clock.now())?;
        return Ok(None);
    }
    let state = streams.registry.read().await;
    caller.require_node_or_operator(&state, node, streams.registry.clock.now())?;
    // Nothing is published while the state is locked for reading. Later changes are sent in a later
    // line.
    changes.mark_unchanged();
    let missing = || ApiError::NoSuchNode(node.clone());
    let changed = reader.known.and_then(|known| Some((known, state.changed_since(node, known)?)));
    let event = match changed {
        Some((_, changed)) if changed.is_empty() => return Ok(None),
        Some((known, changed)) if reader.changes => {
            Line::Change(streams.live.now().views.view_change(&state, node, known, &changed).ok_or_else(missing)?)
        }
        _ => {
            let whole = streams.live.now().views.view_json(&state, node).ok_or_else(missing)?;
            Line::View { epoch: Some(streams.registry.epoch().to_owned()), view: Box::new(whole) }
        }
    };
    reader.known = Some(state.revision());
    Ok(Some(event))
}

/// Makes sure that the state is at least as new as the reader's version: if it is older, waits for
/// that version, for one heartbeat at most. Returns `false` if it is still unknown whether the
/// state is new enough.
async fn caught_up(streams: &ViewStreams, node: &NodeName, reader: &mut Reader) -> bool {
    let version = reader.not_before;
    if streams.registry.read().await.revision() >= version {
        reader.not_before = 0;
        return true;
    }
    let failure = match tokio::time::timeout(streams.live.now().config.heartbeat(), streams.registry.catch_up(version))
        .await
    {
        Ok(Ok(())) => {
            // If the state is still older, the store has nothing newer. The reader notices this and
            // reports it.
            if streams.registry.read().await.revision() < version {
                if logs::may_log_node() {
                    tracing::warn!(%node, version, "it knows a later version than this store: was that restored from a backup?");
                }
                reader.known = None;
            }
            reader.not_before = 0;
            return true;
        }
        Ok(Err(refusal)) => refusal.to_string(),
        Err(_) => format!("not done within {} s", streams.live.now().config.heartbeat_seconds),
    };
    if !std::mem::replace(&mut reader.waits, true) && logs::may_log_node() {
        tracing::warn!(%node, version, "its view waits until this replica knows as much as it does: {failure}");
    }
    false
}
