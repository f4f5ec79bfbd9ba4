//! Chooses the routes of a pod. The default is one default route of each family. A pod that has a
//! default route from another network gets only routes to the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use edge_types::IpNetwork;
use edge_types::network::contains;
use edge_types::shared_files::SegmentsFile;

use crate::cluster_ranges;
use crate::config::Config;
use crate::net::link::DefaultRoute;
use crate::pod_route::PodRoute;
use crate::segment::PodAddress;
use crate::sort::sort_by;

/// `RT_SCOPE_LINK` (`linux/rtnetlink.h`). Routes with this scope or a narrower scope have no
/// gateway.
const SCOPE_LINK: u8 = 253;

/// The routes that a pod already has through other interfaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodsRoutes {
    pub(crate) default: Vec<DefaultRoute>,
    /// Destinations in the main table.
    pub(crate) destinations: Vec<IpNetwork>,
    /// The gateways of the plugin's networks on this host.
    pub(crate) gateways: Vec<IpAddr>,
}

/// Returns the routes for a pod with these addresses, in the order in which they are added.
/// `others` are the routes that the pod already has.
pub(crate) fn of_pod(
    config: &Config,
    segments: &SegmentsFile,
    addresses: &[PodAddress],
    others: &PodsRoutes,
) -> Vec<PodRoute> {
    let mut routes = Vec::new();
    for assigned in addresses {
        let (gateway, ipv4) = (assigned.gateway(), assigned.address.is_ipv4());
        let configured = || config.routes.iter().filter(move |route| route.destination.is_ipv4() == ipv4);
        let mut defaults = others.default.iter().filter(|route| route.main && route.ipv4 == ipv4).peekable();
        let has_default = defaults.peek().is_some();
        // Whether the pod already reaches the cluster through another interface, on a network of
        // the plugin.
        let reaches_cluster =
            defaults.any(|route| route.gateway.is_some_and(|gateway| others.gateways.contains(&gateway)));
        if !configured().any(PodRoute::is_default) && !reaches_cluster {
            if config.is_default_gateway && !has_default {
                routes.push(PodRoute::to(any_network(ipv4), gateway));
            } else {
                let networks = cluster(config, segments);
                let routed = networks.iter().filter(|network| network.is_ipv4() == ipv4);
                // The pod's own segment needs no route, since it is on the pod's link.
                let routed = routed.filter(|network| !contains(&assigned.segment, network));
                // Networks to which the pod already has a route are left out, since another
                // interface may have routes to the cluster instead of a default route.
                let routed = routed.filter(|network| !others.destinations.contains(network));
                routes.extend(routed.map(|network| PodRoute::to(*network, gateway)));
            }
        }
        routes.extend(configured().map(|route| {
            let through_bridge = route.scope.is_none_or(|scope| scope < SCOPE_LINK);
            PodRoute { gateway: route.gateway.or(through_bridge.then_some(gateway)), ..route.clone() }
        }));
    }
    routes
}

/// Returns the network of all addresses of a family.
fn any_network(ipv4: bool) -> IpNetwork {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let address = if ipv4 { V4 } else { V6 };
    // A prefix length of zero is always valid.
    IpNetwork::new(address, 0).unwrap_or_else(|_| address.into())
}

/// Returns the networks that pods reach in the cluster: the cluster ranges, networks of the cloud,
/// and Services. A network that lies within another one is left out.
fn cluster(config: &Config, segments: &SegmentsFile) -> Vec<IpNetwork> {
    let mut networks = cluster_ranges::all(config, Some(segments));
    networks.extend(segments.networks.iter().chain(&segments.hub_networks).chain(&config.service_ranges));
    sort_by(&mut networks, |one, other| (one.network(), one.prefix()) < (other.network(), other.prefix()));
    networks.dedup_by(|network, outer| contains(outer, network));
    networks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::parse_object;
    use crate::version::Version;

    fn addresses() -> Vec<PodAddress> {
        [("10.77.3.2", "10.77.3.0/24"), ("fd77::2", "fd77::/120")]
            .map(|(address, segment)| PodAddress {
                address: address.parse().unwrap(),
                segment: segment.parse().unwrap(),
            })
            .to_vec()
    }

    fn routes(keys: &str, default: &[DefaultRoute]) -> Vec<String> {
        routes_beside(keys, default, &[])
    }

    /// Does the same as [`routes`], for a pod with routes to these destinations.
    fn routes_beside(keys: &str, default: &[DefaultRoute], destinations: &[&str]) -> Vec<String> {
        let text = format!(
            r#"{{"cniVersion":"1.1.0","name":"pods","clusterRanges":["10.77.0.0/16","fd77::/48"],"serviceRanges":["10.96.0.0/12"]{keys}}}"#
        );
        let config = Config::from_object(parse_object(text.as_bytes()).unwrap()).unwrap();
        let segments = json!({
            "version": 1, "source": "agent", "segments": ["10.77.3.0/24", "fd77::/120"],
            "cluster_ranges": ["10.77.0.0/16", "fd77::/48"], "hub_networks": ["10.244.0.0/16", "10.96.0.0/16"],
        });
        let segments = serde_json::from_value(segments).unwrap();
        let others = PodsRoutes {
            default: default.to_vec(),
            destinations: destinations.iter().map(|text| text.parse().unwrap()).collect(),
            gateways: ["10.77.3.1", "fd77::1", "10.78.0.1"].iter().map(|text| text.parse().unwrap()).collect(),
        };
        let routes = of_pod(&config, &segments, &addresses(), &others);
        routes.iter().map(|route| route.to_json(Version::V1_1_0).to_string()).collect()
    }

    fn other(gateway: &str) -> DefaultRoute {
        let gateway: IpAddr = gateway.parse().unwrap();
        DefaultRoute { device: 9, gateway: Some(gateway), main: true, ipv4: gateway.is_ipv4() }
    }

    const DEFAULTS: [&str; 2] = [r#"{"dst":"0.0.0.0/0","gw":"10.77.3.1"}"#, r#"{"dst":"::/0","gw":"fd77::1"}"#];
    const CLUSTER: [&str; 3] = [
        r#"{"dst":"10.77.0.0/16","gw":"10.77.3.1"}"#,
        r#"{"dst":"10.96.0.0/12","gw":"10.77.3.1"}"#,
        r#"{"dst":"10.244.0.0/16","gw":"10.77.3.1"}"#,
    ];
    const CLUSTER_V6: &str = r#"{"dst":"fd77::/48","gw":"fd77::1"}"#;

    #[test]
    fn a_pod_with_a_default_route_of_another_network_gets_routes_to_the_cluster() {
        assert_eq!(routes("", &[]), DEFAULTS);
        assert_eq!(routes("", &[other("192.0.2.1")]), [&CLUSTER[..], &DEFAULTS[1..]].concat());
        assert_eq!(routes("", &[other("10.77.3.1")]), DEFAULTS[1..], "the first interface is on this network");
        assert_eq!(
            routes("", &[other("10.78.0.1")]),
            DEFAULTS[1..],
            "the first interface is on another network of ours"
        );
        let beside = routes_beside(r#","isDefaultGateway":false"#, &[], &["10.77.0.0/16", "10.244.0.0/16"]);
        assert_eq!(beside, [CLUSTER[1], CLUSTER_V6]);
        assert_eq!(routes(r#","isDefaultGateway":false"#, &[]), [&CLUSTER[..], &[CLUSTER_V6]].concat());
    }

    #[test]
    fn routes_of_the_configuration_go_through_the_bridge_or_their_own_gateway() {
        let keys = r#","routes":[{"dst":"192.0.2.0/24","mtu":1300,"advmss":1200,"priority":5,"table":100,"scope":0},
            {"dst":"198.51.100.0/24","gw":"10.77.3.9"},{"dst":"203.0.113.0/24","scope":253},{"dst":"::/0","gw":"fd77::9"}]"#;
        assert_eq!(
            routes(keys, &[]),
            [
                DEFAULTS[0],
                r#"{"advmss":1200,"dst":"192.0.2.0/24","gw":"10.77.3.1","mtu":1300,"priority":5,"scope":0,"table":100}"#,
                r#"{"dst":"198.51.100.0/24","gw":"10.77.3.9"}"#,
                r#"{"dst":"203.0.113.0/24","scope":253}"#,
                r#"{"dst":"::/0","gw":"fd77::9"}"#,
            ]
        );
    }
}
