//! `[on_demand]`: tunnels that are set up by the first packet.

use std::time::Duration;

use serde::Deserialize;

use super::duration;

/// Default of the maximum number of members whose tunnels are set up at once.
const EAGER: usize = 64;
/// Default of the time without packets after which a tunnel on demand is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// The table `[on_demand]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnDemandSection {
    /// If this node's communities have more members than this, itself included, tunnels to members
    /// are set up by the first packet. Tunnels from and to hubs are always set up at once.
    pub eager: usize,
    /// A tunnel on demand that has carried no packet for this time is closed.
    #[serde(with = "duration::optional")]
    idle_timeout: Option<Duration>,
    /// Whether the kernel holds packets that wait for a tunnel (`net.core.xfrm_larval_drop` 0). If
    /// not, the first packets are lost.
    pub hold_packets: bool,
}

impl OnDemandSection {
    /// Returns the time without packets after which a tunnel on demand is closed.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(IDLE_TIMEOUT)
    }
}

impl Default for OnDemandSection {
    fn default() -> Self {
        Self { eager: EAGER, idle_timeout: None, hold_packets: true }
    }
}
