//! What a view requires of links and routes, and the networks that are routed into the guard's
//! device. This module does no I/O.

use edge_types::network::contains;
use edge_xfrm::guard::GuardConfig;
use ipnetwork::IpNetwork;

use super::internal_addresses::InternalAddresses;
use crate::desired::{Desired, HubException};

/// The part of the desired state to which links and routes are adapted. A peer within the cluster's
/// ranges that joins or leaves does not change it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LinkRequirements {
    /// The networks that are routed into the guard's device.
    pub(super) guarded: Vec<IpNetwork>,
    guard: GuardConfig,
    hub_routes: Vec<IpNetwork>,
    hub_exceptions: Vec<HubException>,
    complete: bool,
    /// Whether there is any tunnel, so that policies must not be bypassed.
    tunnels: bool,
    given: InternalAddresses,
}

impl LinkRequirements {
    pub(super) fn of(desired: &Desired, given: &InternalAddresses) -> Self {
        Self {
            guarded: guarded(desired),
            guard: desired.guard.clone(),
            hub_routes: desired.hub_routes.clone(),
            hub_exceptions: desired.hub_exceptions.clone(),
            complete: desired.complete,
            tunnels: !desired.tunnels.is_empty(),
            given: given.clone(),
        }
    }
}

/// Returns the networks that are routed into the guard's device: the cluster ranges, and those
/// networks of peers that lie outside of the ranges.
fn guarded(desired: &Desired) -> Vec<IpNetwork> {
    let ranges = &desired.guard.cluster_ranges;
    let mut networks = ranges.clone();
    let inside = |network: &IpNetwork| ranges.iter().any(|range| contains(range, network));
    networks.extend(desired.remote_networks.outside_of_ranges());
    let others = desired.former_networks.iter().chain(&desired.static_networks);
    networks.extend(others.filter(|network| !inside(network)));
    networks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::RemoteNetworks;

    fn remote_networks(list: &[&str]) -> RemoteNetworks {
        let networks = list.iter().map(|text| text.parse().unwrap()).collect();
        RemoteNetworks::new(networks, &["10.77.0.0/16".parse().unwrap()])
    }

    #[test]
    fn networks_of_a_hub_that_is_gone_are_routed_to_the_guard() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let desired = Desired {
            guard: GuardConfig { cluster_ranges: networks(&["10.77.0.0/16"]), ..GuardConfig::default() },
            remote_networks: remote_networks(&["10.77.2.0/26", "10.244.0.0/16"]),
            former_networks: networks(&["10.96.0.0/12"]),
            ..Desired::default()
        };
        assert_eq!(guarded(&desired), networks(&["10.77.0.0/16", "10.244.0.0/16", "10.96.0.0/12"]));
    }

    #[test]
    fn a_peer_within_the_clusters_ranges_requires_nothing_of_links_and_routes() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let with = |remote: &[&str], own: &str| Desired {
            complete: true,
            guard: GuardConfig {
                cluster_ranges: networks(&["10.77.0.0/16"]),
                segments: networks(&[own]),
                ..GuardConfig::default()
            },
            remote_networks: remote_networks(remote),
            ..Desired::default()
        };
        let none = InternalAddresses::new();
        let before = with(&["10.77.2.0/26", "10.77.3.0/26"], "10.77.1.0/26");
        let of = |remote: &[&str], own: &str| LinkRequirements::of(&with(remote, own), &none);
        assert_eq!(LinkRequirements::of(&before, &none), of(&["10.77.3.0/26"], "10.77.1.0/26"));
        assert_ne!(LinkRequirements::of(&before, &none), of(&["10.77.3.0/26", "10.244.0.0/16"], "10.77.1.0/26"));
        assert_ne!(LinkRequirements::of(&before, &none), of(&["10.77.3.0/26"], "10.77.9.0/26"));
        let incomplete = Desired { complete: false, ..before.clone() };
        assert_ne!(LinkRequirements::of(&before, &none), LinkRequirements::of(&incomplete, &none));
        let routed = Desired { hub_routes: networks(&["10.77.0.0/16"]), ..before.clone() };
        assert_ne!(LinkRequirements::of(&before, &none), LinkRequirements::of(&routed, &none));
        // Without any tunnel, sysctls that turn policies off are left alone.
        let mut with_tunnel = before.clone();
        let peer = crate::desired::tests::peer("edge-1", edge_types::Role::Edge, "192.0.2.1:500", &[], &[]);
        let of_peer = crate::desired::tests::membership(edge_types::Role::Hub, &["10.77.1.0/26"], &[], vec![peer]);
        with_tunnel.tunnels = Desired::compute(&crate::desired::tests::config(""), &[], Some(&of_peer)).tunnels;
        assert_ne!(LinkRequirements::of(&before, &none), LinkRequirements::of(&with_tunnel, &none));
        let given = [(edge_ike::PeerName::new("gateway"), vec!["10.9.0.1".parse().unwrap()])].into();
        assert_ne!(LinkRequirements::of(&before, &none), LinkRequirements::of(&before, &given));
    }
}
