//! What the guard is made from.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// What the guard protects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardConfig {
    /// The cluster's ranges. Nothing to or from them may travel in clear.
    pub cluster_ranges: Vec<IpNetwork>,
    /// This node's own segments.
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that it fronts. A network outside the cluster ranges gets no
    /// allow policy, since no policy blocks it.
    pub networks: Vec<IpNetwork>,
    /// The bridge's addresses, one for each family. The node's own traffic to remote pods takes
    /// them as source. Empty until the bridge has them: the kernel refuses an address that the host
    /// does not have.
    pub bridge_addresses: Vec<IpAddr>,
}

impl GuardConfig {
    /// Drops what this kernel cannot do: without IPv6 (`ipv6.disable=1`) there is no IPv6 to guard.
    #[must_use]
    pub fn for_this_kernel(mut self) -> Self {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            for networks in [&mut self.cluster_ranges, &mut self.segments, &mut self.networks] {
                networks.retain(IpNetwork::is_ipv4);
            }
        }
        self
    }
}
