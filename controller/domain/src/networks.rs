//! The networks of the cluster, as the operator configures them: cluster ranges for pods on edges,
//! and cloud networks behind hubs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use edge_types::network::contains;
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
    /// Whether a hub also fronts the networks of its own pods, as its Node object names them.
    pub hub_pod_networks: bool,
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

    /// Returns whether a hub may front this network because the pods on its node have it. The
    /// network must lie within a configured network, and this hub must front the narrowest of
    /// these.
    pub fn admits_pod_network(&self, hub: &NodeName, network: &IpNetwork) -> bool {
        let narrowest = self.all_fronted().filter(|fronted| contains(fronted, network)).max_by_key(|one| one.prefix());
        self.hub_pod_networks
            && narrowest.is_some_and(|outer| outer.prefix() < network.prefix() && self.fronted_by(hub).contains(outer))
    }

    /// Returns the networks that are reached through tunnels. Peers get no address in these
    /// networks for a node of this role. Hubs and cloud nodes may have addresses in the networks
    /// that hubs front.
    pub fn tunnelled(&self, role: Role) -> impl Iterator<Item = &IpNetwork> + Clone {
        self.ranges.iter().chain(self.all_fronted().filter(move |_| role == Role::Edge))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_hub_fronts_its_pods_network_only_within_what_it_fronts_anyway() {
        let individual = |fronted: Option<&[&str]>| HubNetworks { fronted: fronted.map(networks), endpoints: vec![] };
        let mut cluster = ClusterNetworks {
            ranges: networks(&["10.77.0.0/16"]),
            fronted: networks(&["10.244.0.0/16", "10.96.0.0/12", "fd00:244::/48"]),
            hubs: [
                ("divided", individual(Some(&["10.244.0.0/16", "10.244.9.0/24"]))),
                ("another-site", individual(Some(&["10.245.0.0/16"]))),
                ("forwarded", individual(None)),
            ]
            .map(|(name, hub)| (name.parse().unwrap(), hub))
            .into(),
            hub_pod_networks: true,
        };
        let admits = |cluster: &ClusterNetworks, hub: &str, network: &str| {
            cluster.admits_pod_network(&hub.parse().unwrap(), &network.parse().unwrap())
        };
        for hub in ["cloud-3", "forwarded"] {
            assert!(admits(&cluster, hub, "10.244.3.0/24") && admits(&cluster, hub, "fd00:244:0:3::/64"), "{hub}");
            for (network, why) in [
                ("0.0.0.0/0", "it is more than any hub fronts"),
                ("10.0.0.0/8", "it is more than any hub fronts"),
                ("192.168.3.0/24", "no hub fronts it"),
                ("10.77.3.0/24", "edges have it"),
                ("10.244.0.0/16", "the hub fronts it already"),
                ("10.244.9.0/24", "the operator gave it to another hub"),
                ("10.244.9.128/25", "the operator gave it to another hub"),
                ("10.245.3.0/24", "it is another site's"),
                ("fd00:244::/48", "the hub fronts it already"),
            ] {
                assert!(!admits(&cluster, hub, network), "{hub} {network}: {why}");
            }
        }
        assert!(admits(&cluster, "divided", "10.244.3.0/24") && admits(&cluster, "another-site", "10.245.3.0/24"));
        assert!(!admits(&cluster, "divided", "10.244.9.0/24"), "the hub fronts it already");
        cluster.hub_pod_networks = false;
        assert!(!admits(&cluster, "cloud-3", "10.244.3.0/24"));
    }
}
