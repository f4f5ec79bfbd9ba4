//! Makes the lines of a node's view stream.
//!
//! The HTTP server asks for the next line when it has passed the last one on. So a stream has
//! neither a task nor a queue: at most one line waits, and changes in the meantime become one later
//! line.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use edge_controller_domain::connectivity::{Measurer, Measurers};
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::random;
use edge_controller_domain::registry::{OperatorStream, PeerJson, Registry};
use edge_types::NodeName;
use edge_types::api::ViewEvent;
use edge_types::connectivity::MeasurementRequest;
use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::error::ApiError;
use super::request_span;
use super::slow_readers::{SlowReaders, WatchedStream};
use crate::live_config::LiveConfig;
use crate::logs;
use crate::observe::{Metrics, OpenStream, StreamEnd};

/// Number of streams per second that this controller hands over to other controllers when it stops,
/// and the time limit for all streams.
const HANDED_OVER_A_SECOND: u32 = 2000;
const HANDOVER: Duration = Duration::from_secs(5);

type Line = ViewEvent<PeerJson>;

/// The parts of the server that view streams need. All streams share them.
pub(super) struct ViewStreams {
    pub(super) registry: Registry,
    pub(super) live: Arc<LiveConfig>,
    pub(super) reports: NodeReports,
    pub(super) measurers: Measurers,
    pub(super) metrics: Metrics,
    pub(super) slow_readers: SlowReaders,
    pub(super) stopping: CancellationToken,
}

/// The parameters of a reader and the version of the view that the reader has.
pub(super) struct Reader {
    /// Whether the reader requested only changes after its first view.
    pub(super) changes: bool,
    /// The version that the reader has from another replica or an earlier run. The reader gets no
    /// older view. 0 once this replica's state contains that version.
    pub(super) not_before: u64,
    /// Whether the reader waits until this replica's state contains that version. The wait is
    /// logged once.
    pub(super) waits: bool,
    /// The version in this epoch that the reader has; `None` if the reader needs a whole view.
    pub(super) known: Option<u64>,
}

/// The node's own use of a stream, or the operator's.
pub(super) enum Watcher {
    /// The node reads. `measures`: whether it carries out measurements.
    Node { measures: bool },
    /// The operator reads the view of the node.
    Operator(OperatorStream),
}

/// The lines of one stream.
struct ViewLines {
    streams: Arc<ViewStreams>,
    caller: Caller,
    node: NodeName,
    reader: Reader,
    heartbeat: Interval,
    measurer: Option<Measurer>,
    progress: WatchedStream,
    counted: OpenStream,
    /// Whether the last line was sent.
    ended: bool,
    /// Dropped before `by_operator`, as [`OperatorStream`] requires.
    changes: watch::Receiver<u64>,
    by_operator: Option<OperatorStream>,
}

/// Returns the body of a response: the lines of a stream, until the reader closes it, the server
/// stops, or the node may no longer read its view.
pub(super) fn body(
    streams: Arc<ViewStreams>,
    caller: Caller,
    node: NodeName,
    reader: Reader,
    watcher: Watcher,
    mut changes: watch::Receiver<u64>,
) -> Body {
    // The receiver is marked as changed, so that the first view is sent.
    changes.mark_changed();
    let mut heartbeat = tokio::time::interval(streams.live.now().config.heartbeat());
    heartbeat.reset();
    let (measures, by_operator) = match watcher {
        Watcher::Node { measures } => (measures, None),
        Watcher::Operator(stream) => (false, Some(stream)),
    };
    let lines = Box::new(ViewLines {
        measurer: measures.then(|| streams.measurers.register(&node)),
        progress: streams.slow_readers.watch(&node, &caller.connection),
        counted: streams.metrics.stream(),
        streams,
        caller,
        node,
        reader,
        heartbeat,
        ended: false,
        changes,
        by_operator,
    });
    Body::from_stream(futures_util::stream::unfold(lines, async |mut lines| {
        lines.next().await.map(|line| (Ok::<_, Infallible>(line), lines))
    }))
}

impl ViewLines {
    /// Waits for the next line; `None` at the end of the stream. The reader has taken the line
    /// before.
    async fn next(&mut self) -> Option<Bytes> {
        self.progress.waits();
        while !self.ended {
            let mut request = None;
            let quiet = tokio::select! {
                () = self.streams.stopping.cancelled() => {
                    let event = self.goodbye().await;
                    return Some(self.send(&event));
                }
                changed = self.changes.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => {
                        self.refuse(&"the node was deregistered");
                        continue;
                    }
                },
                _ = self.heartbeat.tick() => true,
                next = next_request(self.measurer.as_mut()) => {
                    request = Some(next);
                    false
                }
            };
            let next = match request {
                Some(request) => self.still_allowed().await.map(|()| Some(Line::Measure(*request))),
                None => self.next_of_view().await,
            };
            match next {
                Ok(Some(event)) => return Some(self.send(&event)),
                Ok(None) if quiet => {
                    return Some(self.send(&Line::Heartbeat { version: self.reader.known.unwrap_or(0) }));
                }
                Ok(None) => {}
                Err(refusal) => self.refuse(&refusal),
            }
        }
        None
    }

    fn send(&mut self, event: &Line) -> Bytes {
        self.heartbeat.reset();
        self.counted.sent(kind(event));
        self.progress.hand_over();
        line(event)
    }

    fn refuse(&mut self, why: &dyn std::fmt::Display) {
        let node = &self.node;
        request_span::of_stream(node).in_scope(|| tracing::info!(%node, "view stream ended: {why}"));
        self.end(StreamEnd::Refused);
    }

    fn end(&mut self, why: StreamEnd) {
        self.ended = true;
        self.counted.set_end(why);
    }

    async fn still_allowed(&self) -> Result<(), ApiError> {
        let registry = &self.streams.registry;
        self.caller.require_node_or_operator(&registry.read().await, &self.node, registry.clock.now())
    }

    /// Tells the node to connect to another controller. The streams end one after the other,
    /// because each of them costs the other controllers a TLS handshake. A reader that does not
    /// take the line in time loses its connection when the server ends.
    async fn goodbye(&mut self) -> Line {
        let open = u32::try_from(self.counted.open_now()).unwrap_or(0);
        let all = HANDOVER.min(Duration::from_secs(1) * open / HANDED_OVER_A_SECOND);
        tokio::time::sleep(random::jitter(all)).await;
        self.end(StreamEnd::Stopping);
        Line::Goodbye { reason: "it is stopping".into() }
    }

    /// Returns the next line about the view; `None` if nothing changed.
    async fn next_of_view(&mut self) -> Result<Option<Line>, ApiError> {
        // The future is boxed, because this case is rare and would make each stream larger.
        if self.reader.not_before != 0 && !Box::pin(self.catch_up()).await {
            self.changes.mark_unchanged();
            self.still_allowed().await?;
            return Ok(None);
        }
        let Self { streams, caller, node, reader, changes, .. } = self;
        let state = streams.registry.read().await;
        caller.require_node_or_operator(&state, node, streams.registry.clock.now())?;
        // Nothing is published while the state is locked for reading. Later changes are sent in a
        // later line.
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

    /// Makes sure that the state is at least as new as the reader's version: if it is older, waits
    /// for that version, for one heartbeat at most. Returns `false` if it is still unknown whether
    /// the state is new enough.
    async fn catch_up(&mut self) -> bool {
        let Self { streams, node, reader, .. } = self;
        let version = reader.not_before;
        if streams.registry.read().await.revision() >= version {
            reader.not_before = 0;
            return true;
        }
        let limit = streams.live.now().config.heartbeat();
        let failure = match tokio::time::timeout(limit, streams.registry.catch_up(version)).await {
            Ok(Ok(())) => {
                // If the state is still older, the store has nothing newer. The reader notices this
                // and reports it.
                if streams.registry.read().await.revision() < version {
                    warn(node, version, &"it knows a later version than this store: was that restored from a backup?");
                    reader.known = None;
                }
                reader.not_before = 0;
                return true;
            }
            Ok(Err(refusal)) => refusal.to_string(),
            Err(_) => format!("not done within {} s", streams.live.now().config.heartbeat_seconds),
        };
        if !std::mem::replace(&mut reader.waits, true) {
            warn(node, version, &format!("its view waits until this replica knows as much as it does: {failure}"));
        }
        false
    }
}

impl Drop for ViewLines {
    fn drop(&mut self) {
        if self.progress.is_cut_off() {
            self.counted.set_end(StreamEnd::CutOff);
        }
        // The node was seen until now. This is recorded before `changes` is dropped, which marks
        // the node as no longer connected.
        if self.by_operator.is_none() {
            self.streams.reports.ends(&self.node, self.streams.registry.clock.now());
        }
    }
}

fn warn(node: &NodeName, version: u64, what: &dyn std::fmt::Display) {
    if logs::may_log_node() {
        request_span::of_stream(node).in_scope(|| tracing::warn!(%node, version, "{what}"));
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
