//! What is missing was not necessarily deleted on purpose: nobody is deregistered for it, and nothing is granted twice.

use std::collections::BTreeMap;

use edge_controller::kubernetes::resources::object_name;
use edge_types::{IpNetwork, NodeName};
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::behaviour::{Grants, assert_disjoint, name, until};
use crate::cluster::{Cluster, NAMESPACE, PLANE, as_user, clean, deploy, install, run};

pub(crate) const TESTS: &[Test] = &[
    ("deleted_definitions_freeze_what_is_known_and_its_objects_are_written_again", definitions),
    ("while_a_definition_is_being_deleted_its_objects_are_not_believed_to_be_gone", terminating),
    ("a_replica_that_starts_where_objects_were_lost_with_their_definition_refuses_to", lost),
    ("the_object_of_a_segment_that_is_held_comes_back_and_an_event_says_why", held),
    ("edgenodes_that_are_all_deleted_at_once_come_back_and_their_nodes_stay", all_edge_nodes),
];

async fn administrator() -> kube::Client {
    as_user(PLANE.kubeconfig()).await.client
}

async fn definition(name: &str) -> (Api<CustomResourceDefinition>, Option<CustomResourceDefinition>) {
    let api: Api<CustomResourceDefinition> = Api::all(administrator().await);
    let found = api.get_opt(name).await.unwrap();
    (api, found)
}

/// Who holds what, as a replica knows it.
async fn known(replica: &Grants) -> BTreeMap<IpNetwork, NodeName> {
    let view = replica.registry.read().await;
    view.state().ledger().rows().map(|row| (row.network, row.node.clone())).collect()
}

/// The same, as the API server has it.
async fn kept(cluster: &Cluster) -> BTreeMap<IpNetwork, NodeName> {
    let all = cluster.segments().list(&ListParams::default()).await;
    let rows = all.into_iter().flatten().map(|segment| segment.spec);
    rows.map(|spec| (spec.network.parse().unwrap(), name(&spec.node))).collect()
}

async fn event(reason: &str, about: (&str, &str), note: &str) {
    let events: Api<Event> = Api::namespaced(administrator().await, "default");
    until("the event", async || {
        let all = events.list(&ListParams::default()).await.unwrap();
        let told = |event: &Event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            event.reason.as_deref() == Some(reason)
                && (regarding.kind.as_deref(), regarding.name.as_deref()) == (Some(about.0), Some(about.1))
                && event.note.as_ref().is_some_and(|text| text.contains(note))
        };
        all.iter().any(told).then_some(())
    })
    .await;
}

async fn registered(replica: &Grants, count: usize) {
    assert_eq!(replica.registry.read().await.state().nodes().len(), count);
}

fn definitions() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        for node in ["a", "b"] {
            replicas[0].register(node).await;
            replicas[0].apply(node, "r").await;
        }
        PLANE
            .apply_text(
                "apiVersion: edge-cni.io/v1alpha1\nkind: Community\nmetadata: {name: alpha}\nspec: {members: [a, b]}\n",
            )
            .unwrap();
        let before = known(&replicas[0]).await;
        let alpha = "alpha".parse().unwrap();
        for replica in &replicas {
            until("all to be known", async || {
                let complete = known(replica).await == before
                    && replica.registry.read().await.state().listed_community(&alpha).is_some();
                complete.then_some(())
            })
            .await;
        }
        let crds = deploy("crds");
        let crds = crds.to_str().unwrap().to_owned();
        tokio::task::spawn_blocking(move || PLANE.kubectl(&["delete", "-f", &crds, "--timeout=120s"]))
            .await
            .unwrap()
            .unwrap();
        let told = until("it to be told", async || cluster.obstacles.all().filter(|told| told.contains("(CRD)"))).await;
        assert!(told.contains("kubectl apply -f deploy/crds"), "{told}");
        let error = replicas[0].try_apply("a", "later").await.unwrap_err().to_string();
        assert!(error.contains("edge-cni.io"), "{error}");
        for replica in &replicas {
            registered(replica, 2).await;
            assert_eq!(known(replica).await, before);
        }
        install(&PLANE);
        until("all segments to be written again", async || (kept(&cluster).await == before).then_some(())).await;
        until("nothing to stand in the way", async || cluster.obstacles.all().is_none().then_some(())).await;
        for replica in &replicas {
            registered(replica, 2).await;
            assert_eq!(known(replica).await, before);
            assert!(replica.registry.read().await.state().listed_community(&alpha).is_some());
        }
        // The next gets what nobody holds, and who starts now knows all.
        replicas[1].register("c").await;
        let granted = replicas[1].apply("c", "r").await;
        assert!(granted.iter().all(|network| !before.contains_key(network)), "{granted:?} of {before:?}");
        let all: Vec<IpNetwork> = before.keys().copied().chain(granted).collect();
        assert_disjoint(&all);
        let third = cluster.replica().await;
        registered(&third, 3).await;
        assert_eq!(known(&third).await.len(), all.len());
        // What replicas delete is believed as ever.
        replicas[0].deregister("a").await;
        for replica in &replicas {
            until("the deregistration to be known", async || {
                replica.registry.read().await.state().node(&name("a")).is_none().then_some(())
            })
            .await;
        }
    });
}

fn terminating() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        replica.apply("a", "r").await;
        let before = known(&replica).await;
        const SEGMENTS: &str = "segments.edge-cni.io";
        // Something keeps it from going: it stays in between as long as we want.
        let (api, _) = definition(SEGMENTS).await;
        let finalizers = |list: serde_json::Value| Patch::Merge(json!({"metadata": {"finalizers": list}}));
        let cleanup = "customresourcecleanup.apiextensions.k8s.io";
        let both = finalizers(json!([cleanup, "edge-cni.io/test"]));
        api.patch(SEGMENTS, &PatchParams::default(), &both).await.unwrap();
        api.delete(SEGMENTS, &DeleteParams::default()).await.unwrap();
        until("its objects to be deleted", async || kept(&cluster).await.is_empty().then_some(())).await;
        let told =
            until("it to be told", async || cluster.obstacles.all().filter(|told| told.contains(SEGMENTS))).await;
        assert!(told.contains("being deleted"), "{told}");
        registered(&replica, 1).await;
        assert_eq!(known(&replica).await, before);
        replica.try_apply("a", "later").await.unwrap_err();
        api.patch(SEGMENTS, &PatchParams::default(), &finalizers(json!([]))).await.unwrap();
        until("it to be gone", async || definition(SEGMENTS).await.1.is_none().then_some(())).await;
        assert_eq!(known(&replica).await, before);
        install(&PLANE);
        until("all segments to be written again", async || (kept(&cluster).await == before).then_some(())).await;
        until("nothing to stand in the way", async || cluster.obstacles.all().is_none().then_some(())).await;
        assert_eq!(known(&replica).await, before);
    });
}

fn lost() {
    run(async {
        let cluster = clean().await;
        {
            let replica = cluster.replica().await;
            replica.register("a").await;
        }
        // As if the definition had been made again while no replica ran.
        let maps: Api<ConfigMap> = Api::namespaced(administrator().await, NAMESPACE);
        let patch = Patch::Merge(json!({"data": {"definition.segments.edge-cni.io": "another"}}));
        maps.patch("edge-cni-controller", &PatchParams::default(), &patch).await.unwrap();
        let error = cluster.store().load(tokio::sync::mpsc::channel(1).0).await.unwrap_err().to_string();
        assert!(error.contains("segments.edge-cni.io") && error.contains("edge-controller import"), "{error}");
        // Who brings a backup says so.
        cluster.store().begin_again().await.unwrap();
        cluster.store().load(tokio::sync::mpsc::channel(1).0).await.unwrap();
    });
}

fn held() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica_with_events().await, cluster.replica().await];
        replicas[0].register("a").await;
        let granted = replicas[0].apply("a", "r").await;
        until("the segments to be known", async || (known(&replicas[1]).await.len() == 2).then_some(())).await;
        let object = object_name(&granted[0]);
        let uid = cluster.segments().get(&object).await.unwrap().metadata.uid;
        PLANE.kubectl(&["delete", "segment", &object]).unwrap();
        until("it to come back", async || {
            cluster.segments().get_opt(&object).await.unwrap().filter(|again| again.metadata.uid != uid).map(drop)
        })
        .await;
        event("DeletionUndone", ("Segment", &object), "node a holds it").await;
        for replica in &replicas {
            assert_eq!(known(replica).await.len(), 2);
            assert_eq!(replica.held().await.len(), 2);
        }
        // All at once, too.
        PLANE.kubectl(&["delete", "segments", "--all"]).unwrap();
        until("all to come back", async || (kept(&cluster).await == known(&replicas[0]).await).then_some(())).await;
        replicas[1].register("b").await;
        let others = replicas[1].apply("b", "r").await;
        assert!(others.iter().all(|network| !granted.contains(network)), "{others:?}");
        // Its quarantine is kept too, when its node is deregistered.
        replicas[0].deregister("a").await;
        PLANE.kubectl(&["delete", "segment", &object]).unwrap();
        until("it to come back", async || cluster.segments().get_opt(&object).await.unwrap().map(drop)).await;
        let others = replicas[1].apply("b", "r2").await;
        assert!(others.iter().all(|network| !granted.contains(network)), "{others:?}");
    });
}

fn all_edge_nodes() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica_with_events().await, cluster.replica().await];
        for node in ["a", "b", "c"] {
            replicas[0].register(node).await;
            replicas[0].apply(node, "r").await;
        }
        let before = known(&replicas[0]).await;
        until("all to be known", async || (known(&replicas[1]).await == before).then_some(())).await;
        PLANE.kubectl(&["delete", "edgenodes", "--all"]).unwrap();
        until("all to come back", async || {
            let there = cluster.edge_nodes().list(&ListParams::default()).await.unwrap().items.len();
            (there == 3).then_some(())
        })
        .await;
        event("DeletionUndone", ("EdgeNode", "a"), "edge-controller node deregister a").await;
        for replica in &replicas {
            registered(replica, 3).await;
            assert_eq!(known(replica).await, before);
        }
        // One alone is somebody's will. A replica that still writes the others again may write this one, too.
        for replica in &replicas {
            until("it to be deregistered", async || {
                PLANE.kubectl(&["delete", "edgenode", "a", "--ignore-not-found"]).unwrap();
                replica.registry.read().await.state().node(&name("a")).is_none().then_some(())
            })
            .await;
        }
    });
}
