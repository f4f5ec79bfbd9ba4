//! `[path_mtu]`: probes that find the path MTU of tunnels.

use serde::Deserialize;

/// The table `[path_mtu]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathMtuSection {
    /// Whether the paths of tunnels to nodes of the cluster are probed while they carry traffic.
    pub probe: bool,
}

impl Default for PathMtuSection {
    fn default() -> Self {
        Self { probe: true }
    }
}
