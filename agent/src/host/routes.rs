//! The agent's routes: those of the guard's device, which `edge-xfrm` installs, and a cloud node's
//! routes to the hub.

use std::net::IpAddr;

use edge_xfrm::guard::{DEVICE, ROUTE_PROTOCOL};
use ipnetwork::IpNetwork;
use netlink_packet_route::route::RouteProtocol;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::RouteEntry;
use super::network_state::{NetworkState, Route};
use crate::desired::HubRoute;
use crate::incidents::Incidents;

/// The expected routes through the guard's device, for `status`.
pub(super) fn through_guard(networks: &[IpNetwork], bridge: &[IpAddr]) -> Vec<RouteEntry> {
    networks
        .iter()
        .map(|network| RouteEntry {
            destination: *network,
            device: Some(DEVICE.into()),
            via: None,
            source: bridge.iter().find(|address| address.is_ipv4() == network.is_ipv4()).copied(),
        })
        .collect()
}

/// Routes of ours that are no longer needed.
pub(super) fn stray<'a>(observed: &'a NetworkState, guarded: &[IpNetwork], hubs: &[HubRoute]) -> Vec<&'a Route> {
    let guard = observed.link(DEVICE).map(|link| link.index);
    observed
        .routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL)
        .filter(|route| {
            if route.device.is_some() && route.device == guard {
                !guarded.contains(&route.destination)
            } else {
                !hubs
                    .iter()
                    .any(|hub| hub.network == route.destination && route.via.is_some_and(|via| hub.via.contains(&via)))
            }
        })
        .collect()
}

/// On a cloud node: routes the ranges through the first hub that is a neighbour of this node.
/// Returns the routes that are in place. `known` are those of the last call.
pub(super) async fn reconcile_hub_routes(
    handle: &Handle,
    observed: &NetworkState,
    desired: &[HubRoute],
    incidents: &Incidents,
    known: &mut Vec<RouteEntry>,
) -> Vec<RouteEntry> {
    let mut routes = Vec::new();
    for range in desired {
        let present = observed.routes.iter().find(|route| {
            route.protocol == ROUTE_PROTOCOL
                && route.destination == range.network
                && route.via.is_some_and(|via| range.via.contains(&via))
        });
        let entry = |via, device| RouteEntry { destination: range.network, device, via: Some(via), source: None };
        if let Some(route) = present
            && let Some(via) = route.via
        {
            routes.push(entry(via, route.device.and_then(|index| observed.name_of(index)).map(Into::into)));
            continue;
        }
        if range.via.is_empty() {
            continue;
        }
        let mut refusals = Vec::new();
        let mut done = None;
        for via in &range.via {
            match add(handle, range.network, *via).await {
                Ok(()) => {
                    done = Some(*via);
                    break;
                }
                Err(error) => refusals.push(format!("{via}: {error}")),
            }
        }
        match done {
            Some(via) => {
                if known.iter().any(|route| route.destination == range.network) {
                    incidents.repaired(format!("route to {} through {via} was missing", range.network));
                }
                routes.push(entry(via, None));
            }
            None => incidents.error(format!(
                "{} cannot be routed to a hub: {}; the hub must be on a network of this node",
                range.network,
                refusals.join(", ")
            )),
        }
    }
    known.clone_from(&routes);
    routes
}

async fn add(handle: &Handle, network: IpNetwork, via: IpAddr) -> Result<(), rtnetlink::Error> {
    let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    let message = match (network, via) {
        (IpNetwork::V4(network), IpAddr::V4(via)) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(network.ip(), network.prefix())
            .gateway(via)
            .protocol(protocol)
            .build(),
        (IpNetwork::V6(network), IpAddr::V6(via)) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(network.ip(), network.prefix())
            .gateway(via)
            .protocol(protocol)
            .build(),
        _ => return Err(rtnetlink::Error::RequestFailed),
    };
    handle.route().add(message).execute().await
}

/// Deletes a route as it was read.
pub(super) async fn delete(handle: &Handle, route: &Route) -> Result<(), rtnetlink::Error> {
    handle.route().del((*route.message).clone()).execute().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network_state::Link;

    fn route(destination: &str, device: u32, via: Option<&str>, protocol: u8) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            device: Some(device),
            via: via.map(|text| text.parse().unwrap()),
            source: None,
            metric: 0,
            protocol,
            message: Box::default(),
        }
    }

    #[test]
    fn only_our_own_routes_are_ever_stray() {
        let observed = NetworkState {
            links: vec![Link { index: 5, name: DEVICE.into(), ..Link::default() }],
            routes: vec![
                route("10.77.0.0/16", 5, None, ROUTE_PROTOCOL),
                route("10.99.0.0/16", 5, None, ROUTE_PROTOCOL),
                route("10.98.0.0/16", 2, Some("192.0.2.1"), 3),
                route("10.77.0.0/16", 2, Some("192.0.2.1"), ROUTE_PROTOCOL),
                route("10.77.0.0/16", 2, Some("192.0.2.9"), ROUTE_PROTOCOL),
            ],
        };
        let hubs = [HubRoute { network: "10.77.0.0/16".parse().unwrap(), via: vec!["192.0.2.1".parse().unwrap()] }];
        let stray = stray(&observed, &["10.77.0.0/16".parse().unwrap()], &hubs);
        assert_eq!(stray, [&observed.routes[1], &observed.routes[4]]);
    }
}
