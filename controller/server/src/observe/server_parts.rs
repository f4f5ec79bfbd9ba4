//! The data that checks and scrapes read.

use std::sync::Arc;

use edge_controller_domain::ca::Ca;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::Registry;
use edge_controller_kubernetes::client::ApiFailures;
use edge_controller_kubernetes::label_trust::LabelTrust;
use edge_controller_kubernetes::nodes::PendingDeregistrations;
use tokio::sync::watch;

use super::health::Health;
use super::metrics::Metrics;
use crate::live_config::LiveConfig;

/// The parts of the server that monitoring reads.
pub(crate) struct ServerParts {
    /// The rows, and which nodes are connected.
    pub(crate) registry: Registry,
    /// The configuration in force.
    pub(crate) live: Arc<LiveConfig>,
    /// The certificate authorities; the expiry of their certificates is reported by a gauge and a
    /// check.
    pub(crate) ca: Arc<Ca>,
    /// The last reports of the nodes about themselves.
    pub(crate) reports: NodeReports,
    /// The counters that are updated with each event.
    pub(crate) metrics: Metrics,
    /// The health of this process.
    pub(crate) health: Arc<Health>,
    /// The failures of requests to the Kubernetes API server.
    pub(crate) api_failures: ApiFailures,
    /// Whether labels of Node objects put nodes into communities.
    pub(crate) label_trust: watch::Receiver<LabelTrust>,
    /// Nodes that lost their Node object and wait for the operator's confirmation.
    pub(crate) asked: PendingDeregistrations,
}
