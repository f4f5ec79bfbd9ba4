//! The event loop around the IKE endpoint.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_ike::{ChildId, Endpoint, EndpointConfig, Instant, PeerName, TcpConnectionId};
use edge_types::api::TunnelCount;
use edge_types::traffic::TunnelTraffic;
use edge_xfrm::events::{EspEvent, EspEventSocket, EventSocket};
use edge_xfrm::{SaDirection, Xfrm};
use ring::rand::SystemRandom;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::better_uplinks::BetterUplinks;
use super::capture::{RunningCapture, reader_gone};
use super::datagram_socket::{self, Socket};
use super::deferred_switch::DeferredSwitch;
use super::enforced_revocations::EnforcedRevocations;
use super::environment::KernelEnvironment;
use super::event_log::EventLog;
use super::event_sources::{Received, esp_events, open_esp_events, read, read_events};
use super::failure_log::FailureLog;
use super::former_policies::FormerPolicies;
use super::hand_over::HandOver;
use super::hub_returns::HubReturns;
use super::idle_tunnels::IdleTunnels;
use super::ike_counts::IkeCounts;
use super::ike_sockets::{self, IkeSockets};
use super::internal_address_store::InternalAddressStore;
use super::kernel_policies::KernelPolicies;
use super::kernel_refusals::KernelRefusals;
use super::path_mtu_probes::PathMtuProbes;
use super::policy_hash;
use super::refusals::Refusals;
use super::relays::Relays;
use super::reqids::Reqids;
use super::requests::DriverRequest;
use super::route_retry::RouteRetry;
use super::sa_params::is_in_tcp;
use super::sa_table::SaTable;
use super::source_ports::OtherPorts;
use super::tcp::Tcp;
use super::traffic::TrafficCounter;
use super::unreached_hubs::{TunnelsToController, UnreachedHubs};
use crate::clock::{CertificateClock, boot_time};
use crate::config::Config;
use crate::desired::Desired;
use crate::host::{HostState, InternalAddresses, TunnelsToHost};
use crate::incidents::Incidents;
use crate::source_address::is_local;
use crate::status::SocketHolding;

/// Interval at which the number of tunnels is reported.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of datagrams that wait for the endpoint. Further datagrams are dropped, as in a
/// congested network.
const DATAGRAM_QUEUE: usize = 256;
/// Maximum number of datagrams that are handled before responses are sent and other events are
/// handled.
const DATAGRAM_BATCH: usize = 16;
/// The payload of a NAT keepalive (RFC 3948 2.3).
const NAT_KEEPALIVE: [u8; 1] = [0xff];

/// Owns the IKE endpoint, the sockets and XFRM.
#[derive(Debug)]
pub struct Driver {
    pub(super) endpoint: Endpoint,
    pub(super) environment: KernelEnvironment,
    pub(super) sas: SaTable,
    pub(super) desired: Arc<Desired>,
    /// Policies that the kernel should have.
    pub(super) policies: KernelPolicies,
    /// Policies of an earlier run, until a complete desired state has been applied.
    pub(super) former_policies: FormerPolicies,
    /// Peers whose policies must be computed again, since their tunnels changed.
    pub(super) changed_peers: BTreeSet<PeerName>,
    /// The time of the next comparison of all policies and SAs with the kernel. Notifications from
    /// the kernel cause further comparisons.
    pub(super) check_at: tokio::time::Instant,
    /// Number of peers in the view to which a tunnel should be up.
    pub(super) wanted_from_view: usize,
    /// Peers in the view to which a CHILD_SA sends.
    pub(super) up_from_view: HashSet<PeerName>,
    /// The bytes that the tunnels have carried.
    pub(super) traffic: TrafficCounter,
    /// When to look for a route again, if a tunnel's local address has been removed and there is no
    /// route yet.
    pub(super) route_retry: RouteRetry,
    /// Whether to make another attempt to reach the unreached peers after the pending events,
    /// because a hub came up.
    pub(super) retry_unreached: bool,
    /// Set when a hub may have said another mapped address.
    pub(super) mapped_changed: bool,
    /// This node's mapped addresses, for the report to the controller.
    pub(super) mapped: watch::Sender<Option<Vec<SocketAddr>>>,
    /// The hubs to which this node has no tunnel, for the report to the controller.
    pub(super) unreached_hubs: UnreachedHubs,
    /// The addresses that peers have given this node.
    pub(super) internal: watch::Sender<InternalAddresses>,
    /// Peers to rekey after the pending events. At most one entry for each peer.
    pub(super) to_rekey: BTreeSet<PeerName>,
    /// Peers for which the kernel refused an SA, or of which another program changed one. They move
    /// to `to_rekey` at the next comparison with the kernel. At most one entry for each peer.
    pub(super) to_rekey_at_check: BTreeSet<PeerName>,
    /// Hubs that were lost and came back.
    pub(super) hub_returns: HubReturns,
    /// Tunnels for which there is a better uplink.
    pub(super) better_uplinks: BetterUplinks,
    /// On-demand tunnels that are up.
    pub(super) idle_tunnels: IdleTunnels,
    /// Outbound SAs of on-demand tunnels that wait a short time for the peer.
    pub(super) deferred_switches: BTreeMap<ChildId, DeferredSwitch>,
    /// Whether the kernel must hold packets that wait for an on-demand tunnel.
    pub(super) hold_packets: bool,
    /// The relays that this node requests as an edge, or provides as a hub.
    pub(super) relays: Relays,
    /// The TCP connections to hubs, or from edges.
    pub(super) tcp: Tcp,
    /// Other UDP source ports towards hubs that do not answer.
    pub(super) other_ports: OtherPorts,
    /// The probes of the paths of tunnels that carry traffic.
    pub(super) path_mtus: PathMtuProbes,
    /// Failures of peers that wait for a common log line.
    pub(super) failures: FailureLog,
    /// Events of peers that wait for a common log line.
    pub(super) event_log: EventLog,
    /// What IKE has done, for metrics.
    pub(super) ike_counts: IkeCounts,
    pub(super) refusals: Refusals,
    /// The ciphers that the kernel lacks, and the SAs that it refused.
    pub(super) kernel_refusals: KernelRefusals,
    /// Whether a complete desired state has been applied.
    pub(super) settled: bool,
    /// How this node, if it is a hub, leaves its edges to another hub before it ends.
    pub(super) hand_over: HandOver,
    pub(super) host: watch::Receiver<HostState>,
    /// The capture that a connection of `edge-agent capture` reads.
    pub(super) running_capture: Option<RunningCapture>,
    sockets: Vec<Arc<Socket>>,
    /// What keeps the sockets open when the agent ends.
    pub(super) holding: watch::Receiver<SocketHolding>,
    /// The UDP port on which IKE messages begin with a marker (RFC 3948 2.2).
    nat_port: u16,
    pub(super) kernel_events: AsyncFd<EventSocket>,
    /// Time for which the kernel reports no further packets of a flow that waits for an SA.
    pub(super) acquire_lifetime: Duration,
    /// The kernel's reports of ESP traffic; `None` if the kernel does not send them.
    esp_events: Option<AsyncFd<EspEventSocket>>,
}

impl Driver {
    /// Opens sockets and XFRM, and takes over the SAs of an earlier run. The tasks of a hub's
    /// relays run on `relay_runtime`. Must be called within a tokio runtime. Fails without
    /// CAP_NET_ADMIN, or if a UDP port is in use.
    pub fn open(
        config: &Config,
        clock: Arc<CertificateClock>,
        incidents: Incidents,
        host: watch::Receiver<HostState>,
        to_host: TunnelsToHost,
        to_controller: TunnelsToController,
        relay_runtime: Handle,
    ) -> anyhow::Result<Self> {
        let mut events = EventSocket::open().context("XFRM cannot be listened to; the agent needs CAP_NET_ADMIN")?;
        let mut xfrm = Xfrm::open().context("XFRM cannot be opened; the agent needs CAP_NET_ADMIN")?;
        events.ignore_port(xfrm.port()).context("XFRM's notifications")?;
        if config.hash_policies {
            policy_hash::set(&mut xfrm);
        }
        let IkeSockets { sockets, kept, holding } = ike_sockets::open(config)?;
        let timing = config.timing.resolve();
        let esp_events = open_esp_events(timing.liveness);
        let endpoint_config = EndpointConfig {
            port: config.port,
            nat_port: config.nat_port,
            esp_reported: esp_events.is_some(),
            ..EndpointConfig::default()
        };
        let tcp = Tcp::open(config, &incidents)?;
        let other_ports = OtherPorts::new(config.nat_port);
        let mut sas = SaTable::new(tcp.connections.clone(), other_ports.ports.clone());
        let earlier = xfrm.sas()?;
        let traffic = TrafficCounter::new(&earlier, boot_time());
        // The TCP connections of an earlier run have ended with it.
        let (in_tcp, inherited): (Vec<_>, Vec<_>) =
            earlier.into_iter().partition(|sa| sa.is_ours() && is_in_tcp(sa.encap));
        for sa in in_tcp {
            xfrm.delete_sa(sa.id)?;
        }
        sas.inherit(inherited, is_local, boot_time() + timing.child_lifetime);
        let former_policies = FormerPolicies::new(xfrm.policies()?);
        Ok(Self {
            endpoint: Endpoint::new(endpoint_config),
            environment: KernelEnvironment {
                xfrm,
                reqids: Reqids::load(&config.state_dir),
                revocations: EnforcedRevocations::load(&config.state_dir),
                internal_addresses: InternalAddressStore::load(&config.state_dir),
                incidents,
                clock,
                random: SystemRandom::new(),
                desired: Arc::default(),
                host: host.clone(),
                tcp: tcp.connections.clone(),
            },
            sas,
            desired: Arc::default(),
            policies: KernelPolicies::default(),
            former_policies,
            changed_peers: BTreeSet::new(),
            check_at: tokio::time::Instant::now(),
            wanted_from_view: 0,
            up_from_view: HashSet::new(),
            traffic,
            route_retry: RouteRetry::default(),
            retry_unreached: false,
            mapped_changed: false,
            mapped: to_controller.mapped,
            unreached_hubs: UnreachedHubs::new(to_controller.unreached_hubs),
            internal: to_host.internal,
            to_rekey: BTreeSet::new(),
            to_rekey_at_check: BTreeSet::new(),
            hub_returns: HubReturns::default(),
            better_uplinks: BetterUplinks::default(),
            idle_tunnels: IdleTunnels::new(config.on_demand.idle_timeout()),
            deferred_switches: BTreeMap::new(),
            hold_packets: config.on_demand.hold_packets,
            relays: Relays::new(&config.relay, tcp.relayed.clone(), relay_runtime),
            tcp,
            other_ports,
            path_mtus: PathMtuProbes::new(config.path_mtu.probe, to_host.path_mtus),
            failures: FailureLog::default(),
            event_log: EventLog::default(),
            ike_counts: IkeCounts::default(),
            refusals: Refusals::default(),
            kernel_refusals: KernelRefusals::default(),
            settled: false,
            hand_over: HandOver::new(kept),
            host,
            running_capture: None,
            sockets,
            holding,
            nat_port: config.nat_port,
            kernel_events: datagram_socket::watch(events)?,
            acquire_lifetime: edge_xfrm::events::acquire_lifetime(),
            esp_events,
        })
    }

    /// Runs until `stop` is cancelled, and on a hub until its edges have been handed over (see
    /// [`HandOver`]). Policies and SAs stay in the kernel.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Arc<Desired>>,
        mut requests: mpsc::Receiver<DriverRequest>,
        tunnels: watch::Sender<Option<TunnelCount>>,
        traffic: watch::Sender<Option<TunnelTraffic>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let (to, mut datagrams) = mpsc::channel(DATAGRAM_QUEUE);
        self.tcp.start(&to);
        self.other_ports.start(&to);
        let mut batch: Vec<Received> = Vec::with_capacity(DATAGRAM_BATCH);
        let readers: Vec<_> =
            self.sockets.iter().map(|socket| tokio::spawn(read(socket.clone(), to.clone()))).collect();
        let mut count_tick = tokio::time::interval(COUNT_INTERVAL);
        count_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        desired.mark_changed();
        loop {
            self.drain_endpoint();
            let wait = self.until_timeout();
            let (route_retry_at, check_at) = (self.route_retry.due(), self.check_at);
            tokio::select! {
                biased;
                () = stop.cancelled(), if !self.hand_over.has_begun() => {
                    if !self.begin_hand_over().await {
                        break;
                    }
                }
                () = self.hand_over.end() => break,
                () = async { tokio::time::sleep_until(route_retry_at.unwrap_or_else(tokio::time::Instant::now)).await },
                    if route_retry_at.is_some() => self.move_tunnels(),
                1.. = datagrams.recv_many(&mut batch, DATAGRAM_BATCH) => {
                    for (datagram, local, remote) in batch.drain(..) {
                        if self.hand_over.drops(&datagram, local.port() == self.nat_port) {
                            continue;
                        }
                        if self.take_probe_answer(&datagram, local, remote) || self.take_port_probe_answer(&datagram) {
                            continue;
                        }
                        self.endpoint.handle(&datagram, local, remote, boot_time(), &mut self.environment);
                    }
                }
                () = tokio::time::sleep(wait) => self.timeout(),
                Ok(()) = desired.changed() => {
                    let new = desired.borrow_and_update().clone();
                    self.apply_desired(new);
                }
                Ok(()) = self.host.changed() => self.host_changed(),
                Some(request) = requests.recv() => self.handle_request(request),
                ready = self.kernel_events.readable_mut() => {
                    let mut ready = ready.context("XFRM's notifications")?;
                    let events = read_events(ready.get_inner_mut());
                    ready.clear_ready();
                    self.handle_kernel_events(events?);
                }
                () = self.relays.hub.end_next() => {}
                Some(event) = self.tcp.next_event() => self.handle_tcp_event(event),
                () = tokio::time::sleep_until(check_at) => {
                    self.check_kernel();
                    if let Some(now) = self.traffic.due(boot_time()) {
                        traffic.send_replace(Some(now));
                    }
                }
                // The next iteration of the loop ends the capture.
                () = reader_gone(self.running_capture.as_ref()) => {}
                events = esp_events(self.esp_events.as_mut()) => self.handle_esp_events(&events?),
                _ = count_tick.tick() => {
                    let count = Some(self.count());
                    tunnels.send_if_modified(|sent| {
                        let changed = *sent != count;
                        *sent = count;
                        changed
                    });
                    self.environment.save_peers();
                    self.close_unused_tcp();
                    self.find_better_uplinks();
                }
            }
        }
        for reader in readers {
            reader.abort();
        }
        self.drain_endpoint();
        self.environment.save_peers();
        self.environment.save_reqids(Instant::new(Duration::MAX));
        Ok(())
    }

    /// Handles the endpoint's events, then sends the endpoint's datagrams.
    fn drain_endpoint(&mut self) {
        loop {
            while let Some(event) = self.endpoint.poll_event() {
                self.handle_event(event);
            }
            self.update_policies();
            if std::mem::take(&mut self.retry_unreached) {
                self.endpoint.retry_unreached(boot_time(), &mut self.environment);
                continue;
            }
            let Some(peer) = self.to_rekey.pop_first() else { break };
            self.endpoint.rekey_children(&peer, boot_time(), &mut self.environment);
        }
        self.note_hub_answer();
        self.publish_mapped_addresses();
        self.publish_unreached_hubs();
        while let Some(transmit) = self.endpoint.poll_transmit() {
            self.send(&transmit);
        }
        self.collect_captured();
    }

    pub(super) fn send(&self, transmit: &edge_ike::Transmit) {
        if let Some(id) = TcpConnectionId::of(transmit.remote.ip()) {
            return self.send_in_tcp(id, transmit);
        }
        let socket = self
            .sockets
            .iter()
            .find(|socket| socket.port() == transmit.local.port() && socket.is_ipv4() == transmit.remote.is_ipv4());
        let other = self.other_ports.send(transmit.local, transmit.remote, &transmit.payload);
        let outcome = other.unwrap_or_else(|| match socket {
            Some(socket) => socket.send(transmit.local.ip(), transmit.remote, &transmit.payload),
            None => Err(io::Error::other("no socket of this family and port")),
        });
        if let Err(error) = outcome {
            // The error is ignored because the endpoint retransmits. A network of a peer with
            // addresses of both families may well be unreachable.
            tracing::debug!(local = %transmit.local, remote = %transmit.remote, %error, "not sent");
        }
    }

    fn send_in_tcp(&self, id: TcpConnectionId, transmit: &edge_ike::Transmit) {
        // NAT keepalives must not be sent in TCP (RFC 9329).
        if transmit.payload == NAT_KEEPALIVE {
            return;
        }
        if let Err(error) = self.tcp.connections.send(id, &transmit.payload) {
            // As above, the endpoint retransmits.
            tracing::debug!(?id, %error, "not sent");
        }
    }

    fn until_timeout(&self) -> Duration {
        // Without reports of ESP traffic, the agent cannot determine which tunnels are idle.
        let idle = self.esp_events.as_ref().and_then(|_| self.idle_tunnels.next_check());
        let due = [
            self.endpoint.poll_timeout(),
            self.sas.next_expiry(),
            self.failures.due(),
            self.event_log.due(),
            self.hub_returns.next_due(),
            self.unreached_hubs.next_due(),
            idle,
            self.next_deferral_end(),
            self.environment.reqids.save_due(),
            self.relays.requests.next_due(),
            self.tcp.fallback.next_due(),
            self.other_ports.next_due(),
            self.path_mtus.next_due(),
            self.better_uplinks.next_due(),
        ];
        let next = due.into_iter().flatten().min();
        next.map_or(COUNT_INTERVAL, |next| next.saturating_since(boot_time()))
    }

    fn timeout(&mut self) {
        let now = boot_time();
        self.endpoint.handle_timeout(now, &mut self.environment);
        if let Some(line) = self.failures.end_period(now) {
            tracing::warn!("{line}");
        }
        for line in self.event_log.end_period(now) {
            tracing::info!("{line}");
        }
        self.environment.save_reqids(now);
        self.changed_peers.extend(self.hub_returns.take_due(now));
        self.ask_hubs_that_stayed(now);
        self.end_deferrals(now);
        self.ask_for_relays(now);
        self.tcp_timeout(now);
        self.change_source_ports(now);
        self.continue_path_mtu_searches(now);
        self.move_to_better_uplinks(now);
        if self.esp_events.is_some() {
            self.close_idle_tunnels(now);
        }
        let (expired, outcome) = self.sas.expire(&mut self.environment.xfrm, now);
        expired.into_iter().for_each(|reqid| self.inherited_sa_gone(reqid));
        if let Err(error) = outcome {
            self.environment.incidents.error(format!("SAs of an earlier run: {error}"));
        }
    }

    /// Reports ESP traffic on peers' CHILD_SAs to the endpoint.
    fn handle_esp_events(&mut self, events: &[EspEvent]) {
        let now = boot_time();
        let (mut heard, mut sent) = (Vec::new(), Vec::new());
        for event in events {
            match self.sas.usage(event.id) {
                Some((peer, SaDirection::In)) => {
                    self.idle_tunnels.used(peer, now);
                    if self.defers(peer) {
                        heard.push(peer.clone());
                    }
                    self.endpoint.esp_received(peer, event.id.spi, now);
                    if self.hub_returns.heard(peer) {
                        self.changed_peers.insert(peer.clone());
                    }
                }
                Some((peer, SaDirection::Out)) => {
                    self.idle_tunnels.used(peer, now);
                    self.endpoint.esp_sent(peer, event.id.spi, now);
                    sent.push((peer.clone(), event));
                }
                // The SA was inherited, or deleted in the meantime.
                None => {}
            }
        }
        heard.iter().for_each(|peer| self.end_deferrals_of(peer));
        sent.iter().for_each(|(peer, event)| self.check_path_mtu(peer, event, now));
    }

    /// Returns the current boot time.
    pub(super) fn now(&self) -> Instant {
        boot_time()
    }
}
