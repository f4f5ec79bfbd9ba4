//! `[observe]`: metrics and probes for monitoring.

use std::net::SocketAddr;

use serde::Deserialize;

/// Default maximum number of peers with separate time series in `/metrics`.
const PEER_SERIES: usize = 100;

/// The table `[observe]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveSection {
    /// Addresses for `/healthz`, `/readyz` and `/metrics`, in plain HTTP. None unless set.
    pub listen: Vec<SocketAddr>,
    /// Maximum number of peers with separate time series in `/metrics`; the first peers in the
    /// order of their names have them. The sums include all peers.
    pub peer_series: usize,
}

impl Default for ObserveSection {
    fn default() -> Self {
        Self { listen: vec![], peer_series: PEER_SERIES }
    }
}
