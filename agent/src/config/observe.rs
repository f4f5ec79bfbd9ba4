//! `[observe]`: what monitoring sees.

use std::net::SocketAddr;

use serde::Deserialize;

/// Most peers with series of their own, unless the file says otherwise.
const PEER_SERIES: usize = 100;

/// The table `[observe]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObserveSection {
    /// Addresses for `/healthz`, `/readyz` and `/metrics`, in plain HTTP. None unless set.
    pub listen: Vec<SocketAddr>,
    /// Most peers with series of their own in `/metrics`, in the order of their names. All count in
    /// the sums.
    pub peer_series: usize,
}

impl Default for ObserveSection {
    fn default() -> Self {
        Self { listen: vec![], peer_series: PEER_SERIES }
    }
}
