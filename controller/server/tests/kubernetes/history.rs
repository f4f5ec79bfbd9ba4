//! Runs random histories (sequences of operations) with three controllers on one API server. Any
//! controller, the API server or etcd may be killed at any moment.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use edge_controller_kubernetes::ca_secret;
use edge_controller_kubernetes::orphans::OrphanCollector;
use edge_controller_kubernetes::resources::SegmentSpec;
use edge_types::IpNetwork;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;

use crate::behaviour::until;
use crate::cluster::{CONTROLLER, Cluster, NAMESPACE, PLANE, as_user, clean, run_within};
use crate::model::{Dice, Testbed, check};

pub(crate) const TESTS: &[Test] =
    &[("through_any_history_of_kills_and_outages_no_segment_has_two_owners_and_none_is_lost", any)];

struct Shared {
    cluster: Cluster,
    administrator: Client,
}

impl Shared {
    fn nodes(&self) -> Api<Node> {
        Api::all(self.administrator.clone())
    }

    /// Clears `kept_until` in the segments of one node or of all nodes. These tests have too few
    /// segments to wait until that time.
    async fn clear_kept_until(&self, node: Option<&str>) {
        until("no segment to be kept", async || {
            let all = self.cluster.segments().list(&ListParams::default()).await.ok()?;
            let kept = all.into_iter().filter(|segment| segment.spec.kept_until.is_some());
            let kept: Vec<_> = kept.filter(|segment| node.is_none_or(|node| segment.spec.node == node)).collect();
            let none = kept.is_empty();
            for mut segment in kept {
                segment.spec.kept_until = None;
                let name = segment.metadata.name.clone()?;
                // The write fails if another writer has changed the object first; `until` repeats
                // it.
                let _ = self.cluster.segments().replace(&name, &PostParams::default(), &segment).await;
            }
            none.then_some(())
        })
        .await;
    }

    /// Returns the segments of a node name, if the API server answers.
    async fn held_by(&self, node: &str) -> Option<Vec<SegmentSpec>> {
        let all = self.cluster.segments().list(&ListParams::default()).await.ok()?;
        let all = all.into_iter().map(|segment| segment.spec);
        Some(all.filter(|spec| spec.node == node && spec.released_at.is_none()).collect())
    }
}

impl Testbed for Shared {
    fn replicas(&self) -> usize {
        3
    }

    fn config_tables(&self) -> String {
        format!("[kubernetes]\nkubeconfig = {:?}\nlease_seconds = 3\nconfirm_deregistrations = false\n", *CONTROLLER)
    }

    fn ca_certificate<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, CertificateDer<'static>> {
        async {
            let secrets: Api<Secret> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
            let certificates = secrets.get(ca_secret::NAME).await.unwrap().data.unwrap().remove("ca.crt").unwrap();
            CertificateDer::from_pem_slice(&certificates.0).unwrap()
        }
        .boxed_local()
    }

    fn disturb<'a>(&'a self, dice: &'a mut Dice) -> LocalBoxFuture<'a, bool> {
        async {
            let etcd = dice.percent(40);
            let restart = move || if etcd { PLANE.restart_etcd() } else { PLANE.restart_api_server() };
            tokio::task::spawn_blocking(restart).await.unwrap().unwrap();
            true
        }
        .boxed_local()
    }

    fn create_node_object<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, bool> {
        async move {
            let metadata = ObjectMeta { name: Some(node.into()), ..ObjectMeta::default() };
            let object = Node { metadata, ..Node::default() };
            until("a Node object to be made", async || {
                match self.nodes().create(&PostParams::default(), &object).await {
                    Ok(_) => Some(()),
                    // The object was created, but the response was lost.
                    Err(kube::Error::Api(status)) if status.code == 409 => Some(()),
                    Err(_) => None,
                }
            })
            .await;
            true
        }
        .boxed_local()
    }

    fn node_object_is_known<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, ()> {
        async move {
            until("the Node object to be known", async || {
                let uid = self.nodes().get(node).await.ok()?.metadata.uid?;
                let record = self.cluster.edge_nodes().get(node).await.ok()?;
                (record.spec.node_object?.uid == uid).then_some(())
            })
            .await;
        }
        .boxed_local()
    }

    fn delete_node_object<'a>(&'a self, node: &'a str) -> LocalBoxFuture<'a, ()> {
        async move {
            until("a Node object to be deleted", async || {
                match self.nodes().delete(node, &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Some(()),
                    _ => None,
                }
            })
            .await;
            until("its node to be deregistered", async || match self.cluster.edge_nodes().get_opt(node).await {
                Ok(None) => Some(()),
                _ => None,
            })
            .await;
            // Its segments are released a moment later, or never, if the replica died. If that
            // happens while a node of the same name joins, the test cannot tell which of the two
            // has a segment.
            let left = Instant::now();
            until("what it held to be released, or left over", async || {
                let held = self.held_by(node).await?;
                (held.is_empty() || left.elapsed() > Duration::from_secs(3)).then_some(())
            })
            .await;
            self.clear_kept_until(Some(node)).await;
        }
        .boxed_local()
    }

    fn granted_on_join<'a>(&'a self, node: &'a str, since: i64) -> LocalBoxFuture<'a, Option<BTreeSet<IpNetwork>>> {
        async move {
            let its = until("the segments to be listed", async || self.held_by(node).await).await.into_iter();
            let its = its.filter(|spec| spec.request_id == "join" && spec.granted_at.0 >= since - 1);
            Some(its.map(|spec| spec.network.parse().unwrap()).collect())
        }
        .boxed_local()
    }

    fn release_leftovers(&self) -> LocalBoxFuture<'_, ()> {
        async {
            // Does the leader's work, with a shorter grace period.
            let replica = self.cluster.replica().await;
            let (_lead, leading) = watch::channel(true);
            let garbage = OrphanCollector::new(&self.cluster.client, replica.registry.clone(), Duration::from_secs(1));
            let collecting = tokio::spawn(garbage.run(leading));
            until("what is left over to be released", async || replica.held().await.is_empty().then_some(())).await;
            self.clear_kept_until(None).await;
            collecting.abort();
        }
        .boxed_local()
    }
}

fn any() {
    let lasts = std::env::var("EDGE_MODEL_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    run_within(Duration::from_secs(300 + lasts), async {
        let cluster = clean().await;
        let administrator = as_user(PLANE.kubeconfig()).await.client;
        check(&Shared { cluster, administrator }, Duration::from_secs(15)).await;
    });
}
