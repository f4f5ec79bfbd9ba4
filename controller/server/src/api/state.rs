//! The parts of the server that the API uses, and how handlers extract them.

use std::sync::Arc;

use axum::extract::FromRef;
use edge_controller_domain::ca::Ca;
use edge_controller_domain::connectivity::Measurers;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::request_limits::RequestLimit;
use edge_controller_domain::segments::ClaimConflicts;
use edge_controller_kubernetes::client::ApiFailures;
use edge_controller_kubernetes::events::EventRecorder;
use edge_controller_kubernetes::label_trust::LabelTrust;
use edge_controller_kubernetes::node_statuses::NodeStatuses;
use edge_controller_kubernetes::nodes::{LabelledNodes, PendingDeregistrations};
use edge_controller_kubernetes::service_account::{ReviewLimits, Reviewer};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::node_infos::ReplicaName;
use super::page_sessions::ServedPage;
use super::single_view::SingleViews;
use super::unauthenticated_body::BodyBudget;
use crate::live_config::LiveConfig;
use crate::observe::Metrics;

/// The parts of the server that the API uses.
pub struct Services {
    /// The rows, and the plans that change them.
    pub registry: Registry,
    /// The certificate authorities, which sign certificates.
    pub ca: Arc<Ca>,
    /// The configuration in force.
    pub live: Arc<LiveConfig>,
    /// The reviewer of service account tokens; `None` if nodes may not join by them.
    pub reviewer: Option<Reviewer>,
    /// Metrics that handlers update.
    pub metrics: Metrics,
    /// The publisher of Kubernetes Events.
    pub events: EventRecorder,
    /// The last reports of the nodes about themselves.
    pub reports: NodeReports,
    /// The nodes that can measure paths.
    pub measurers: Measurers,
    /// Conflicts about segments that nodes claim but do not hold.
    pub conflicts: ClaimConflicts,
    /// Whether labels of Node objects put nodes into communities.
    pub label_trust: watch::Receiver<LabelTrust>,
    /// Nodes that lost their Node object and wait for the operator's confirmation.
    pub asked: PendingDeregistrations,
    /// Nodes with a community label.
    pub labelled: LabelledNodes,
    /// The statuses that other replicas wrote about nodes; `None` if the store is not shared.
    pub statuses: Option<NodeStatuses>,
    /// Name of this run of this replica.
    pub replica: ReplicaName,
    /// The failures of requests to the Kubernetes API server.
    pub api_failures: ApiFailures,
    /// The page's sessions and the addresses at which the page is served.
    pub page: ServedPage,
    /// Cancelled when the server stops, which ends the view streams.
    pub stopping: CancellationToken,
}

/// The state of the router. A handler extracts the parts that it needs.
#[derive(Clone)]
pub(super) struct ApiState(Arc<Shared>);

struct Shared {
    services: Services,
    review_limits: Arc<ReviewLimits>,
    bodies: BodyBudget,
    certificates: CertificateLimit,
    segments: SegmentLimits,
    catch_ups: CatchUpLimit,
    single_views: SingleViews,
    checks: CheckPermit,
}

/// The limit on how often a node gets a certificate.
#[derive(Clone, Default)]
pub(super) struct CertificateLimit(pub(super) RequestLimit);

/// The limits on a node's expensive segment requests.
#[derive(Clone, Default)]
pub(super) struct SegmentLimits {
    /// Limits how often the store reads all segments again for the node.
    pub(super) reloads: RequestLimit,
    /// Limits how often the node's requests are planned and then refused.
    pub(super) refusals: RequestLimit,
}

/// The limit on how often a node may claim a later version of its view than this replica has. The
/// store then reads all rows again.
#[derive(Clone, Default)]
pub(super) struct CatchUpLimit(pub(super) RequestLimit);

/// The right to run a check of connectivity. There is only one check at a time, so that no node
/// measures for two checks.
#[derive(Clone)]
pub(super) struct CheckPermit(pub(super) Arc<Semaphore>);

impl Default for CheckPermit {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl From<Services> for ApiState {
    fn from(services: Services) -> Self {
        Self(Arc::new(Shared {
            services,
            review_limits: Arc::default(),
            bodies: BodyBudget::default(),
            certificates: CertificateLimit::default(),
            segments: SegmentLimits::default(),
            catch_ups: CatchUpLimit::default(),
            single_views: SingleViews::default(),
            checks: CheckPermit::default(),
        }))
    }
}

impl FromRef<ApiState> for Arc<ReviewLimits> {
    fn from_ref(state: &ApiState) -> Self {
        state.0.review_limits.clone()
    }
}

impl FromRef<ApiState> for BodyBudget {
    fn from_ref(state: &ApiState) -> Self {
        state.0.bodies.clone()
    }
}

impl FromRef<ApiState> for CertificateLimit {
    fn from_ref(state: &ApiState) -> Self {
        state.0.certificates.clone()
    }
}

impl FromRef<ApiState> for SegmentLimits {
    fn from_ref(state: &ApiState) -> Self {
        state.0.segments.clone()
    }
}

impl FromRef<ApiState> for CatchUpLimit {
    fn from_ref(state: &ApiState) -> Self {
        state.0.catch_ups.clone()
    }
}

impl FromRef<ApiState> for SingleViews {
    fn from_ref(state: &ApiState) -> Self {
        state.0.single_views.clone()
    }
}

impl FromRef<ApiState> for CheckPermit {
    fn from_ref(state: &ApiState) -> Self {
        state.0.checks.clone()
    }
}

macro_rules! substates {
    ($($name:ident: $type:ty),* $(,)?) => {$(
        impl FromRef<ApiState> for $type {
            fn from_ref(state: &ApiState) -> Self {
                state.0.services.$name.clone()
            }
        }
    )*};
}

substates! {
    registry: Registry,
    ca: Arc<Ca>,
    live: Arc<LiveConfig>,
    reviewer: Option<Reviewer>,
    metrics: Metrics,
    events: EventRecorder,
    reports: NodeReports,
    measurers: Measurers,
    conflicts: ClaimConflicts,
    label_trust: watch::Receiver<LabelTrust>,
    asked: PendingDeregistrations,
    labelled: LabelledNodes,
    statuses: Option<NodeStatuses>,
    replica: ReplicaName,
    api_failures: ApiFailures,
    page: ServedPage,
    stopping: CancellationToken,
}

/// Implements `FromRef` for a struct whose fields are the parts of the state.
macro_rules! from_substates {
    ($type:ident { $($field:ident),* $(,)? }) => {
        impl axum::extract::FromRef<$crate::api::state::ApiState> for $type {
            fn from_ref(state: &$crate::api::state::ApiState) -> Self {
                Self { $($field: axum::extract::FromRef::from_ref(state)),* }
            }
        }
    };
}

pub(super) use from_substates;
