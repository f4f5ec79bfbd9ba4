//! Routes the cluster ranges through a working hub, on a cloud node.
//!
//! - [`hub_choice`]: chooses the hub. It does no I/O.
//! - [`neighbours`]: checks the kernel's neighbour entries, which show whether a hub's machine
//!   answers.
//! - [`agent_probes`]: sends IKE probes, which show whether a hub's agent works.
//!
//! A separate task maintains the routes, because the reconciler runs programs, which may take
//! seconds.

mod agent_probes;
mod hub_choice;
mod neighbours;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use edge_types::NodeName;
use edge_xfrm::guard::ROUTE_PROTOCOL;
use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::agent_probes::AgentProbes;
use self::hub_choice::{Health, HubChoice, ProbeResults, ROUND};
use self::neighbours::Neighbour;
use super::RouteEntry;
use super::network_state::{NetworkState, Route};
use crate::desired::{HubGateway, RoutedNetworks};
use crate::incidents::Incidents;

/// The kernel's default metric of an IPv6 route.
const DEFAULT_IPV6_METRIC: u32 = 1024;

/// Maintains the routes through hubs.
#[derive(Debug)]
pub(super) struct HubRoutes {
    handle: Handle,
    incidents: Incidents,
    routes: watch::Sender<Vec<RouteEntry>>,
    desired: RoutedNetworks,
    observed: Arc<NetworkState>,
    hub_choice: HubChoice,
    probes: AgentProbes,
    /// The gateways in use, at most one for each family.
    in_use: Vec<HubGateway>,
    /// The gateways of networks within the ranges that are not reached through some hubs.
    exceptions: BTreeMap<IpNetwork, HubGateway>,
    /// Gateways whose neighbour entries were probed in the last round.
    probed_neighbours: Vec<HubGateway>,
    /// Gateways whose agents have never answered, and for which this was already logged.
    named_mute: Vec<HubGateway>,
}

impl HubRoutes {
    /// Creates the task's state. The task sends the routes that are in place to `routes`. The
    /// connection of `handle` must not be shared: the kernel answers only one dump at a time on
    /// each connection (`EBUSY`).
    pub(super) fn new(handle: Handle, incidents: Incidents, routes: watch::Sender<Vec<RouteEntry>>) -> Self {
        Self {
            handle,
            incidents,
            routes,
            desired: RoutedNetworks::default(),
            observed: Arc::default(),
            hub_choice: HubChoice::default(),
            probes: AgentProbes::new(),
            in_use: vec![],
            exceptions: BTreeMap::new(),
            probed_neighbours: vec![],
            named_mute: vec![],
        }
    }

    /// Runs until `stop` is cancelled and leaves the routes in place. `observed` is the kernel's
    /// state after each change.
    pub(super) async fn run(
        mut self,
        mut desired: watch::Receiver<RoutedNetworks>,
        mut observed: watch::Receiver<Arc<NetworkState>>,
        stop: CancellationToken,
    ) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first value of the channel is a default, which was not read from the kernel.
        let begun = tokio::select! {
            () = stop.cancelled() => return,
            begun = observed.changed() => begun,
        };
        if begun.is_err() {
            return;
        }
        loop {
            self.desired = desired.borrow_and_update().clone();
            self.observed = observed.borrow_and_update().clone();
            self.update_gateways();
            self.choose();
            self.reconcile().await;
            loop {
                let watches = !self.hub_choice.probed().is_empty();
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = desired.changed() => if changed.is_err() { return } else { break },
                    changed = observed.changed() => if changed.is_err() { return } else { break },
                    _ = round.tick(), if watches => {
                        self.round().await;
                        if self.choose() {
                            self.reconcile().await;
                        }
                    }
                }
            }
        }
    }

    /// Uses the hubs in the view that are neighbours of this node as gateways.
    fn update_gateways(&mut self) {
        let gateways: Vec<HubGateway> = self
            .desired
            .hub_gateways
            .iter()
            .filter(|gateway| self.observed.link_of_neighbour(gateway.address.ip()).is_some())
            .cloned()
            .collect();
        self.in_use.retain(|gateway| gateways.contains(gateway));
        for ipv4 in [true, false] {
            // Looks for the route of an earlier run of the agent.
            if self.in_use(ipv4).is_none() {
                let through = |gateway: &&HubGateway| {
                    let own = |network: &IpNetwork| self.own_route(&self.observed, *network);
                    let mut routes = self.desired.hub_routes.iter().filter_map(own);
                    gateway.address.is_ipv4() == ipv4 && routes.any(|route| route.via == Some(gateway.address.ip()))
                };
                let found = gateways.iter().find(through).cloned();
                self.in_use.extend(found);
            }
        }
        self.hub_choice.set(gateways, &self.in_use, Instant::now());
        let probed: Vec<SocketAddr> = self.hub_choice.probed().iter().map(|gateway| gateway.address).collect();
        self.probes.retain(&probed);
    }

    /// Reads the answers to the last probes and sends the next probes.
    async fn round(&mut self) {
        let probed = std::mem::take(&mut self.probed_neighbours);
        for gateway in self.hub_choice.probed() {
            let address = gateway.address.ip();
            let Some(link) = self.observed.link_of_neighbour(address) else { continue };
            let known = match neighbours::read(&self.handle, link, address).await {
                Ok(known) => known,
                Err(error) => {
                    self.incidents.error(format!("neighbour entry of hub {} ({address}): {error}", gateway.hub));
                    // The hub does not count as unreachable because of an error while reading its
                    // entry.
                    Neighbour::Fixed
                }
            };
            let results = ProbeResults {
                // An entry stays reachable for half a minute without an answer (base_reachable_time
                // in Documentation/networking/ip-sysctl.rst). Only a probe since the last round
                // shows that the machine is alive now.
                neighbour: match known {
                    Neighbour::Confirmed => probed.contains(&gateway),
                    Neighbour::Fixed => true,
                    Neighbour::Asked | Neighbour::Unknown => false,
                },
                agent: self.probes.answer(gateway.address),
            };
            let due = self.hub_choice.round(&gateway, results, Instant::now());
            if due.neighbour {
                match neighbours::ask(&self.handle, link, address, known).await {
                    Ok(()) => self.probed_neighbours.push(gateway.clone()),
                    Err(error) => {
                        tracing::debug!(hub = %gateway.hub, %address, %error, "the kernel does not probe the neighbour");
                    }
                }
            }
            if due.agent
                && let Err(error) = self.probes.send(gateway.address)
            {
                tracing::debug!(hub = %gateway.hub, address = %gateway.address, %error, "the IKE probe cannot be sent");
            }
            self.log_mute_gateway(&gateway);
        }
    }

    fn log_mute_gateway(&mut self, gateway: &HubGateway) {
        let health = self.hub_choice.health(gateway, Instant::now());
        if matches!(health, Some(Health::Mute | Health::ReturnedMute)) && !self.named_mute.contains(gateway) {
            self.named_mute.retain(|named| self.desired.hub_gateways.contains(named));
            self.named_mute.push(gateway.clone());
            tracing::warn!(
                "hub {} does not answer IKE at {}: it is used as long as its machine answers and no hub's agent does; \
                 let UDP port {} pass between this node and the hub",
                gateway.hub,
                gateway.address,
                gateway.address.port()
            );
        }
    }

    fn in_use(&self, ipv4: bool) -> Option<&HubGateway> {
        self.in_use.iter().find(|gateway| gateway.address.is_ipv4() == ipv4)
    }

    /// Returns the gateway through which a network is routed.
    fn gateway_of(&self, network: &IpNetwork) -> Option<&HubGateway> {
        self.exceptions.get(network).or_else(|| self.in_use(network.is_ipv4()))
    }

    /// Returns the networks that are routed: the ranges, and the exceptions within them.
    fn networks(&self) -> impl Iterator<Item = &IpNetwork> {
        self.desired.hub_routes.iter().chain(self.exceptions.keys())
    }

    /// Returns the hubs that too many edges do not reach for a list of their networks. The others
    /// are used for all networks, so that most edges are reached.
    fn avoided(&self, ipv4: bool) -> Vec<NodeName> {
        let exceptions = self.desired.hub_exceptions.iter();
        let of_ranges = exceptions.filter(|exception| {
            exception.network.is_ipv4() == ipv4 && self.desired.hub_routes.contains(&exception.network)
        });
        of_ranges.flat_map(|exception| &exception.not_through).cloned().collect()
    }

    /// Chooses the gateways. Returns whether one has changed.
    fn choose(&mut self) -> bool {
        let ranges = self.choose_for_ranges();
        let now = Instant::now();
        let exceptions = self.desired.hub_exceptions.iter();
        let within = exceptions.filter(|exception| !self.desired.hub_routes.contains(&exception.network));
        let [avoided_v4, avoided_v6] = [true, false].map(|ipv4| self.avoided(ipv4));
        let chosen: BTreeMap<IpNetwork, HubGateway> = within
            .filter_map(|exception| {
                let ipv4 = exception.network.is_ipv4();
                // An edge may also be one of the many that do not reach an avoided hub.
                let avoided = if ipv4 { &avoided_v4 } else { &avoided_v6 };
                let mut not_through = [&exception.not_through[..], avoided].concat();
                if !self.hub_choice.is_any_alive_beside(ipv4, &not_through, now) {
                    not_through.truncate(exception.not_through.len());
                }
                let gateway = self.hub_choice.choose(ipv4, &not_through, self.in_use(ipv4), now)?;
                Some((exception.network, gateway.clone()))
            })
            .collect();
        let changed = chosen != self.exceptions;
        if changed {
            tracing::info!(networks = chosen.len(), "routes to edges that do not reach every hub have changed");
        }
        self.exceptions = chosen;
        ranges || changed
    }

    fn choose_for_ranges(&mut self) -> bool {
        let mut changed = false;
        for ipv4 in [true, false] {
            let now = Instant::now();
            let before = self.in_use(ipv4).cloned();
            let avoided = self.avoided(ipv4);
            let chosen = self.hub_choice.choose(ipv4, &avoided, before.as_ref(), now);
            let Some(chosen) = chosen.cloned() else { continue };
            if before.as_ref() == Some(&chosen) {
                continue;
            }
            changed = true;
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            let HubGateway { hub, address } = &chosen;
            match before {
                Some(before) => tracing::warn!(
                    "{family} to edges goes through hub {hub} ({}) now, and no longer through {} ({}), {}",
                    address.ip(),
                    before.hub,
                    before.address.ip(),
                    match self.hub_choice.health(&before, now) {
                        Some(Health::MachineGone) => "which does not answer",
                        Some(Health::AgentGone) => "which no longer answers IKE",
                        Some(Health::Mute | Health::ReturnedMute) => "which has never answered IKE",
                        _ if avoided.contains(&before.hub) => "which many edges do not reach",
                        _ => "which comes after it",
                    }
                ),
                None => tracing::info!("{family} to edges goes through hub {hub} ({})", address.ip()),
            }
            self.in_use.retain(|gateway| gateway.address.is_ipv4() != ipv4);
            self.in_use.push(chosen);
        }
        changed
    }

    /// Routes the ranges through the gateways in use.
    async fn reconcile(&mut self) {
        for network in self.networks().filter(|network| self.gateway_of(network).is_none()) {
            self.say_unreachable(network);
        }
        let mut installed = Vec::new();
        if !self.is_in_place() {
            // The received state may be older than the last change made here.
            match NetworkState::read(&self.handle).await {
                Ok(observed) => self.observed = Arc::new(observed),
                // The received state is used instead, because the routes must be moved away from a
                // dead hub in any case.
                Err(error) => tracing::debug!("the kernel's state cannot be read: {error:#}"),
            }
            installed = self.install().await;
        }
        let installed = |network: &IpNetwork| installed.iter().find(|entry| entry.destination == *network).cloned();
        let entry = |network: &IpNetwork| self.entry(*network).or_else(|| installed(network));
        let routes: Vec<RouteEntry> = self.networks().filter_map(entry).collect();
        self.routes.send_if_modified(|old| {
            let differs = *old != routes;
            *old = routes;
            differs
        });
    }

    /// Returns the route to a range, if it leads through the gateway in use.
    fn entry(&self, network: IpNetwork) -> Option<RouteEntry> {
        let via = self.gateway_of(&network)?.address.ip();
        let route = self.own_route(&self.observed, network).filter(|route| route.via == Some(via))?;
        let device = route.device.and_then(|index| self.observed.name_of(index)).map(Into::into);
        Some(RouteEntry { destination: network, device, via: Some(via), source: None })
    }

    /// Returns the agent's route to a range through any address of a hub.
    fn own_route<'a>(&self, observed: &'a NetworkState, network: IpNetwork) -> Option<&'a Route> {
        let through_hub = |via| self.desired.hub_gateways.iter().any(|gateway| gateway.address.ip() == via);
        observed.routes.iter().find(|route| {
            route.protocol == ROUTE_PROTOCOL && route.destination == network && route.via.is_some_and(through_hub)
        })
    }

    /// Returns whether every network that has a gateway is routed through it.
    fn is_in_place(&self) -> bool {
        let mut routed = self.networks().filter(|network| self.gateway_of(network).is_some());
        routed.all(|network| self.entry(*network).is_some())
    }

    /// Installs the routes that are missing or lead through another gateway. Returns the installed
    /// routes.
    async fn install(&self) -> Vec<RouteEntry> {
        let mut installed = Vec::new();
        for network in self.networks() {
            let Some(gateway) = self.gateway_of(network) else { continue };
            let via = gateway.address.ip();
            let present = self.own_route(&self.observed, *network);
            if present.is_some_and(|route| route.via == Some(via)) {
                continue;
            }
            if present.is_none()
                && let Some(foreign) = self.observed.routes.iter().find(|route| occupies(route, *network))
            {
                let through = foreign.via.map(|via| format!(" through {via}")).unwrap_or_default();
                self.incidents.foreign(format!(
                    "another program (route protocol {}) routes {network}{through}, so it does not lead to edges: delete that route",
                    foreign.protocol
                ));
                continue;
            }
            let was_known = self.routes.borrow().iter().any(|route| route.destination == *network);
            match replace(&self.handle, *network, via).await {
                Ok(()) => {
                    if present.is_none() && was_known {
                        self.incidents.repaired(format!("route to {network} through {via} was missing"));
                    }
                    installed.push(RouteEntry { destination: *network, device: None, via: Some(via), source: None });
                }
                Err(error) => {
                    self.incidents.error(format!("{network} cannot be routed to hub {} ({via}): {error}", gateway.hub));
                }
            }
        }
        installed
    }

    /// Logs that a range is unreachable. Logs nothing in a family in which no hub has an address.
    fn say_unreachable(&self, network: &IpNetwork) {
        let hubs = self.desired.hub_gateways.iter().filter(|gateway| same_family(gateway, network));
        let hubs: Vec<String> = hubs.map(|gateway| format!("{} ({})", gateway.hub, gateway.address.ip())).collect();
        if !hubs.is_empty() {
            self.incidents.error(format!(
                "{network} cannot be routed to a hub: {} must be on a network of this node",
                hubs.join(" or ")
            ));
        }
    }
}

fn same_family(gateway: &HubGateway, network: &IpNetwork) -> bool {
    gateway.address.is_ipv4() == network.is_ipv4()
}

/// Returns whether another program's route has the same destination and metric as the agent's route
/// would have, so that the kernel would replace the other program's route.
fn occupies(route: &Route, network: IpNetwork) -> bool {
    let metric = if network.is_ipv4() { 0 } else { DEFAULT_IPV6_METRIC };
    route.destination == network && route.metric == metric && route.protocol != ROUTE_PROTOCOL
}

/// Adds a route, or replaces a route to the same network in place, so that a route exists at every
/// moment (`NLM_F_REPLACE`).
async fn replace(handle: &Handle, network: IpNetwork, via: IpAddr) -> Result<(), rtnetlink::Error> {
    let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    let message: RouteMessage = match (network, via) {
        (IpNetwork::V4(network), IpAddr::V4(via)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.ip(), network.prefix())
            .gateway(via)
            .protocol(protocol)
            .build(),
        (IpNetwork::V6(network), IpAddr::V6(via)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(network.ip(), network.prefix())
            .gateway(via)
            .protocol(protocol)
            .build(),
        _ => return Err(rtnetlink::Error::RequestFailed),
    };
    handle.route().add(message).replace().execute().await
}

#[cfg(test)]
mod tests;
