//! The loop that keeps the host as it is wanted, and publishes what it learns.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_types::network::contains;
use edge_xfrm::guard::{self, Defect, GuardConfig};
use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::firewall::{Firewall, Links};
use super::firewall_reconciler::{BridgeTable, Table};
use super::nft_monitor::{Changes, Ruleset};
use super::observed::Observed;
use super::obstacles::{self, Needs, Obstacle};
use super::sysctls::Sysctls;
use super::{HostState, RouteEntry, routes, uplink};
use crate::config::Config;
use crate::desired::Desired;
use crate::incidents::Journal;
use crate::install_cni::CONFLIST;
use crate::membership::Uplink;
use crate::underlay;

/// After the first of several notifications; they come in flocks.
const SETTLE: Duration = Duration::from_millis(60);
/// Routes and sysctls are compared this often besides; nftables never.
const FULL_CHECK: Duration = Duration::from_secs(10);
/// While somebody else changes the firewall all the time, ours is compared no more often than this.
const FIREWALL_PAUSE: Duration = Duration::from_millis(700);
/// And others' rules are read no more often than this.
const OBSTACLES_PAUSE: Duration = Duration::from_secs(5);

/// Keeps the host.
#[derive(Debug)]
pub struct Keeper {
    config: Arc<Config>,
    journal: Journal,
    desired: watch::Receiver<Arc<Desired>>,
    state: watch::Sender<HostState>,
    uplink: watch::Sender<Uplink>,
    handle: Option<Handle>,
    table: Table,
    bridge_table: BridgeTable,
    sysctls: Sysctls,
    obstacles: Obstacles,
    /// The plugin's table was changed while the agent was at work on something else.
    again: bool,
    guarded: Option<GuardConfig>,
    guard_failure: Option<String>,
    hub_routes: Vec<RouteEntry>,
}

impl Keeper {
    /// Prepares one.
    pub fn new(
        config: Arc<Config>,
        journal: Journal,
        desired: watch::Receiver<Arc<Desired>>,
        state: watch::Sender<HostState>,
        uplink: watch::Sender<Uplink>,
    ) -> Self {
        let (table, sysctls) = (Table::new(journal.clone()), Sysctls::new(&config.state_dir, &config.run_dir));
        Self {
            config,
            journal,
            desired,
            state,
            uplink,
            handle: None,
            table,
            bridge_table: BridgeTable::default(),
            sysctls,
            obstacles: Obstacles::default(),
            again: false,
            guarded: None,
            guard_failure: None,
            hub_routes: vec![],
        }
    }

    /// Runs until `stop`. What it made stays.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        // Two connections: notifications of our own changes must not be taken for answers.
        let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink")?;
        tokio::spawn(connection);
        let (connection, _listener, mut changes) =
            rtnetlink::new_multicast_connection(&groups).context("rtnetlink's notifications")?;
        tokio::spawn(connection);
        self.handle = Some(handle);
        let mut rules = Ruleset::open().context("nftables' notifications")?;
        let mut full_check = tokio::time::interval(FULL_CHECK);
        full_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.refresh(&mut rules).await {
                self.journal.error(format!("{error:#}"));
            }
            if std::mem::take(&mut self.again) {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(FIREWALL_PAUSE) => continue,
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.desired.changed() => if outcome.is_err() { return Ok(()) },
                _ = full_check.tick() => {}
                Some(_) = changes.next() => {
                    tokio::time::sleep(SETTLE).await;
                    while let Some(Some(_)) = futures_util::FutureExt::now_or_never(changes.next()) {}
                }
                found = rules.changed() => {
                    self.rules_changed(found);
                    tokio::time::sleep(FIREWALL_PAUSE).await;
                    let found = rules.drain();
                    self.rules_changed(found);
                }
                () = self.obstacles.due() => {}
            }
        }
    }

    fn rules_changed(&mut self, found: Changes) {
        self.table.suspect |= found.ours;
        if found.bridge {
            self.bridge_table.guess = found.lost && (self.bridge_table.guess || !self.bridge_table.suspect);
            self.bridge_table.suspect = true;
        }
        self.obstacles.suspect |= found.others;
    }

    async fn refresh(&mut self, rules: &mut Ruleset) -> anyhow::Result<()> {
        let Some(handle) = self.handle.clone() else { return Ok(()) };
        let desired = self.desired.borrow_and_update().clone();
        let mut observed = Observed::read(&handle).await?;
        if self.bridge_is_wanted(&desired, &observed) && self.make_bridge().await {
            observed = Observed::read(&handle).await?;
        }
        self.keep_bridge_table(&desired, &observed, rules).await;
        let bridge = bridge_addresses(&observed, &self.config.bridge, &desired.guard.segments);
        let guarded = guarded(&desired);
        let mut uplink = uplink::uplink(&observed, &self.config.bridge, &guarded, self.config.mtu);
        uplink.underlay.resolvers = underlay::resolvers_here();

        let forward = [true, false].map(|ipv4| {
            let routed = desired.hub_routes.iter().map(|route| &route.network).chain(&desired.guard.cluster_ranges);
            routed.chain(&desired.guard.segments).any(|network| network.is_ipv4() == ipv4)
        });
        let guards = !guarded.is_empty() || !desired.tunnels.is_empty();
        let settings = self.sysctls.ensure(&observed, &self.config.bridge, forward, guards, &self.journal);
        self.keep_guard(&desired, &guarded, &bridge);
        let mut entries = routes::through_guard(&guarded, &bridge);
        entries.extend(
            routes::to_hubs(&handle, &observed, &desired.hub_routes, &self.journal, &mut self.hub_routes).await,
        );
        if desired.complete {
            for stray in routes::stray(&observed, &guarded, &desired.hub_routes) {
                match routes::delete(&handle, stray).await {
                    Ok(()) => tracing::info!("deleted the route to {}, which is no longer wanted", stray.destination),
                    Err(error) => self.journal.error(format!("route to {}: {error}", stray.destination)),
                }
            }
        }
        let links = uplink::apart(&observed, &self.config.bridge);
        let names = |bridges: bool| {
            links.iter().filter(move |link| !bridges || link.bridge).map(|link| link.name.clone()).collect()
        };
        let apart = settings.ours.map(|ours| if ours { names(false) } else { vec![] });
        let addresses = if desired.hub_routes.is_empty() {
            bridge.clone()
        } else {
            addresses_within(&observed, &desired.cloud_networks)
        };
        let links = Links {
            pod_bridges: observed.pod_bridges(&self.config.bridge),
            pod_networks: observed.pod_networks(&self.config.bridge),
            apart,
            bridges: names(true),
        };
        let wanted = Firewall::wanted(&self.config, &desired, addresses, links, uplink.pod_mtu);
        let mut found = Changes::default();
        let firewall = self.table.keep(wanted, desired.complete, rules, &mut found).await;
        // What happened to our own table until then is dealt with.
        self.again |= found.bridge;
        self.rules_changed(Changes { ours: false, ..found });
        self.obstacles.look(self.needs(&desired), &observed).await;
        let mut in_the_way = settings.obstacles;
        in_the_way.extend(self.table.obstacle());
        in_the_way.extend(self.bridge_table.obstacle(&self.conflist()));
        in_the_way.extend(self.guard_failure.as_ref().map(|failure| Obstacle {
            what: format!("the guard does not stand ({failure}): pods' packets may leave in clear"),
            command: "modprobe dummy; ip link show ecni-guard; ip xfrm policy".into(),
        }));
        in_the_way.extend(self.obstacles.found.iter().cloned());

        let state = HostState {
            local_addresses: observed.links.iter().flat_map(|link| &link.addresses).copied().collect(),
            bridge_addresses: bridge,
            pod_mtu: uplink.pod_mtu,
            routes: entries,
            firewall,
            obstacles: in_the_way,
        };
        self.state.send_if_modified(|old| {
            let differs = *old != state;
            *old = state;
            differs
        });
        self.uplink.send_if_modified(|old| {
            let differs = *old != uplink;
            *old = uplink;
            differs
        });
        Ok(())
    }

    /// Device and routes; its policies are part of the tunnels' set.
    fn keep_guard(&mut self, desired: &Desired, guarded: &[IpNetwork], bridge: &[IpAddr]) {
        self.guard_failure = None;
        if guarded.is_empty() {
            return;
        }
        let config = GuardConfig {
            cluster_ranges: guarded.to_vec(),
            segments: desired.guard.segments.clone(),
            networks: desired.guard.networks.clone(),
            bridge_addresses: bridge.to_vec(),
        };
        match guard::install_routes(&config) {
            Ok(defects) if self.guarded.as_ref() == Some(&config) => {
                for defect in defects {
                    match defect {
                        Defect::Occupied(..) => self.journal.foreign(defect.to_string()),
                        _ => self.journal.repaired(defect.to_string()),
                    }
                }
            }
            Ok(_) => self.guarded = Some(config),
            Err(error) => {
                self.journal.error(error.to_string());
                self.guard_failure = Some(error.to_string());
            }
        }
    }

    /// What pods need of others' rules.
    fn needs(&self, desired: &Desired) -> Needs {
        let ranges =
            desired.hub_routes.iter().map(|route| route.network).chain(desired.guard.cluster_ranges.iter().copied());
        let mut ranges: Vec<IpNetwork> = ranges.collect();
        let outside: Vec<IpNetwork> = desired
            .guard
            .segments
            .iter()
            .filter(|own| !ranges.iter().any(|range| range.contains(own.ip())))
            .copied()
            .collect();
        ranges.extend(outside);
        Needs { bridge: self.config.bridge.clone(), ranges, accept: self.config.firewall.accept_in_forward }
    }

    /// The plugin keeps out pods that pose as others; the agent notices when somebody removes its
    /// table.
    async fn keep_bridge_table(&mut self, desired: &Desired, observed: &Observed, rules: &mut Ruleset) {
        let there = observed.link(&self.config.bridge).is_some() && !desired.guard.segments.is_empty();
        if !there
            || !self.conflist().exists()
            || !self.plugin().exists()
            || !self.bridge_table.is_wanted(&self.journal).await
        {
            return;
        }
        let made = self.make_bridge().await;
        self.bridge_table.asked(made);
        // What the plugin itself did to the table does not count.
        let found = rules.drain();
        self.again |= found.bridge;
        self.rules_changed(found);
    }

    /// After a reboot the bridge is missing until the first pod comes, and with it the source of
    /// the node's own packets.
    fn bridge_is_wanted(&self, desired: &Desired, observed: &Observed) -> bool {
        let segments = &desired.guard.segments;
        !segments.is_empty()
            && desired.complete
            && bridge_addresses(observed, &self.config.bridge, segments).len() < families(segments)
            && self.conflist().exists()
            && self.plugin().exists()
    }

    fn conflist(&self) -> PathBuf {
        self.config.path(&self.config.cni.conf_dir).join(CONFLIST)
    }

    fn plugin(&self) -> PathBuf {
        self.config.cni.bin_dir.join("edge-cni")
    }

    /// `edge-cni up`: the plugin owns the bridge, and makes it as it would for a pod.
    async fn make_bridge(&self) -> bool {
        let (plugin, conflist) = (self.plugin(), self.conflist());
        let outcome =
            spawn_blocking(move || Command::new(&plugin).arg("up").arg(&conflist).stdin(Stdio::null()).output());
        match outcome.await {
            Ok(Ok(output)) if output.status.success() => {
                tracing::info!("bridge {} made", self.config.bridge);
                true
            }
            Ok(Ok(output)) => {
                let said = [output.stdout, output.stderr].concat();
                self.journal.error(format!(
                    "bridge {} cannot be made: edge-cni up: {}",
                    self.config.bridge,
                    String::from_utf8_lossy(&said).trim()
                ));
                false
            }
            Ok(Err(error)) => {
                self.journal.error(format!("edge-cni up: {error}"));
                false
            }
            Err(_) => false,
        }
    }
}

/// Networks that are routed into the guard's device: the ranges, and what else peers have.
fn guarded(desired: &Desired) -> Vec<IpNetwork> {
    let ranges = &desired.guard.cluster_ranges;
    let mut networks = ranges.clone();
    let inside = |network: &IpNetwork| ranges.iter().any(|range| contains(range, network));
    let peers = desired.remote_networks.iter().chain(&desired.former_networks).chain(&desired.static_networks);
    networks.extend(peers.filter(|network| !inside(network)));
    networks
}

/// What was found in others' rules, and when to look again.
#[derive(Debug)]
struct Obstacles {
    found: Vec<Obstacle>,
    /// For whom it was looked, and which interfaces there were: Docker comes with one, and
    /// iptables-legacy tells nothing.
    looked: Option<(Needs, Vec<u32>)>,
    suspect: bool,
    not_before: tokio::time::Instant,
}

impl Default for Obstacles {
    fn default() -> Self {
        Self { found: vec![], looked: None, suspect: true, not_before: tokio::time::Instant::now() }
    }
}

impl Obstacles {
    /// Waits until it is time to look at what has changed.
    async fn due(&self) {
        if self.suspect { tokio::time::sleep_until(self.not_before).await } else { std::future::pending().await }
    }

    async fn look(&mut self, needs: Needs, observed: &Observed) {
        // Not those of pods: they come and go without any rules of others.
        let apart_from_pods = observed.links.iter().filter(|link| !link.veth && link.controller.is_none());
        let circumstances = (needs, apart_from_pods.map(|link| link.index).collect());
        self.suspect |= self.looked.as_ref() != Some(&circumstances);
        if !self.suspect || tokio::time::Instant::now() < self.not_before {
            return;
        }
        self.suspect = false;
        let needs = circumstances.0.clone();
        self.found = spawn_blocking(move || obstacles::look(&needs)).await.unwrap_or_default();
        self.looked = Some(circumstances);
        self.not_before = tokio::time::Instant::now() + OBSTACLES_PAUSE;
    }
}

/// On a cloud node: addresses of its own within the cloud's networks, one a family, under which its
/// processes reach edges.
fn addresses_within(observed: &Observed, networks: &[IpNetwork]) -> Vec<IpAddr> {
    let inside = |address: &&IpAddr| networks.iter().any(|network| network.contains(**address));
    let all = || observed.links.iter().flat_map(|link| &link.addresses).filter(inside);
    [true, false].into_iter().filter_map(|ipv4| all().find(|address| address.is_ipv4() == ipv4).copied()).collect()
}

/// The bridge's addresses within our segments, the first segment's first, one a family.
fn bridge_addresses(observed: &Observed, bridge: &str, segments: &[IpNetwork]) -> Vec<IpAddr> {
    let Some(link) = observed.link(bridge) else { return vec![] };
    let mut found: Vec<IpAddr> = Vec::new();
    for segment in segments {
        if found.iter().any(|address| address.is_ipv4() == segment.is_ipv4()) {
            continue;
        }
        found.extend(link.addresses.iter().find(|address| segment.contains(**address)));
    }
    found
}

fn families(segments: &[IpNetwork]) -> usize {
    usize::from(segments.iter().any(IpNetwork::is_ipv4)) + usize::from(segments.iter().any(IpNetwork::is_ipv6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_a_hub_that_is_gone_are_routed_to_the_guard() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
        let desired = Desired {
            guard: GuardConfig { cluster_ranges: networks(&["10.77.0.0/16"]), ..GuardConfig::default() },
            remote_networks: networks(&["10.77.2.0/26", "10.244.0.0/16"]),
            former_networks: networks(&["10.96.0.0/12"]),
            ..Desired::default()
        };
        assert_eq!(guarded(&desired), networks(&["10.77.0.0/16", "10.244.0.0/16", "10.96.0.0/12"]));
    }
}
