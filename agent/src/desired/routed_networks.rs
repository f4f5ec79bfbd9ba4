//! The part of the desired state on which the routes depend that separate tasks maintain. These
//! tasks do not wake for each of ten thousand peers that changes.

use std::net::SocketAddr;

use edge_types::NodeName;
use ipnetwork::IpNetwork;

/// The networks that are routed through hubs, and the segments whose bridge addresses are sources
/// of routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutedNetworks {
    /// [`Desired::hub_routes`](super::Desired::hub_routes).
    pub hub_routes: Vec<IpNetwork>,
    /// [`Desired::hub_gateways`](super::Desired::hub_gateways).
    pub hub_gateways: Vec<HubGateway>,
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

#[cfg(test)]
mod tests {
    use edge_types::Role;

    use crate::desired::Desired;
    use crate::desired::tests::{config, membership, peer};

    #[test]
    fn an_edge_more_changes_no_route_and_a_hub_more_does() {
        let edge = |name, segment| peer(name, Role::Edge, "192.0.2.7:500", &[segment], &[]);
        let hub = |name, address| peer(name, Role::Hub, address, &[], &["10.244.0.0/16"]);
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
}
