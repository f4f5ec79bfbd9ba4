//! Node objects: labels, addresses, deletion.

use std::sync::Arc;

use edge_controller_domain::state::{Certificate, Change, NodeRecord};
use edge_controller_domain::store::StoreError;
use edge_controller_domain::store::embedded::Embedded;
use edge_controller_kubernetes::cluster_identity::ClusterIdentity;
use edge_types::name::COMMUNITY_LABEL;
use futures_util::{StreamExt, stream};
use interop_tests::kube::ControlPlane;
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, PostParams};

use crate::behaviour::{Grants, edge, name, until};
use crate::cluster::{PLANE, as_user, clean, run};

pub(crate) const TESTS: &[Test] = &[
    ("labels_of_a_node_put_it_into_communities_at_once", labelled),
    ("an_annotation_says_where_a_node_is_reached", annotated),
    ("a_node_that_joins_after_its_node_object_was_made_gets_what_that_says", late),
    ("a_node_whose_node_object_is_deleted_is_deregistered", deleted),
    ("a_node_object_that_is_made_anew_is_another_node", anew),
    ("a_node_that_is_not_ready_stays", not_ready),
    ("more_nodes_than_one_page_holds_are_all_seen", many),
    ("a_node_that_was_deleted_while_nobody_looked_is_deregistered_and_no_other", unseen),
    ("when_many_node_objects_go_at_once_their_nodes_stay_and_the_operator_is_asked", mass),
    ("node_objects_that_go_one_by_one_are_counted_together_by_every_replica", trickle),
    ("a_list_without_any_node_object_deregisters_nobody", empty),
    ("another_cluster_deregisters_nobody_until_it_is_accepted", other_cluster),
    ("a_node_object_that_is_made_again_by_the_same_machine_keeps_the_registration", same_machine),
    ("a_node_is_deregistered_when_the_node_object_that_replaced_its_own_is_deleted_as_well", replaced_and_deleted),
    (
        "a_missing_node_stays_asked_about_when_another_node_object_comes_and_goes_and_keeps_its_registration",
        asked_again,
    ),
    ("segments_of_a_node_that_lost_its_node_object_are_kept_as_long_as_its_certificate", kept),
];

fn make(node: &str, labels: &str) {
    PLANE
        .apply_text(&format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {node}\n  labels: {{node-role.kubernetes.io/edge: \"\"{labels}}}\n"
        ))
        .unwrap();
}

fn label(node: &str, value: &str) {
    PLANE.kubectl(&["label", "--overwrite", "node", node, &format!("{COMMUNITY_LABEL}={value}")]).unwrap();
}

async fn peers(replica: &Grants, node: &str, count: usize) {
    until("the communities to be as labelled", async || {
        let view = replica.registry.read().await;
        let record = view.state().node(&name(node))?;
        (view.state().peers_of(record).len() == count).then_some(())
    })
    .await;
}

async fn seen(replica: &Grants, node: &str) -> String {
    until("the Node object to be seen", async || {
        Some(replica.registry.read().await.state().node(&name(node))?.object.as_ref()?.uid.clone())
    })
    .await
}

async fn gone(replica: &Grants, node: &str) {
    until("the node to be deregistered", async || {
        replica.registry.read().await.state().node(&name(node)).is_none().then_some(())
    })
    .await;
}

fn labelled() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        let _watching = [cluster.watch_nodes(&replicas[0]), cluster.watch_nodes(&replicas[1])];
        for node in ["a", "b"] {
            make(node, "");
            replicas[0].register(node).await;
            seen(&replicas[1], node).await;
        }
        label("a", "alpha_beta");
        label("b", "beta");
        for replica in &replicas {
            peers(replica, "a", 1).await;
        }
        // An invalid name does not affect the others.
        label("b", "beta_-_c");
        label("a", "gamma");
        peers(&replicas[1], "a", 0).await;
        label("a", "beta");
        peers(&replicas[1], "a", 1).await;
        // It is not an edge any more: it has no communities.
        PLANE.kubectl(&["label", "node", "a", "node-role.kubernetes.io/edge-"]).unwrap();
        peers(&replicas[1], "a", 0).await;
    });
}

fn annotated() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let _watching = cluster.watch_nodes(&replica);
        make("a", "");
        replica.register("a").await;
        let addresses = "edge-cni.io/public-addresses=203.0.113.7:4501,2001:db8::1";
        PLANE.kubectl(&["annotate", "node", "a", addresses]).unwrap();
        until("the addresses to be known", async || {
            let view = replica.registry.read().await;
            let object = view.state().node(&name("a"))?.object.as_ref()?;
            (object.public_addresses.len() == 2).then_some(())
        })
        .await;
    });
}

fn late() {
    run(async {
        let cluster = clean().await;
        let (replica, other) = (cluster.replica().await, cluster.replica().await);
        let _watching = cluster.watch_nodes(&replica);
        make("a", ", fabedge/edge-community: alpha");
        make("b", "");
        replica.register("b").await;
        seen(&replica, "b").await;
        // Registered by another replica, which does not watch Nodes.
        other.register("a").await;
        until("the community to be known", async || {
            let view = replica.registry.read().await;
            let record = view.state().node(&name("a"))?;
            (view.state().communities_of(record).len() == 1).then_some(())
        })
        .await;
    });
}

fn deleted() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        let _watching = [cluster.watch_nodes(&replicas[0]), cluster.watch_nodes(&replicas[1])];
        for node in ["a", "b"] {
            make(node, "");
            replicas[0].register(node).await;
            seen(&replicas[0], node).await;
        }
        // A node without a Node object does not depend on Kubernetes.
        replicas[0].register("plain").await;
        replicas[0].request_segments("a", "r").await;
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        for replica in &replicas {
            gone(replica, "a").await;
            until("its segments to be released", async || replica.held().await.is_empty().then_some(())).await;
            let view = replica.registry.read().await;
            assert!(view.state().node(&name("plain")).is_some() && view.state().node(&name("b")).is_some());
        }
    });
}

fn anew() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let first = {
            let _watching = cluster.watch_nodes(&replica);
            make("a", "");
            replica.register("a").await;
            seen(&replica, "a").await
        };
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        make("a", "");
        let _watching = cluster.watch_nodes(&replica);
        gone(&replica, "a").await;
        let events: Api<Event> = Api::namespaced(as_user(PLANE.kubeconfig()).await.client, "default");
        until("the event of the deregistration", async || {
            let all = events.list(&ListParams::default()).await.unwrap();
            let told = |event: &Event| {
                let regarding = event.regarding.clone().unwrap_or_default();
                event.reason.as_deref() == Some("Deregistered")
                    && (regarding.kind.as_deref(), regarding.name.as_deref()) == (Some("EdgeNode"), Some("a"))
                    && event.note.as_ref().is_some_and(|note| note.contains("another one has its name"))
            };
            all.iter().any(told).then_some(())
        })
        .await;
        replica.register("a").await;
        assert_ne!(seen(&replica, "a").await, first);
    });
}

fn not_ready() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let _watching = cluster.watch_nodes(&replica);
        make("a", "");
        make("b", "");
        for node in ["a", "b"] {
            replica.register(node).await;
            seen(&replica, node).await;
        }
        let status = r#"{"status":{"conditions":[{"type":"Ready","status":"False","reason":"KubeletStopped"}]}}"#;
        PLANE.kubectl(&["patch", "node", "a", "--subresource=status", "--type=merge", "--patch", status]).unwrap();
        PLANE.kubectl(&["cordon", "a"]).unwrap();
        // A later change was seen, so this one was, too.
        label("b", "alpha");
        until("the later change", async || {
            let view = replica.registry.read().await;
            let record = view.state().node(&name("b"))?;
            (view.state().communities_of(record).len() == 1).then_some(())
        })
        .await;
        assert!(replica.registry.read().await.state().node(&name("a")).is_some());
    });
}

fn unseen() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        {
            let _watching = cluster.watch_nodes(&replica);
            for node in ["a", "b"] {
                make(node, "");
                replica.register(node).await;
                seen(&replica, node).await;
            }
        }
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        let _watching = cluster.watch_nodes(&replica);
        gone(&replica, "a").await;
        assert!(replica.registry.read().await.state().node(&name("b")).is_some());
    });
}

/// Three registered nodes with Node objects.
async fn three(replica: &Grants) {
    for node in ["a", "b", "c"] {
        make(node, "");
        replica.register(node).await;
        seen(replica, node).await;
    }
}

async fn registered(replica: &Grants) -> usize {
    replica.registry.read().await.state().nodes().len()
}

fn mass() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let watching = cluster.watch_nodes(&replica);
        three(&replica).await;
        PLANE.kubectl(&["delete", "node", "a", "b", "c"]).unwrap();
        let note = until("the operator to be asked", async || watching.asked.note()).await;
        assert!(note.contains("3 registered node(s)") && note.contains("deregister --confirm"), "{note}");
        assert_eq!(registered(&replica).await, 3);
        let events: Api<Event> = Api::namespaced(as_user(PLANE.kubeconfig()).await.client, "default");
        until("the event", async || {
            let all = events.list(&ListParams::default()).await.unwrap();
            let told = |event: &Event| {
                let about = event.regarding.clone().unwrap_or_default().name;
                event.reason.as_deref() == Some("NodeMissing") && about.as_deref() == Some("b")
            };
            all.iter().any(told).then_some(())
        })
        .await;
        // The operator's command counts, and the operator is not asked about that node any more.
        replica.deregister("a").await;
        make("d", "");
        until("it to be forgotten", async || (!watching.asked.contains(&name("a"))).then_some(())).await;
        assert_eq!(registered(&replica).await, 2);
    });
}

fn trickle() {
    run(async {
        let cluster = clean().await;
        let (one, other) = (cluster.replica().await, cluster.replica().await);
        let watching = [cluster.watch_nodes(&one), cluster.watch_nodes(&other)];
        three(&one).await;
        for node in ["a", "b", "c"] {
            seen(&other, node).await;
        }
        for node in ["a", "b"] {
            PLANE.kubectl(&["delete", "node", node]).unwrap();
            gone(&one, node).await;
            gone(&other, node).await;
        }
        PLANE.kubectl(&["delete", "node", "c"]).unwrap();
        for watching in watching {
            let note = until("the operator to be asked", async || watching.asked.note()).await;
            assert!(note.contains("1 registered node(s)") && note.contains("(c)"), "{note}");
        }
        assert_eq!((registered(&one).await, registered(&other).await), (1, 1));
    });
}

fn empty() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        {
            let _watching = cluster.watch_nodes(&replica);
            make("a", "");
            replica.register("a").await;
            seen(&replica, "a").await;
        }
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        let watching = cluster.watch_nodes(&replica);
        until("the operator to be asked", async || watching.asked.note()).await;
        assert_eq!(registered(&replica).await, 1);
    });
}

fn other_cluster() {
    run(async {
        let cluster = clean().await;
        let folder = tempfile::tempdir().unwrap();
        // The previous user may not have ended yet.
        let store = async || {
            let open = async || Embedded::open(folder.path()).ok().map(Arc::new);
            until("the store to be free", open).await
        };
        let other = ControlPlane::start("other").unwrap();
        {
            let replica = Grants::start(store().await).await;
            let _watching = cluster.watch_nodes(&replica);
            three(&replica).await;
        }
        let replica = Grants::start(store().await).await;
        let there = as_user(other.kubeconfig()).await;
        let watching = there.watch_nodes(&replica);
        let told = until("it to be told", async || there.obstacles.all()).await;
        assert!(told.contains("another cluster") && told.contains("accept_cluster"), "{told}");
        let found = other.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]).unwrap();
        assert!(told.contains(&found), "{found} in {told}");
        assert_eq!((registered(&replica).await, watching.asked.note()), (3, None));
        drop(watching);
        // The cluster is accepted, and still no node is deregistered for what it lacks.
        let identity = ClusterIdentity::new(&there.client, replica.registry.clone(), Some(found.clone()));
        identity.check().await.unwrap();
        ClusterIdentity::new(&there.client, replica.registry.clone(), None).check().await.unwrap();
        let watching = there.watch_nodes(&replica);
        until("the operator to be asked", async || watching.asked.note()).await;
        assert_eq!(registered(&replica).await, 3);
        let back = ClusterIdentity::new(&cluster.client, replica.registry.clone(), None).check().await.unwrap_err();
        assert!(back.to_string().contains(&found), "{back}");
    });
}

/// Sets the machine ID of a Node.
fn machine(node: &str, id: &str) {
    let status = format!(r#"{{"status":{{"nodeInfo":{{"machineID":"{id}"}}}}}}"#);
    PLANE.kubectl(&["patch", "node", node, "--subresource=status", "--type=merge", "--patch", &status]).unwrap();
}

/// A registered node with a known machine and a certificate that is valid for this time.
async fn on_machine(replica: &Grants, node: &str, id: &str, valid: i64) -> i64 {
    make(node, "");
    machine(node, id);
    let not_after = replica.registry.clock.now() + valid;
    let certificate = Certificate {
        serial: "1".into(),
        key: "k".into(),
        not_after,
        not_before: 0,
        issuer: String::new(),
        used: true,
    };
    let record = NodeRecord { certificates: vec![certificate], ..edge(node) };
    replica.registry.change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())]))).await.unwrap();
    until("its machine to be known", async || {
        let view = replica.registry.read().await;
        (view.state().node(&name(node))?.object.as_ref()?.machine_id == id).then_some(())
    })
    .await;
    not_after
}

fn same_machine() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let _watching = cluster.watch_nodes(&replica);
        for node in ["a", "b"] {
            on_machine(&replica, node, &format!("machine-{node}"), 3600).await;
            replica.request_segments(node, "r").await;
        }
        let first = seen(&replica, "a").await;
        let remade = |node: &str, id: &str| {
            PLANE.kubectl(&["delete", "node", node]).unwrap();
            make(node, "");
            machine(node, id);
        };
        remade("a", "machine-a");
        until("the new Node to be seen", async || (seen(&replica, "a").await != first).then_some(())).await;
        assert_eq!(replica.registry.read().await.state().ledger().held_by(&name("a")).len(), 2);
        // Another machine with the same name is another node.
        remade("b", "machine-c");
        gone(&replica, "b").await;
    });
}

/// Waits until the watch has processed all earlier changes.
async fn caught_up(replica: &Grants, markers: [&str; 2]) {
    // The second marker arrives after everything up to the first was processed.
    for marker in markers {
        make(marker, "");
        replica.register(marker).await;
        seen(replica, marker).await;
    }
}

fn replaced_and_deleted() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let _watching = cluster.watch_nodes(&replica);
        for node in ["a", "b", "c"] {
            on_machine(&replica, node, &format!("machine-{node}"), 3600).await;
        }
        // One Node reports another machine, and one reports none.
        for (node, id) in [("a", Some("machine-x")), ("b", None)] {
            PLANE.kubectl(&["delete", "node", node]).unwrap();
            make(node, "");
            if let Some(id) = id {
                machine(node, id);
            }
            PLANE.kubectl(&["delete", "node", node]).unwrap();
        }
        for node in ["a", "b"] {
            gone(&replica, node).await;
        }
        assert_eq!(registered(&replica).await, 1);
    });
}

fn asked_again() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        let watching = cluster.watch_nodes(&replica);
        for node in ["a", "b", "c"] {
            on_machine(&replica, node, &format!("machine-{node}"), 3600).await;
        }
        let first = seen(&replica, "a").await;
        PLANE.kubectl(&["delete", "node", "a", "b", "c"]).unwrap();
        let asked = async || watching.asked.contains(&name("a")).then_some(());
        until("the operator to be asked", asked).await;
        make("a", "");
        machine("a", "machine-x");
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        caught_up(&replica, ["d", "e"]).await;
        until("the operator to be asked still", asked).await;
        assert_eq!((registered(&replica).await, seen(&replica, "a").await), (5, first.clone()));
        // Its own machine comes back.
        make("a", "");
        machine("a", "machine-a");
        until("the new Node to be seen", async || (seen(&replica, "a").await != first).then_some(())).await;
        until("it not to be asked about", async || (!watching.asked.contains(&name("a"))).then_some(())).await;
        assert!(watching.asked.contains(&name("b")) && watching.asked.contains(&name("c")));
        assert_eq!(registered(&replica).await, 5);
    });
}

fn kept() {
    run(async {
        let cluster = clean().await;
        let mut replica = cluster.replica().await;
        replica.policy.quarantine = 0;
        let _watching = cluster.watch_nodes(&replica);
        let end = on_machine(&replica, "a", "m", 3600).await;
        make("b", "");
        replica.register("b").await;
        let granted = replica.request_segments("a", "r").await;
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        gone(&replica, "a").await;
        {
            let view = replica.registry.read().await;
            for network in &granted {
                assert_eq!(view.state().ledger().row(network).unwrap().kept_until, Some(end));
            }
        }
        // Its certificate is refused; its pods may still run.
        let others = replica.request_segments("b", "r").await;
        assert!(others.iter().all(|network| !granted.contains(network)), "{others:?}");
        // A node that the operator deregisters has no pods.
        replica.deregister("b").await;
        replica.register("c").await;
        assert_eq!(replica.request_segments("c", "r").await, others);
    });
}

fn many() {
    run(async {
        let cluster = clean().await;
        let api: Api<Node> = Api::all(as_user(PLANE.kubeconfig()).await.client);
        let node = |n: usize| {
            let labels =
                [("node-role.kubernetes.io/edge".to_owned(), String::new()), (COMMUNITY_LABEL.into(), "all".into())];
            let metadata =
                ObjectMeta { name: Some(format!("n{n:04}")), labels: Some(labels.into()), ..ObjectMeta::default() };
            Node { metadata, ..Node::default() }
        };
        stream::iter(0..1100)
            .map(|n| {
                let (api, node) = (api.clone(), node(n));
                async move { api.create(&PostParams::default(), &node).await.unwrap() }
            })
            .buffer_unordered(16)
            .for_each(async |_| {})
            .await;
        let replica = cluster.replica().await;
        let _watching = cluster.watch_nodes(&replica);
        let (first, last) = ("n0000", "n1099");
        for name in [first, last] {
            replica.register(name).await;
            seen(&replica, name).await;
        }
        peers(&replica, first, 1).await;
        PLANE.kubectl(&["delete", "node", last]).unwrap();
        gone(&replica, last).await;
        assert!(replica.registry.read().await.state().node(&name(first)).is_some());
    });
}
