//! Tests the certificate authorities in their Secret and how replicas receive a change.

use std::sync::Arc;

use edge_controller_domain::ca::storage::{CaStorage, Revision};
use edge_controller_domain::ca::{Ca, CaDocument, CaError, Files};
use edge_controller_kubernetes::ca_secret::{CaSecret, NAME};
use futures_util::future::BoxFuture;
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::behaviour::until;
use crate::cluster::{Cluster, NAMESPACE, PLANE, clean, run};

pub(crate) const TESTS: &[Test] = &[
    ("when_the_api_server_has_forgotten_the_authorities_are_read_once_and_watched_again", forgotten),
    ("of_a_secret_that_says_the_same_as_before_nobody_is_told", same),
    ("a_secret_that_was_deleted_is_put_back_and_one_of_another_cluster_is_not_taken", deleted),
];

const NOW: i64 = 1_793_500_000;

fn ca_secret(cluster: &Cluster) -> CaSecret {
    CaSecret::new(&cluster.client, NAMESPACE)
}

fn forgotten() {
    run(async {
        let cluster = clean().await;
        Ca::open(Box::new(ca_secret(&cluster)), None, NOW).await.unwrap();
        // Versions rise without changes of the Secret.
        let node = cluster.replica().await;
        node.register("a").await;
        PLANE.forget_history().unwrap();
        let ca_secret = ca_secret(&cluster);
        ca_secret.load().await.unwrap().unwrap();
        // A watch at a compacted version would end before this number of requests is answered.
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        tokio::select! {
            () = ca_secret.changed() => panic!("nothing has changed"),
            () = async { for _ in 0..50 { secrets.get(NAME).await.unwrap(); } } => {}
        }
        let changed = ca_secret.changed();
        tokio::pin!(changed);
        PLANE.kubectl(&["label", "secret", NAME, "--namespace", NAMESPACE, "a=b"]).unwrap();
        changed.await;
    });
}

/// Makes authorities that watch their Secret. Returns them with the number of their reads.
async fn followed(cluster: &Cluster) -> (Arc<Ca>, watch::Receiver<usize>, JoinHandle<()>) {
    let (counts, loads) = watch::channel(0);
    let ca = Arc::new(Ca::open(Box::new(CountingStorage(ca_secret(cluster), counts)), None, NOW).await.unwrap());
    let follower = ca.clone();
    let following = tokio::spawn(async move { follower.follow().await });
    (ca, loads, following)
}

fn deleted() {
    run(async {
        let cluster = clean().await;
        let (ca, mut loads, following) = followed(&cluster).await;
        let ours = ca.current().active().id();
        PLANE.kubectl(&["delete", "secret", NAME, "--namespace", NAMESPACE]).unwrap();
        until("the Secret to be put back", async || ca_secret(&cluster).load().await.unwrap()).await;
        let other = Ca::open(Box::new(ca_secret(&cluster)), None, NOW).await.unwrap();
        assert_eq!(other.current().active().id(), ours);
        // The state is as if somebody restored the wrong backup.
        let directory = tempfile::tempdir().unwrap();
        let foreign = Ca::open(Box::new(Files::new(directory.path(), NOW)), None, NOW).await.unwrap();
        let foreign = foreign.document().await.unwrap().unwrap();
        let (_, revision) = ca_secret(&cluster).load().await.unwrap().unwrap();
        let before = *loads.borrow();
        ca_secret(&cluster).store(&foreign, Some(&revision)).await.unwrap();
        loads.wait_for(|loads| *loads > before).await.unwrap();
        // The replica uses a document as soon as it has read it, before it handles another event.
        let before = *loads.borrow();
        PLANE.kubectl(&["label", "secret", NAME, "--namespace", NAMESPACE, "a=b"]).unwrap();
        loads.wait_for(|loads| *loads > before).await.unwrap();
        assert_eq!(ca.current().active().id(), ours);
        following.abort();
    });
}

/// A storage that counts how often the Secret is read.
struct CountingStorage(CaSecret, watch::Sender<usize>);

impl CaStorage for CountingStorage {
    fn load(&self) -> BoxFuture<'_, Result<Option<(CaDocument, Revision)>, CaError>> {
        Box::pin(async {
            let loaded = self.0.load().await;
            self.1.send_modify(|count| *count += 1);
            loaded
        })
    }

    fn store<'a>(
        &'a self,
        document: &'a CaDocument,
        over: Option<&'a Revision>,
    ) -> BoxFuture<'a, Result<Revision, CaError>> {
        self.0.store(document, over)
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.0.changed()
    }
}

fn same() {
    run(async {
        let cluster = clean().await;
        let (ca, mut loads, following) = followed(&cluster).await;
        let mut authorities = ca.subscribe();
        let before = *loads.borrow();
        PLANE.kubectl(&["label", "secret", NAME, "--namespace", NAMESPACE, "a=b"]).unwrap();
        loads.wait_for(|loads| *loads > before).await.unwrap();
        // The first change by another replica arrives.
        let other = Ca::open(Box::new(ca_secret(&cluster)), None, NOW).await.unwrap();
        let new = other.rollover(NOW).await.unwrap();
        authorities.changed().await.unwrap();
        assert_eq!(authorities.borrow().active().id(), new.id());
        following.abort();
    });
}
