//! One nftables table of ours, `inet edge-cni`: who may use the tunnels, who reaches pods, and
//! under which source packets leave.
//!
//! XFRM policies say which networks may talk; they do not know who put a packet on the wire. The
//! table does. `docs/firewall.md` has each chain and the way of each kind of packet.
//!
//! - `rules`: the table as commands of `nft -j`. Pure.
//! - `nft`: puts it in place, reads it back, removes it.

mod nft;
mod rules;

pub use nft::{Refused, read, refused, remove, remove_bridge_filter};
pub(in crate::host) use nft::{list, run};

use std::net::IpAddr;

use edge_types::Role;
use ipnetwork::IpNetwork;

use crate::config::Config;
use crate::desired::Desired;

/// Name of the table, family `inet`; the plugin's has the same name in family `bridge`.
pub const TABLE: &str = "edge-cni";

/// Name of the table of family `inet` by which the plugin keeps hosts outside from pods while ours
/// does not stand. Ours takes its place.
pub const PODS_TABLE: &str = "edge-cni-pods";

/// What the table is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// The pods' bridges: the agent's own, and those of other networks of the plugin.
    pub pod_bridges: Vec<String>,
    /// Networks of the pods' bridges. Before the first view pods may have got addresses of segments
    /// that the view does not name.
    pub pod_networks: Vec<IpNetwork>,
    /// This node's segments: the pods' sources.
    pub own: Vec<IpNetwork>,
    /// The cloud's networks on a hub and on a cloud node: their sources may come over the LAN.
    pub fronted: Vec<IpNetwork>,
    /// Networks of hubs that the view no longer names. Pods' packets for them are not masqueraded,
    /// and the guard's device drops them.
    pub former: Vec<IpNetwork>,
    /// Networks behind tunnels; on a cloud node those behind the hub.
    pub remote: Vec<IpNetwork>,
    /// They come in clear, from the hub: so it is on a cloud node.
    pub remote_in_clear: bool,
    /// UDP ports of IKE and of ESP in UDP: what comes there is judged by its keys.
    pub ike_ports: [u16; 2],
    /// TCP ports of the controllers, which may be at an address of the cloud's networks.
    pub controller_ports: Vec<u16>,
    /// The cluster's ranges: a source from there that is not ours is forged, and is never
    /// translated.
    pub ranges: Vec<IpNetwork>,
    /// The address that redirected connections and the node's own take on their way into a tunnel,
    /// one a family.
    pub addresses: Vec<IpAddr>,
    /// From our segments to static peers: local and remote network of each pair.
    pub static_pairs: Vec<(IpNetwork, IpNetwork)>,
    /// Pods that leave for elsewhere take this node's address.
    pub masquerade: bool,
    /// Except those that leave for here.
    pub masquerade_except: Vec<IpNetwork>,
    /// Sources from outside that reach pods in clear.
    pub lan_to_pods: Vec<IpNetwork>,
    /// Sources from outside that may use the tunnels.
    pub lan_to_tunnels: Vec<IpNetwork>,
    /// Sources besides our segments from which pods may send.
    pub pod_sources: Vec<IpNetwork>,
    /// Interfaces between which nothing is forwarded, for IPv4 and IPv6: those where we turned
    /// forwarding on.
    pub apart: [Vec<String>; 2],
    /// Without what small kernels lack: `masquerade` (nft_masq) and `fib` (nft_fib_inet).
    pub plain: bool,
    /// Bridges among them: with br_netfilter what they only bridge looks as if it were forwarded
    /// from and to the same one.
    pub bridges: Vec<String>,
    /// MTU of packets in tunnels, 0 where it is not known.
    pub mtu: u32,
}

/// The node's links, as far as the table speaks of them.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// See [`Firewall::pod_bridges`].
    pub pod_bridges: Vec<String>,
    /// See [`Firewall::pod_networks`].
    pub pod_networks: Vec<IpNetwork>,
    /// See [`Firewall::apart`].
    pub apart: [Vec<String>; 2],
    /// See [`Firewall::bridges`].
    pub bridges: Vec<String>,
}

impl Firewall {
    /// What this node wants. `addresses` are the bridge's; on a cloud node those within the cloud's
    /// networks.
    #[must_use]
    pub fn wanted(config: &Config, desired: &Desired, addresses: Vec<IpAddr>, links: Links, mtu: u32) -> Self {
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
            pod_sources: keys.pod_sources.clone(),
            bridges: links.bridges,
            apart: if keys.forward_others { [vec![], vec![]] } else { links.apart },
            ..Self::default()
        };
        if !desired.hub_routes.is_empty() {
            return Self {
                fronted: desired.cloud_networks.clone(),
                remote_in_clear: true,
                remote: desired.hub_routes.iter().map(|route| route.network).collect(),
                ranges: desired.hub_routes.iter().map(|route| route.network).collect(),
                ..shared
            };
        }
        let own = desired.guard.segments.clone();
        Self {
            static_pairs: desired.static_pairs(&own),
            own,
            fronted: desired.guard.networks.clone(),
            remote: desired.remote_networks.clone(),
            former: desired.former_networks.clone(),
            ranges: desired.guard.cluster_ranges.clone(),
            mtu,
            ..shared
        }
    }

    /// Nothing to do: the table is not wanted. So it is on a plain IKEv2 daemon, where the networks
    /// behind the node are the operator's own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.remote.is_empty()
    }
}

/// Ports of the URLs, in order.
fn controller_ports(config: &Config) -> Vec<u16> {
    let urls = config.controller.iter().flat_map(|controller| &controller.urls);
    let port = |url: &String| Some(url.parse::<hyper::Uri>().ok()?.port_u16().unwrap_or(443));
    let mut ports: Vec<u16> = urls.filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests;
