//! Runs one control plane for all tests. Each test starts without any of the controller's objects.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use edge_controller_domain::store::Store;
use edge_controller_kubernetes::client::{ApiFailures, connect};
use edge_controller_kubernetes::cluster_identity::ClusterIdentity;
use edge_controller_kubernetes::events::EventRecorder;
use edge_controller_kubernetes::label_trust::{LabelTrust, TrustNodeLabels};
use edge_controller_kubernetes::nodes::{NodeWatch, PendingDeregistrations};
use edge_controller_kubernetes::resources::{Community, EdgeNode, Segment, definitions, manifest};
use edge_controller_kubernetes::selector::NodeSelector;
use edge_controller_kubernetes::store::Kubernetes;
use edge_types::view::SegmentPrefix;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use interop_tests::kube::ControlPlane;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::behaviour::{Grants, SIZES, StoreFixture, until};

pub(crate) const NAMESPACE: &str = "edge-cni";

pub(crate) static PLANE: LazyLock<ControlPlane> = LazyLock::new(|| {
    let plane = ControlPlane::start("controller").unwrap();
    plane.apply(&deploy("kubernetes/10-rbac.yaml")).unwrap();
    plane.apply(&deploy("kubernetes/15-node-labels.yaml")).unwrap();
    install(&plane);
    plane
});

/// The kubeconfig of the controller's service account, with exactly the shipped permissions.
pub(crate) static CONTROLLER: LazyLock<PathBuf> =
    LazyLock::new(|| PLANE.kubeconfig_for_service_account(NAMESPACE, "edge-controller").unwrap());

/// Returns the path of a shipped manifest.
pub(crate) fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(path)
}

/// Applies the shipped definitions of the custom resources, and waits until they are served.
pub(crate) fn install(plane: &ControlPlane) {
    plane.apply(&deploy("crds")).unwrap();
    for (_, definition) in definitions() {
        manifest(&definition).unwrap();
        let name = format!("crd/{}", definition.metadata.name.unwrap());
        plane.kubectl(&["wait", "--for=condition=Established", &name, "--timeout=60s"]).unwrap();
    }
}

/// Runs a test; a test that hangs fails.
pub(crate) fn run(test: impl Future<Output = ()>) {
    run_within(Duration::from_secs(300), test);
}

/// Does the same as [`run`] with another time limit.
pub(crate) fn run_within(bound: Duration, test: impl Future<Output = ()>) {
    // Logs are shown only on request.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
    // On a new machine the API server is built first, which takes minutes that do not count.
    LazyLock::force(&CONTROLLER);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(bound, test).await });
    ended.unwrap_or_else(|_| panic!("it did not end within {bound:?}"));
    runtime.shutdown_background();
}

/// The cluster as a replica reaches it.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) sizes: SegmentPrefix,
    pub(crate) api_failures: ApiFailures,
}

/// Returns the cluster without any of our objects.
pub(crate) async fn clean() -> Cluster {
    let administrator = as_user(PLANE.kubeconfig()).await;
    let client = &administrator.client;
    empty::<Segment>(Api::all(client.clone())).await;
    empty::<EdgeNode>(Api::all(client.clone())).await;
    empty::<Community>(Api::all(client.clone())).await;
    empty::<Node>(Api::all(client.clone())).await;
    empty::<Secret>(Api::namespaced(client.clone(), NAMESPACE)).await;
    empty::<ConfigMap>(Api::namespaced(client.clone(), NAMESPACE)).await;
    empty::<Lease>(Api::namespaced(client.clone(), NAMESPACE)).await;
    as_user(&CONTROLLER).await
}

async fn empty<K>(api: Api<K>)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    until("everything to be deleted", async || {
        api.list(&ListParams::default().limit(1)).await.unwrap().items.is_empty().then_some(())
    })
    .await;
}

pub(crate) async fn as_user(kubeconfig: &Path) -> Cluster {
    let client = connect(Some(kubeconfig)).await.unwrap();
    Cluster { client, sizes: SIZES, api_failures: ApiFailures::default() }
}

/// Waits for an Event with this reason and note. `about` is the kind and name of the Event's
/// object.
pub(crate) async fn event(client: Client, reason: &str, about: Option<(&str, &str)>, note: &str) {
    let events: Api<Event> = Api::namespaced(client, "default");
    until(&format!("the Event {reason}"), async || {
        let all = events.list(&ListParams::default()).await.unwrap();
        let wanted = |event: &Event| {
            let object = event.regarding.clone().unwrap_or_default();
            event.reason.as_deref() == Some(reason)
                && about.is_none_or(|about| {
                    (object.kind.as_deref(), object.name.as_deref()) == (Some(about.0), Some(about.1))
                })
                && event.note.as_ref().is_some_and(|text| text.contains(note))
        };
        all.iter().any(wanted).then_some(())
    })
    .await;
}

impl Cluster {
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(Kubernetes::new(
            &self.client,
            NAMESPACE,
            self.sizes,
            self.api_failures.clone(),
            EventRecorder::default(),
        ))
    }

    /// Starts a replica of the controller.
    pub(crate) async fn replica(&self) -> Grants {
        self.replica_on(self.store()).await
    }

    /// Starts a replica that writes Events.
    pub(crate) async fn replica_with_events(&self) -> Grants {
        let events = EventRecorder::start(&self.client, "test", self.api_failures.clone());
        let store = Kubernetes::new(&self.client, NAMESPACE, self.sizes, self.api_failures.clone(), events);
        self.replica_on(Arc::new(store)).await
    }

    async fn replica_on(&self, store: Arc<dyn Store>) -> Grants {
        let mut grants = Grants::start(store).await;
        grants.policy.prefix = self.sizes;
        grants
    }

    /// Makes a replica watch Nodes.
    pub(crate) fn watch_nodes(&self, replica: &Grants) -> RunningWatch {
        let selector = NodeSelector::edges();
        let events = EventRecorder::start(&self.client, "test", self.api_failures.clone());
        let (client, registry) = (&self.client, replica.registry.clone());
        let identity = ClusterIdentity::new(client, registry.clone(), None);
        let asked = PendingDeregistrations::default();
        let nodes = NodeWatch::new(client, registry, selector, self.api_failures.clone(), events, identity);
        let labels = watch::Sender::new(LabelTrust::at_start(TrustNodeLabels::Always)).subscribe();
        let nodes = nodes.asking(true, asked.clone()).with_labels(labels);
        RunningWatch { asked, task: tokio::spawn(nodes.run()) }
    }

    pub(crate) fn segments(&self) -> Api<Segment> {
        Api::all(self.client.clone())
    }

    pub(crate) fn edge_nodes(&self) -> Api<EdgeNode> {
        Api::all(self.client.clone())
    }
}

impl StoreFixture for Cluster {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async { self.store() }.boxed()
    }
}

/// A watch that ends with the test.
pub(crate) struct RunningWatch {
    pub(crate) asked: PendingDeregistrations,
    task: JoinHandle<()>,
}

impl Drop for RunningWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes a kubeconfig for an account with exactly the permissions that a controller needs.
pub(crate) fn controller(name: &str) -> PathBuf {
    use interop_tests::kube::Subject;
    let subject = Subject::User(name);
    let all = ["get", "list", "watch", "create", "update", "delete"];
    let custom = ["segments.edge-cni.io", "edgenodes.edge-cni.io", "communities.edge-cni.io"];
    PLANE.grant(&format!("{name}-custom"), subject, &all, &custom).unwrap();
    let core = ["secrets", "configmaps", "nodes", "namespaces", "customresourcedefinitions.apiextensions.k8s.io"];
    PLANE.grant(&format!("{name}-core"), subject, &all, &core).unwrap();
    PLANE.kubeconfig_for_user(name, None).unwrap()
}
