//! `[firewall]`: options of the table `inet edge-cni`.

use ipnetwork::IpNetwork;
use serde::Deserialize;

/// The table `[firewall]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirewallSection {
    /// Whether packets from pods to destinations outside of the cluster and the tunnels are sent
    /// with this node's source address. Default: yes on edges, no on hubs and cloud nodes.
    pub masquerade: Option<bool>,
    /// Destinations excepted from `masquerade`: packets to them keep the pod's source address.
    pub masquerade_except: Vec<IpNetwork>,
    /// Sources outside of the cluster that may reach this node's pods without encryption.
    pub lan_to_pods: Vec<IpNetwork>,
    /// Sources outside of the cluster that may use this node's tunnels. Their packets are sent with
    /// the bridge's address as their source.
    pub lan_to_tunnels: Vec<IpNetwork>,
    /// Ranges of Services (ClusterIPs) that no view names. They are not published: hosts outside of
    /// the cluster cannot reach pods through these addresses.
    pub service_ranges: Vec<IpNetwork>,
    /// Sources from which pods may send, in addition to their own addresses.
    pub pod_sources: Vec<IpNetwork>,
    /// Whether the node also routes between its own networks, and to containers and virtual
    /// machines of other programs, if the agent or the plugin turned on forwarding.
    pub forward_others: bool,
    /// Whether the `FORWARD` chain of iptables gets accept rules for the cluster ranges if its
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
            service_ranges: vec![],
            pod_sources: vec![],
            forward_others: false,
            accept_in_forward: true,
        }
    }
}
