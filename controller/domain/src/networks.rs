//! The networks of the cluster, as the operator configures them: cluster ranges for the pods of
//! edges, and cloud networks that are behind hubs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use edge_types::{IpNetwork, NodeName, Role};

/// The networks that nodes reach through tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Ranges from which the edges' segments are cut.
    pub ranges: Vec<IpNetwork>,
    /// Cloud networks that a hub fronts unless `hubs` names others for it.
    pub fronted: Vec<IpNetwork>,
    /// Settings for single hubs.
    pub hubs: BTreeMap<NodeName, HubNetworks>,
}

/// Settings for one hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubNetworks {
    /// Cloud networks that it fronts; `None` means those of [`ClusterNetworks::fronted`].
    pub fronted: Option<Vec<IpNetwork>>,
    /// Addresses of the hub. Peers try them before those that the hub reports.
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
