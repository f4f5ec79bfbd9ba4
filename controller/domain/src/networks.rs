//! The networks of the cluster, as the operator configures them: cluster ranges for pods on edges,
//! and cloud networks behind hubs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use edge_types::network::{contains, overlap};
use edge_types::{IpNetwork, NodeName, Role};

/// Lengths of the shortest prefix of a network of the pods on one hub, for IPv4 and IPv6.
/// Kubernetes gives a node much less. A shorter prefix would draw many other nodes' packets to the
/// hub.
const POD_NETWORK: (u8, u8) = (16, 48);
/// Lengths of the shortest prefix that a Service range of Kubernetes may have.
const SERVICE_RANGE: (u8, u8) = (12, 108);

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
    /// Addresses of Services of the cluster, as far as they are known.
    pub services: Vec<IpAddr>,
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
    /// network must lie within a configured network, this hub must front the narrowest of these,
    /// and [`Self::pod_network_fault`] must find nothing.
    pub fn admits_pod_network(&self, hub: &NodeName, network: &IpNetwork) -> bool {
        let narrowest = self.narrowest_around(network);
        self.hub_pod_networks
            && narrowest.is_some_and(|outer| outer.prefix() < network.prefix() && self.fronted_by(hub).contains(outer))
            && self.pod_network_fault(network).is_none()
    }

    /// Returns why this cannot be the network of the pods on one node; `None` if it can be. A
    /// kubelet writes that network into its Node object, so it may be anything.
    pub fn pod_network_fault(&self, network: &IpNetwork) -> Option<String> {
        let shortest = of_family(network, POD_NETWORK);
        if network.prefix() < shortest {
            return Some(format!("it is wider than /{shortest}"));
        }
        if let Some(range) = self.ranges.iter().find(|range| overlap(range, network)) {
            return Some(format!("it overlaps the cluster range {range} of the edges' pods"));
        }
        if let Some(service) = self.services.iter().find(|service| network.contains(**service)) {
            return Some(format!("it contains the address {service} of a Service"));
        }
        let outer = self.narrowest_around(network).filter(|outer| self.is_service_range(outer))?;
        Some(format!("it lies within {outer}, which has the addresses of Services"))
    }

    /// Returns whether a configured network is a range of Services only: it has the address of one,
    /// is no wider than such a range may be, and there is another network for the pods.
    fn is_service_range(&self, network: &IpNetwork) -> bool {
        let has_services = |network: &IpNetwork| self.services.iter().any(|service| network.contains(*service));
        let mut others = self.all_fronted().filter(|other| other.is_ipv4() == network.is_ipv4());
        has_services(network)
            && network.prefix() >= of_family(network, SERVICE_RANGE)
            && others.any(|other| !has_services(other))
    }

    /// Returns the narrowest configured network that contains this one.
    fn narrowest_around(&self, network: &IpNetwork) -> Option<&IpNetwork> {
        self.all_fronted().filter(|fronted| contains(fronted, network)).max_by_key(|one| one.prefix())
    }

    /// Returns the networks that are reached through tunnels. Peers get no address in these
    /// networks for a node of this role. Hubs and cloud nodes may have addresses in the networks
    /// that hubs front.
    pub fn tunnelled(&self, role: Role) -> impl Iterator<Item = &IpNetwork> + Clone {
        self.ranges.iter().chain(self.all_fronted().filter(move |_| role == Role::Edge))
    }
}

/// Returns the value for the family of this network: the first for IPv4, the second for IPv6.
fn of_family(network: &IpNetwork, (v4, v6): (u8, u8)) -> u8 {
    if network.is_ipv4() { v4 } else { v6 }
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
            services: Vec::new(),
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

    #[test]
    fn the_network_of_a_nodes_pods_is_not_wide_and_not_that_of_services_or_of_edges() {
        let cluster = |fronted: &[&str]| ClusterNetworks {
            ranges: networks(&["10.77.0.0/16", "fd00:77::/48"]),
            fronted: networks(fronted),
            hub_pod_networks: true,
            services: ["10.96.0.1", "fd00:96::1"].map(|address| address.parse().unwrap()).into(),
            ..ClusterNetworks::default()
        };
        let fault = |cluster: &ClusterNetworks, network: &str| {
            let (hub, network) = ("cloud-3".parse().unwrap(), network.parse().unwrap());
            let fault = cluster.pod_network_fault(&network);
            assert_eq!(cluster.admits_pod_network(&hub, &network), fault.is_none(), "{network}: {fault:?}");
            fault.unwrap_or_default()
        };
        let all = cluster(&["10.0.0.0/8", "fd00::/16"]);
        for (network, why) in [
            ("0.0.0.0/0", "it is wider than /16"),
            ("10.128.0.0/15", "it is wider than /16"),
            ("fd00:244::/47", "it is wider than /48"),
            ("10.77.3.0/24", "it overlaps the cluster range 10.77.0.0/16 of the edges' pods"),
            ("fd00:77:0:3::/64", "it overlaps the cluster range fd00:77::/48 of the edges' pods"),
            ("10.96.0.0/24", "it contains the address 10.96.0.1 of a Service"),
            ("fd00:96::/112", "it contains the address fd00:96::1 of a Service"),
        ] {
            assert_eq!(fault(&all, network), why, "{network}");
        }
        for network in ["10.244.0.0/16", "10.244.3.0/24", "10.97.0.0/24", "fd00:244::/48", "fd00:244:0:3::/64"] {
            assert_eq!(fault(&all, network), "", "{network}: nothing tells pods from Services");
        }
        let apart = cluster(&["10.244.0.0/16", "10.96.0.0/12", "fd00:244::/48", "fd00:96::/108"]);
        assert_eq!(fault(&apart, "10.97.0.0/24"), "it lies within 10.96.0.0/12, which has the addresses of Services");
        assert!(fault(&apart, "fd00:96::1:0/112").starts_with("it lies within fd00:96::/108"));
        for network in ["10.244.3.0/24", "fd00:244:0:3::/64"] {
            assert_eq!(fault(&apart, network), "", "{network}");
        }
    }
}
