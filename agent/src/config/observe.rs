//! `[observe]`: metrics and probes for monitoring.

use std::net::SocketAddr;

use serde::Deserialize;

/// Default of the maximum number of peers with separate series.
const PEER_SERIES: usize = 100;

/// The table `[observe]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveSection {
    /// Addresses for `/healthz`, `/readyz` and `/metrics`, in plain HTTP. None unless set.
    pub listen: Vec<SocketAddr>,
    /// Maximum number of peers with separate series in `/metrics`, in the order of their names. The
    /// sums include all peers.
    pub peer_series: usize,
}

impl Default for ObserveSection {
    fn default() -> Self {
        Self { listen: vec![], peer_series: PEER_SERIES }
    }
}
