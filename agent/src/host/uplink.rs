//! Uplinks, their addresses, and the MTU of pods.

use std::net::IpAddr;

use super::Obstacle;
use super::network_state::{Link, NetworkState, Route};
use super::own_addresses::{InnerNetworks, RankedAddress};
use crate::membership::UplinkFacts;
use crate::path_mtu::Encapsulation;
use crate::path_mtu::encapsulation::IPV6_MIN_MTU;
use crate::underlay::Underlay;
use edge_xfrm::guard::DEVICE;

/// Returns the MTU of pods for a link with the MTU `link`, both in bytes.
fn pod_mtu(link: u32) -> u32 {
    Encapsulation::LARGEST.inner(link)
}

/// Returns the uplinks: hardware, VLANs, bonds and similar links, a bridge with one of these links
/// as a port, and each interface with a default route. Interfaces of container runtimes and
/// hypervisors are not uplinks.
pub(super) fn uplinks<'a>(observed: &'a NetworkState, bridge: &str) -> Vec<&'a Link> {
    let hardware = |link: &Link| !link.virtual_kind && !link.veth;
    let carries_default =
        |link: &Link| observed.routes.iter().any(|route| route.is_default() && route.device == Some(link.index));
    let holds_hardware =
        |link: &Link| observed.links.iter().any(|port| port.controller == Some(link.index) && hardware(port));
    let candidate = |link: &&Link| {
        !link.loopback && link.name != bridge && !link.pod_bridge && link.name != DEVICE && link.controller.is_none()
    };
    let wanted = |link: &&Link| hardware(link) || carries_default(link) || holds_hardware(link);
    observed.links.iter().filter(candidate).filter(wanted).collect()
}

/// Returns the links from which a node that was not a router forwards packets only to pods and
/// tunnels: uplinks, tunnels and VPNs, but no links of containers or other CNIs.
pub(super) fn isolated_links<'a>(observed: &'a NetworkState, bridge: &str) -> Vec<&'a Link> {
    let uplinks = uplinks(observed, bridge);
    let ours = |link: &Link| link.name == bridge || link.pod_bridge || link.name == DEVICE;
    let others = |link: &Link| link.loopback || link.bridge || link.veth || link.overlay;
    let leads_outside = |link: &Link| !ours(link) && !others(link) && link.controller.is_none();
    let is_isolated = |link: &&Link| leads_outside(link) || uplinks.iter().any(|uplink| uplink.index == link.index);
    observed.links.iter().filter(is_isolated).collect()
}

/// Returns the node's addresses, the pods' MTU and the underlay. Addresses within inner networks
/// are left out of the node's addresses. `configured_mtu` is in bytes.
pub(super) fn uplink(
    observed: &NetworkState,
    bridge: &str,
    inner: &InnerNetworks,
    configured_mtu: Option<u32>,
) -> UplinkFacts {
    let (uplinks, others) = links_outside(observed, bridge);
    let of_uplinks = uplinks.iter().flat_map(|link| inner.node_addresses(link, true));
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in of_uplinks.chain(others.iter().flat_map(|link| inner.node_addresses(link, false))) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let underlay = underlay(observed, &uplinks, uplinks.iter().chain(&others).copied());
    UplinkFacts { addresses, pod_mtu: configured_mtu.unwrap_or_else(|| fitting_mtu(&uplinks, &others)), underlay }
}

/// Returns the addresses of the links with a default route, with their ranks. Those within inner
/// networks are left out.
pub(super) fn ranked_addresses(observed: &NetworkState, bridge: &str, inner: &InnerNetworks) -> Vec<RankedAddress> {
    let (uplinks, _) = links_outside(observed, bridge);
    let metric = |link: &Link, ipv4: bool| {
        let of_link = |route: &&Route| route.is_default() && route.device == Some(link.index);
        let of_family = |route: &&Route| route.destination.is_ipv4() == ipv4;
        observed.routes.iter().filter(of_link).filter(of_family).map(|route| route.metric).min()
    };
    let rank = |link: &Link, address: IpAddr| {
        let short_lived = link.short_lived.contains(&address);
        Some(RankedAddress { address, short_lived, metric: metric(link, address.is_ipv4())? })
    };
    let of_link = |link: &&Link| {
        let link: &Link = link;
        inner.all_addresses(link).into_iter().filter_map(|address| rank(link, address)).collect::<Vec<_>>()
    };
    uplinks.iter().flat_map(of_link).collect()
}

/// Returns the addresses of this machine that other machines may have as well, such as those of
/// Services, which kube-proxy in IPVS mode gives to each node.
pub(super) fn shared_addresses(observed: &NetworkState) -> Vec<IpAddr> {
    observed.links.iter().filter(|link| link.dummy).flat_map(|link| &link.addresses).copied().collect()
}

/// Returns the links with a default route, and other links that may lead outside of this host. A
/// dummy leads nowhere, even with a default route.
fn links_outside<'a>(observed: &'a NetworkState, bridge: &str) -> (Vec<&'a Link>, Vec<&'a Link>) {
    let carries_default =
        |link: &&Link| observed.routes.iter().any(|route| route.is_default() && route.device == Some(link.index));
    let candidate = |link: &&Link| {
        link.up && !link.loopback && link.name != bridge && !link.pod_bridge && link.name != DEVICE && !link.dummy
    };
    let (uplinks, mut others): (Vec<_>, Vec<_>) = observed.links.iter().filter(candidate).partition(carries_default);
    others.retain(|link| !link.virtual_kind && !link.inner_veth && link.controller.is_none());
    (uplinks, others)
}

/// Returns the largest MTU with which pods' packets fit through the uplink with the smallest MTU,
/// in bytes; 0 without an uplink.
fn fitting_mtu(uplinks: &[&Link], others: &[&Link]) -> u32 {
    smallest_mtu(uplinks, others).map_or(0, |mtu| pod_mtu(mtu).max(IPV6_MIN_MTU.min(mtu)))
}

fn smallest_mtu(uplinks: &[&Link], others: &[&Link]) -> Option<u32> {
    let smallest = uplinks.iter().map(|link| link.mtu).min();
    smallest.or_else(|| others.iter().filter(|link| !link.addresses.is_empty()).map(|link| link.mtu).min())
}

/// Returns the MTU of the uplink with the smallest one if packets of `pod_mtu` may not fit through
/// it with ESP, both in bytes, and pods cannot have a smaller MTU because of IPv6.
pub(super) fn small_uplink(observed: &NetworkState, bridge: &str, pod_mtu: u32) -> Option<u32> {
    let (uplinks, others) = links_outside(observed, bridge);
    smallest_mtu(&uplinks, &others)
        .filter(|mtu| pod_mtu <= IPV6_MIN_MTU && *mtu < Encapsulation::LARGEST.outer(pod_mtu))
}

/// Returns the MTU to which the MSS of TCP connections through tunnels is lowered, in bytes:
/// `pod_mtu`, or what fits through the uplink with the smallest MTU if that is less. Because of
/// IPv6, pods cannot have an MTU below 1280, but their TCP connections can send smaller packets.
pub(super) fn mtu_for_mss(observed: &NetworkState, bridge: &str, pod_mtu: u32) -> u32 {
    let (uplinks, others) = links_outside(observed, bridge);
    smallest_mtu(&uplinks, &others).map_or(pod_mtu, |uplink| self::pod_mtu(uplink).min(pod_mtu))
}

/// Returns an obstacle if the configured MTU of pods is too large for the uplink.
pub(super) fn mtu_obstacle(observed: &NetworkState, bridge: &str, configured: Option<u32>) -> Option<Obstacle> {
    let (uplinks, others) = links_outside(observed, bridge);
    let (configured, fitting) = (configured?, fitting_mtu(&uplinks, &others));
    (fitting > 0 && configured > fitting).then(|| Obstacle {
        what: format!(
            "mtu = {configured} in the configuration is more than the {fitting} that fit through the uplink with ESP: \
             large packets of pods are fragmented or lost"
        ),
        command: format!("set mtu = {fitting} or leave it out, and restart the agent"),
    })
}

/// Returns the underlay, without name servers. The underlay includes addresses within the cluster
/// ranges, since it is compared with these ranges.
fn underlay<'a>(observed: &NetworkState, uplinks: &[&Link], own: impl Iterator<Item = &'a Link>) -> Underlay {
    let defaults = || {
        let mut routes: Vec<&Route> = observed.routes.iter().filter(|route| route.is_default()).collect();
        routes.retain(|route| uplinks.iter().any(|link| Some(link.index) == route.device));
        routes.sort_by_key(|route| route.metric);
        routes
    };
    let device = |ipv4: bool| {
        let route = defaults().into_iter().find(|route| route.destination.is_ipv4() == ipv4)?;
        observed.name_of(route.device?).map(str::to_owned)
    };
    Underlay {
        addresses: own.flat_map(|link| link.addresses.iter().copied()).collect(),
        gateways: defaults().into_iter().filter_map(|route| route.via).collect(),
        resolvers: vec![],
        uplink_v4: device(true),
        uplink_v6: device(false),
    }
}

#[cfg(test)]
mod tests {
    use edge_xfrm::guard::GuardConfig;

    use super::*;
    use crate::desired::Desired;

    /// Returns the inner networks of an edge with these cluster ranges.
    fn inner(ranges: &[&str]) -> InnerNetworks {
        let cluster_ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
        let desired = Desired { guard: GuardConfig { cluster_ranges, ..GuardConfig::default() }, ..Desired::default() };
        InnerNetworks::of(&desired, &NetworkState::default(), "ecni0")
    }

    fn link(index: u32, name: &str, mtu: u32, addresses: &[&str]) -> Link {
        Link {
            index,
            name: name.into(),
            mtu,
            up: true,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Link::default()
        }
    }

    fn default_route(device: u32) -> Route {
        Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            device: Some(device),
            via: None,
            source: None,
            metric: 0,
            protocol: 3,
            message: Box::default(),
        }
    }

    fn host() -> NetworkState {
        NetworkState {
            links: vec![
                link(2, "lan", 9000, &["192.168.5.1"]),
                link(3, "wan", 1500, &["198.51.100.7", "2001:db8::7"]),
                link(4, "ecni0", 1418, &["10.77.1.1"]),
                Link { virtual_kind: true, ..link(5, "docker0", 1500, &["172.17.0.1"]) },
                link(6, DEVICE, 1500, &[]),
            ],
            routes: vec![default_route(3)],
            source_rules: false,
        }
    }

    #[test]
    fn addresses_of_the_default_routes_interface_come_first_and_pods_none() {
        let found = uplink(&host(), "ecni0", &inner(&["10.77.0.0/16"]), None);
        let expected: Vec<IpAddr> =
            ["198.51.100.7", "2001:db8::7", "192.168.5.1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(found.addresses, expected);
    }

    #[test]
    fn addresses_of_services_and_of_other_cnis_devices_are_no_addresses_of_the_node() {
        let mut host = host();
        let before = uplink(&host, "ecni0", &InnerNetworks::default(), None);
        let virtual_link =
            |index, name: &str, address: &str| Link { virtual_kind: true, ..link(index, name, 1500, &[address]) };
        host.links.extend([
            Link { dummy: true, overlay: true, ..virtual_link(11, "kube-ipvs0", "10.96.0.1") },
            Link { dummy: true, overlay: true, ..virtual_link(12, "nodelocaldns", "10.96.0.10") },
            Link { bridge: true, ..virtual_link(13, "cni0", "10.244.1.1") },
            Link { overlay: true, ..virtual_link(14, "flannel.1", "10.244.1.0") },
            Link { veth: true, inner_veth: true, ..link(15, "cilium_host", 1500, &["10.244.2.7"]) },
        ]);
        assert_eq!(uplink(&host, "ecni0", &InnerNetworks::default(), None), before);
        host.routes.push(default_route(11));
        assert_eq!(
            uplink(&host, "ecni0", &InnerNetworks::default(), None).addresses,
            before.addresses,
            "a dummy leads nowhere"
        );
        let shared: Vec<IpAddr> = ["10.96.0.1", "10.96.0.10"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(shared_addresses(&host), shared);
    }

    #[test]
    fn what_a_view_must_not_take_away_is_found_also_within_the_clusters_ranges() {
        let mut observed = host();
        observed.routes[0].via = Some("198.51.100.1".parse().unwrap());
        let found = uplink(&observed, "ecni0", &inner(&["198.51.100.0/24", "10.77.0.0/16"]), None).underlay;
        let expected: Vec<IpAddr> =
            ["198.51.100.7", "2001:db8::7", "192.168.5.1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(found.addresses, expected, "neither our bridge's nor those of other bridges");
        assert_eq!(found.gateways, ["198.51.100.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((found.uplink(true), found.uplink(false)), (Some("wan"), None));
    }

    #[test]
    fn addresses_on_links_with_a_default_route_are_ranked_by_its_metric() {
        let with_metric = |metric, device, destination: &str| Route {
            metric,
            destination: destination.parse().unwrap(),
            ..default_route(device)
        };
        let temporary = "2001:db8::aaaa".parse().unwrap();
        let cable = Link {
            short_lived: vec![temporary],
            ..link(3, "cable", 1500, &["198.51.100.7", "10.77.0.1", "2001:db8::7", "2001:db8::aaaa"])
        };
        let links = vec![cable, link(4, "lte", 1500, &["100.64.0.2"]), link(5, "lan", 1500, &["192.168.1.1"])];
        let routes = vec![
            with_metric(500, 3, "0.0.0.0/0"),
            with_metric(100, 3, "0.0.0.0/0"),
            with_metric(1024, 3, "::/0"),
            with_metric(200, 4, "0.0.0.0/0"),
        ];
        let ranks =
            ranked_addresses(&NetworkState { links, routes, source_rules: false }, "ecni0", &inner(&["10.77.0.0/16"]));
        let expected = [
            ("198.51.100.7", false, 100),
            ("2001:db8::7", false, 1024),
            ("2001:db8::aaaa", true, 1024),
            ("100.64.0.2", false, 200),
        ];
        let rank = |(address, short_lived, metric): (&str, bool, u32)| RankedAddress {
            address: address.parse().unwrap(),
            short_lived,
            metric,
        };
        let [cable, six, temporary, lte] = expected.map(rank);
        assert_eq!(ranks, [cable, six, temporary, lte]);
        assert!(cable.is_better_than(&lte) && !lte.is_better_than(&cable) && !cable.is_better_than(&cable));
        assert!(six.is_better_than(&temporary) && !cable.is_better_than(&temporary), "of one family alone");
    }

    #[test]
    fn pods_packets_with_all_overhead_fit_the_uplink() {
        assert_eq!(uplink(&host(), "ecni0", &InnerNetworks::default(), None).pod_mtu, 1418);
        assert_eq!(uplink(&host(), "ecni0", &InnerNetworks::default(), Some(1300)).pod_mtu, 1300);
    }

    #[test]
    fn an_uplink_through_which_even_the_smallest_packets_of_ipv6_do_not_fit_is_named() {
        let with_uplink = |mtu| {
            let mut host = host();
            host.links[1].mtu = mtu;
            let pod_mtu = uplink(&host, "ecni0", &InnerNetworks::default(), None).pod_mtu;
            (pod_mtu, mtu_for_mss(&host, "ecni0", pod_mtu), small_uplink(&host, "ecni0", pod_mtu))
        };
        assert_eq!(with_uplink(1500), (1418, 1418, None));
        assert_eq!(with_uplink(1364), (1282, 1282, None));
        // TCP connections of pods fit through these uplinks nevertheless.
        assert_eq!(with_uplink(1363), (1280, 1278, Some(1363)));
        assert_eq!(with_uplink(1280), (1280, 1198, Some(1280)));
        let unlimited = mtu_for_mss(&NetworkState::default(), "ecni0", 1400);
        assert_eq!((unlimited, mtu_for_mss(&NetworkState::default(), "ecni0", 0)), (1400, 0));
        let mut host = host();
        host.links[1].mtu = 1400;
        assert_eq!(small_uplink(&host, "ecni0", 1500), None, "a configured MTU that is too large is an obstacle");
        assert_eq!(small_uplink(&NetworkState::default(), "ecni0", 0), None);
    }

    #[test]
    fn uplinks_are_what_leads_outside_and_not_what_container_runtimes_make() {
        let mut host = host();
        host.links.extend([
            Link { veth: true, ..link(7, "veth-pod", 1500, &[]) },
            Link { veth: true, controller: Some(5), ..link(8, "veth-docker", 1500, &[]) },
            Link { virtual_kind: true, bridge: true, ..link(9, "br-lan", 1500, &["192.168.6.1"]) },
            Link { controller: Some(9), ..link(10, "nic", 1500, &[]) },
            Link { virtual_kind: true, ..link(11, "wg0", 1420, &["10.9.0.1"]) },
            Link { loopback: true, ..link(1, "lo", 65536, &[]) },
        ]);
        host.routes.push(default_route(11));
        let names =
            |host: &NetworkState| uplinks(host, "ecni0").iter().map(|link| link.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&host), ["lan", "wan", "br-lan", "wg0"]);
        host.routes.push(default_route(7));
        assert_eq!(names(&host), ["lan", "wan", "veth-pod", "br-lan", "wg0"]);
    }

    #[test]
    fn vpns_and_tunnels_without_a_default_route_are_kept_apart_and_links_of_containers_are_not() {
        let mut host = host();
        let virtual_link = |index, name: &str| Link { virtual_kind: true, ..link(index, name, 1400, &["10.9.0.1"]) };
        host.links.extend([
            virtual_link(11, "wg0"),
            virtual_link(12, "tun0"),
            virtual_link(13, "ppp0"),
            Link { controller: Some(5), ..virtual_link(14, "tap-of-a-machine") },
            Link { bridge: true, ..virtual_link(15, "virbr0") },
            Link { bridge: true, pod_bridge: true, ..virtual_link(16, "ecni1") },
            Link { overlay: true, ..virtual_link(17, "flannel.1") },
            Link { veth: true, ..link(18, "veth-pod", 1500, &[]) },
            Link { loopback: true, ..link(1, "lo", 65536, &[]) },
        ]);
        if let Some(docker) = host.links.iter_mut().find(|link| link.name == "docker0") {
            docker.bridge = true;
        }
        let names = |links: Vec<&Link>| links.iter().map(|link| link.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(isolated_links(&host, "ecni0")), ["lan", "wan", "wg0", "tun0", "ppp0"]);
        // Settings are changed only on uplinks.
        assert_eq!(names(uplinks(&host, "ecni0")), ["lan", "wan"]);
        host.routes.push(default_route(15));
        assert_eq!(names(isolated_links(&host, "ecni0")), ["lan", "wan", "wg0", "tun0", "ppp0", "virbr0"]);
    }

    #[test]
    fn a_configured_mtu_that_does_not_fit_through_the_uplink_is_an_obstacle() {
        let host = host();
        let fitting = uplink(&host, "ecni0", &InnerNetworks::default(), None).pod_mtu;
        assert_eq!(mtu_obstacle(&host, "ecni0", None), None);
        assert_eq!(mtu_obstacle(&host, "ecni0", Some(fitting)), None);
        let obstacle = mtu_obstacle(&host, "ecni0", Some(fitting + 1)).unwrap();
        assert!(obstacle.what.contains(&format!("mtu = {}", fitting + 1)), "{obstacle:?}");
        assert!(obstacle.command.contains(&format!("mtu = {fitting}")), "{obstacle:?}");
        assert_eq!(mtu_obstacle(&NetworkState::default(), "ecni0", Some(9000)), None, "no uplink to judge by");
    }

    #[test]
    fn without_an_uplink_there_is_no_mtu_and_without_a_default_route_any_link_counts() {
        assert_eq!(uplink(&NetworkState::default(), "ecni0", &InnerNetworks::default(), None), UplinkFacts::default());
        let mut island = host();
        island.routes.clear();
        assert_eq!(uplink(&island, "ecni0", &InnerNetworks::default(), None).addresses.len(), 3);
        assert_eq!(uplink(&island, "ecni0", &InnerNetworks::default(), None).pod_mtu, 1418);
    }
}
