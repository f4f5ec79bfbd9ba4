//! What the agent keeps on the host beside XFRM: the guard's device and routes, the bridge, one
//! nftables table, sysctls; and what it learns of the uplinks. Everything is compared with what is
//! there after each change that netlink tells of, and every few seconds.
//!
//! - `observed`: links, addresses and routes as the kernel has them.
//! - `uplink`: which addresses are this machine's, and how large pods' packets may be. Pure.
//! - `underlay`: what is looked at once, before a view from disk is in force.
//! - `routes`: routes of ours.
//! - [`firewall`]: the table `inet edge-cni`.
//! - `firewall_reconciler`: keeps it, and has the plugin keep its own.
//! - `nft_monitor`: nftables' notifications.
//! - [`obstacles`]: what others' rules keep from pods.
//! - `sysctls`: forwarding, router advertisements, whether policies are asked.
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

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// What there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// Addresses of this machine's interfaces, link-local ones left out.
    pub local_addresses: Vec<IpAddr>,
    /// Addresses of the bridge, the first of each family: the source of the node's own traffic to
    /// remote pods.
    pub bridge_addresses: Vec<IpAddr>,
    /// MTU for pods, bytes.
    pub pod_mtu: u32,
    /// Routes that the kernel should have.
    pub routes: Vec<RouteEntry>,
    /// Whether the table `inet edge-cni` stands.
    pub firewall: bool,
    /// What is in the way; `status` has it at its top.
    #[serde(skip)]
    pub obstacles: Vec<Obstacle>,
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
