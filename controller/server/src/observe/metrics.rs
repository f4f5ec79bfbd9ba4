//! Defines all metrics, with their names and help texts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use edge_types::Role;
use edge_types::api::Family as AddressFamily;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::process::Process;

/// Prefix of the names of our metrics.
const PREFIX: &str = "edge_controller";
/// The kinds of problems for which joins are usually refused.
const JOIN_REFUSALS: [&str; 8] = [
    "bad-certificate-request",
    "name-taken",
    "role-change",
    "service-account-refused",
    "token-expired",
    "token-of-another",
    "token-unknown",
    "token-used",
];

/// All metrics. Clones share their counters and are cheap.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    pub(super) certificates: Family<ActionLabels, Counter>,
    pub(super) join_refusals: Family<KindLabels, Counter>,
    pub(super) nodes: Family<RoleLabels, Gauge>,
    pub(super) connected: Family<RoleLabels, Gauge>,
    pub(super) segments: Family<SegmentLabels, Gauge>,
    pub(super) free_segments: Family<FamilyLabels, Gauge<f64, AtomicU64>>,
    pub(super) ends: Family<CertificateLabels, Gauge>,
    pub(super) leads: Gauge,
    pub(super) api_failures: Family<SeverityLabels, Gauge>,
    pub(super) tunnels: Family<StateLabels, Gauge>,
    pub(super) obstructed: Gauge,
    streams: Gauge,
    streams_ended: Family<EndedLabels, Counter>,
    stream_lines: Family<LineLabels, Counter>,
    commits: Family<ResultLabels, Counter>,
    conflicts: Counter,
    commit_seconds: Histogram,
    commit_plans: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) route: String,
    pub(super) method: &'static str,
    pub(super) status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RouteLabels {
    pub(super) route: String,
    pub(super) method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ActionLabels {
    pub(super) action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    pub(super) kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RoleLabels {
    pub(super) role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SegmentLabels {
    pub(super) family: FamilyLabel,
    pub(super) state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FamilyLabels {
    pub(super) family: FamilyLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SeverityLabels {
    pub(super) severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    pub(super) state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CertificateLabels {
    pub(super) of: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    why: StreamEnd,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LineLabels {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// An address family, in the form of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FamilyLabel(pub(super) AddressFamily);

impl EncodeLabelValue for FamilyLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self.0 {
            AddressFamily::V4 => "ipv4",
            AddressFamily::V6 => "ipv6",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

/// The reason why a view stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamEnd {
    /// The reader closed the stream or is gone.
    ReaderGone,
    /// The reader did not keep up and was disconnected.
    CutOff,
    /// The node may no longer read its view: it was deregistered, or its certificate is not
    /// accepted.
    Refused,
    /// The server is stopping and ends all streams.
    Stopping,
}

impl EncodeLabelValue for StreamEnd {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            StreamEnd::ReaderGone => "reader-gone",
            StreamEnd::CutOff => "cut-off",
            StreamEnd::Refused => "refused",
            StreamEnd::Stopping => "stopping",
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Makes all metrics, each with the value zero.
    pub fn new() -> Self {
        // The buckets range from half a millisecond to sixteen seconds. A read takes less than the
        // first bucket; a commit to a slow disk takes some milliseconds.
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let mut metrics = Self {
            registry: Arc::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(seconds as fn() -> Histogram),
            certificates: Family::default(),
            join_refusals: Family::default(),
            nodes: Family::default(),
            connected: Family::default(),
            segments: Family::default(),
            free_segments: Family::default(),
            ends: Family::default(),
            leads: Gauge::default(),
            api_failures: Family::default(),
            tunnels: Family::default(),
            obstructed: Gauge::default(),
            streams: Gauge::default(),
            streams_ended: Family::default(),
            stream_lines: Family::default(),
            commits: Family::default(),
            conflicts: Counter::default(),
            commit_seconds: seconds(),
            commit_plans: Histogram::new(exponential_buckets(1.0, 2.0, 9)),
        };
        metrics.registry = Arc::new(metrics.register());
        metrics.begin();
        metrics
    }

    fn register(&self) -> Registry {
        let mut all = Registry::default();
        let ours = all.sub_registry_with_prefix(PREFIX);
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "This program's release", version);
        ours.register("nodes", "Registered nodes", self.nodes.clone());
        ours.register("nodes_connected", "Registered nodes with an open view stream here", self.connected.clone());
        ours.register("view_streams", "Open view streams", self.streams.clone());
        let ended = self.streams_ended.clone();
        ours.register(
            "view_streams_ended",
            "View streams that ended, by cause; cut-off: the reader was too slow",
            ended,
        );
        ours.register("view_lines_sent", "Lines sent on view streams", self.stream_lines.clone());
        ours.register("requests", "Answered requests of the API", self.requests.clone());
        let help = "Time from the head of a request to the head of its response";
        ours.register_with_unit("request_duration", help, Unit::Seconds, self.durations.clone());
        ours.register("store_commits", "Commits to the store", self.commits.clone());
        let help = "Time that a commit to the store took";
        ours.register_with_unit("store_commit_duration", help, Unit::Seconds, self.commit_seconds.clone());
        ours.register("store_commit_plans", "Requests that shared a commit", self.commit_plans.clone());
        let help = "Requests that were planned again because another replica was quicker";
        ours.register("store_conflicts", help, self.conflicts.clone());
        ours.register("segments", "Segments that were ever granted, by state", self.segments.clone());
        let help = "Segments that can still be granted: neither held, nor in quarantine, nor reserved";
        ours.register("segments_free", help, self.free_segments.clone());
        ours.register("node_certificates", "Certificates asked for by nodes, by outcome", self.certificates.clone());
        ours.register("join_refusals", "Refused joins, by kind of problem", self.join_refusals.clone());
        let help = "Earliest end of the certificates of the authority and of the controller itself, in Unix time";
        ours.register_with_unit("certificate_end_timestamp", help, Unit::Seconds, self.ends.clone());
        let help = "Whether this replica leads: 1 or 0; always 0 with the embedded store";
        ours.register("leader", help, self.leads.clone());
        let help = "What does not work at the API server; serving: joins, segment requests or changes fail";
        ours.register("api_server_failures", help, self.api_failures.clone());
        let help = "Tunnels of the nodes that are connected here, as they report them";
        ours.register("tunnels", help, self.tunnels.clone());
        let help = "Nodes connected here that report an obstacle, or refuse their view";
        ours.register("nodes_obstructed", help, self.obstructed.clone());
        all.register_collector(Box::new(Process));
        all
    }

    /// Creates series that begin at zero. Otherwise a rate over a counter that appears with its
    /// first event misses that event.
    fn begin(&self) {
        for action in ["issued", "renewed", "refused"] {
            drop(self.certificates.get_or_create(&ActionLabels { action }));
        }
        for kind in JOIN_REFUSALS {
            drop(self.join_refusals.get_or_create(&KindLabels { kind }));
        }
        for why in [StreamEnd::ReaderGone, StreamEnd::CutOff, StreamEnd::Refused, StreamEnd::Stopping] {
            drop(self.streams_ended.get_or_create(&EndedLabels { why }));
        }
        for result in ["done", "failed"] {
            drop(self.commits.get_or_create(&ResultLabels { result }));
        }
        for r#type in ["view", "change", "heartbeat", "measure", "goodbye"] {
            drop(self.stream_lines.get_or_create(&LineLabels { r#type }));
        }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Counts a view stream that was opened.
    pub(crate) fn stream(&self) -> OpenStream {
        self.streams.inc();
        OpenStream {
            open: self.streams.clone(),
            ended: self.streams_ended.clone(),
            lines: self.stream_lines.clone(),
            why: StreamEnd::ReaderGone,
        }
    }

    /// Counts a commit to the store. `plans` is the number of requests that shared the commit, and
    /// `conflicts` the number of those that must be planned again because another replica committed
    /// first.
    pub(super) fn commit(&self, plans: usize, took: Duration, failed: bool, conflicts: usize) {
        let result = if failed { "failed" } else { "done" };
        self.commits.get_or_create(&ResultLabels { result }).inc();
        self.conflicts.inc_by(conflicts as u64);
        self.commit_seconds.observe(took.as_secs_f64());
        self.commit_plans.observe(plans as f64);
    }
}

/// A view stream. It counts as open until this value is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    open: Gauge,
    ended: Family<EndedLabels, Counter>,
    lines: Family<LineLabels, Counter>,
    why: StreamEnd,
}

impl OpenStream {
    /// Counts a line that was sent.
    pub(crate) fn sent(&self, r#type: &'static str) {
        self.lines.get_or_create(&LineLabels { r#type }).inc();
    }

    /// Returns the number of open streams, including this one.
    pub(crate) fn open_now(&self) -> i64 {
        self.open.get()
    }

    /// Ends the stream. A stream that is dropped without this call counts as one whose reader is
    /// gone.
    pub(crate) fn end(mut self, why: StreamEnd) {
        self.why = why;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.dec();
        self.ended.get_or_create(&EndedLabels { why: self.why }).inc();
    }
}

impl From<Role> for RoleLabels {
    fn from(role: Role) -> Self {
        Self { role: role.as_str() }
    }
}
