//! What the agent keeps on the host beside XFRM: routes, the bridge, one nftables table, sysctls; and what it learns of the uplinks.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Global addresses of this machine's interfaces.
    pub local_addresses: Vec<IpAddr>,
    /// Addresses of the bridge, one a family: the source of the node's own traffic to remote pods.
    pub bridge_addresses: Vec<IpAddr>,
    /// MTU for pods, bytes.
    pub pod_mtu: u32,
    /// Routes that the kernel should have.
    pub routes: Vec<RouteEntry>,
}

/// A route of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Where to.
    pub destination: IpNetwork,
    /// Through which device.
    pub device: Option<String>,
    /// Through which gateway.
    pub via: Option<IpAddr>,
    /// Source of the node's own packets.
    pub source: Option<IpAddr>,
}
