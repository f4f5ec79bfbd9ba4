//! The networks of the cluster, as the operator configures them: cluster ranges for pods on edges,
//! and cloud networks behind hubs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use edge_types::{IpNetwork, NodeName, Role};

/// The networks that nodes reach through tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Ranges from which the edges' segments are cut.
    pub ranges: Vec<IpNetwork>,
    /// Cloud networks that a hub fronts, unless `hubs` names other networks for that hub.
    pub fronted: Vec<IpNetwork>,
    /// Settings for individual hubs.
    pub hubs: BTreeMap<NodeName, HubNetworks>,
}

/// Settings for one hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubNetworks {
    /// Cloud networks that the hub fronts; `None` means those in [`ClusterNetworks::fronted`].
    pub fronted: Option<Vec<IpNetwork>>,
    /// Addresses of the hub. Peers try these addresses before those that the hub reports.
    pub endpoints: Vec<SocketAddr>,
}

impl ClusterNetworks {
    /// Returns all cloud networks that any hub fronts.
    pub fn all_fronted(&self) -> impl Iterator<Item = &IpNetwork> + Clone {
        self.hubs.values().filter_map(|hub| hub.fronted.as_ref()).flatten().chain(&self.fronted)
    }

    /// Returns the cloud networks that this hub fronts.
    pub fn fronted_by(&self, hub: &NodeName) -> &[IpNetwork] {
        self.hubs.get(hub).and_then(|hub| hub.fronted.as_deref()).unwrap_or(&self.fronted)
    }

    /// Returns the networks that are reached through tunnels. Peers get no address in these
    /// networks for a node of this role. Hubs and cloud nodes may have addresses in the networks
    /// that hubs front.
    pub fn tunnelled(&self, role: Role) -> impl Iterator<Item = &IpNetwork> + Clone {
        self.ranges.iter().chain(self.all_fronted().filter(move |_| role == Role::Edge))
    }
}
