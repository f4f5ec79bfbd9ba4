//! The traffic of a node's tunnels.

use serde::{Deserialize, Serialize};

/// The bytes that a node's tunnels have carried, as the kernel's SAs count them: payload, without
/// ESP's overhead. The numbers have the same size for any number of tunnels.
///
/// A node reports them at most every [`Self::INTERVAL_SECONDS`], and not at all while its tunnels
/// carry nothing. An agent of an earlier release does not report them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TunnelTraffic {
    /// Bytes received since the agent started.
    pub received: u64,
    /// Bytes sent since the agent started.
    pub sent: u64,
    /// Bytes received per second, on average since the report before.
    pub received_per_second: u64,
    /// Bytes sent per second, on average since the report before.
    pub sent_per_second: u64,
}

impl TunnelTraffic {
    /// Minimum time between two reports that only the traffic causes, seconds.
    pub const INTERVAL_SECONDS: u64 = 30;
}
