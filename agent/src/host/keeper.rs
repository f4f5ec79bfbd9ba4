//! The loop that keeps the host as it is wanted, and publishes what it learns.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_xfrm::guard::{self, Defect, GuardConfig};
use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::{Handle, MulticastGroup};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::firewall::{self, Firewall};
use super::observed::Observed;
use super::{HostState, RouteEntry, routes, sysctls, uplink};
use crate::config::Config;
use crate::desired::Desired;
use crate::install_cni::CONFLIST;
use crate::journal::Journal;
use crate::membership::Uplink;

/// After the first of several notifications; they come in flocks.
const SETTLE: Duration = Duration::from_millis(60);
/// Everything is compared this often besides.
const FULL_CHECK: Duration = Duration::from_secs(10);
/// `NFNLGRP_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const NFTABLES_GROUP: u32 = 7;
/// While somebody else changes the firewall all the time, ours is compared no more often than this.
const FIREWALL_PAUSE: Duration = Duration::from_millis(700);

/// Keeps the host.
#[derive(Debug)]
pub struct Keeper {
    config: Arc<Config>,
    journal: Journal,
    desired: watch::Receiver<Arc<Desired>>,
    state: watch::Sender<HostState>,
    uplink: watch::Sender<Uplink>,
    handle: Option<Handle>,
    /// The table as it was applied: what was wanted, and how the kernel then showed it.
    applied: Option<(Firewall, Value)>,
    guarded: Option<GuardConfig>,
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
        Self { config, journal, desired, state, uplink, handle: None, applied: None, guarded: None, hub_routes: vec![] }
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
        let rules = firewall_changes().context("nftables' notifications")?;
        let mut full_check = tokio::time::interval(FULL_CHECK);
        full_check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut check_firewall = true;
        loop {
            if let Err(error) = self.refresh(check_firewall).await {
                self.journal.error(format!("{error:#}"));
            }
            check_firewall = false;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.desired.changed() => if outcome.is_err() { return Ok(()) },
                _ = full_check.tick() => check_firewall = true,
                Some(_) = changes.next() => {
                    tokio::time::sleep(SETTLE).await;
                    while let Some(Some(_)) = futures_util::FutureExt::now_or_never(changes.next()) {}
                }
                () = changed(&rules) => {
                    tokio::time::sleep(FIREWALL_PAUSE).await;
                    check_firewall = true;
                }
            }
        }
    }

    async fn refresh(&mut self, check_firewall: bool) -> anyhow::Result<()> {
        let Some(handle) = self.handle.clone() else { return Ok(()) };
        let desired = self.desired.borrow_and_update().clone();
        let mut observed = Observed::read(&handle).await?;
        if self.bridge_is_wanted(&desired, &observed) && self.make_bridge().await {
            observed = Observed::read(&handle).await?;
        }
        let bridge = bridge_addresses(&observed, &self.config.bridge, &desired.guard.segments);
        let guarded = guarded(&desired);
        let uplink = uplink::uplink(&observed, &self.config.bridge, &guarded, self.config.mtu);

        if !desired.hub_routes.is_empty() || !desired.guard.cluster_ranges.is_empty() {
            sysctls::ensure(&observed, &self.journal);
        }
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
        let firewall = self
            .keep_firewall(wanted_firewall(&desired, &bridge, uplink.pod_mtu), check_firewall, desired.complete)
            .await;

        let state = HostState {
            local_addresses: observed.links.iter().flat_map(|link| &link.addresses).copied().collect(),
            bridge_addresses: bridge,
            pod_mtu: uplink.pod_mtu,
            routes: entries,
            firewall,
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
            Err(error) => self.journal.error(error.to_string()),
        }
    }

    /// Whether the table stands.
    async fn keep_firewall(&mut self, wanted: Firewall, check: bool, complete: bool) -> bool {
        let same = self.applied.as_ref().is_some_and(|(applied, _)| *applied == wanted);
        if wanted.is_empty() {
            if complete && (self.applied.take().is_some() || check) {
                let outcome = spawn_blocking(|| match firewall::read() {
                    Ok(Some(_)) => firewall::remove(),
                    _ => Ok(()),
                });
                self.tell(outcome.await.map_err(Into::into).flatten());
            }
            return false;
        }
        if same {
            if !check {
                return true;
            }
            let found = spawn_blocking(firewall::read).await.map_err(Into::into).flatten();
            match (&found, &self.applied) {
                (Ok(Some(found)), Some((_, applied))) if found == applied => return true,
                (Ok(found), _) => {
                    let how = if found.is_some() { "was changed" } else { "was deleted" };
                    self.journal.repaired(format!("nftables table inet {} {how} by another program", firewall::TABLE));
                }
                (Err(_), _) => {}
            }
            if let Err(error) = found {
                self.tell(Err(error));
            }
        }
        let to_apply = wanted.clone();
        match spawn_blocking(move || to_apply.apply()).await.map_err(Into::into).flatten() {
            Ok(shown) => {
                self.applied = Some((wanted, shown));
                true
            }
            Err(error) => {
                self.applied = None;
                self.tell(Err(error));
                false
            }
        }
    }

    fn tell(&self, outcome: anyhow::Result<()>) {
        if let Err(error) = outcome {
            self.journal.error(format!("{error:#}"));
        }
    }

    /// After a reboot the bridge is missing until the first pod comes, and with it the source of the node's own packets.
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
    let inside = |network: &IpNetwork| {
        ranges.iter().any(|range| range.prefix() <= network.prefix() && range.contains(network.network()))
    };
    let peers = desired.remote_networks.iter().chain(&desired.static_networks);
    networks.extend(peers.filter(|network| !inside(network)));
    networks
}

fn wanted_firewall(desired: &Desired, bridge: &[IpAddr], mtu: u32) -> Firewall {
    if !desired.hub_routes.is_empty() {
        // A cloud node: its pods' sources must reach the hub unchanged.
        let remote = desired.hub_routes.iter().map(|route| route.network).collect();
        return Firewall { local: desired.cloud_networks.clone(), remote, ..Firewall::default() };
    }
    let local = desired.guard.segments.iter().chain(&desired.guard.networks).copied().collect();
    Firewall {
        local,
        remote: desired.remote_networks.clone(),
        ranges: desired.guard.cluster_ranges.clone(),
        bridge: bridge.to_vec(),
        mtu,
    }
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

fn firewall_changes() -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(NFTABLES_GROUP)?;
    Ok(socket)
}

/// Waits for a change of anyone's rules. An overrun is a change, too.
async fn changed(socket: &TokioSocket) {
    if socket.recv_from_full().await.is_err() {
        return;
    }
    while let Some(Ok(_)) = futures_util::FutureExt::now_or_never(socket.recv_from_full()) {}
}
