//! The state of the probes of tunnels' paths.

use edge_ike::Instant;
use tokio::sync::watch;

use crate::host::PathMtus;
use crate::path_mtu::{NetworkLimits, PathMtuTable};

/// The paths of tunnels, and where their path MTUs are published.
#[derive(Debug)]
pub(super) struct PathMtuProbes {
    /// Whether paths are probed.
    pub(super) enabled: bool,
    pub(super) table: PathMtuTable,
    /// The limits that are published.
    pub(super) limits: NetworkLimits,
    pub(super) to_host: watch::Sender<PathMtus>,
}

impl PathMtuProbes {
    pub(super) fn new(enabled: bool, to_host: watch::Sender<PathMtus>) -> Self {
        Self { enabled, table: PathMtuTable::default(), limits: NetworkLimits::default(), to_host }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.table.due()
    }
}
