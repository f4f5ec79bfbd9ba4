//! The routes with the path MTU to peers whose path carries only smaller packets than the pods'
//! MTU.
//!
//! Such a route leads to a peer's network over the guard's device, as the guard's own route to the
//! range does, and XFRM chooses the tunnel. The kernel takes the MTU of a packet through a tunnel
//! from the route to the packet's destination, if it is smaller than what fits through the route to
//! the peer (`xfrm_init_pmtu`, `net/xfrm/xfrm_policy.c`). It reports larger packets to their sender
//! as too big, so connections continue. Other peers are not affected.
//!
//! A separate task maintains the routes, because the reconciler runs programs, which may take
//! seconds.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use edge_xfrm::guard::{DEVICE, ROUTE_PROTOCOL};
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PathMtus;
use super::network_state::{NetworkState, Route};
use super::pod_bridge::bridge_addresses;
use super::routes;
use crate::desired::RoutedNetworks;
use crate::incidents::Incidents;

/// The metric of the routes. It is smaller than those of the guard's routes, which may lead to the
/// same network, and larger than those of other programs.
pub(super) const METRIC: u32 = 0x00EB_FFFF;
/// Time for which the routes of an earlier run stay. By then, the paths that carry traffic have
/// been measured again.
const GRACE: Duration = Duration::from_secs(60);

/// Maintains the routes. Their number is at most the number of peers' networks.
#[derive(Debug)]
pub(super) struct PathMtuRoutes {
    handle: Handle,
    incidents: Incidents,
    bridge: String,
    /// Time until which routes of an earlier run stay.
    grace_ends: Instant,
}

/// A route that should exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    network: IpNetwork,
    mtu: u32,
    source: Option<IpAddr>,
}

/// What must change.
#[derive(Debug, PartialEq, Eq)]
struct Changes<'a> {
    replace: Vec<Wanted>,
    delete: Vec<&'a Route>,
}

impl PathMtuRoutes {
    /// Creates the task's state. The connection of `handle` must not be shared. `bridge` is the
    /// name of the pods' bridge.
    pub(super) fn new(handle: Handle, incidents: Incidents, bridge: String) -> Self {
        Self { handle, incidents, bridge, grace_ends: Instant::now() + GRACE }
    }

    /// Runs until `stop` is cancelled and leaves the routes in place. `observed` is the kernel's
    /// state after each change.
    pub(super) async fn run(
        self,
        mut mtus: watch::Receiver<PathMtus>,
        mut desired: watch::Receiver<RoutedNetworks>,
        mut observed: watch::Receiver<Arc<NetworkState>>,
        stop: CancellationToken,
    ) {
        // The first value of the channel is a default, which was not read from the kernel.
        let begun = tokio::select! {
            () = stop.cancelled() => return,
            begun = observed.changed() => begun,
        };
        if begun.is_err() {
            return;
        }
        loop {
            let (wanted, state) = (mtus.borrow_and_update().clone(), observed.borrow_and_update().clone());
            let segments = desired.borrow_and_update().segments.clone();
            self.reconcile(&wanted, &segments, &state).await;
            let in_grace = Instant::now() < self.grace_ends;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = mtus.changed() => if changed.is_err() { return },
                changed = desired.changed() => if changed.is_err() { return },
                changed = observed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(self.grace_ends), if in_grace => {}
            }
        }
    }

    async fn reconcile(&self, mtus: &PathMtus, segments: &[IpNetwork], observed: &NetworkState) {
        let Some(guard) = observed.link(DEVICE).filter(|guard| guard.up) else { return };
        let sources = bridge_addresses(observed, &self.bridge, segments);
        let keep_others = Instant::now() < self.grace_ends;
        let changes = changes(mtus, &sources, guard.index, observed, keep_others);
        for wanted in &changes.replace {
            match replace(&self.handle, wanted, guard.index).await {
                Ok(()) => tracing::debug!("packets to {} may have {} bytes", wanted.network, wanted.mtu),
                Err(error) => {
                    self.incidents.error(format!("the route to {} with MTU {}: {error}", wanted.network, wanted.mtu));
                }
            }
        }
        for route in changes.delete {
            if let Err(error) = routes::delete(&self.handle, route).await {
                self.incidents.error(format!("the route to {} with an MTU: {error}", route.destination));
            }
        }
    }
}

/// Compares the routes in the kernel with those that should exist. `keep_others` keeps routes to
/// networks that are not among `mtus`.
fn changes<'a>(
    mtus: &PathMtus,
    sources: &[IpAddr],
    guard: u32,
    observed: &'a NetworkState,
    keep_others: bool,
) -> Changes<'a> {
    let ours =
        |route: &&Route| route.protocol == ROUTE_PROTOCOL && route.metric == METRIC && route.device == Some(guard);
    let present: HashMap<IpNetwork, &Route> =
        observed.routes.iter().filter(ours).map(|route| (route.destination, route)).collect();
    let wanted = mtus.iter().map(|(network, mtu)| Wanted {
        network: *network,
        mtu: *mtu,
        source: sources.iter().find(|source| source.is_ipv4() == network.is_ipv4()).copied(),
    });
    let stands = |wanted: &Wanted| {
        let route = present.get(&wanted.network);
        route.is_some_and(|route| mtu_of(route) == Some(wanted.mtu) && route.source == wanted.source)
    };
    let replace = wanted.filter(|wanted| !stands(wanted)).collect();
    let stray = |route: &&Route| !keep_others && !mtus.contains_key(&route.destination);
    Changes { replace, delete: present.into_values().filter(stray).collect() }
}

fn mtu_of(route: &Route) -> Option<u32> {
    let metrics = route.message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    })?;
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Adds a route, or replaces the one with the same metric.
async fn replace(handle: &Handle, wanted: &Wanted, device: u32) -> Result<(), rtnetlink::Error> {
    let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    let mut message: RouteMessage = match (wanted.network, wanted.source) {
        (IpNetwork::V4(network), source) => {
            let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network.network(), network.prefix())
                .scope(RouteScope::Link);
            if let Some(IpAddr::V4(source)) = source {
                route = route.pref_source(source);
            }
            route.output_interface(device).priority(METRIC).protocol(protocol).build()
        }
        (IpNetwork::V6(network), source) => {
            let mut route =
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(network.network(), network.prefix());
            if let Some(IpAddr::V6(source)) = source {
                route = route.pref_source(source);
            }
            route.output_interface(device).priority(METRIC).protocol(protocol).build()
        }
    };
    message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(wanted.mtu)]));
    handle.route().add(message).replace().execute().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::network_state::Link;

    fn route(destination: &str, metric: u32, mtu: Option<u32>, source: Option<&str>) -> Route {
        let mut message = RouteMessage::default();
        message.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        Route {
            destination: destination.parse().unwrap(),
            device: Some(5),
            via: None,
            source: source.map(|text| text.parse().unwrap()),
            metric,
            protocol: ROUTE_PROTOCOL,
            message: Box::new(message),
        }
    }

    fn mtus(list: &[(&str, u32)]) -> PathMtus {
        list.iter().map(|(network, mtu)| (network.parse().unwrap(), *mtu)).collect()
    }

    #[test]
    fn only_routes_that_differ_are_replaced_and_only_our_own_deleted() {
        let observed = NetworkState {
            links: vec![Link { index: 5, name: DEVICE.into(), up: true, ..Link::default() }],
            routes: vec![
                route("10.77.1.0/26", METRIC, Some(1300), Some("10.77.0.1")),
                route("10.77.2.0/26", METRIC, Some(1300), Some("10.77.0.1")),
                route("10.77.3.0/26", METRIC, Some(1300), None),
                route("10.77.4.0/26", METRIC, Some(1300), None),
                route("10.77.0.0/16", METRIC + 1, None, Some("10.77.0.1")),
            ],
            ..NetworkState::default()
        };
        let wanted =
            mtus(&[("10.77.1.0/26", 1300), ("10.77.2.0/26", 1340), ("10.77.3.0/26", 1300), ("fd77::/64", 1280)]);
        let sources = ["10.77.0.1".parse().unwrap()];
        let found = changes(&wanted, &sources, 5, &observed, false);
        let replaced: Vec<String> =
            found.replace.iter().map(|wanted| format!("{} {}", wanted.network, wanted.mtu)).collect();
        assert_eq!(replaced, ["10.77.2.0/26 1340", "10.77.3.0/26 1300", "fd77::/64 1280"]);
        assert_eq!(found.delete, [&observed.routes[3]]);
        assert_eq!(found.replace[2].source, None, "the bridge has no IPv6 address");
    }

    #[test]
    fn after_a_restart_the_routes_of_the_earlier_run_stay_for_a_while() {
        let observed =
            NetworkState { routes: vec![route("10.77.1.0/26", METRIC, Some(1300), None)], ..NetworkState::default() };
        assert_eq!(changes(&mtus(&[]), &[], 5, &observed, true), Changes { replace: vec![], delete: vec![] });
        assert_eq!(changes(&mtus(&[]), &[], 5, &observed, false).delete.len(), 1);
    }
}
