//! The part of the desired state on which the routes depend that separate tasks maintain. These
//! tasks do not wake for each of ten thousand peers that changes.

use ipnetwork::IpNetwork;

use super::{Desired, HubGateway};

/// The networks that are routed through hubs, and the segments whose bridge addresses are sources
/// of routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutedNetworks {
    /// [`Desired::hub_routes`].
    pub hub_routes: Vec<IpNetwork>,
    /// [`Desired::hub_gateways`].
    pub hub_gateways: Vec<HubGateway>,
    /// This node's segments.
    pub segments: Vec<IpNetwork>,
}

impl RoutedNetworks {
    /// Returns this part of the desired state.
    #[must_use]
    pub fn of(desired: &Desired) -> Self {
        Self {
            hub_routes: desired.hub_routes.clone(),
            hub_gateways: desired.hub_gateways.clone(),
            segments: desired.guard.segments.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_types::Role;

    use crate::desired::tests::{config, membership, peer};

    use super::*;

    #[test]
    fn an_edge_more_changes_no_route_and_a_hub_more_does() {
        let edge = |name, segment| peer(name, Role::Edge, "192.0.2.7:500", &[segment], &[]);
        let hub = |name, address| peer(name, Role::Hub, address, &[], &["10.244.0.0/16"]);
        let of = |role, peers| {
            let membership = membership(role, &["10.77.1.0/26"], &[], peers);
            RoutedNetworks::of(&Desired::compute(&config(""), &[], Some(&membership)))
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
