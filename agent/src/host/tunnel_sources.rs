//! Chooses the addresses from which a node's own packets enter tunnels.

use std::net::IpAddr;

use super::network_state::NetworkState;
use crate::desired::Desired;

/// Returns the sources of the node's own traffic and of redirected connections in tunnels, one for
/// each family. These are the bridge's addresses. On hubs without pods of this network and on cloud
/// nodes, the sources are the node's addresses within the cloud's networks.
pub(super) fn tunnel_sources(observed: &NetworkState, desired: &Desired, bridge: &[IpAddr]) -> Vec<IpAddr> {
    let (bridge, fronted) = if desired.hub_routes.is_empty() {
        (bridge, &desired.guard.networks)
    } else {
        (&[][..], &desired.cloud_networks)
    };
    let inside = |address: &&IpAddr| fronted.iter().any(|network| network.contains(**address));
    let within = observed.links.iter().flat_map(|link| &link.addresses).filter(inside);
    let all = || bridge.iter().chain(within.clone());
    [true, false].into_iter().filter_map(|ipv4| all().find(|address| address.is_ipv4() == ipv4).copied()).collect()
}

#[cfg(test)]
mod tests {
    use edge_xfrm::guard::GuardConfig;
    use ipnetwork::IpNetwork;

    use super::super::network_state::Link;
    use super::*;

    #[test]
    fn what_a_hub_sends_into_tunnels_has_its_address_within_the_clouds_networks() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let addresses = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let link = |list: &[&str]| Link { addresses: addresses(list), ..Link::default() };
        let observed = NetworkState {
            links: vec![link(&["198.51.100.11", "2001:db8::11"]), link(&["10.244.1.1", "fd44::1:1"])],
            ..NetworkState::default()
        };
        let clouds = networks(&["10.244.0.0/16", "fd44::/64"]);
        let hub =
            Desired { guard: GuardConfig { networks: clouds.clone(), ..GuardConfig::default() }, ..Desired::default() };
        let sources = |desired: &Desired, bridge: &[&str]| tunnel_sources(&observed, desired, &addresses(bridge));
        assert_eq!(sources(&hub, &[]), addresses(&["10.244.1.1", "fd44::1:1"]));
        assert_eq!(sources(&hub, &["10.77.1.1"]), addresses(&["10.77.1.1", "fd44::1:1"]));
        let cloud = Desired { hub_routes: networks(&["10.77.0.0/16"]), cloud_networks: clouds, ..Desired::default() };
        assert_eq!(sources(&cloud, &["10.77.1.1"]), addresses(&["10.244.1.1", "fd44::1:1"]));
        assert_eq!(sources(&Desired::default(), &["10.77.1.1"]), addresses(&["10.77.1.1"]));
    }
}
