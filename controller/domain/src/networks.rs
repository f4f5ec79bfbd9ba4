//! Networks of the cluster, as the operator has configured them: cluster ranges for the edges'
//! pods, and cloud networks that hubs front.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use edge_types::{IpNetwork, NodeName, Role};

/// The networks that nodes reach through tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterNetworks {
    /// Ranges from which the edges' segments are cut.
    pub ranges: Vec<IpNetwork>,
    /// Cloud networks that every hub fronts for which `hubs` names no others.
    pub fronted: Vec<IpNetwork>,
    /// What differs for single hubs.
    pub hubs: BTreeMap<NodeName, HubNetworks>,
}

/// What differs for one hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubNetworks {
    /// Cloud networks that it fronts, instead of those of every hub.
    pub fronted: Option<Vec<IpNetwork>>,
    /// Where it is found, before what it reports.
    pub endpoints: Vec<SocketAddr>,
}

impl ClusterNetworks {
    /// All cloud networks that any hub fronts.
    pub fn all_fronted(&self) -> impl Iterator<Item = &IpNetwork> + Clone {
        self.hubs.values().filter_map(|hub| hub.fronted.as_ref()).flatten().chain(&self.fronted)
    }

    /// Cloud networks that this hub fronts.
    pub fn fronted_by(&self, hub: &NodeName) -> &[IpNetwork] {
        self.hubs.get(hub).and_then(|hub| hub.fronted.as_deref()).unwrap_or(&self.fronted)
    }

    /// Networks in which no address of a node of this role is passed on: they are reached through
    /// tunnels. Hubs and other cloud nodes may be in the networks that hubs front.
    pub fn tunnelled(&self, role: Role) -> impl Iterator<Item = &IpNetwork> + Clone {
        self.ranges.iter().chain(self.all_fronted().filter(move |_| role == Role::Edge))
    }
}
