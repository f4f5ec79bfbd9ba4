//! Runs the tasks that the server needs if Kubernetes is configured.

use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::ca::Ca;
use edge_controller_domain::node_reports::NodeReports;
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::ClaimConflicts;
use edge_controller_kubernetes::CertificateGrace;
use edge_controller_kubernetes::client::{ApiFailures, Client};
use edge_controller_kubernetes::cluster_identity::ClusterIdentity;
use edge_controller_kubernetes::events::EventRecorder;
use edge_controller_kubernetes::label_trust::{LabelTrust, LabelWatch, TrustNodeLabels, log_forced};
use edge_controller_kubernetes::nodes::{LabelledNodes, NEEDED_AT_START, NodeWatch, PendingDeregistrations};
use edge_controller_kubernetes::orphans::{self, OrphanCollector};
use edge_controller_kubernetes::own_rights::{OwnRights, Uses};
use edge_controller_kubernetes::replica_leases::ReplicaLeases;
use edge_controller_kubernetes::status_writer::{StatusSources, StatusWriter};
use edge_controller_kubernetes::trust_bundle::TrustBundle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::live_config::LiveConfig;
use crate::observe::Health;

/// The data that these tasks need.
pub(super) struct Cluster {
    pub(super) client: Client,
    /// Name of this run of this replica.
    pub(super) replica: String,
    pub(super) registry: Registry,
    pub(super) ca: Arc<Ca>,
    pub(super) live: Arc<LiveConfig>,
    pub(super) health: Arc<Health>,
    pub(super) api_failures: ApiFailures,
    pub(super) events: EventRecorder,
    pub(super) reports: NodeReports,
    pub(super) conflicts: ClaimConflicts,
    pub(super) label_trust: watch::Sender<LabelTrust>,
    pub(super) asked: PendingDeregistrations,
    pub(super) labelled: LabelledNodes,
    pub(super) stopping: CancellationToken,
}

impl Cluster {
    /// Starts the tasks. They end when the server stops.
    pub(super) fn spawn(self, tasks: &TaskTracker) {
        let Self {
            client,
            replica,
            registry,
            ca,
            live,
            health,
            api_failures,
            events,
            reports,
            conflicts,
            label_trust,
            asked,
            labelled,
            stopping,
        } = self;
        let in_force = live.now();
        let Some(kubernetes) = &in_force.config.kubernetes else { return };
        api_failures.await_first(&NEEDED_AT_START);
        let until_stopped = |name: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let work = stopping.clone().run_until_cancelled_owned(work);
            health.watch(name, &tasks.spawn(work).abort_handle());
        };
        let selector = kubernetes.edge_selector.clone();
        let (graces, in_views) = (live.clone(), live.clone());
        let grace: CertificateGrace = Arc::new(move || graces.now().config.certificate_grace());
        let cluster = ClusterIdentity::new(&client, registry.clone(), kubernetes.accept_cluster.clone());
        let nodes = NodeWatch::new(&client, registry.clone(), selector, api_failures.clone(), events.clone(), cluster)
            .asking(kubernetes.confirm_deregistrations, asked)
            .noting(labelled)
            .with_grace(grace.clone())
            .with_networks(Arc::new(move || in_views.now().networks.clone()))
            .with_labels(label_trust.subscribe());
        until_stopped("node-objects", Box::pin(nodes.run()));
        match kubernetes.trust_node_labels {
            TrustNodeLabels::Auto => {
                let labels = LabelWatch::new(&client, label_trust, events);
                until_stopped("node-labels", Box::pin(labels.run()));
            }
            TrustNodeLabels::Always | TrustNodeLabels::Never => log_forced(&label_trust.borrow()),
        }
        let uses = Uses {
            store: kubernetes.store,
            service_accounts: in_force.config.joining().is_some(),
            label_policy: kubernetes.trust_node_labels == TrustNodeLabels::Auto,
        };
        let rights = OwnRights::new(&client, &kubernetes.namespace, uses, api_failures.clone());
        until_stopped("rights", Box::pin(rights.run()));
        if !kubernetes.store {
            return;
        }
        let duration = Duration::from_secs(kubernetes.lease_seconds.into());
        let leases =
            Arc::new(ReplicaLeases::new(&client, &kubernetes.namespace, &replica, duration, api_failures.clone()));
        let (lead, leading) = watch::channel(false);
        health.follow_leadership(leading.clone());
        // When the server stops, these tasks give up their Leases and then end.
        let (taking, there) = (leases.clone(), leases.clone());
        let (lead_until, present_until) = (stopping.clone(), stopping.clone());
        health.watch("lease", &tasks.spawn(async move { taking.lead(lead, lead_until).await }).abort_handle());
        health.watch("replica", &tasks.spawn(async move { there.renew_own_lease(present_until).await }).abort_handle());
        let garbage = OrphanCollector::new(&client, registry.clone(), orphans::GRACE_PERIOD).with_grace(grace);
        until_stopped("garbage", Box::pin(garbage.run(leading.clone())));
        let trust = TrustBundle::new(&client, &kubernetes.namespace, ca, api_failures.clone());
        until_stopped("trust", Box::pin(trust.run(leading.clone())));
        let views = live.clone();
        let endpoints = Box::new(move |record: &_| views.now().views.endpoints(record));
        let sources = StatusSources { registry, reports, conflicts, endpoints, api_failures };
        let statuses = Arc::new(StatusWriter::new(&client, sources, leases, &replica));
        let connections = statuses.clone();
        until_stopped("connections", Box::pin(async move { connections.write_connections().await }));
        until_stopped("statuses", Box::pin(async move { statuses.write_rows(leading).await }));
    }
}
