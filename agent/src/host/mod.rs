//! Maintains the agent's objects on the host other than XFRM state: the guard's device and routes,
//! the bridge, an nftables table, and sysctls. Also reads the data about the uplinks. All objects
//! are compared with the desired state after each netlink notification, and all except nftables
//! also every few seconds.
//!
//! - `link_requirements`: what a view requires of links and routes. It does no I/O.
//! - `reading_pace`: when links and routes are read again. It does no I/O.
//! - `settling`: how long notifications are collected before that. It does no I/O.
//! - `network_state`: the links, addresses and routes in the kernel.
//! - `uplink`: the uplinks, their addresses, and the MTU of pods. It does no I/O.
//! - `own_addresses`: the addresses at which peers may reach this node. It does no I/O.
//! - `host_addresses`: what is published about addresses before the rest of the state. It does no
//!   I/O.
//! - `routes`: the agent's routes through the guard's device.
//! - `pod_bridge`: the repair of the pods' bridge, its ports and its routes.
//! - `path_mtu_routes`: the routes with the path MTU to peers.
//! - `peer_routes`: the check whether this host has routes to its peers.
//! - `hub_routes`: a cloud node's routes to the cluster ranges, and the choice of the hub for these
//!   routes.
//! - `internal_addresses`: the addresses that static peers have given this node.
//! - [`firewall`]: the table `inet edge-cni`.
//! - `firewall_reconciler`: the repair of that table, and of `bridge edge-cni` by running the
//!   plugin.
//! - `nft_monitor`: the notifications from nftables.
//! - `forwarding_monitor`: the kernel's notifications when forwarding is turned on or off.
//! - [`obstacles`]: rules of other programs that drop pods' packets.
//! - `obstacle_reader`: when these rules are read again, and what was found last.
//! - `tunnel_sources`: the addresses from which the node's own packets enter tunnels. It does no
//!   I/O.
//! - `sysctls`: the kernel settings for forwarding and router advertisements, and those that turn
//!   policies off.
//! - `settings`: when sysctls and name servers are read, and what was found last.
//! - [`reconciler`]: the loop that brings the host to its desired state.

mod bridge_name;
pub mod firewall;
mod firewall_reconciler;
mod forwarding_monitor;
mod host_addresses;
mod hub_routes;
mod internal_addresses;
mod link_requirements;
mod network_state;
mod nft_monitor;
mod obstacle_reader;
pub mod obstacles;
mod own_addresses;
mod path_mtu_routes;
mod peer_routes;
mod pod_bridge;
mod reading_pace;
pub mod reconciler;
mod routes;
mod settings;
mod settling;
mod sysctls;
mod tunnel_sources;
mod uplink;

pub use internal_addresses::InternalAddresses;
pub use obstacles::Obstacle;
pub use own_addresses::RankedAddress;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::own_addresses::InnerNetworks;
use crate::config::Config;
use crate::desired::Desired;
use crate::membership::UplinkFacts;
use crate::path_mtu::Encapsulation;
use crate::underlay;

/// State of the host, for `status` and the tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Addresses of this machine's interfaces, without link-local ones.
    pub local_addresses: Vec<IpAddr>,
    /// Those of `local_addresses` that other machines may have as well, such as the ClusterIPs that
    /// kube-proxy in IPVS mode gives to each node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_addresses: Vec<IpAddr>,
    /// Addresses at which peers may reach this machine, likeliest first, without those within the
    /// view's networks. They are sent to peers that use MOBIKE.
    #[serde(default)]
    pub uplink_addresses: Vec<IpAddr>,
    /// The addresses on links with a default route, with their ranks as ends of tunnels.
    #[serde(skip)]
    pub ranked_addresses: Vec<RankedAddress>,
    /// Whether the link through which a packet leaves may depend on its source address.
    #[serde(skip)]
    pub source_rules: bool,
    /// Networks to which the machine's interfaces are connected. A peer must not give this node an
    /// internal address within them.
    #[serde(skip)]
    pub on_link_networks: Vec<IpNetwork>,
    /// The first address of each family on the bridge: the source of the node's own traffic to
    /// remote pods.
    pub bridge_addresses: Vec<IpAddr>,
    /// MTU for pods, in bytes.
    pub pod_mtu: u32,
    /// MTU of the uplink, in bytes, if packets of `pod_mtu` may not fit through it with ESP. Large
    /// IPv6 packets are then lost. IPv6 does not allow pods a smaller MTU than 1280.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub small_uplink: Option<u32>,
    /// Routes that the kernel should have.
    pub routes: Vec<RouteEntry>,
    /// Whether the table `inet edge-cni` is in place.
    pub firewall: bool,
    /// The obstacles. `status` shows them in a separate part of its document, instead of in the
    /// part for this struct.
    #[serde(skip)]
    pub obstacles: Vec<Obstacle>,
}

impl HostState {
    /// Returns a sentence if large packets of pods may not fit through the uplink.
    #[must_use]
    pub fn too_large_packets(&self) -> Option<String> {
        let (uplink, pods) = (self.small_uplink?, self.pod_mtu);
        let needed = Encapsulation::LARGEST.outer(pods);
        Some(format!(
            "IPv6 packets of pods of {pods} bytes may be lost: with ESP they have up to {needed} bytes, and the uplink \
             has an MTU of {uplink}"
        ))
    }
}

/// The path MTUs to peers, by the peers' networks, in bytes. It contains only those that are
/// smaller than the pods' MTU.
pub type PathMtus = BTreeMap<IpNetwork, u32>;

/// What the tunnels' driver publishes for the host reconciler.
#[derive(Debug)]
pub struct TunnelsToHost {
    /// The addresses that static peers have given this node.
    pub internal: watch::Sender<InternalAddresses>,
    /// The path MTUs to peers.
    pub path_mtus: watch::Sender<PathMtus>,
}

/// A route of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Network to which the route leads.
    pub destination: IpNetwork,
    /// Interface through which packets leave; absent on a route to a hub.
    pub device: Option<String>,
    /// Address of the hub; absent on routes through the guard's device.
    pub via: Option<IpAddr>,
    /// Source address of the node's own packets.
    pub source: Option<IpAddr>,
}

/// Reads the data about this node's uplinks, before the first report to the controller. Addresses
/// within networks of `desired` are left out. Must be called within a tokio runtime. Fails if
/// rtnetlink fails.
pub async fn read_uplink(config: &Config, desired: &Desired) -> anyhow::Result<UplinkFacts> {
    let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
    let connection = tokio::spawn(connection);
    let state = network_state::NetworkState::read(&handle).await;
    connection.abort();
    let state = state?;
    let inner = InnerNetworks::of(desired, &state, &config.bridge);
    let mut facts = uplink::uplink(&state, &config.bridge, &inner, config.mtu);
    facts.underlay.resolvers = underlay::host_resolvers(&config.resolvers_behind_tunnels);
    Ok(facts)
}

/// Fails if `bridge` of the configuration is the name of an interface that is no bridge.
pub fn check_bridge(config: &Config) -> anyhow::Result<()> {
    let state = with_netlink(async |handle| network_state::NetworkState::read(&handle).await)?;
    bridge_name::check_name(&config.bridge, &state)
}

/// Returns whether a bridge for pods has a port: the bridge `own`, or a bridge that the plugin
/// created for another network.
pub(crate) fn has_attached_pods(own: &str) -> anyhow::Result<bool> {
    with_netlink(async |handle| Ok(network_state::NetworkState::read(&handle).await?.has_attached_pods(own)))
}

/// The interfaces that the plugin created: its bridges, and the host ends of pods' interfaces.
pub(crate) struct PluginInterfaces {
    bridges: Vec<(u32, String)>,
    /// Names of the host ends of pods' interfaces.
    pub(crate) pods: Vec<String>,
}

/// Finds the plugin's interfaces by their alias.
pub(crate) fn plugin_interfaces() -> anyhow::Result<PluginInterfaces> {
    let links = with_netlink(async |handle| Ok(network_state::NetworkState::read(&handle).await?.links))?;
    let (mut bridges, mut pods) = (Vec::new(), Vec::new());
    for link in links {
        if link.pod_bridge {
            bridges.push((link.index, link.name));
        } else if link.pod_port {
            pods.push(link.name);
        }
    }
    Ok(PluginInterfaces { bridges, pods })
}

impl PluginInterfaces {
    /// Returns the names of all of them.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.bridges.iter().map(|(_, name)| name).chain(&self.pods).map(String::as_str)
    }

    /// Deletes the bridges. The pods' interfaces stay, but are no longer connected to a network.
    /// Returns the bridges' names.
    pub(crate) fn delete_bridges(&self) -> anyhow::Result<Vec<&str>> {
        with_netlink(async |handle| {
            let mut deleted = Vec::new();
            for (index, name) in &self.bridges {
                let deletion = handle.link().del(*index).execute().await;
                deletion.with_context(|| format!("deleting the bridge {name}"))?;
                deleted.push(name.as_str());
            }
            Ok(deleted)
        })
    }
}

/// Removes the device with the addresses that static peers have given this node. Returns the number
/// of devices removed.
pub(crate) fn remove_internal_addresses() -> anyhow::Result<usize> {
    with_netlink(async |handle| internal_addresses::remove_device(&handle).await)
}

fn with_netlink<T>(work: impl AsyncFnOnce(rtnetlink::Handle) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
        tokio::spawn(connection);
        work(handle).await
    })
}
