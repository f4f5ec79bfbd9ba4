//! The loop that brings the host to its desired state and publishes its observed state.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_xfrm::guard::{self, Defect, GuardConfig};
use futures_util::{FutureExt, Stream, StreamExt};
use ipnetwork::IpNetwork;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::firewall::{Firewall, FirewallLinks};
use super::firewall_reconciler::{BridgeTable, InetTable};
use super::forwarding_monitor::ForwardingMonitor;
use super::host_addresses::HostAddresses;
use super::hub_routes::HubRoutes;
use super::internal_addresses::{self, InternalAddresses};
use super::link_requirements::LinkRequirements;
use super::network_state::NetworkState;
use super::nft_monitor::{NftMonitor, RulesetChanges};
use super::obstacle_reader::ObstacleReader;
use super::obstacles::{Obstacle, PodRequirements};
use super::own_addresses::InnerNetworks;
use super::path_mtu_routes::PathMtuRoutes;
use super::pod_bridge::{PodBridge, bridge_addresses};
use super::reading_pace::{FULL_CHECK, ReadingPace, moves_tunnels};
use super::settings::{HostSettings, SysctlRequirements};
use super::settling::Settling;
use super::tunnel_sources::tunnel_sources;
use super::{HostState, PathMtus, RouteEntry, peer_routes, routes, uplink};
use crate::config::Config;
use crate::desired::{Desired, RoutedNetworks};
use crate::incidents::Incidents;
use crate::membership::UplinkFacts;

/// Delay after a notification about forwarding or a route that no tunnel follows, such as the
/// agent's own, since several notifications often arrive together.
const PAUSE: Duration = Duration::from_millis(60);
/// Delay of the rest of a pass in which addresses have changed, since a route often follows an
/// address, and the rest takes longer than to read both.
const REST_PAUSE: Duration = Duration::from_millis(100);
/// Interval at which the plugin looks for leases of pods that disappeared without a DEL.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(60);
/// Minimum time between two comparisons of the nftables table, while another program keeps changing
/// rules.
const FIREWALL_PAUSE: Duration = Duration::from_millis(700);

/// The desired state, and the part of it that changes seldom.
#[derive(Debug)]
pub struct DesiredReceivers {
    /// The whole state.
    pub whole: watch::Receiver<Arc<Desired>>,
    /// The part on which the routes depend that separate tasks maintain.
    pub routed: watch::Receiver<RoutedNetworks>,
}

/// Keeps routes, bridge, sysctls and firewall of this host in the desired state.
#[derive(Debug)]
pub struct HostReconciler {
    config: Arc<Config>,
    incidents: Incidents,
    desired: watch::Receiver<Arc<Desired>>,
    /// What the tasks that maintain routes follow.
    routed: watch::Receiver<RoutedNetworks>,
    state: watch::Sender<HostState>,
    uplink: watch::Sender<UplinkFacts>,
    /// The addresses that static peers have given this node.
    internal: watch::Receiver<InternalAddresses>,
    /// The path MTUs to peers, for the task that maintains their routes.
    path_mtus: watch::Receiver<PathMtus>,
    handle: Option<Handle>,
    bridge: PodBridge,
    table: InetTable,
    bridge_table: BridgeTable,
    settings: HostSettings,
    obstacles: ObstacleReader,
    /// Whether one of the plugin's tables changed during a pass, so that the pass must be repeated.
    again: bool,
    /// Whether the pass is made only because the desired state has changed.
    only_desired: bool,
    guarded: Option<GuardConfig>,
    guard_failure: Option<String>,
    /// The routes through hubs, as installed by the task that maintains them.
    hub_routes: watch::Receiver<Vec<RouteEntry>>,
    observed: watch::Sender<Arc<NetworkState>>,
    /// When links and routes are read into `observed` again.
    reading: ReadingPace,
    /// How long notifications about them are collected before.
    settling: Settling,
    /// What links and routes were adapted to when `observed` was read.
    adapted_to: Option<LinkRequirements>,
}

impl HostReconciler {
    /// Creates a reconciler, which is not running yet.
    pub fn new(
        config: Arc<Config>,
        incidents: Incidents,
        desired: DesiredReceivers,
        state: watch::Sender<HostState>,
        uplink: watch::Sender<UplinkFacts>,
        internal: watch::Receiver<InternalAddresses>,
        path_mtus: watch::Receiver<PathMtus>,
    ) -> Self {
        Self {
            bridge: PodBridge::new(config.clone(), incidents.clone()),
            settings: HostSettings::new(&config),
            table: InetTable::new(incidents.clone()),
            config,
            incidents,
            desired: desired.whole,
            routed: desired.routed,
            state,
            uplink,
            internal,
            path_mtus,
            handle: None,
            bridge_table: BridgeTable::default(),
            obstacles: ObstacleReader::default(),
            again: false,
            only_desired: false,
            guarded: None,
            guard_failure: None,
            hub_routes: watch::channel(vec![]).1,
            observed: watch::Sender::default(),
            reading: ReadingPace::new(),
            settling: Settling::default(),
            adapted_to: None,
        }
    }

    /// Runs until `stop` is cancelled. Then leaves the host as it is. Fails if netlink sockets
    /// cannot be opened.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        // There are two connections, so that notifications about the agent's own changes are not
        // mistaken for responses.
        let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
        tokio::spawn(connection);
        let (connection, _listener, mut changes) =
            rtnetlink::new_multicast_connection(&groups).context("rtnetlink's notifications")?;
        tokio::spawn(connection);
        let (routes, hub_routes) = watch::channel(vec![]);
        let (connection, own, _) = rtnetlink::new_connection().context("rtnetlink for routes to hubs")?;
        tokio::spawn(connection);
        let keeper = HubRoutes::new(own, self.incidents.clone(), routes);
        let keep = keeper.run(self.routed.clone(), self.observed.subscribe(), stop.clone());
        tokio::spawn(keep.in_current_span());
        self.hub_routes = hub_routes;
        let (connection, own, _) = rtnetlink::new_connection().context("rtnetlink for routes with path MTUs")?;
        tokio::spawn(connection);
        let keeper = PathMtuRoutes::new(own, self.incidents.clone(), self.config.bridge.clone());
        let keep = keeper.run(self.path_mtus.clone(), self.routed.clone(), self.observed.subscribe(), stop.clone());
        tokio::spawn(keep.in_current_span());
        self.handle = Some(handle);
        let mut rules = NftMonitor::open().context("nftables' notifications")?;
        let mut netconf = ForwardingMonitor::open().context("rtnetlink's notifications about forwarding")?;
        let mut full_check = tokio::time::interval(FULL_CHECK);
        full_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reclaim = tokio::time::interval(RECLAIM_INTERVAL);
        reclaim.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.refresh(&mut rules).await {
                self.incidents.error(format!("{error:#}"));
            }
            if self.settling.is_rest_postponed() {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    change = changes.next() => self.collect(change, &mut changes).await?,
                    () = tokio::time::sleep(REST_PAUSE) => {}
                }
                continue;
            }
            if std::mem::take(&mut self.again) {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(FIREWALL_PAUSE) => continue,
                }
            }
            // Changes of routes that do not concern the agent end no iteration until they are due.
            let mut waiting = true;
            while std::mem::take(&mut waiting) {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    outcome = self.desired.changed() => {
                        if outcome.is_err() {
                            return Ok(());
                        }
                        self.only_desired = true;
                    }
                    _ = full_check.tick() => {}
                    _ = reclaim.tick() => self.reclaim_leases().await,
                    change = changes.next() => {
                        self.collect(change, &mut changes).await?;
                        waiting = !self.reading.is_due(tokio::time::Instant::now());
                    }
                    () = self.reading.due() => {}
                    () = netconf.changed() => {
                        tokio::time::sleep(PAUSE).await;
                        netconf.drain();
                    }
                    found = rules.changed() => {
                        self.rules_changed(found);
                        tokio::time::sleep(FIREWALL_PAUSE).await;
                        let found = rules.drain();
                        self.rules_changed(found);
                    }
                    () = self.obstacles.due() => {}
                    Ok(()) = self.hub_routes.changed() => {}
                    Ok(()) = self.internal.changed() => {}
                }
            }
        }
    }

    /// Records a notification from rtnetlink, and those that arrive a short time after it.
    async fn collect<A>(
        &mut self,
        first: Option<(NetlinkMessage<RouteNetlinkMessage>, A)>,
        others: &mut (impl Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, A)> + Unpin),
    ) -> anyhow::Result<()> {
        let (first, _) =
            first.context("rtnetlink's connection ended; without it, changes of routes and links are missed")?;
        self.reading.notified(&first);
        let followed = moves_tunnels(&first);
        let wait = if followed { self.settling.wait(tokio::time::Instant::now()) } else { PAUSE };
        tokio::time::sleep(wait).await;
        while let Some(Some((message, _))) = others.next().now_or_never() {
            self.reading.notified(&message);
        }
        Ok(())
    }

    fn rules_changed(&mut self, found: RulesetChanges) {
        self.table.suspect |= found.ours || found.pods_table;
        if found.bridge {
            self.bridge_table.guess = found.lost && (self.bridge_table.guess || !self.bridge_table.suspect);
            self.bridge_table.suspect = true;
        }
        self.obstacles.suspect |= found.others;
    }

    async fn refresh(&mut self, rules: &mut NftMonitor) -> anyhow::Result<()> {
        let Some(handle) = self.handle.clone() else { return Ok(()) };
        let desired = self.desired.borrow_and_update().clone();
        let given = self.internal.borrow_and_update().clone();
        let requirements = LinkRequirements::of(&desired, &given);
        let only_desired = std::mem::take(&mut self.only_desired);
        let read = self.must_read() || self.adapted_to.as_ref() != Some(&requirements);
        let observed = if read { self.read(&handle, &desired).await? } else { self.observed.borrow().clone() };
        // A change of peers alone requires no other settings. Forwarding waits for the table.
        let read_settings = read || !only_desired || !self.state.borrow().firewall;
        let guarded = requirements.guarded.clone();
        self.adapted_to = Some(requirements);
        let bridge = bridge_addresses(&observed, &self.config.bridge, &desired.guard.segments);
        let inner = InnerNetworks::of(&desired, &observed, &self.config.bridge);
        let mut uplink = uplink::uplink(&observed, &self.config.bridge, &inner, self.config.mtu);
        let addresses = HostAddresses::of(&observed, &self.config.bridge, &inner, &uplink);
        if read && self.settings.are_read() {
            // Tunnels from an address that is gone do not wait for the rest of the pass.
            uplink.underlay.resolvers = self.settings.resolvers().to_vec();
            let moved = self.state.send_if_modified(|state| addresses.replace_those_of(state));
            let moved = publish(&self.uplink, uplink.clone()) || moved;
            if self.settling.may_postpone_rest(moved) {
                self.reading.expire();
                return Ok(());
            }
        }
        self.reconcile_bridge_table(&desired, &observed, rules).await;
        let forward = [true, false].map(|ipv4| {
            let routed = desired.hub_routes.iter().chain(&desired.guard.cluster_ranges);
            routed.chain(&desired.guard.segments).any(|network| network.is_ipv4() == ipv4)
        });
        let guards = !guarded.is_empty() || !desired.tunnels.is_empty();
        if read_settings {
            let needs = SysctlRequirements { forward, guards };
            self.settings.read(&observed, &self.config, needs, &self.incidents);
        }
        uplink.underlay.resolvers = self.settings.resolvers().to_vec();
        if read {
            let sources = internal_addresses::sources(&desired, &observed, &given);
            self.reconcile_guard(&desired, &guarded, &bridge, sources);
            internal_addresses::reconcile(&handle, &observed, &given, &self.incidents).await;
        }
        let mut entries = routes::through_guard(&guarded, &bridge);
        entries.extend(self.hub_routes.borrow_and_update().iter().cloned());
        if read && desired.complete {
            for stray in routes::stray(&observed, &guarded, &desired) {
                match routes::delete(&handle, stray).await {
                    Ok(()) => tracing::info!("deleted the route to {}, which is no longer needed", stray.destination),
                    Err(error) => {
                        self.incidents.error(format!("route to {}: {error}", stray.destination));
                        self.reading.expire();
                    }
                }
            }
        }
        let links = uplink::isolated_links(&observed, &self.config.bridge);
        let names = |bridges: bool| {
            links.iter().filter(move |link| !bridges || link.bridge).map(|link| link.name.clone()).collect()
        };
        let isolated = self.settings.turned_on().map(|ours| if ours { names(false) } else { vec![] });
        let sources = tunnel_sources(&observed, &desired, &bridge);
        let links = FirewallLinks {
            pod_bridges: observed.pod_bridges(&self.config.bridge),
            pod_networks: observed.pod_networks(&self.config.bridge),
            isolated,
            bridges: names(true),
        };
        let mtu = uplink::mtu_for_mss(&observed, &self.config.bridge, uplink.pod_mtu);
        let desired_table = Firewall::desired(&self.config, &desired, sources, links, mtu);
        let mut found = RulesetChanges::default();
        let firewall = self.table.reconcile(desired_table, desired.complete, rules, &mut found).await;
        if read_settings {
            self.settings.forward(&observed, &self.config.bridge, forward, firewall);
        }
        // All earlier changes of the agent's table have been handled.
        self.again |= found.bridge || found.pods_table;
        self.rules_changed(RulesetChanges { ours: false, ..found });
        self.obstacles.update(self.pod_requirements(&desired), &observed).await;
        let mut all_obstacles = self.settings.obstacles().to_vec();
        all_obstacles.extend(self.table.obstacle(self.settings.is_forwarding_missing(forward)));
        all_obstacles.extend(self.bridge.obstacles(&observed));
        all_obstacles.extend(peer_routes::obstacle(&desired));
        all_obstacles.extend(uplink::mtu_obstacle(&observed, &self.config.bridge, self.config.mtu));
        all_obstacles.extend(self.bridge_table.obstacle(&self.bridge.conflist()));
        all_obstacles.extend(self.guard_failure.as_ref().map(|failure| Obstacle {
            what: format!("the guard is not in place ({failure}): pods' packets may leave in clear"),
            command: "modprobe dummy; ip link show ecni-guard; ip xfrm policy".into(),
        }));
        all_obstacles.extend(self.obstacles.found.iter().cloned());

        let mut state = HostState {
            bridge_addresses: bridge,
            pod_mtu: uplink.pod_mtu,
            small_uplink: uplink::small_uplink(&observed, &self.config.bridge, uplink.pod_mtu),
            routes: entries,
            firewall,
            obstacles: all_obstacles,
            ..HostState::default()
        };
        addresses.replace_those_of(&mut state);
        publish(&self.state, state);
        publish(&self.uplink, uplink);
        Ok(())
    }

    /// Returns whether links and routes must be read in this pass, even if the view requires the
    /// same of them. That is the case if they changed, an operation on them failed, or they were
    /// read too long ago.
    fn must_read(&self) -> bool {
        self.reading.is_due(tokio::time::Instant::now()) || self.guard_failure.is_some() || self.bridge.has_failed()
    }

    /// Reads links and routes, creates the bridge if it is missing, and publishes the result.
    async fn read(&mut self, handle: &Handle, desired: &Desired) -> anyhow::Result<Arc<NetworkState>> {
        // A failed operation is repeated in the next pass.
        self.reading.begin();
        let began = tokio::time::Instant::now();
        let observed = NetworkState::read(handle).await?;
        let took = began.elapsed();
        let observed = Arc::new(self.bridge.reconcile(handle, desired, observed).await?);
        self.observed.send_replace(observed.clone());
        self.reading.has_read(observed.routes.len(), took, tokio::time::Instant::now());
        Ok(observed)
    }

    /// Installs the guard's device and routes. The tunnels' driver installs the guard's policies.
    fn reconcile_guard(
        &mut self,
        desired: &Desired,
        guarded: &[IpNetwork],
        bridge: &[IpAddr],
        sources: Vec<(IpNetwork, Option<IpAddr>)>,
    ) {
        self.guard_failure = None;
        if guarded.is_empty() {
            return;
        }
        let config = GuardConfig {
            cluster_ranges: guarded.to_vec(),
            segments: desired.guard.segments.clone(),
            networks: desired.guard.networks.clone(),
            bridge_addresses: bridge.to_vec(),
            sources,
        };
        match guard::install_routes(&config) {
            Ok(defects) if self.guarded.as_ref() == Some(&config) => {
                for defect in defects {
                    match defect {
                        Defect::Occupied(..) => self.incidents.foreign(defect.to_string()),
                        _ => self.incidents.repaired(defect.to_string()),
                    }
                }
            }
            Ok(_) => self.guarded = Some(config),
            Err(error) => {
                self.incidents.error(error.to_string());
                self.guard_failure = Some(error.to_string());
            }
        }
    }

    /// Returns the packets that other programs' rules must accept.
    fn pod_requirements(&self, desired: &Desired) -> PodRequirements {
        let mut ranges: Vec<IpNetwork> =
            desired.hub_routes.iter().chain(&desired.guard.cluster_ranges).copied().collect();
        let outside: Vec<IpNetwork> = desired
            .guard
            .segments
            .iter()
            .filter(|own| !ranges.iter().any(|range| range.contains(own.ip())))
            .copied()
            .collect();
        ranges.extend(outside);
        let clouds = desired.guard.networks.iter().chain(&desired.cloud_networks);
        let mut elsewhere: Vec<IpNetwork> = Vec::new();
        for network in desired.remote_networks.outside_of_ranges().iter().chain(clouds) {
            if !ranges.iter().chain(&elsewhere).any(|known| known.contains(network.ip())) {
                elsewhere.push(*network);
            }
        }
        let accept = self.config.firewall.accept_in_forward;
        PodRequirements { bridge: self.config.bridge.clone(), ranges, elsewhere, accept }
    }

    /// Runs the plugin to restore `bridge edge-cni` if another program removed that table. The
    /// table prevents pods from sending with the addresses of other pods.
    async fn reconcile_bridge_table(&mut self, desired: &Desired, observed: &NetworkState, rules: &mut NftMonitor) {
        let there = observed.link(&self.config.bridge).is_some() && !desired.guard.segments.is_empty();
        if !there || !self.bridge.is_installed() || !self.bridge_table.needs_restore(&self.incidents).await {
            return;
        }
        let made = self.bridge.up().await;
        self.bridge_table.restored(made);
        // The plugin's own changes are not counted.
        let found = rules.drain();
        self.again |= found.bridge;
        self.rules_changed(found);
    }

    /// Runs `edge-cni reclaim`, which releases the leases of pods that disappeared without a DEL,
    /// for example after the container runtime was killed. Logs the names of these pods.
    async fn reclaim_leases(&self) {
        let (plugin, conflist) = (self.bridge.plugin(), self.bridge.conflist());
        if !conflist.exists() || !plugin.exists() {
            return;
        }
        let outcome =
            spawn_blocking(move || Command::new(&plugin).arg("reclaim").arg(&conflist).stdin(Stdio::null()).output());
        let Ok(Ok(output)) = outcome.await else { return };
        let printed = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default();
        if !output.status.success() {
            // Earlier releases of the plugin do not support the command.
            tracing::debug!("edge-cni reclaim: {printed}");
        }
        for lease in printed["reclaimed"].as_array().into_iter().flatten() {
            tracing::info!(
                addresses = %lease["addresses"], pod = %lease["pod"], container = %lease["container"],
                "the pod is gone without a DEL: its lease has ended"
            );
        }
    }
}

/// Publishes a value if it differs from the last one. Returns whether it does.
fn publish<T: PartialEq>(to: &watch::Sender<T>, value: T) -> bool {
    to.send_if_modified(|old| {
        let differs = *old != value;
        *old = value;
        differs
    })
}
