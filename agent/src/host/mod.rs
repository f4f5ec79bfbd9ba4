//! What the agent keeps on the host besides XFRM: the guard's device and routes, the bridge, an
//! nftables table, and sysctls; and what it reads about the uplinks. All of it is compared with the
//! desired state after each netlink notification; all but nftables also every few seconds.
//!
//! - `observed`: links, addresses and routes in the kernel.
//! - `uplink`: uplinks, their addresses, and the MTU of pods. Pure.
//! - `underlay`: reads this node's own addresses, gateways and name servers at start.
//! - `routes`: the agent's routes.
//! - [`firewall`]: the table `inet edge-cni`.
//! - `firewall_reconciler`: restores that table, and has the plugin restore `bridge edge-cni`.
//! - `nft_monitor`: notifications of nftables.
//! - [`obstacles`]: rules of other programs that drop pods' packets.
//! - `sysctls`: forwarding, router advertisements, and settings that turn policies off.
//! - [`reconciler`]: the loop.

pub mod firewall;
mod firewall_reconciler;
mod nft_monitor;
mod observed;
pub mod obstacles;
pub mod reconciler;
mod routes;
mod sysctls;
mod underlay;
mod uplink;

pub use obstacles::Obstacle;
pub use underlay::read_underlay;

use std::net::IpAddr;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// State of the host, for `status` and the tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Addresses of this machine's interfaces, without link-local ones.
    pub local_addresses: Vec<IpAddr>,
    /// The first address of each family on the bridge: the source of the node's own traffic to
    /// remote pods.
    pub bridge_addresses: Vec<IpAddr>,
    /// MTU for pods, bytes.
    pub pod_mtu: u32,
    /// Routes that the kernel should have.
    pub routes: Vec<RouteEntry>,
    /// Whether the table `inet edge-cni` is in place.
    pub firewall: bool,
    /// Obstacles, which `status` shows outside of this part.
    #[serde(skip)]
    pub obstacles: Vec<Obstacle>,
}

/// A route of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Destination.
    pub destination: IpNetwork,
    /// Output interface.
    pub device: Option<String>,
    /// Gateway.
    pub via: Option<IpAddr>,
    /// Source address of the node's own packets.
    pub source: Option<IpAddr>,
}

/// Whether a bridge for pods has a port: the bridge `own`, or one that the plugin made for another
/// network.
pub(crate) fn has_attached_pods(own: &str) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
        tokio::spawn(connection);
        Ok(observed::Observed::read(&handle).await?.has_attached_pods(own))
    })
}
