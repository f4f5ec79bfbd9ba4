//! Tests missing objects, which were not necessarily deleted on purpose. No node is deregistered
//! because of missing objects, and no segment is granted twice.

use std::collections::{BTreeMap, BTreeSet};

use edge_controller_domain::state::{Certificate, Change, NodeObject, NodeRecord, State};
use edge_controller_domain::store::StoreError;
use edge_controller_kubernetes::resources::{definitions as definitions_of_this_release, manifest, object_name};
use edge_types::{IpNetwork, NodeName, Role};
use hyper::Method;
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::behaviour::{Grants, assert_disjoint, edge, name, until};
use crate::cluster::{self, Cluster, NAMESPACE, PLANE, as_user, clean, deploy, install, run};
use crate::harness::{Cloud, Node, monitoring_page};
use crate::server::{controller, controller_of};

pub(crate) const TESTS: &[Test] = &[
    ("deleted_definitions_freeze_what_is_known_and_its_objects_are_written_again", definitions),
    ("while_a_definition_is_being_deleted_its_objects_are_not_believed_to_be_gone", terminating),
    ("a_replica_that_starts_where_objects_were_lost_with_their_definition_refuses_to", lost),
    ("the_object_of_a_segment_that_is_held_comes_back_and_an_event_says_why", held),
    ("edgenodes_that_are_all_deleted_at_once_come_back_and_their_nodes_stay", all_edge_nodes),
    ("what_older_definitions_drop_is_said_and_no_segment_is_released_that_could_not_be_kept", older),
    ("nodes_are_served_while_the_definitions_are_gone_and_readyz_says_what_helps", served),
    ("nodes_are_served_while_the_api_server_is_away_and_readyz_stays_200", unreachable),
    ("nodes_that_lost_their_node_objects_are_listed_and_deregistered_when_it_is_confirmed", confirmed),
    ("a_node_that_joins_again_after_its_node_object_was_deleted_gets_its_segments_back", returned),
    ("a_controller_does_not_start_with_another_cluster_until_that_is_accepted", refused),
];

async fn administrator() -> kube::Client {
    as_user(PLANE.kubeconfig()).await.client
}

async fn definition(name: &str) -> (Api<CustomResourceDefinition>, Option<CustomResourceDefinition>) {
    let api: Api<CustomResourceDefinition> = Api::all(administrator().await);
    let found = api.get_opt(name).await.unwrap();
    (api, found)
}

/// Returns the holder of each segment, according to the state in the replica's memory.
async fn known(replica: &Grants) -> BTreeMap<IpNetwork, NodeName> {
    let state = replica.registry.read().await;
    state.ledger().rows().map(|row| (row.network, row.node.clone())).collect()
}

/// Returns the holder of each segment, as the API server stores it.
async fn kept(cluster: &Cluster) -> BTreeMap<IpNetwork, NodeName> {
    let all = cluster.segments().list(&ListParams::default()).await;
    let rows = all.into_iter().flatten().map(|segment| segment.spec);
    rows.map(|spec| (spec.network.parse().unwrap(), name(&spec.node))).collect()
}

async fn event(reason: &str, about: (&str, &str), note: &str) {
    cluster::event(administrator().await, reason, Some(about), note).await;
}

async fn registered(replica: &Grants, count: usize) {
    assert_eq!(replica.registry.read().await.nodes().len(), count);
}

fn definitions() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        for node in ["a", "b"] {
            replicas[0].register(node).await;
            replicas[0].request_segments(node, "r").await;
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
                let complete =
                    known(replica).await == before && replica.registry.read().await.listed_community(&alpha).is_some();
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
        let message = until("it to be reported", async || {
            cluster.api_failures.serving_reasons().filter(|message| message.contains("(CRD)"))
        })
        .await;
        assert!(message.contains("kubectl apply -f deploy/crds"), "{message}");
        let error = replicas[0].try_request_segments("a", "later").await.unwrap_err().to_string();
        assert!(error.contains("edge-cni.io"), "{error}");
        for replica in &replicas {
            registered(replica, 2).await;
            assert_eq!(known(replica).await, before);
        }
        install(&PLANE);
        until("all segments to be written again", async || (kept(&cluster).await == before).then_some(())).await;
        until("nothing to stand in the way", async || cluster.api_failures.serving_reasons().is_none().then_some(()))
            .await;
        for replica in &replicas {
            registered(replica, 2).await;
            assert_eq!(known(replica).await, before);
            assert!(replica.registry.read().await.listed_community(&alpha).is_some());
        }
        // The next node gets a free segment, and a replica that starts now has all rows.
        replicas[1].register("c").await;
        let granted = replicas[1].request_segments("c", "r").await;
        assert!(granted.iter().all(|network| !before.contains_key(network)), "{granted:?} of {before:?}");
        let all: Vec<IpNetwork> = before.keys().copied().chain(granted).collect();
        assert_disjoint(&all);
        // Each of the two replicas records that it has created all objects.
        let open = async || cluster.store().load(tokio::sync::mpsc::channel(1).0).await.ok();
        until("a third one to be let start", open).await;
        let third = cluster.replica().await;
        registered(&third, 3).await;
        assert_eq!(known(&third).await.len(), all.len());
        // Deletions by replicas still take effect.
        replicas[0].deregister("a").await;
        for replica in &replicas {
            until("the deregistration to be known", async || {
                replica.registry.read().await.node(&name("a")).is_none().then_some(())
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
        replica.request_segments("a", "r").await;
        let before = known(&replica).await;
        const SEGMENTS: &str = "segments.edge-cni.io";
        // A finalizer delays the definition's deletion as long as the test requires.
        let (api, _) = definition(SEGMENTS).await;
        let finalizers = |list: serde_json::Value| Patch::Merge(json!({"metadata": {"finalizers": list}}));
        let cleanup = "customresourcecleanup.apiextensions.k8s.io";
        let both = finalizers(json!([cleanup, "edge-cni.io/test"]));
        api.patch(SEGMENTS, &PatchParams::default(), &both).await.unwrap();
        api.delete(SEGMENTS, &DeleteParams::default()).await.unwrap();
        until("its objects to be deleted", async || kept(&cluster).await.is_empty().then_some(())).await;
        let message = until("it to be reported", async || {
            cluster.api_failures.serving_reasons().filter(|message| message.contains(SEGMENTS))
        })
        .await;
        assert!(message.contains("being deleted"), "{message}");
        registered(&replica, 1).await;
        assert_eq!(known(&replica).await, before);
        replica.try_request_segments("a", "later").await.unwrap_err();
        api.patch(SEGMENTS, &PatchParams::default(), &finalizers(json!([]))).await.unwrap();
        until("it to be gone", async || definition(SEGMENTS).await.1.is_none().then_some(())).await;
        assert_eq!(known(&replica).await, before);
        install(&PLANE);
        until("all segments to be written again", async || (kept(&cluster).await == before).then_some(())).await;
        until("nothing to stand in the way", async || cluster.api_failures.serving_reasons().is_none().then_some(()))
            .await;
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
        // The state is as if the definition had been created again while no replica ran.
        let maps: Api<ConfigMap> = Api::namespaced(administrator().await, NAMESPACE);
        let patch = Patch::Merge(json!({"data": {"definition.segments.edge-cni.io": "another"}}));
        maps.patch("edge-cni-controller", &PatchParams::default(), &patch).await.unwrap();
        let error = cluster.store().load(tokio::sync::mpsc::channel(1).0).await.unwrap_err().to_string();
        assert!(error.contains("segments.edge-cni.io") && error.contains("edge-controller import"), "{error}");
        // An import calls `begin_import` first.
        cluster.store().begin_import().await.unwrap();
        cluster.store().load(tokio::sync::mpsc::channel(1).0).await.unwrap();
    });
}

fn held() {
    run(async {
        let cluster = clean().await;
        let mut replicas = [cluster.replica_with_events().await, cluster.replica_with_events().await];
        // The quarantine is longer than this test on a busy machine.
        replicas.iter_mut().for_each(|replica| replica.policy.quarantine = 3600);
        replicas[0].register("a").await;
        let granted = replicas[0].request_segments("a", "r").await;
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
        // The same applies if all segments are deleted at once.
        PLANE.kubectl(&["delete", "segments", "--all"]).unwrap();
        until("all to come back", async || (kept(&cluster).await == known(&replicas[0]).await).then_some(())).await;
        replicas[1].register("b").await;
        let others = replicas[1].request_segments("b", "r").await;
        assert!(others.iter().all(|network| !granted.contains(network)), "{others:?}");
        // When the segment's node is deregistered, the segment's quarantine is also kept.
        replicas[0].deregister("a").await;
        PLANE.kubectl(&["delete", "segment", &object]).unwrap();
        until("it to come back", async || cluster.segments().get_opt(&object).await.unwrap().map(drop)).await;
        let others = replicas[1].request_segments("b", "r2").await;
        assert!(others.iter().all(|network| !granted.contains(network)), "{others:?}");
    });
}

fn all_edge_nodes() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica_with_events().await, cluster.replica_with_events().await];
        for node in ["a", "b", "c"] {
            replicas[0].register(node).await;
            replicas[0].request_segments(node, "r").await;
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
    });
}

/// Returns the status and text of a health page.
async fn health(cloud: &Cloud, path: &str) -> (u16, String) {
    monitoring_page(cloud.server.observe[0], path).await
}

fn served() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let (node, later) = (cloud.node("edge", "edge-1").await, cloud.token("edge", None).await);
        let mut stream = node.watch().await;
        let view = stream.view().await;
        let crds = deploy("crds").to_str().unwrap().to_owned();
        let deletion = move || PLANE.kubectl(&["delete", "-f", &crds, "--timeout=120s"]);
        tokio::task::spawn_blocking(deletion).await.unwrap().unwrap();
        let message = until("readyz to say so", async || {
            let (status, text) = health(&cloud, "/readyz").await;
            assert_eq!(status, 200, "another replica would not be better off: {text}");
            let note = text.lines().find(|line| line.starts_with("[!]kubernetes: "))?;
            note.contains("(CRD) is missing").then(|| note.to_owned())
        })
        .await;
        assert!(message.contains("kubectl apply -f deploy/crds"), "{message}");
        // A restart would lose the replica's state.
        assert_eq!(health(&cloud, "/healthz").await.0, 200);
        let again = node.watch().await.view().await;
        assert_eq!((again.segments, again.peers), (view.segments.clone(), view.peers.clone()));
        assert_eq!(node.request_segments("r", &["ipv4"]).await.0, 503);
        install(&PLANE);
        until("nothing to be noted any more", async || {
            let (status, text) = health(&cloud, "/readyz").await;
            (status == 200 && !text.contains("[!]kubernetes")).then_some(())
        })
        .await;
        assert_eq!(node.watch().await.view().await.segments, view.segments);
        until("what is shown of it to be shown again", async || {
            let object = cluster.edge_nodes().get_opt("edge-1").await.unwrap()?;
            (object.status?.segments.len() == view.segments.len()).then_some(())
        })
        .await;
        let other = Node::join(cloud.address(), cloud.ca(), &later, "edge-2").await;
        let granted = other.watch().await.view().await.segments;
        assert!(!granted.is_empty() && granted.iter().all(|segment| !view.segments.contains(segment)), "{granted:?}");
        // The node received no deregistration: its stream continues.
        cloud.label("edge-1", Some("alpha")).await;
        assert_eq!(stream.view().await.communities.len(), 1);
        cloud.server.stop().await;
    });
}

fn unreachable() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let node = cloud.node("edge", "edge-1").await;
        let mut stream = node.watch().await;
        let view = stream.view().await;
        until("it to be ready", async || (health(&cloud, "/readyz").await.0 == 200).then_some(())).await;
        PLANE.kill_api_server().unwrap();
        until("readyz to note it", async || {
            let (status, text) = health(&cloud, "/readyz").await;
            assert_eq!(status, 200, "nodes lose what it can still serve: {text}");
            text.lines().any(|line| line.starts_with("[!]kubernetes: ") && line.contains("API server")).then_some(())
        })
        .await;
        let again = node.watch().await.view().await;
        assert_eq!((again.segments, again.peers), (view.segments, view.peers));
        assert_eq!(node.request_segments("r", &["ipv4"]).await.0, 503);
        PLANE.start_api_server().unwrap();
        // The node's stream continues.
        cloud.label("edge-1", Some("alpha")).await;
        assert_eq!(stream.view().await.communities.len(), 1);
        cloud.server.stop().await;
    });
}

/// Applies the definitions of an earlier release.
fn install_older() {
    for (_, mut definition) in definitions_of_this_release() {
        let name = definition.metadata.name.clone().unwrap();
        let schema = definition.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
        let spec = schema.properties.as_mut().unwrap().get_mut("spec").unwrap().properties.as_mut().unwrap();
        match name.as_str() {
            "segments.edge-cni.io" => drop(spec.remove("keptUntil").unwrap()),
            "edgenodes.edge-cni.io" => {
                let object = spec.get_mut("nodeObject").unwrap().properties.as_mut().unwrap();
                object.remove("machineId").unwrap();
                object.remove("podNetworks").unwrap();
            }
            _ => {}
        }
        PLANE.apply_text(&manifest(&definition).unwrap()).unwrap();
    }
}

fn older() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let mut record = edge("a");
        record.certificates = vec![Certificate {
            serial: "4f".into(),
            key: "ab".into(),
            not_after: replica.registry.clock.now() + 3600,
            not_before: 0,
            issuer: String::new(),
            used: true,
        }];
        replica
            .registry
            .change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())])))
            .await
            .unwrap();
        let segments = replica.request_segments("a", "r").await;
        assert_eq!(cluster.api_failures.all_reasons(), None);

        install_older();
        let message = until("it to be reported", async || {
            cluster
                .api_failures
                .all_reasons()
                .filter(|message| message.contains("keptUntil") && message.contains("machineId"))
        })
        .await;
        assert!(message.contains("spec.keptUntil from what is written: run kubectl apply -f deploy/crds"), "{message}");
        assert!(
            message.contains("edgenodes.edge-cni.io") && message.contains("spec.nodeObject.machineId"),
            "{message}"
        );
        assert_eq!(cluster.api_failures.serving_reasons(), None, "nodes are served as ever");
        let departs = async |replica: &Grants| {
            let now = replica.registry.clock.now();
            let departure = move |state: &mut State| {
                Ok::<_, StoreError>(((), state.deregistration_keeping_segments(&name("a"), now, 0).unwrap().1))
            };
            replica.registry.change(departure).await
        };
        let refused = departs(&replica).await.unwrap_err().to_string();
        assert!(refused.contains("keptUntil") && refused.contains("kubectl apply -f deploy/crds"), "{refused}");
        assert!(cluster.edge_nodes().get_opt("a").await.unwrap().is_some(), "it stays registered");
        registered(&replica, 1).await;
        // The API server drops the networks of a hub's pods. What the Node said stays known.
        let mut hub = NodeRecord { role: Role::Hub, ..edge("hub") };
        let pod_networks = vec!["10.244.3.0/24".parse().unwrap()];
        hub.object = Some(NodeObject { uid: "u".into(), pod_networks: pod_networks.clone(), ..NodeObject::default() });
        replica.registry.change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(hub.clone())]))).await.unwrap();
        let stored = cluster.edge_nodes().get("hub").await.unwrap().spec.node_object.unwrap();
        assert!(stored.uid == "u" && stored.pod_networks.is_empty(), "{stored:?}");
        // The other replica's node is seen after the hub's object.
        cluster.replica().await.register("later").await;
        until("the later node to be seen", async || replica.registry.read().await.node(&name("later")).map(drop)).await;
        let known = replica.registry.read().await.node(&name("hub")).unwrap().pod_networks().to_vec();
        assert_eq!(known, pod_networks);
        // Changes that lose no field are written, and a replica that starts now reports the same
        // failure immediately.
        let more = replica.request_segments("a", "r2").await;
        let cloud = controller(&cluster).await;
        until("it to be ready, and to note the failure", async || {
            let (status, text) = health(&cloud, "/readyz").await;
            (status == 200 && text.contains("[!]kubernetes: ") && text.contains("spec.keptUntil")).then_some(())
        })
        .await;
        cloud.server.stop().await;

        install(&PLANE);
        until("nothing to be missed", async || cluster.api_failures.all_reasons().is_none().then_some(())).await;
        departs(&replica).await.unwrap();
        let kept = cluster.segments().list(&ListParams::default()).await.unwrap().items;
        assert_eq!(kept.len(), segments.len() + more.len());
        assert!(kept.iter().all(|segment| segment.spec.kept_until.is_some()), "{kept:?}");
    });
}

fn confirmed() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let mut nodes = Vec::new();
        for name in ["edge-1", "edge-2", "edge-3"] {
            PLANE.apply_text(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")).unwrap();
            nodes.push(cloud.node("edge", name).await);
            until("its Node to be known", async || cluster.edge_nodes().get(name).await.unwrap().spec.node_object)
                .await;
        }
        PLANE.kubectl(&["delete", "nodes", "--all"]).unwrap();
        let message = until("readyz to note it", async || {
            let (status, text) = health(&cloud, "/readyz").await;
            text.contains("[!]3 registered node(s)").then_some((status, text))
        })
        .await;
        assert!(message.0 == 200 && message.1.contains("node deregister --confirm"), "{message:?}");
        let socket = cloud.directory.path().join("admin.sock");
        let command = async |arguments: &[&str]| {
            let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_edge-controller"));
            let output = command.arg("--socket").arg(&socket).args(arguments).output().await.unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let listed = command(&["node", "list"]).await;
        assert_eq!(listed.matches("its Node object is gone").count(), 3, "{listed}");
        for node in &nodes {
            assert_eq!(node.ask(Method::GET, "/segments", None).await.0, 200);
        }
        let done = command(&["node", "deregister", "--confirm"]).await;
        assert_eq!(done.matches("is deregistered").count(), 3, "{done}");
        for node in &nodes {
            assert_eq!(node.ask(Method::GET, "/segments", None).await.0, 403);
        }
        cloud.server.stop().await;
    });
}

fn returned() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        PLANE.apply_text("apiVersion: v1\nkind: Node\nmetadata: {name: edge-1}\n").unwrap();
        let node = cloud.node("edge", "edge-1").await;
        node.request_segments("r", &["ipv4"]).await;
        let held = node.watch().await.view().await.segments;
        until("its Node to be known", async || cluster.edge_nodes().get("edge-1").await.unwrap().spec.node_object)
            .await;
        PLANE.kubectl(&["delete", "node", "edge-1"]).unwrap();
        until("it to be refused", async || (node.ask(Method::GET, "/segments", None).await.0 == 403).then_some(()))
            .await;
        let other = cloud.node("edge", "edge-2").await.watch().await.view().await.segments;
        assert!(!other.is_empty() && other.iter().all(|segment| !held.contains(segment)), "{other:?}");
        let back = cloud.node("edge", "edge-1").await.watch().await.view().await.segments;
        let (held, back): (BTreeSet<IpNetwork>, BTreeSet<IpNetwork>) =
            (held.into_iter().collect(), back.into_iter().collect());
        assert!(held.len() == 3 && back == held, "{back:?} and not {held:?}");
        cloud.server.stop().await;
    });
}

fn refused() {
    run(async {
        let cluster = clean().await;
        let cloud = controller(&cluster).await;
        let said = cloud
            .restart_refused(|_| {
                let patch = r#"{"data":{"cluster":"another"}}"#;
                let maps = ["configmap", "edge-cni-controller", "--namespace", NAMESPACE];
                PLANE.kubectl(&[&["patch"][..], &maps, &["--type=merge", "--patch", patch]].concat()).unwrap();
            })
            .await;
        let uid = PLANE.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]).unwrap();
        assert!(said.contains("another cluster") && said.contains(&format!("accept_cluster = \"{uid}\"")), "{said}");
        let accepting = controller_of(&cluster, "fd77::/112", &format!("accept_cluster = \"{uid}\"")).await;
        accepting.server.stop().await;
        controller(&cluster).await.server.stop().await;
    });
}
