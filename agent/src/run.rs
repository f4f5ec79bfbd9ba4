//! `edge-agent run`: starts and stops the agent's parts. The controller client, the host reconciler
//! and the admin socket run on a small thread pool, and the tunnels on a separate thread.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use edge_ike::PeerConfig;
use edge_types::api::{LONGEST_OBSTACLE, MOST_OBSTACLES};
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::admin::server::{self, AdminCall, Reply, StatusInParts};
use crate::admin::{AdminRequest, AdminResponse, Health};
use crate::clock::CertificateClock;
use crate::config::Config;
use crate::controller_client::{ControllerClient, describe_ended_certificate};
use crate::desired::{Desired, RoutedNetworks};
use crate::host::reconciler::{DesiredReceivers, HostReconciler};
use crate::host::{HostState, InternalAddresses, PathMtus, TunnelsToHost, firewall};
use crate::incidents::Incidents;
use crate::membership::{ControllerStatus, NodeChannels};
use crate::netns_lock::NetnsLock;
use crate::state_dir::StateDir;
use crate::static_peers::StaticPeers;
use crate::status::Status;
use crate::tunnels::{CaptureReader, Driver, DriverRequest, SasToRekey, TunnelsToController};
use crate::{check, hardening, host, logging, membership, observe, ping, plugin_server, state_dir, tunnels};

/// Minimum time between two reports of changed obstacles.
const OBSTACLES_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of requests on the admin socket that wait for the one before them. Further ones
/// are refused, except those of probes.
const WAITING_REQUESTS: usize = 64;

/// Maximum time for which the process waits at its end for threads that are still resolving names.
/// It is short because cloud nodes change to another hub 3.5 s after a hub stops.
const THREADS_WAIT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT, or until a part of the agent fails. The objects in the kernel
/// stay. `log_json` asks for a log of JSON objects.
pub fn run(config: Config, log_json: bool) -> anyhow::Result<()> {
    logging::start(log_json);
    let span = logging::node_span();
    let _entered = span.clone().entered();
    check::log_warnings(&config);
    let config = Arc::new(config);
    let statics = StaticPeers::load(&config).map_err(|problem| anyhow!(problem))?;
    host::check_bridge(&config)?;
    let netns_lock = NetnsLock::acquire(&config.state_dir)?;
    hardening::make_files_private();
    hardening::raise_file_limit();
    if config.controller.is_none() {
        let path = config.state_dir.display();
        state_dir::make_private(&config.state_dir).with_context(|| format!("{path}: cannot be made private"))?;
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.spawn(netns_lock.serve().instrument(span.clone()));
    let stop = CancellationToken::new();
    let (failed, mut failure) = oneshot::channel();
    let (controller, node) = membership::channels(config.clone(), Arc::new(CertificateClock::default()), stop.clone());
    if config.controller.is_some() {
        let state = Arc::new(StateDir::open(&config.state_dir)?);
        // The uplink is read before the view on disk is applied. A report without addresses would,
        // for a moment, remove this node's addresses from its peers' views.
        let uplink = |desired: &Desired| runtime.block_on(host::read_uplink(&config, desired));
        node.uplink.send_replace(uplink(&Desired::default())?);
        let controller = ControllerClient::load(controller, state)?;
        // The first report leaves out addresses within the networks of the view on disk.
        let of_disk = Desired::compute(&config, &statics.unresolved(), node.membership.borrow().as_ref());
        node.uplink.send_replace(uplink(&of_disk)?);
        // Before the node has joined, the configured name is used. Otherwise, the span would have
        // no name until then.
        if let Some(name) = controller.node().or(config.name.clone()) {
            logging::set_node(&span, &name);
        }
        runtime.spawn(controller.clone().run().instrument(span.clone()));
        let stop = stop.clone();
        let serve_plugin = async move {
            if let Err(error) = plugin_server::run(controller).await {
                let _ = failed.send(error);
                stop.cancel();
            }
        };
        runtime.spawn(serve_plugin.instrument(span));
    } else if let Ok(name) = config.node_name() {
        logging::set_node(&span, &name);
    }
    let outcome = runtime.block_on(run_node(node, statics, stop));
    // A thread that resolves a name cannot be interrupted.
    runtime.shutdown_timeout(THREADS_WAIT);
    outcome.and(failure.try_recv().map_or(Ok(()), Err))
}

async fn run_node(node: NodeChannels, statics: StaticPeers, stop: CancellationToken) -> anyhow::Result<()> {
    let config = node.config.clone();
    let incidents = Incidents::default();
    let socket = config.admin_socket();
    let admin = server::listen(&socket).with_context(|| format!("{}: cannot be opened", socket.display()))?;
    let (requests_tx, requests) = mpsc::channel(16);
    tokio::spawn(server::serve(socket.clone(), admin, requests_tx.clone()).in_current_span());
    let (observe, needs_view) = (config.observe.clone(), config.controller.is_some());
    let observe = observe::serve(observe.listen, observe.peer_series, needs_view, requests_tx.clone());
    tokio::spawn(observe.in_current_span());

    let (host_tx, host) = watch::channel(HostState::default());
    let (statics_tx, resolved) = watch::channel(statics.unresolved());
    tokio::spawn(statics.follow(incidents.clone(), statics_tx).in_current_span());
    let (desired_tx, desired) =
        watch::channel(Arc::new(Desired::compute(&config, &resolved.borrow(), node.membership.borrow().as_ref())));
    let (routed_tx, routed) = watch::channel(desired.borrow().routed_networks());
    let (to_driver, driver_requests) = mpsc::channel(16);
    let (internal_tx, internal) = watch::channel(InternalAddresses::default());
    let (path_mtus_tx, path_mtus) = watch::channel(PathMtus::default());
    let to_host = TunnelsToHost { internal: internal_tx, path_mtus: path_mtus_tx };
    let uplink = node.uplink.clone();
    let to_reconciler = DesiredReceivers { whole: desired.clone(), routed };
    let reconciler =
        HostReconciler::new(config.clone(), incidents.clone(), to_reconciler, host_tx, uplink, internal, path_mtus);
    let tunnels = start_tunnels(&node, incidents.clone(), host.clone(), to_host, desired, driver_requests)?;
    let measure = ping::measurement::serve(node.measurements, node.membership.clone(), requests_tx, stop.clone());
    tokio::spawn(measure.in_current_span());
    let until = stop.clone();
    let run_reconciler = async move {
        let outcome = reconciler.run(until.clone()).await;
        until.cancel();
        outcome
    };
    let reconciler = tokio::spawn(run_reconciler.in_current_span());

    tokio::spawn(publish_obstacles(host.clone(), node.obstacles.clone()).in_current_span());
    let handler = AdminHandler {
        driver_requests: to_driver,
        host,
        incidents,
        clock: node.clock.clone(),
        controller: config.controller.is_some().then(|| node.controller_status.clone()),
    };
    tokio::spawn(handler.serve(requests).in_current_span());
    let recompute = recompute_desired(config.clone(), resolved, node.membership.clone(), desired_tx, routed_tx);
    tokio::spawn(recompute.in_current_span());

    let outcome = wait_for_end(stop.clone()).await;
    stop.cancel();
    tracing::info!("ending; tunnels stay in the kernel (`edge-agent down` removes them)");
    let tunnels = tunnels.await.unwrap_or_else(|_| Err(anyhow!("the tunnels' thread ended unexpectedly")));
    let _ = std::fs::remove_file(&socket);
    let reconciler =
        reconciler.await.unwrap_or_else(|_| Err(anyhow!("the reconciler of routes and firewall ended unexpectedly")));
    outcome.and(tunnels).and(reconciler)
}

/// Starts the thread that owns the IKE endpoint and XFRM. Returns a receiver of the thread's
/// result. Fails if sockets or XFRM cannot be opened.
fn start_tunnels(
    node: &NodeChannels,
    incidents: Incidents,
    host: watch::Receiver<HostState>,
    to_host: TunnelsToHost,
    desired: watch::Receiver<Arc<Desired>>,
    driver_requests: mpsc::Receiver<DriverRequest>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (config, clock, stop) = (node.config.clone(), node.clock.clone(), node.stop.clone());
    let (tunnels, traffic) = (node.tunnels.clone(), node.traffic.clone());
    let to_controller =
        TunnelsToController { mapped: node.mapped.clone(), unreached_hubs: node.unreached_hubs.clone() };
    let (opened_tx, opened) = std::sync::mpsc::channel();
    let (done_tx, done) = oneshot::channel();
    let (span, relay_runtime) = (Span::current(), Handle::current());
    std::thread::Builder::new().name("tunnels".into()).spawn(move || {
        let _entered = span.entered();
        let work = || -> anyhow::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let driver = match Driver::open(&config, clock, incidents, host, to_host, to_controller, relay_runtime)
                {
                    Ok(driver) => driver,
                    Err(error) => {
                        let _ = opened_tx.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = opened_tx.send(Ok(()));
                driver.run(desired, driver_requests, tunnels, traffic, stop.clone()).await
            })
        };
        let outcome = work();
        // The whole agent ends when the tunnels' thread ends.
        stop.cancel();
        let _ = done_tx.send(outcome);
    })?;
    opened.recv().context("the tunnels' thread ended unexpectedly")??;
    Ok(done)
}

/// Computes the desired state whenever the membership or the addresses of static peers change.
async fn recompute_desired(
    config: Arc<Config>,
    mut statics: watch::Receiver<Vec<PeerConfig>>,
    mut membership: watch::Receiver<Option<membership::Membership>>,
    to: watch::Sender<Arc<Desired>>,
    routed_to: watch::Sender<RoutedNetworks>,
) {
    let mut previous: Option<(membership::Membership, Arc<Desired>)> = None;
    loop {
        tokio::select! {
            changed = membership.changed() => if changed.is_err() { return },
            // If there are no names to resolve, the sender has been dropped.
            Ok(()) = statics.changed() => {}
        }
        let now = membership.borrow_and_update().clone();
        let before = previous.as_ref().map(|(membership, desired)| (membership, desired));
        let desired = Arc::new(Desired::update(&config, &statics.borrow_and_update(), now.as_ref(), before));
        previous = now.map(|now| (now, desired.clone()));
        let routed = desired.routed_networks();
        routed_to.send_if_modified(|sent| {
            let differs = *sent != routed;
            *sent = routed;
            differs
        });
        to.send_replace(desired);
    }
}

/// Publishes the obstacles that keep pods' packets from arriving, for the report to the controller:
/// at most [`MOST_OBSTACLES`] texts of [`LONGEST_OBSTACLE`] characters, and at most once in each
/// [`OBSTACLES_INTERVAL`].
async fn publish_obstacles(mut host: watch::Receiver<HostState>, to: watch::Sender<Vec<String>>) {
    loop {
        let found = host.borrow_and_update().obstacles.clone();
        let texts = found.into_iter().take(MOST_OBSTACLES);
        let texts: Vec<String> = texts.map(|obstacle| obstacle.what.chars().take(LONGEST_OBSTACLE).collect()).collect();
        let changed = to.send_if_modified(|published| {
            let changed = *published != texts;
            *published = texts;
            changed
        });
        if changed {
            tokio::time::sleep(OBSTACLES_INTERVAL).await;
        }
        if host.changed().await.is_err() {
            return;
        }
    }
}

/// Handles the requests on the admin socket.
struct AdminHandler {
    driver_requests: mpsc::Sender<DriverRequest>,
    host: watch::Receiver<HostState>,
    incidents: Incidents,
    clock: Arc<CertificateClock>,
    controller: Option<watch::Receiver<ControllerStatus>>,
}

impl AdminHandler {
    /// Handles requests in order, except that probes do not wait for the others: the status of many
    /// peers takes a while.
    async fn serve(self, mut requests: mpsc::Receiver<AdminCall>) {
        let handler = Arc::new(self);
        let (in_order, mut waiting) = mpsc::channel::<AdminCall>(WAITING_REQUESTS);
        let others = handler.clone();
        let serve_others = async move {
            while let Some((request, respond_to)) = waiting.recv().await {
                let _ = respond_to.send(others.reply(request).await);
            }
        };
        tokio::spawn(serve_others.in_current_span());
        while let Some((request, respond_to)) = requests.recv().await {
            if request == AdminRequest::Health {
                let _ = respond_to.send(handler.reply(request).await);
            } else if let Err(full) = in_order.try_send((request, respond_to)) {
                let (_, respond_to) = full.into_inner();
                let reason = format!("{WAITING_REQUESTS} requests wait already; try again later");
                let _ = respond_to.send(Reply::Response(AdminResponse::Failed { reason }));
            }
        }
    }

    async fn reply(&self, request: AdminRequest) -> Reply {
        let reply = match request {
            AdminRequest::Status => self.status().await.map(Reply::Response),
            AdminRequest::StatusInParts => self.status_in_parts().await.map(Box::new).map(Reply::StatusInParts),
            AdminRequest::Health => self.health().await.map(Reply::Response),
            AdminRequest::Rekey { peer, ike, child } => self.rekey(peer, ike, child).await.map(Reply::Response),
            AdminRequest::Capture { addresses } => self.capture(addresses).await.map(Reply::Capture),
        };
        reply.unwrap_or_else(|| Reply::Response(AdminResponse::Failed { reason: "the agent is ending".into() }))
    }

    async fn health(&self) -> Option<AdminResponse> {
        let (to, view_version) = oneshot::channel();
        self.driver_requests.send(DriverRequest::Health(to)).await.ok()?;
        let view_version = view_version.await.ok()?;
        let host = self.host.borrow();
        let (firewall, obstacles) = (host.firewall, host.obstacles.clone());
        Some(AdminResponse::Health { health: Health { view_version, firewall, obstacles } })
    }

    /// Returns the status of the controller client, with what the present time says.
    fn controller_status(&self, node: Option<&str>) -> Option<ControllerStatus> {
        let mut status = self.controller.as_ref()?.borrow().clone();
        let node = node.and_then(|name| name.parse().ok());
        let (grace, now) = (status.certificate_grace_seconds, self.clock.unix_time());
        let not_after = status.certificate_not_after;
        status.certificate_ended =
            not_after.and_then(|not_after| describe_ended_certificate(node.as_ref(), not_after, grace, now));
        Some(status)
    }

    async fn status(&self) -> Option<AdminResponse> {
        let mut found = None;
        let status = self.status_in_parts().await?.with_lists(|peers, states, policies| {
            found = Some(peers);
            ((), states.entries().collect(), policies.entries().collect())
        });
        let peers = found?.collect().await?;
        let status = status.with_lists(|(), states, policies| (peers, states, policies));
        Some(AdminResponse::Status { status: Box::new(status) })
    }

    async fn status_in_parts(&self) -> Option<StatusInParts> {
        // nft runs while the driver reports.
        let dropped = tokio::task::spawn_blocking(firewall::dropped_packets);
        let (report, dropped) = tokio::join!(tunnels::report(&self.driver_requests), dropped);
        let report = report?;
        let dropped = dropped.ok().and_then(Result::ok).unwrap_or_default();
        let host = self.host.borrow().clone();
        let controller = self.controller_status(report.node.as_deref());
        Some(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            node: report.node,
            role: report.role,
            view_version: report.view_version,
            controller,
            clock: Some(self.clock.readings()),
            peers: report.peers,
            states: report.states,
            policies: report.policies,
            relayed_pairs: report.relayed_pairs,
            ike: report.ike,
            refusals: report.refusals,
            missing_ciphers: report.missing_ciphers,
            sockets: Some(report.sockets),
            obstacles: host.obstacles.clone(),
            dropped,
            host,
            incidents: self.incidents.latest(),
        })
    }

    async fn capture(&self, addresses: BTreeSet<IpAddr>) -> Option<CaptureReader> {
        let (to, reader) = oneshot::channel();
        self.driver_requests.send(DriverRequest::Capture(addresses, to)).await.ok()?;
        reader.await.ok()
    }

    async fn rekey(&self, peer: String, ike: bool, child: Option<String>) -> Option<AdminResponse> {
        let (to, outcome) = oneshot::channel();
        let sas = match child {
            _ if ike => SasToRekey::Ike,
            Some(child) => SasToRekey::ChildrenNamed(child),
            None => SasToRekey::AllChildren,
        };
        self.driver_requests.send(DriverRequest::Rekey(peer, sas, to)).await.ok()?;
        Some(match outcome.await.ok()? {
            Ok(()) => AdminResponse::Done,
            Err(reason) => AdminResponse::Failed { reason },
        })
    }
}

/// Waits for SIGTERM, SIGINT, or the failure of a part of the agent.
async fn wait_for_end(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
