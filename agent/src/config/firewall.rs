//! `[firewall]`: what the table `inet edge-cni` does beyond what the cluster asks for.

use ipnetwork::IpNetwork;
use serde::Deserialize;

/// `[firewall]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirewallSection {
    /// Pods that leave for neither cluster nor tunnel take this node's address; on edges unless
    /// set, not on hubs and cloud nodes.
    pub masquerade: Option<bool>,
    /// Destinations that see the pod's own address all the same.
    pub masquerade_except: Vec<IpNetwork>,
    /// Sources outside the cluster that reach this node's pods in clear.
    pub lan_to_pods: Vec<IpNetwork>,
    /// Sources outside the cluster that may use the tunnels through this node, under the bridge's
    /// address.
    pub lan_to_tunnels: Vec<IpNetwork>,
    /// Sources besides their own addresses from which pods may send.
    pub pod_sources: Vec<IpNetwork>,
    /// Whether forwarding, where this agent turned it on, makes the node a router between its own
    /// networks as well.
    pub forward_others: bool,
    /// Whether the `FORWARD` chain of iptables gets accept rules for the cluster's ranges where its
    /// policy is `DROP`.
    pub accept_in_forward: bool,
}

impl Default for FirewallSection {
    fn default() -> Self {
        Self {
            masquerade: None,
            masquerade_except: vec![],
            lan_to_pods: vec![],
            lan_to_tunnels: vec![],
            pod_sources: vec![],
            forward_others: false,
            accept_in_forward: true,
        }
    }
}
