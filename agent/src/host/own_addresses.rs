//! The addresses at which peers may reach this node. They are announced to peers, reported to the
//! controller, and tried as sources when a peer does not answer. This module does no I/O.

use std::net::IpAddr;

use edge_types::network::contains;
use ipnetwork::IpNetwork;

use super::network_state::{Link, NetworkState};
use crate::desired::Desired;

/// Networks that are reached through tunnels or through this node. An address within them is no
/// address at which a peer reaches the node, whichever interface has it.
#[derive(Debug, Clone, Default)]
pub(super) struct InnerNetworks {
    /// Networks of pods: the cluster ranges, this node's segments, the networks on the pods'
    /// bridges, and the networks behind peers in the view.
    pods: Vec<IpNetwork>,
    /// Networks that may contain addresses of nodes: those of the cloud, on hubs and cloud nodes,
    /// and those behind static peers, which may be as large as 10.0.0.0/8.
    with_nodes: Vec<IpNetwork>,
}

impl InnerNetworks {
    /// Returns the inner networks of a desired state. `bridge` is the name of the pods' bridge.
    /// Networks with the prefix length 0 do not count, since they contain every address.
    pub(super) fn of(desired: &Desired, observed: &NetworkState, bridge: &str) -> Self {
        let ranges = desired.guard.cluster_ranges.iter().chain(&desired.hub_routes).copied();
        let mut pods: Vec<IpNetwork> = ranges.chain(observed.pod_networks(bridge)).collect();
        // A hub has ten thousand segments of edges, all of which are within the cluster ranges.
        let of_peers = desired.remote_networks.outside_of_ranges();
        let others = of_peers.iter().chain(&desired.former_networks).chain(&desired.guard.segments);
        let outside: Vec<IpNetwork> =
            others.filter(|network| !pods.iter().any(|range| contains(range, network))).copied().collect();
        pods.extend(outside);
        let with_nodes = desired.guard.networks.iter().chain(&desired.cloud_networks).chain(&desired.static_networks);
        let mut networks = Self { pods, with_nodes: with_nodes.copied().collect() };
        for list in [&mut networks.pods, &mut networks.with_nodes] {
            list.retain(|network| network.prefix() > 0);
        }
        networks
    }

    /// Returns the addresses of a link at which peers may reach this node. The cloud's networks and
    /// those of static peers may contain the node itself, so an address within them counts if the
    /// link has a default route and no other address of that family. A short-lived address counts
    /// if the link has no lasting one of the same scope.
    pub(super) fn node_addresses(&self, link: &Link, default_route: bool) -> Vec<IpAddr> {
        let lasting: Vec<IpAddr> =
            link.addresses.iter().filter(|address| !has_lasting(link, address)).copied().collect();
        self.free_addresses(&lasting, default_route)
    }

    /// Returns all addresses of a link with a default route at which peers may reach this node,
    /// also the short-lived ones.
    pub(super) fn all_addresses(&self, link: &Link) -> Vec<IpAddr> {
        self.free_addresses(&link.addresses, true)
    }

    fn free_addresses(&self, addresses: &[IpAddr], default_route: bool) -> Vec<IpAddr> {
        let outside_of_pods = |address: &IpAddr| !within(&self.pods, *address);
        let free = |address: &IpAddr| outside_of_pods(address) && !within(&self.with_nodes, *address);
        let only = |address: &IpAddr| {
            let of_family = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4();
            default_route && outside_of_pods(address) && !addresses.iter().filter(of_family).any(free)
        };
        addresses.iter().filter(|address| free(address) || only(address)).copied().collect()
    }
}

/// Returns whether a short-lived address has a lasting one of the same scope beside it.
fn has_lasting(link: &Link, address: &IpAddr) -> bool {
    let lasts = |address: &IpAddr| !link.short_lived.contains(address);
    !lasts(address) && link.addresses.iter().any(|other| lasts(other) && scope(other) == scope(address))
}

/// Returns the family of an address, and whether it is a unique local one (RFC 4193), from which no
/// global address can be reached.
fn scope(address: &IpAddr) -> (bool, bool) {
    match address {
        IpAddr::V4(_) => (true, false),
        IpAddr::V6(address) => (false, address.is_unique_local()),
    }
}

/// An own address on a link with a default route, and how good it is as the end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankedAddress {
    /// The address.
    pub address: IpAddr,
    /// Whether it goes away soon, or cannot be used yet.
    pub short_lived: bool,
    /// Smallest metric of the link's default routes of the address's family.
    pub metric: u32,
}

impl RankedAddress {
    /// Returns whether this address is a better end of a tunnel than `other`.
    #[must_use]
    pub fn is_better_than(&self, other: &Self) -> bool {
        self.address.is_ipv4() == other.address.is_ipv4()
            && (self.short_lived, self.metric) < (other.short_lived, other.metric)
    }
}

fn within(networks: &[IpNetwork], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use edge_xfrm::guard::GuardConfig;

    use super::*;
    use crate::desired::RemoteNetworks;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn link(addresses: &[&str]) -> Link {
        Link { addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(), ..Link::default() }
    }

    fn found(desired: &Desired, link: &Link, default_route: bool) -> Vec<String> {
        let networks = InnerNetworks::of(desired, &NetworkState::default(), "ecni0");
        networks.node_addresses(link, default_route).iter().map(IpAddr::to_string).collect()
    }

    fn hub(clouds: &[&str]) -> Desired {
        Desired {
            guard: GuardConfig {
                cluster_ranges: networks(&["10.77.0.0/16", "fd77::/48"]),
                segments: networks(&["10.77.1.0/26"]),
                networks: networks(clouds),
                ..GuardConfig::default()
            },
            remote_networks: RemoteNetworks::new(networks(&["10.77.2.0/26", "172.30.5.0/24"]), &[]),
            ..Desired::default()
        }
    }

    #[test]
    fn addresses_within_the_views_networks_are_no_addresses_of_the_node_on_any_interface() {
        let hub = hub(&["10.244.0.0/16", "fd44::/64"]);
        for default_route in [false, true] {
            // The host's end of a pod of another CNI, or an uplink with further addresses.
            let link = link(&[
                "10.244.1.1",
                "198.51.100.11",
                "fd44::1:1",
                "2001:db8::11",
                "10.77.1.1",
                "fd77::1",
                "172.30.5.1",
            ]);
            assert_eq!(found(&hub, &link, default_route), ["198.51.100.11", "2001:db8::11"]);
        }
        let pods = link(&["10.244.1.1", "fd44::1:1"]);
        assert!(found(&hub, &pods, false).is_empty());
        // A cloud node has no guard, but routes the cluster ranges to a hub.
        let cloud = Desired {
            hub_routes: networks(&["10.77.0.0/16"]),
            cloud_networks: networks(&["10.244.0.0/16", "fd44::/64"]),
            ..Desired::default()
        };
        assert!(found(&cloud, &pods, false).is_empty());
        assert!(found(&cloud, &link(&["10.77.3.1"]), true).is_empty());
        // Before there is a view, no network is known.
        assert_eq!(found(&Desired::default(), &pods, false), ["10.244.1.1", "fd44::1:1"]);
    }

    #[test]
    fn a_node_whose_only_address_is_within_the_clouds_networks_keeps_it() {
        let hub = hub(&["10.0.0.0/16", "fd44::/64"]);
        let uplink = link(&["10.0.1.5", "fd44::5"]);
        assert_eq!(found(&hub, &uplink, true), ["10.0.1.5", "fd44::5"]);
        assert!(found(&hub, &uplink, false).is_empty(), "an interface of pods");
        assert_eq!(found(&hub, &link(&["10.0.1.5", "2001:db8::5"]), true), ["10.0.1.5", "2001:db8::5"]);
        // A virtual address of a service on the uplink is another one.
        assert_eq!(found(&hub, &link(&["10.0.9.9", "192.0.2.5"]), true), ["192.0.2.5"]);
        // No tunnel can be set up to an address within the cluster ranges.
        assert!(found(&hub, &link(&["10.77.200.5"]), true).is_empty());
    }

    #[test]
    fn networks_of_static_peers_leave_the_node_its_address() {
        let with = |texts: &[&str]| Desired { static_networks: networks(texts), ..Desired::default() };
        let uplink = link(&["10.1.2.3", "2001:db8::1"]);
        for all in [with(&["0.0.0.0/0", "::/0"]), with(&["10.0.0.0/8"]), with(&["10.0.0.0/8", "2001:db8::/32"])] {
            assert_eq!(found(&all, &uplink, true), ["10.1.2.3", "2001:db8::1"]);
        }
        assert_eq!(found(&with(&["0.0.0.0/0", "::/0"]), &uplink, false), ["10.1.2.3", "2001:db8::1"]);
        let remote_networks = RemoteNetworks::new(networks(&["0.0.0.0/0"]), &[]);
        let remote_everything = Desired { remote_networks, ..Desired::default() };
        assert_eq!(found(&remote_everything, &uplink, true), ["10.1.2.3", "2001:db8::1"]);
        assert_eq!(found(&with(&["10.0.0.0/8"]), &link(&["10.1.2.3", "192.0.2.5"]), true), ["192.0.2.5"]);
    }

    #[test]
    fn networks_on_the_pods_bridges_count_also_without_a_view() {
        let bridge = Link { name: "ecni0".into(), networks: networks(&["10.9.1.0/24"]), ..link(&["10.9.1.1"]) };
        let observed = NetworkState { links: vec![bridge], ..NetworkState::default() };
        let networks = InnerNetworks::of(&Desired::default(), &observed, "ecni0");
        let uplink = link(&["10.9.1.7", "192.0.2.5"]);
        assert_eq!(networks.node_addresses(&uplink, true), ["192.0.2.5".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_temporary_address_counts_only_where_no_other_one_of_its_scope_is_there() {
        let with = |addresses: &[&str], short_lived: &[&str]| {
            let short_lived = short_lived.iter().map(|text| text.parse().unwrap()).collect();
            found(&Desired::default(), &Link { short_lived, ..link(addresses) }, true)
        };
        let temporary = "2001:db8::aaaa";
        assert_eq!(with(&[temporary, "2001:db8::1", "192.0.2.5"], &[temporary]), ["2001:db8::1", "192.0.2.5"]);
        assert_eq!(with(&[temporary, "192.0.2.5"], &[temporary]), [temporary, "192.0.2.5"]);
        assert_eq!(with(&[temporary, "fd00::1"], &[temporary]), [temporary, "fd00::1"]);
        assert_eq!(with(&[temporary, "fd00::aaaa", "fd00::1"], &[temporary, "fd00::aaaa"]), [temporary, "fd00::1"]);
    }
}
