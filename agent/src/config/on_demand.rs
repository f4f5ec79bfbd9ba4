//! `[on_demand]`: tunnels that are set up by the first packet.

use std::time::Duration;

use serde::Deserialize;

use super::duration;

/// Default maximum number of members up to which all tunnels are set up immediately.
const EAGER: usize = 64;
/// Default time without packets after which an on-demand tunnel is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// The table `[on_demand]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnDemandSection {
    /// If this node's communities have more members than this, including this node, tunnels to
    /// members are set up by the first packet. Tunnels from and to hubs are always set up
    /// immediately. Communities for which the operator has decided do not count.
    pub eager: usize,
    /// Time without packets after which an on-demand tunnel is closed.
    #[serde(with = "duration::optional")]
    idle_timeout: Option<Duration>,
    /// Whether the kernel holds packets that wait for a tunnel (`net.core.xfrm_larval_drop` 0). If
    /// not, the first packets are lost.
    pub hold_packets: bool,
}

impl OnDemandSection {
    /// Returns the time without packets after which an on-demand tunnel is closed.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout.unwrap_or(IDLE_TIMEOUT)
    }
}

impl Default for OnDemandSection {
    fn default() -> Self {
        Self { eager: EAGER, idle_timeout: None, hold_packets: true }
    }
}
