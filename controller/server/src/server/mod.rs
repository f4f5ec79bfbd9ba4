//! Runs the server: opens its parts in order, serves nodes and the operator, and stops in order.
//!
//! - [`tls`]: verifies nodes' certificates and renews the controller's own certificate.
//! - [`state_dir`]: closes the state directory to other users.
//! - [`backends`]: opens the store and the storage of the authorities.
//! - [`cluster`]: runs the additional tasks if Kubernetes is configured.
//! - [`connections`]: serves HTTP on connections within limits.
//! - [`view_connection`]: serves connections that have left HTTP for a view stream in frames.
//! - [`handshake`]: performs TLS handshakes within limits.
//! - [`connection_limits`]: limits the number of connections and decides which one is closed for a
//!   new one.
//! - [`admin`]: serves the API on the operator's socket.
//! - [`plain_listener`]: listens for plain HTTP, for health and metrics and for the page.
//! - [`last_seen`]: keeps the times when nodes were last seen across restarts.

mod admin;
mod backends;
mod cluster;
mod connection_limits;
mod connections;
mod handshake;
mod last_seen;
mod listen;
mod plain_listener;
mod state_dir;
mod tls;
mod view_connection;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use edge_controller_domain::archive;
use edge_controller_domain::ca::Ca;
use edge_controller_domain::clock::{Clock, MOST_AHEAD, StoredTime};
use edge_controller_domain::connectivity::Measurers;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::page_sessions::PageSessions;
use edge_controller_domain::reachability;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::ClaimConflicts;
use edge_controller_kubernetes::cluster_identity::{ClusterIdentity, ClusterIdentityError};
use edge_controller_kubernetes::label_trust::{LabelTrust, TrustNodeLabels};
use edge_controller_kubernetes::node_statuses::NodeStatuses;
use edge_controller_kubernetes::nodes::{LabelledNodes, PendingDeregistrations};
use edge_controller_kubernetes::service_account::Reviewer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::config::Config;
use crate::live_config::{LiveConfig, Reader, check_held};
use crate::observe::{Health, MeasuredStore, Metrics};
use crate::page;
pub(crate) use backends::Backends;
use cluster::Cluster;
use connection_limits::ConnectionLimits;
use connections::OpenConnections;
use last_seen::LastSeen;
pub(crate) use state_dir::make as make_state_dir;

/// Time limit for open requests to end when the server stops.
const GRACE: Duration = Duration::from_secs(7);
/// Time limit after that for the listener for health and metrics to end.
const OBSERVE_GRACE: Duration = Duration::from_millis(500);
/// Time limit for the whole stop. The store may wait for a busy disk and gets the rest of this
/// time. systemd kills the process after ten seconds.
const END: Duration = Duration::from_millis(9500);

/// A server that has opened its listeners and serves.
pub struct Server {
    /// Addresses on which nodes are served.
    pub addresses: Vec<SocketAddr>,
    /// Addresses on which health and metrics are served.
    pub observe: Vec<SocketAddr>,
    /// Addresses on which the page is served.
    pub page: Vec<SocketAddr>,
    registry: Registry,
    live: Arc<LiveConfig>,
    health: Arc<Health>,
    stopping: CancellationToken,
    /// The tasks that accept connections until `closing`.
    listening: TaskTracker,
    closing: CancellationToken,
    tasks: TaskTracker,
    observing: TaskTracker,
    silent: CancellationToken,
    closed: CancellationToken,
}

impl Server {
    /// Opens store, authorities and sockets, and starts to serve.
    pub async fn start(config: Config, clock: Clock) -> anyhow::Result<Self> {
        Self::start_with(config, clock, None).await
    }

    /// Starts a server as [`Self::start`] does, with a way to read the configuration again.
    pub async fn start_with(config: Config, clock: Clock, reader: Option<Reader>) -> anyhow::Result<Self> {
        let files = connections::raise_file_limit();
        state_dir::make(&config)?;
        archive::check_not_restoring(&config.state_dir)?;
        let metrics = Metrics::new();
        // The names are resolved while the rows are read.
        let names = config.server_names.clone();
        let ways = AbortOnDropHandle::new(tokio::spawn(async move { reachability::resolve(&names).await }));
        let networks = config.cluster_networks();
        let Backends { store, ca_storage, client, api_failures, events, replica } =
            Backends::open(&config, clock.now()).await?;
        let store = MeasuredStore::new(store, metrics.clone());
        let closed = store.closed();
        let trust = config.kubernetes.as_ref().map(|kubernetes| kubernetes.trust_node_labels).unwrap_or_default();
        let count_node_labels = trust != TrustNodeLabels::Never;
        let stored_time = StoredTime { most_ahead: MOST_AHEAD, wrong_up_to: config.wrong_time() };
        let registry = Registry::start_at(Arc::new(store), clock.clone(), count_node_labels, stored_time).await?;
        if let Some((client, kubernetes)) = client.as_ref().zip(config.kubernetes.as_ref()) {
            let identity = ClusterIdentity::new(client, registry.clone(), kubernetes.accept_cluster.clone());
            match identity.check().await {
                // Without the API server the last known state is kept. The watch of Nodes repeats
                // the check.
                Ok(()) | Err(ClusterIdentityError::Unknown(_)) => {}
                Err(error @ ClusterIdentityError::Other { .. }) => return Err(error.into()),
            }
        }
        check_held(registry.read().await.ledger(), &networks.ranges).map_err(anyhow::Error::msg)?;
        let before = reachability::load_previous(&registry).await;
        reachability::check(&networks, &config.listen, before.as_ref(), &ways.await?, &*registry.read().await)
            .map_err(anyhow::Error::msg)?;
        let reviewer = client.clone().zip(config.joining());
        let reviewer = reviewer.map(|(client, (accounts, selectors))| Reviewer::new(client, accounts, selectors));
        let (operator_ca, issuers) = (config.operator_ca(), registry.read().await.issuers());
        let kept = Ca::check_stored(&*ca_storage, operator_ca.as_ref(), &issuers, clock.now());
        kept.await.context("certificate authority")?;
        let ca = Ca::open(ca_storage, operator_ca, clock.now()).await.context("certificate authority")?;
        let ca = Arc::new(ca);
        reachability::store_current(&registry, &networks).await;
        let listeners = listen::open("listen", &config.listen)?;
        let observers = listen::open("observe.listen", &config.observe.listen)?;
        let page_listeners = listen::open("page.listen", &config.page.listen)?;
        let (addresses, observe, page_addresses) = (local(&listeners)?, local(&observers)?, local(&page_listeners)?);
        let sessions = PageSessions::default();
        let admin = admin::open(&config.admin_socket)?;
        let stopping = CancellationToken::new();
        let (live, health) = (Arc::new(LiveConfig::new(config, ca.clone(), reader)), Arc::new(Health::default()));
        let label_trust = watch::Sender::new(LabelTrust::at_start(trust));
        let (reports, conflicts, asked) =
            (NodeReports::default(), ClaimConflicts::default(), PendingDeregistrations::default());
        let labelled = LabelledNodes::default();
        let last_seen = (!live.now().config.store_is_at_api_server())
            .then(|| LastSeen::load(&live.now().config.state_dir, registry.clone(), reports.clone()));
        let (tasks, listening, closing) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
        let open = OpenConnections { stopping: stopping.clone(), tasks: tasks.clone() };
        let shared = client.as_ref().filter(|_| live.now().config.store_is_at_api_server());
        let statuses = shared.map(NodeStatuses::new);
        let (router, overview) = api::router(api::Services {
            registry: registry.clone(),
            ca: ca.clone(),
            live: live.clone(),
            reviewer,
            metrics: metrics.clone(),
            events: events.clone(),
            reports: reports.clone(),
            measurers: Measurers::default(),
            conflicts: conflicts.clone(),
            label_trust: label_trust.subscribe(),
            asked: asked.clone(),
            labelled: labelled.clone(),
            statuses,
            replica: api::ReplicaName(replica.clone()),
            api_failures: api_failures.clone(),
            page: api::ServedPage {
                sessions: sessions.clone(),
                urls: page_addresses.iter().map(|address| format!("http://{address}{}", page::PATH)).collect(),
            },
            stopping: stopping.clone(),
        });
        let server = tls::Tls::new(tls::TlsSources {
            registry: registry.clone(),
            ca: ca.clone(),
            live: live.clone(),
            health: health.clone(),
        })?;
        let renewal = tasks.spawn(tls::renew(server.clone(), stopping.clone()));
        health.watch("server-certificate-renewal", &renewal.abort_handle());
        let authorities = tasks.spawn(follow_authorities(ca.clone(), registry.clone(), stopping.clone()));
        health.watch("authorities", &authorities.abort_handle());
        if let Some(last_seen) = last_seen {
            let keeping = tasks.spawn(last_seen.run(stopping.clone()));
            health.watch("last-seen", &keeping.abort_handle());
        }
        let limits = ConnectionLimits::new(files);
        for listener in listeners {
            let (tls, router, limits) = (server.clone(), router.clone(), limits.clone());
            let serving = connections::serve_nodes(listener, tls, router, limits, closing.clone(), open.clone());
            health.watch("node-listener", &listening.spawn(serving).abort_handle());
        }
        let parts = crate::observe::ServerParts {
            registry: registry.clone(),
            live: live.clone(),
            ca: ca.clone(),
            reports: reports.clone(),
            metrics,
            health: health.clone(),
            api_failures: api_failures.clone(),
            label_trust: label_trust.subscribe(),
            asked: asked.clone(),
        };
        if let Some(client) = client {
            let cluster = Cluster {
                client,
                replica,
                registry: registry.clone(),
                ca,
                live: live.clone(),
                health: health.clone(),
                api_failures,
                events,
                reports,
                conflicts,
                label_trust,
                asked,
                labelled,
                stopping: stopping.clone(),
            };
            cluster.spawn(&tasks);
        }
        let (pages, plain) = (page::router(overview, sessions), plain_listener::PlainConnections::new());
        for listener in page_listeners {
            let serving = plain_listener::serve(listener, pages.clone(), plain.clone(), open.clone());
            health.watch("page-listener", &tasks.spawn(serving).abort_handle());
        }
        let serving = admin::serve(admin, live.now().config.admin_socket.clone(), router, closing.clone(), open);
        health.watch("admin-listener", &listening.spawn(serving).abort_handle());
        // The listeners for monitoring open last, so that no client sees a server that is only
        // partly open.
        let (observing, silent) = (TaskTracker::new(), CancellationToken::new());
        let router = crate::observe::router(Arc::new(parts));
        let limits = plain_listener::PlainConnections::new();
        for listener in observers {
            let open = OpenConnections { stopping: silent.clone(), tasks: observing.clone() };
            observing.spawn(plain_listener::serve(listener, router.clone(), limits.clone(), open));
        }
        Ok(Self {
            addresses,
            observe,
            page: page_addresses,
            registry,
            live,
            health,
            stopping,
            listening,
            closing,
            tasks,
            observing,
            silent,
            closed,
        })
    }

    /// Reads the configuration again and logs the result.
    pub async fn reload(&self) {
        if let Err(error) = self.live.reload(&self.registry).await {
            tracing::error!("the configuration is not put in force: {error}");
        }
    }

    /// Stops the server. It reports that it is not ready, accepts no new connections, sends nodes
    /// to other controllers and finishes open requests.
    pub async fn stop(self) {
        let end = tokio::time::Instant::now() + END;
        self.health.stop();
        // A node that is sent to another controller must not reconnect to this one.
        self.closing.cancel();
        self.listening.close();
        self.listening.wait().await;
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests were still open after {} s", GRACE.as_secs());
        }
        self.silent.cancel();
        self.observing.close();
        let Self { registry, observing, closed, .. } = self;
        // A request that is open at this point still gets a response.
        let _ = tokio::time::timeout(OBSERVE_GRACE, observing.wait()).await;
        // A store that was closed needs no repair when it is opened again.
        drop(registry);
        if tokio::time::timeout_at(end, closed.cancelled()).await.is_err() {
            tracing::warn!("the store is still in use");
        }
    }
}

fn local(listeners: &[TcpListener]) -> std::io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}

/// Updates all views when this replica or another one has rolled over to a new authority or retired
/// one.
async fn follow_authorities(ca: Arc<Ca>, registry: Registry, stopping: CancellationToken) {
    let mut changes = ca.subscribe();
    let tell = async {
        while changes.changed().await.is_ok() {
            registry.refresh().await;
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = ca.follow() => {}
        () = tell => {}
    }
}
