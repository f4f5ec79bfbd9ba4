//! Tests Node objects: their labels, their addresses and the deletion of a Node.

use edge_types::Role;
use edge_types::name::COMMUNITY_LABEL;
use futures_util::{StreamExt, stream};
use interop_tests::kube::suite::Test;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use serde_json::json;

use crate::behaviour::{Grants, name, until};
use crate::cluster::{PLANE, as_user, clean, event, run};

pub(crate) const TESTS: &[Test] = &[
    ("labels_of_a_node_put_it_into_communities_at_once", labelled),
    ("an_annotation_says_where_a_node_is_reached", annotated),
    ("a_hubs_node_names_the_networks_of_its_pods_and_an_edges_does_not", pod_networks),
    ("a_node_that_joins_after_its_node_object_was_made_gets_what_that_says", late),
    ("a_node_whose_node_object_is_deleted_is_deregistered", deleted),
    ("a_node_object_that_is_made_anew_is_another_node", anew),
    ("a_node_that_is_not_ready_stays", not_ready),
    ("more_nodes_than_one_page_holds_are_all_seen", many),
];

pub(crate) fn make(node: &str, labels: &str) {
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
        let state = replica.registry.read().await;
        let record = state.node(&name(node))?;
        (state.peers_of(record).len() == count).then_some(())
    })
    .await;
}

pub(crate) async fn seen(replica: &Grants, node: &str) -> String {
    until("the Node object to be seen", async || {
        Some(replica.registry.read().await.node(&name(node))?.object.as_ref()?.uid.clone())
    })
    .await
}

/// Makes Nodes, registers their nodes at a replica, and waits until `watching` has seen the Nodes.
pub(crate) async fn join_nodes(nodes: &[&str], replica: &Grants, watching: &Grants) {
    for node in nodes {
        make(node, "");
        replica.register(node).await;
        seen(watching, node).await;
    }
}

pub(crate) async fn gone(replica: &Grants, node: &str) {
    until("the node to be deregistered", async || {
        replica.registry.read().await.node(&name(node)).is_none().then_some(())
    })
    .await;
}

fn labelled() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        let _watching = [cluster.watch_nodes(&replicas[0]), cluster.watch_nodes(&replicas[1])];
        join_nodes(&["a", "b"], &replicas[0], &replicas[1]).await;
        label("a", "alpha_beta");
        label("b", "beta");
        for replica in &replicas {
            peers(replica, "a", 1).await;
        }
        // An invalid name does not affect the other nodes.
        label("b", "beta_-_c");
        label("a", "gamma");
        peers(&replicas[1], "a", 0).await;
        label("a", "beta");
        peers(&replicas[1], "a", 1).await;
        // The node is not an edge any more, so it has no communities.
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
            let state = replica.registry.read().await;
            let object = state.node(&name("a"))?.object.as_ref()?;
            (object.public_addresses.len() == 2).then_some(())
        })
        .await;
    });
}

fn pod_networks() {
    run(async {
        let cluster = clean().await;
        let (replica, other) = (cluster.replica().await, cluster.replica().await);
        let known = async |replica: &Grants, node: &str| {
            let state = replica.registry.read().await;
            let object = state.node(&name(node)).and_then(|record| record.object.clone()).unwrap_or_default();
            object.pod_networks.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let assign = |node: &str, networks: &[&str]| {
            let patch = json!({"spec": {"podCIDR": networks[0], "podCIDRs": networks}}).to_string();
            PLANE.kubectl(&["patch", "node", node, "--type=merge", "--patch", &patch])
        };
        {
            let _watching = cluster.watch_nodes(&replica);
            for node in ["early", "late", "edge"] {
                make(node, "");
            }
            let (early, late) = (["10.244.3.0/24", "fd00:244:0:3::/64"], ["10.244.4.0/24"]);
            assign("early", &early).unwrap();
            assign("edge", &["10.244.5.0/24"]).unwrap();
            replica.register_as("early", Role::Hub).await;
            replica.register_as("late", Role::Hub).await;
            replica.register("edge").await;
            until("the networks of the pods", async || (known(&replica, "early").await == early).then_some(())).await;
            // Kubernetes assigns the networks some time after the Node is made.
            seen(&replica, "late").await;
            assert!(known(&replica, "late").await.is_empty());
            assign("late", &late).unwrap();
            until("the networks assigned later", async || (known(&replica, "late").await == late).then_some(())).await;
            seen(&replica, "edge").await;
            assert!(known(&replica, "edge").await.is_empty(), "an edge fronts nothing");
            // Two Nodes name overlapping networks, which Kubernetes never assigns.
            make("rival", "");
            assign("rival", &["10.244.4.128/25"]).unwrap();
            replica.register_as("rival", Role::Hub).await;
            let client = as_user(PLANE.kubeconfig()).await.client;
            event(client.clone(), "PodNetworkTaken", Some(("Node", "rival")), "those of hub late (10.244.4.0/24)")
                .await;
            // The hub that has the network may get it later than the one that loses it.
            make("a", "");
            assign("a", &["10.244.3.0/24"]).unwrap();
            replica.register_as("a", Role::Hub).await;
            event(client.clone(), "PodNetworkTaken", Some(("Node", "early")), "those of hub a (10.244.3.0/24)").await;
            make("greedy", "");
            assign("greedy", &["10.0.0.0/8"]).unwrap();
            replica.register_as("greedy", Role::Hub).await;
            event(
                client,
                "PodNetworkRefused",
                Some(("Node", "greedy")),
                "(10.0.0.0/8) do not count: it is wider than /16",
            )
            .await;
            // The controller relies on this: what it has read need not be read again.
            assert!(assign("early", &["10.244.6.0/24"]).is_err(), "the API server must refuse another network");
        }
        // They outlast the watch, and every replica has them.
        until("the other replica to have them", async || (known(&other, "late").await.len() == 1).then_some(())).await;
        let restarted = cluster.replica().await;
        assert_eq!(known(&restarted, "early").await.len(), 2);
    });
}

fn late() {
    run(async {
        let cluster = clean().await;
        let (replica, other) = (cluster.replica().await, cluster.replica().await);
        let _watching = cluster.watch_nodes(&replica);
        make("a", ", fabedge/edge-community: alpha");
        join_nodes(&["b"], &replica, &replica).await;
        // The other replica, which does not watch Nodes, registers the node.
        other.register("a").await;
        until("the community to be known", async || {
            let state = replica.registry.read().await;
            let record = state.node(&name("a"))?;
            (state.communities_of(record).len() == 1).then_some(())
        })
        .await;
    });
}

fn deleted() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        let _watching = [cluster.watch_nodes(&replicas[0]), cluster.watch_nodes(&replicas[1])];
        join_nodes(&["a", "b"], &replicas[0], &replicas[0]).await;
        // A node without a Node object does not depend on Kubernetes.
        replicas[0].register("plain").await;
        replicas[0].request_segments("a", "r").await;
        PLANE.kubectl(&["delete", "node", "a"]).unwrap();
        for replica in &replicas {
            gone(replica, "a").await;
            until("its segments to be released", async || replica.held().await.is_empty().then_some(())).await;
            let state = replica.registry.read().await;
            assert!(state.node(&name("plain")).is_some() && state.node(&name("b")).is_some());
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
        let client = as_user(PLANE.kubeconfig()).await.client;
        event(client, "Deregistered", Some(("EdgeNode", "a")), "another one has its name").await;
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
        // A later change was seen, so this one was seen too.
        label("b", "alpha");
        until("the later change", async || {
            let state = replica.registry.read().await;
            let record = state.node(&name("b"))?;
            (state.communities_of(record).len() == 1).then_some(())
        })
        .await;
        assert!(replica.registry.read().await.node(&name("a")).is_some());
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
        assert!(replica.registry.read().await.node(&name(first)).is_some());
    });
}
