//! What runs beside the server where there is Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use edge_controller_kubernetes::client::Client;
use edge_controller_kubernetes::garbage::{self, Garbage};
use edge_controller_kubernetes::identity::Identity;
use edge_controller_kubernetes::label_trust::{LabelWatch, TrustNodeLabels, log_forced};
use edge_controller_kubernetes::lease::Leases;
use edge_controller_kubernetes::nodes::NodeWatch;
use edge_controller_kubernetes::shown::{Shown, Sources};
use edge_controller_kubernetes::trust::Trust;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::api::App;

/// Starts all of it; it ends when the server stops.
pub(super) fn spawn(app: &App, client: &Client, identity: &str, tasks: &TaskTracker) {
    let settings = app.settings();
    let Some(kubernetes) = &settings.config.kubernetes else { return };
    let until_stopped = |name: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let work = app.stopping.clone().run_until_cancelled_owned(work);
        app.health.watch(name, &tasks.spawn(work).abort_handle());
    };
    let (registry, obstacles) = (app.registry.clone(), app.obstacles.clone());
    let selector = kubernetes.edge_selector.clone();
    let (cluster, events) =
        (Identity::new(client, registry.clone(), kubernetes.accept_cluster.clone()), app.events.clone());
    let nodes = NodeWatch::new(client, registry.clone(), selector, obstacles.clone(), events, cluster)
        .asking(kubernetes.confirm_deregistrations, app.asked.clone())
        .counting(app.label_trust.subscribe());
    until_stopped("node-objects", Box::pin(nodes.run()));
    match kubernetes.trust_node_labels {
        TrustNodeLabels::Auto => {
            let labels = LabelWatch::new(client, app.label_trust.clone(), app.events.clone());
            until_stopped("node-labels", Box::pin(labels.run()));
        }
        TrustNodeLabels::Always | TrustNodeLabels::Never => log_forced(&app.label_trust.borrow()),
    }
    if !kubernetes.store {
        return;
    }
    let duration = Duration::from_secs(kubernetes.lease_seconds.into());
    let leases = Arc::new(Leases::new(client, &kubernetes.namespace, identity, duration, obstacles));
    let (lead, leading) = watch::channel(false);
    // These give back what they hold, and so end by themselves.
    let (taking, there) = (leases.clone(), leases.clone());
    let (stopping, stopped) = (app.stopping.clone(), app.stopping.clone());
    app.health.watch("lease", &tasks.spawn(async move { taking.lead(lead, stopping).await }).abort_handle());
    app.health.watch("replica", &tasks.spawn(async move { there.be_there(stopped).await }).abort_handle());
    until_stopped("garbage", Box::pin(Garbage::new(client, registry, garbage::PATIENCE).run(leading.clone())));
    let trust = Trust::new(client, &kubernetes.namespace, app.ca.clone(), app.obstacles.clone());
    until_stopped("trust", Box::pin(trust.run(leading.clone())));
    let live = app.clone();
    let from = Sources {
        registry: app.registry.clone(),
        tunnels: app.tunnels.clone(),
        conflicts: app.conflicts.clone(),
        endpoints: Box::new(move |record| live.settings().common.endpoints(record)),
        obstacles: app.obstacles.clone(),
    };
    let shown = Arc::new(Shown::new(client, from, leases, identity));
    let connections = shown.clone();
    until_stopped("connections", Box::pin(async move { connections.show_connections().await }));
    until_stopped("statuses", Box::pin(async move { shown.show_rows(leading).await }));
}
