//! Tests Node objects that are deleted, are replaced or belong to another cluster.

use std::sync::Arc;

use edge_controller_domain::state::{Certificate, Change, NodeRecord};
use edge_controller_domain::store::StoreError;
use edge_controller_domain::store::embedded::Embedded;
use edge_controller_kubernetes::cluster_identity::ClusterIdentity;
use interop_tests::kube::ControlPlane;
use interop_tests::kube::suite::Test;

use crate::behaviour::{Grants, edge, name, until};
use crate::cluster::{PLANE, as_user, clean, event, run};
use crate::nodes::{gone, join_nodes, make, seen};

pub(crate) const TESTS: &[Test] = &[
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

fn unseen() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        {
            let _watching = cluster.watch_nodes(&replica);
            join_nodes(&["a", "b"], &replica, &replica).await;
        }
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        let _watching = cluster.watch_nodes(&replica);
        gone(&replica, "a").await;
        assert!(replica.registry.read().await.node(&name("b")).is_some());
    });
}

/// Registers three nodes with Node objects.
async fn three(replica: &Grants) {
    join_nodes(&["a", "b", "c"], replica, replica).await;
}

async fn registered(replica: &Grants) -> usize {
    replica.registry.read().await.nodes().len()
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
        let client = as_user(PLANE.kubeconfig()).await.client;
        event(client, "NodeMissing", Some(("EdgeNode", "b")), "edge-controller node deregister b").await;
        // The operator's command counts, and the node no longer waits for confirmation.
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
            join_nodes(&["a"], &replica, &replica).await;
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
        let directory = tempfile::tempdir().unwrap();
        // The previous user may still be running.
        let store = async || {
            let open = async || Embedded::open(directory.path()).ok().map(Arc::new);
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
        let message = until("it to be reported", async || there.api_failures.serving_reasons()).await;
        assert!(message.contains("another cluster") && message.contains("accept_cluster"), "{message}");
        let found = other.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]).unwrap();
        assert!(message.contains(&found), "{found} in {message}");
        assert_eq!((registered(&replica).await, watching.asked.note()), (3, None));
        drop(watching);
        // The cluster is accepted, but no node is deregistered because of its missing objects.
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

/// Registers a node with a known machine and a certificate that is valid for this time.
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
        let state = replica.registry.read().await;
        (state.node(&name(node))?.object.as_ref()?.machine_id == id).then_some(())
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
        assert_eq!(replica.registry.read().await.ledger().held_by(&name("a")).len(), 2);
        // Another machine with the same name is another node.
        remade("b", "machine-c");
        gone(&replica, "b").await;
    });
}

/// Waits until the watch has processed all earlier changes.
async fn caught_up(replica: &Grants, markers: [&str; 2]) {
    // The second marker arrives after everything before the first one was processed.
    join_nodes(&markers, replica, replica).await;
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
        // The node's own machine comes back.
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
            let state = replica.registry.read().await;
            for network in &granted {
                assert_eq!(state.ledger().row(network).unwrap().kept_until, Some(end));
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
