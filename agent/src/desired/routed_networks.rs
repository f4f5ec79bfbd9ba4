//! The part of the desired state on which the routes depend that separate tasks maintain. These
//! tasks do not wake for each of ten thousand peers that changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use edge_types::network::contains;
use edge_types::{NodeName, NodeView};
use ipnetwork::IpNetwork;

/// The networks that are routed through hubs, and the segments whose bridge addresses are sources
/// of routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutedNetworks {
    /// [`Desired::hub_routes`](super::Desired::hub_routes).
    pub hub_routes: Vec<IpNetwork>,
    /// [`Desired::hub_gateways`](super::Desired::hub_gateways).
    pub hub_gateways: Vec<HubGateway>,
    /// [`Desired::hub_exceptions`](super::Desired::hub_exceptions).
    pub hub_exceptions: Vec<HubException>,
    /// This node's segments.
    pub segments: Vec<IpNetwork>,
}

/// An address of a hub, through which a cloud node may route the cluster ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubGateway {
    /// The hub's name.
    pub hub: NodeName,
    /// The hub's address, and the port on which its IKE responder expects the non-ESP marker (RFC
    /// 3948).
    pub address: SocketAddr,
}

/// A network that is not reached through some hubs, but through another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubException {
    /// A cluster range, or a network within one.
    pub network: IpNetwork,
    /// The hubs through which it is not reached, in the order of their names.
    pub not_through: Vec<NodeName>,
}

/// Maximum number of exceptions, each of which is a route. The controller sends at most 256 for
/// each hub. Further ones are left out.
const MAX_EXCEPTIONS: usize = 2048;

/// Returns the networks that a cloud node must not route through some hubs, in their order.
/// Networks outside of the cluster's ranges are left out, and what is no network: an address with a
/// prefix, which the kernel does not take as the destination of a route, or takes as another one.
pub(super) fn hub_exceptions(view: &NodeView) -> Vec<HubException> {
    let mut by_network: BTreeMap<IpNetwork, Vec<NodeName>> = BTreeMap::new();
    for (hub, networks) in &view.unreached_from {
        let is_usable = |network: &&IpNetwork| {
            network.ip() == network.network() && view.cluster_ranges.iter().any(|range| contains(range, network))
        };
        for network in networks.iter().filter(is_usable) {
            let hubs = by_network.entry(*network).or_default();
            if !hubs.contains(hub) {
                hubs.push(hub.clone());
            }
        }
    }
    let exceptions = by_network.into_iter().map(|(network, not_through)| HubException { network, not_through });
    exceptions.take(MAX_EXCEPTIONS).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use edge_types::Role;

    use super::*;
    use crate::desired::Desired;
    use crate::desired::tests::{config, membership, network, peer};

    fn hub(name: &str, address: &str) -> edge_types::Peer {
        peer(name, Role::Hub, address, &[], &["10.244.0.0/16"])
    }

    #[test]
    fn an_edge_more_changes_no_route_and_a_hub_more_does() {
        let edge = |name, segment| peer(name, Role::Edge, "192.0.2.7:500", &[segment], &[]);
        let of = |role, peers| {
            let membership = membership(role, &["10.77.1.0/26"], &[], peers);
            Desired::compute(&config(""), &[], Some(&membership)).routed_networks()
        };
        let first = vec![edge("edge-2", "10.77.2.0/26"), hub("hub-1", "192.0.2.1:500")];
        let more = [first.clone(), vec![edge("edge-3", "10.77.3.0/26")]].concat();
        let two_hubs = [first.clone(), vec![hub("hub-2", "192.0.2.2:500")]].concat();
        for role in [Role::Edge, Role::Hub, Role::Cloud] {
            assert_eq!(of(role, first.clone()), of(role, more.clone()), "{role}");
        }
        assert_ne!(of(Role::Cloud, first), of(Role::Cloud, two_hubs));
    }

    #[test]
    fn only_a_cloud_node_routes_around_hubs_and_only_to_networks_of_the_cluster() {
        let of = |role| {
            let mut membership = membership(role, &[], &[], vec![hub("hub-1", "192.0.2.1:500")]);
            let view = Arc::make_mut(&mut membership.view);
            for (hub, networks) in [
                ("hub-2", &["10.77.9.0/26", "fd77::/120", "10.77.9.0/26"][..]),
                (
                    "hub-1",
                    &["10.77.9.0/26", "10.77.9.5/26", "fd77::5/120", "0.0.0.0/0", "192.0.2.0/24", "10.76.0.0/15"],
                ),
            ] {
                view.unreached_from.insert(hub.parse().unwrap(), networks.iter().map(|text| network(text)).collect());
            }
            Desired::compute(&config(""), &[], Some(&membership)).routed_networks().hub_exceptions
        };
        let exception = |text, hubs: &[&str]| HubException {
            network: network(text),
            not_through: hubs.iter().map(|hub| hub.parse().unwrap()).collect(),
        };
        let expected = [exception("10.77.9.0/26", &["hub-1", "hub-2"]), exception("fd77::/120", &["hub-2"])];
        assert_eq!(of(Role::Cloud), expected);
        assert!(of(Role::Edge).is_empty() && of(Role::Hub).is_empty());
    }
}
