//! The objects that the agent maintains on the host in addition to XFRM: the guard's device and
//! routes, the bridge, an nftables table, and sysctls; and the data that it reads about the
//! uplinks. All of them are compared with the desired state after each netlink notification; all
//! except nftables also every few seconds.
//!
//! - `network_state`: links, addresses and routes in the kernel.
//! - `uplink`: uplinks, their addresses, and the MTU of pods. It does no I/O.
//! - `routes`: the agent's routes through the guard's device.
//! - `pod_bridge`: makes the plugin create the pods' bridge and attach pods again; the bridge's
//!   routes.
//! - `peer_routes`: whether this host has routes to its peers.
//! - `hub_routes`: a cloud node's routes, and through which hub they lead.
//! - [`firewall`]: the table `inet edge-cni`.
//! - `firewall_reconciler`: restores that table, and runs the plugin to restore `bridge edge-cni`.
//! - `nft_monitor`: notifications of nftables.
//! - `forwarding_monitor`: notifications about forwarding.
//! - [`obstacles`]: rules of other programs that drop pods' packets.
//! - `sysctls`: forwarding, router advertisements, and settings that turn policies off.
//! - [`reconciler`]: the loop.

pub mod firewall;
mod firewall_reconciler;
mod forwarding_monitor;
mod hub_routes;
mod network_state;
mod nft_monitor;
pub mod obstacles;
mod peer_routes;
mod pod_bridge;
pub mod reconciler;
mod routes;
mod sysctls;
mod uplink;

pub use obstacles::Obstacle;

use std::net::IpAddr;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::membership::UplinkFacts;
use crate::underlay;

/// State of the host, for `status` and the tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Addresses of this machine's interfaces, without link-local ones.
    pub local_addresses: Vec<IpAddr>,
    /// Those at which peers may reach this machine, likeliest first; peers that speak MOBIKE are
    /// told.
    #[serde(default)]
    pub uplink_addresses: Vec<IpAddr>,
    /// The first address of each family on the bridge: the source of the node's own traffic to
    /// remote pods.
    pub bridge_addresses: Vec<IpAddr>,
    /// MTU for pods, bytes.
    pub pod_mtu: u32,
    /// Routes that the kernel should have.
    pub routes: Vec<RouteEntry>,
    /// Whether the table `inet edge-cni` is in place.
    pub firewall: bool,
    /// Obstacles. They are not in this part of the status, but in a separate one.
    #[serde(skip)]
    pub obstacles: Vec<Obstacle>,
}

/// A route of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Network that the route leads to.
    pub destination: IpNetwork,
    /// Interface through which packets leave; absent on a route to a hub.
    pub device: Option<String>,
    /// Address of the hub; absent on routes of the guard's device.
    pub via: Option<IpAddr>,
    /// Source address of the node's own packets.
    pub source: Option<IpAddr>,
}

/// Reads the data about this node's uplinks, before a view from disk comes into force and before
/// the first report to the controller. Must be called within a tokio runtime. Fails if rtnetlink
/// fails.
pub async fn read_uplink(config: &Config) -> anyhow::Result<UplinkFacts> {
    let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
    let connection = tokio::spawn(connection);
    let state = network_state::NetworkState::read(&handle).await;
    connection.abort();
    let mut facts = uplink::uplink(&state?, &config.bridge, &[], config.mtu);
    facts.underlay.resolvers = underlay::host_resolvers(&config.resolvers_behind_tunnels);
    Ok(facts)
}

/// Returns whether a bridge for pods has a port: the bridge `own`, or one that the plugin made for
/// another network.
pub(crate) fn has_attached_pods(own: &str) -> anyhow::Result<bool> {
    with_netlink(async |handle| Ok(network_state::NetworkState::read(&handle).await?.has_attached_pods(own)))
}

/// The interfaces that the plugin made: its bridges, and the host's ends of pods' interfaces.
pub(crate) struct PluginInterfaces {
    bridges: Vec<(u32, String)>,
    /// Names of the host's ends.
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
    /// Deletes the bridges. Pods' interfaces stay, without a network. Returns the bridges' names.
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

fn with_netlink<T>(work: impl AsyncFnOnce(rtnetlink::Handle) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
        tokio::spawn(connection);
        work(handle).await
    })
}
