//! The configuration of the guard.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The networks and addresses that the guard protects or allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardConfig {
    /// The cluster's ranges. No packet to or from them may travel in clear.
    pub cluster_ranges: Vec<IpNetwork>,
    /// This node's own segments.
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud networks that the hub fronts. A network outside the cluster ranges needs
    /// no allow policy, since no policy blocks it.
    pub networks: Vec<IpNetwork>,
    /// The bridge's addresses, one for each family. They are the source addresses of the node's own
    /// traffic to remote pods. Empty until the bridge has its addresses, since the kernel refuses a
    /// source address that the host does not have.
    pub bridge_addresses: Vec<IpAddr>,
    /// Ranges to which the node's own traffic has another source than the bridge's address. With
    /// `None`, the kernel chooses the source. Ranges that are not among `cluster_ranges` get no
    /// route.
    pub sources: Vec<(IpNetwork, Option<IpAddr>)>,
}

impl GuardConfig {
    /// Removes the entries that this kernel does not support: without IPv6 (`ipv6.disable=1`) there
    /// is no IPv6 to guard.
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
