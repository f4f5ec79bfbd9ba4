//! Derives the contents of the table `inet edge-cni` from the configuration and the desired state.

use std::net::IpAddr;

use edge_types::{Role, SharedList};
use ipnetwork::IpNetwork;

use crate::config::Config;
use crate::desired::Desired;

/// Name of the table in family `inet`. The plugin's table in family `bridge` has the same name.
pub const TABLE: &str = "edge-cni";

/// Name of the plugin's table in family `inet`, which protects pods from hosts outside of the
/// cluster while the agent's table is missing. The agent's table replaces it.
pub const PODS_TABLE: &str = "edge-cni-pods";

/// The contents of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// The pods' bridges: the agent's bridge, and the bridges of the plugin's other networks.
    pub pod_bridges: Vec<String>,
    /// Networks of the pods' bridges. Pods that started before the first view may have addresses in
    /// segments that the view does not name.
    pub pod_networks: Vec<IpNetwork>,
    /// This node's segments: the source addresses of its pods.
    pub own: Vec<IpNetwork>,
    /// On hubs and cloud nodes: the cloud's networks. Packets from these networks may arrive over
    /// the LAN.
    pub fronted: Vec<IpNetwork>,
    /// Hub networks that the view no longer names. Packets from pods to these networks are not
    /// masqueraded, and the guard's device drops them.
    pub former: Vec<IpNetwork>,
    /// Networks behind tunnels; on a cloud node, the networks behind the hub. A hub may have ten
    /// thousand.
    pub remote: SharedList<IpNetwork>,
    /// Whether packets from `remote` arrive without encryption. True on cloud nodes, where the hub
    /// sends them.
    pub remote_in_clear: bool,
    /// UDP ports for IKE and for ESP in UDP. Packets to these ports are accepted, since IKE and ESP
    /// authenticate them.
    pub ike_ports: [u16; 2],
    /// TCP ports of the controllers, whose addresses may lie within the cloud's networks.
    pub controller_ports: Vec<u16>,
    /// The cluster ranges. A source address that lies within the ranges but does not belong to this
    /// node is forged, and is never translated.
    pub ranges: Vec<IpNetwork>,
    /// Source addresses, one for each family, of redirected connections and of the node's own
    /// connections when they enter a tunnel.
    pub addresses: Vec<IpAddr>,
    /// Pairs of local and remote networks between which packets pass to and from static peers.
    pub static_pairs: Vec<(IpNetwork, IpNetwork)>,
    /// Whether packets from pods to destinations outside of the cluster are sent with this node's
    /// source address.
    pub masquerade: bool,
    /// Destinations excepted from `masquerade`.
    pub masquerade_except: Vec<IpNetwork>,
    /// Sources outside of the cluster that may reach pods without encryption.
    pub lan_to_pods: Vec<IpNetwork>,
    /// Sources outside of the cluster that may use the tunnels.
    pub lan_to_tunnels: Vec<IpNetwork>,
    /// Service ranges that no view names.
    pub service_ranges: Vec<IpNetwork>,
    /// Sources from which pods may send, in addition to this node's segments.
    pub pod_sources: Vec<IpNetwork>,
    /// Interfaces from which packets are forwarded only to pods and tunnels, for IPv4 and IPv6.
    /// Empty for a family if the node forwarded packets before the agent or the plugin turned
    /// forwarding on.
    pub isolated: [Vec<String>; 2],
    /// Whether to leave out features that small kernels lack: `masquerade` (nft_masq), `fib`
    /// (nft_fib_inet) and `limit` (nft_limit).
    pub minimal: bool,
    /// Bridges among the isolated interfaces. With br_netfilter, bridged packets look as if they
    /// were forwarded from a bridge to itself.
    pub bridges: Vec<String>,
    /// MTU to which the MSS of TCP connections through tunnels is lowered, bytes; 0 if unknown.
    pub mtu: u32,
}

/// The node's links that the table names.
#[derive(Debug, Clone, Default)]
pub struct FirewallLinks {
    /// [`Firewall::pod_bridges`].
    pub pod_bridges: Vec<String>,
    /// [`Firewall::pod_networks`].
    pub pod_networks: Vec<IpNetwork>,
    /// [`Firewall::isolated`].
    pub isolated: [Vec<String>; 2],
    /// [`Firewall::bridges`].
    pub bridges: Vec<String>,
}

impl Firewall {
    /// Builds the table from the configuration and the desired state. `addresses` are the bridge's
    /// addresses, or on a cloud node its addresses within the cloud's networks. `mtu` is in bytes,
    /// 0 if unknown.
    #[must_use]
    pub fn desired(config: &Config, desired: &Desired, addresses: Vec<IpAddr>, links: FirewallLinks, mtu: u32) -> Self {
        let keys = &config.firewall;
        let shared = Self {
            pod_bridges: links.pod_bridges,
            pod_networks: links.pod_networks,
            ike_ports: [config.port, config.nat_port],
            controller_ports: controller_ports(config),
            addresses,
            masquerade: keys.masquerade.unwrap_or(desired.role == Some(Role::Edge)),
            masquerade_except: keys.masquerade_except.clone(),
            lan_to_pods: keys.lan_to_pods.clone(),
            lan_to_tunnels: keys.lan_to_tunnels.clone(),
            service_ranges: keys.service_ranges.clone(),
            pod_sources: keys.pod_sources.clone(),
            bridges: links.bridges,
            isolated: if keys.forward_others { [vec![], vec![]] } else { links.isolated },
            ..Self::default()
        };
        if !desired.hub_routes.is_empty() {
            return Self {
                fronted: desired.cloud_networks.clone(),
                remote_in_clear: true,
                remote: desired.hub_routes.clone().into(),
                ranges: desired.hub_routes.clone(),
                ..shared
            };
        }
        let own = desired.guard.segments.clone();
        Self {
            static_pairs: desired.static_pairs(&own),
            own,
            fronted: desired.guard.networks.clone(),
            remote: desired.remote_networks.all().clone(),
            former: desired.former_networks.clone(),
            ranges: desired.guard.cluster_ranges.clone(),
            mtu,
            ..shared
        }
    }

    /// Returns whether both tables differ at most in `remote`, on which no rule depends.
    pub(super) fn is_same_except_remote(&self, other: &Self) -> bool {
        let without_remote = |of: &Self| Self { remote: SharedList::default(), ..of.clone() };
        without_remote(self) == without_remote(other)
    }

    /// Returns whether no table is necessary. This is the case without a view, for example without
    /// a controller, where the firewall is left to the operator.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.remote.is_empty()
    }

    /// Returns the first and the last source port for masqueraded datagrams of pods. The range is
    /// the widest one without privileged ports and IKE ports.
    pub(super) fn ports_without_ike(&self) -> (u16, u16) {
        let mut ports = self.ike_ports;
        ports.sort_unstable();
        let [low, high] = ports;
        let ranges = [(1024, low.saturating_sub(1)), (low.saturating_add(1).max(1024), high.saturating_sub(1))];
        let last = (high.saturating_add(1).max(1024), u16::MAX);
        ranges.into_iter().chain([last]).max_by_key(|(first, last)| last.saturating_sub(*first)).unwrap_or(last)
    }
}

/// Returns the ports of the controllers' URLs, each once, in order.
pub(super) fn controller_ports(config: &Config) -> Vec<u16> {
    let urls = config.controller.iter().flat_map(|controller| &controller.urls);
    let port = |url: &String| Some(url.parse::<hyper::Uri>().ok()?.port_u16().unwrap_or(443));
    let mut ports: Vec<u16> = urls.filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
