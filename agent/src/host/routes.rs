//! The routes through the guard's device, which `edge-xfrm` installs, and the agent's routes that
//! are no longer necessary.

use std::collections::HashSet;
use std::net::IpAddr;

use edge_xfrm::guard::{DEVICE, ROUTE_PROTOCOL};
use ipnetwork::IpNetwork;
use rtnetlink::Handle;

use super::RouteEntry;
use super::network_state::{NetworkState, Route};
use super::path_mtu_routes;
use crate::desired::Desired;

/// `ESRCH`, as a positive number.
const NO_ROUTE: i32 = 3;

/// Returns the expected routes through the guard's device, for `status`.
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

/// Returns the agent's routes that are no longer necessary. A route to a range through the wrong
/// hub is not among them, because `hub_routes` replaces it in place. Neither is a route whose hub
/// the view no longer names, or names without an address of this family, for example while a hub
/// restarts. Without a route, packets to the range would leave unencrypted through the default
/// route. `path_mtu_routes` deletes its routes itself.
pub(super) fn stray<'a>(observed: &'a NetworkState, guarded: &[IpNetwork], desired: &Desired) -> Vec<&'a Route> {
    let guard = observed.link(DEVICE).map(|link| link.index);
    let guarded: HashSet<&IpNetwork> = guarded.iter().collect();
    observed
        .routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL)
        .filter(|route| {
            if route.device.is_some() && route.device == guard {
                route.metric != path_mtu_routes::METRIC && !guarded.contains(&route.destination)
            } else {
                let mut exceptions = desired.hub_exceptions.iter().map(|exception| &exception.network);
                !desired.hub_routes.contains(&route.destination) && !exceptions.any(|net| *net == route.destination)
            }
        })
        .collect()
}

/// Deletes a route that was read from the kernel. Succeeds if the route no longer exists.
pub(super) async fn delete(handle: &Handle, route: &Route) -> Result<(), rtnetlink::Error> {
    match handle.route().del((*route.message).clone()).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code().saturating_neg() == NO_ROUTE => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{HubException, HubGateway};
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
                route("10.97.0.0/16", 2, Some("192.0.2.1"), ROUTE_PROTOCOL),
                route("fd77::/48", 2, Some("2001:db8::1"), ROUTE_PROTOCOL),
                route("10.77.9.0/26", 2, Some("192.0.2.2"), ROUTE_PROTOCOL),
                route("10.77.8.0/26", 2, Some("192.0.2.2"), ROUTE_PROTOCOL),
            ],
            ..NetworkState::default()
        };
        let desired = Desired {
            hub_routes: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()],
            hub_exceptions: vec![HubException {
                network: "10.77.9.0/26".parse().unwrap(),
                not_through: vec!["hub".parse().unwrap()],
            }],
            hub_gateways: vec![HubGateway { hub: "hub".parse().unwrap(), address: "192.0.2.1:4500".parse().unwrap() }],
            ..Desired::default()
        };
        let stray = stray(&observed, &["10.77.0.0/16".parse().unwrap()], &desired);
        assert_eq!(
            stray,
            [&observed.routes[1], &observed.routes[5], &observed.routes[8]],
            "the IPv6 route stays, though no hub has an IPv6 address now"
        );
    }
}
