//! Tests an API server that is unreachable, has compacted its history, or revokes permissions: the
//! controller removes nothing, and catches up afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use edge_controller_domain::state::{Change, CommunityRecord, NodeRecord};
use edge_controller_kubernetes::client::ApiFailures;
use edge_controller_kubernetes::nodes::NEEDED_AT_START;
use edge_controller_kubernetes::own_rights::{OwnRights, Uses};
use edge_types::IpNetwork;
use futures_util::future::join_all;
use hyper::{Method, Request};
use interop_tests::kube::suite::Test;
use interop_tests::kube::{ControlPlane, Subject};
use kube::Client;
use kube::client::Body;

use crate::behaviour::{Grants, assert_disjoint, commit, edge, loaded, name, token, until};
use crate::cluster::{Cluster, NAMESPACE, PLANE, as_user, clean, controller, install, run};
use crate::harness::monitoring_page;

pub(crate) const TESTS: &[Test] = &[
    ("while_the_api_server_is_away_what_was_known_holds_and_afterwards_all_goes_on", away),
    ("after_etcd_was_compacted_everything_is_read_anew", compacted),
    ("segment_requests_that_are_repeated_through_outages_give_no_address_to_two_nodes_and_lose_none", storm),
    ("a_token_whose_node_was_written_without_an_answer_stays_used", unanswered),
    ("a_lost_right_tears_nothing_down_and_is_told_with_its_manifest", rights),
    ("readyz_stays_200_and_notes_it_while_a_hanging_api_server_keeps_a_change_waiting", hanging),
    ("without_its_definitions_a_controller_does_not_start_and_says_which_manifest_helps", definitions),
];

async fn set_up(cluster: &Cluster) -> Grants {
    let replica = cluster.replica().await;
    for node in ["a", "b"] {
        replica.register(node).await;
    }
    replica.request_segments("a", "r").await;
    replica
}

async fn everything_is_there(replica: &Grants) {
    let state = replica.registry.read().await;
    assert_eq!(state.nodes().len(), 2);
    assert_eq!(state.ledger().held_by(&name("a")).len(), 2);
}

async fn community(replica: &Grants, name: &str) {
    PLANE
        .apply_text(&format!(
            "apiVersion: edge-cni.io/v1alpha1\nkind: Community\nmetadata: {{name: {name}}}\nspec: {{members: [a, b]}}\n"
        ))
        .unwrap();
    until("the community to be known", async || {
        replica.registry.read().await.listed_community(&name.parse().unwrap()).map(drop)
    })
    .await;
}

fn away() {
    run(async {
        let cluster = clean().await;
        let replica = set_up(&cluster).await;
        PLANE.kill_api_server().unwrap();
        let error = replica.try_request_segments("b", "r").await.unwrap_err().to_string();
        assert!(error.contains("API server"), "{error}");
        everything_is_there(&replica).await;
        until("the outage to be reported", async || cluster.api_failures.serving_reasons()).await;
        PLANE.start_api_server().unwrap();
        community(&replica, "alpha").await;
        everything_is_there(&replica).await;
        replica.request_segments("b", "r").await;
        until("nothing to stand in the way", async || cluster.api_failures.serving_reasons().is_none().then_some(()))
            .await;
    });
}

/// The cluster through a connection on which creating an EdgeNode is carried out, and its answer is
/// lost.
fn without_answers(cluster: &Cluster) -> Cluster {
    let inner = cluster.client.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let inner = inner.clone();
        let lost = request.method() == Method::POST && request.uri().path().ends_with("/edgenodes");
        async move {
            let response = inner.send(request).await?;
            match lost {
                true => Err(Box::<dyn std::error::Error + Send + Sync>::from("the connection was reset")),
                false => Ok(response),
            }
        }
    });
    let client = Client::new(service, NAMESPACE);
    Cluster { client, sizes: cluster.sizes, api_failures: ApiFailures::default() }
}

fn unanswered() {
    run(async {
        let cluster = clean().await;
        let (store, ..) = loaded(&without_answers(&cluster)).await;
        commit(&store, vec![Change::PutToken(token("t"))]).await.unwrap();
        let mut used = token("t");
        used.set_used(1);
        let join = vec![Change::PutToken(used.clone()), Change::PutNode(edge("a"))];
        let error = commit(&store, join).await.unwrap_err().to_string();
        assert!(error.contains("reset"), "{error}");
        let (_, snapshot, _) = loaded(&cluster).await;
        assert_eq!((snapshot.nodes, snapshot.tokens), (vec![edge("a")], vec![used]), "one join, one use");
        // The node exists already, so nothing is written, and the use is given back.
        let mut twice = token("t");
        twice.set_used(2);
        let node = NodeRecord { port: 7, ..edge("b") };
        PLANE
            .apply_text("apiVersion: edge-cni.io/v1alpha1\nkind: EdgeNode\nmetadata: {name: b}\nspec: {role: edge, joinedAt: \"2026-11-24T00:00:00Z\"}\n")
            .unwrap();
        commit(&store, vec![Change::PutToken(twice), Change::PutNode(node)]).await.unwrap_err();
        let (_, snapshot, _) = loaded(&cluster).await;
        assert_eq!(snapshot.tokens[0].used(), 1);
    });
}

fn compacted() {
    run(async {
        let owner = clean().await;
        let cluster = as_user(&controller("cut-off")).await;
        let replica = set_up(&cluster).await;
        PLANE.revoke("cut-off-custom").unwrap();
        PLANE.revoke("cut-off-core").unwrap();
        PLANE.wait_right(Subject::User("cut-off"), "watch", "edgenodes.edge-cni.io", false).unwrap();
        PLANE.restart_api_server().unwrap();
        until("nobody to watch", async || {
            cluster.api_failures.serving_reasons().filter(|message| message.contains("edgenodes.edge-cni.io"))
        })
        .await;
        // An object is added, one is deleted, and the history is compacted.
        PLANE.kubectl(&["delete", "edgenode", "b", "--wait=false"]).unwrap();
        let (other, ..) = loaded(&owner).await;
        let seen = CommunityRecord::new("seen".parse().unwrap(), [].into());
        commit(&other, vec![Change::PutCommunity(seen)]).await.unwrap();
        PLANE.forget_history().unwrap();
        assert!(replica.registry.read().await.node(&name("b")).is_some());
        controller("cut-off");
        until("the deletion to be known", async || {
            replica.registry.read().await.node(&name("b")).is_none().then_some(())
        })
        .await;
        until("the community to be known", async || {
            let state = replica.registry.read().await;
            state.listed_communities().any(|community| community.name.as_str() == "seen").then_some(())
        })
        .await;
        assert_eq!(replica.registry.read().await.ledger().held_by(&name("a")).len(), 2);
        replica.register("b").await;
        replica.request_segments("b", "r").await;
    });
}

fn rights() {
    run(async {
        let owner = clean().await;
        let cluster = as_user(&controller("fragile")).await;
        let replica = set_up(&cluster).await;
        let _watching = cluster.watch_nodes(&replica);
        PLANE.revoke("fragile-custom").unwrap();
        PLANE.revoke("fragile-core").unwrap();
        PLANE.wait_right(Subject::User("fragile"), "list", "segments.edge-cni.io", false).unwrap();
        PLANE.wait_right(Subject::User("fragile"), "list", "nodes", false).unwrap();
        // Open watches continue; new ones are refused.
        PLANE.restart_api_server().unwrap();
        let message = until("the lost right to be reported", async || {
            cluster
                .api_failures
                .serving_reasons()
                .filter(|message| message.contains("segments.edge-cni.io") && message.contains("nodes"))
        })
        .await;
        assert!(message.contains("deploy/kubernetes/10-rbac.yaml"), "{message}");
        // The account's rights are read. As all replicas lack them, one that starts now is ready.
        cluster.api_failures.await_first(&NEEDED_AT_START);
        let unready = cluster.api_failures.unready_reasons().expect("it has not read the Nodes");
        assert!(unready.contains("10-rbac.yaml"), "{unready}");
        let uses = Uses { store: true, service_accounts: false, label_policy: false };
        let rights = OwnRights::new(&cluster.client, NAMESPACE, uses, cluster.api_failures.clone());
        let reading = tokio::spawn(rights.run());
        let named = until("the missing rights to be named", async || {
            cluster.api_failures.other_reasons().filter(|message| message.contains("account may not"))
        })
        .await;
        for right in ["create/update/delete segments.edge-cni.io", "nodes", "10-rbac.yaml"] {
            assert!(named.contains(right), "{right}: {named}");
        }
        assert_eq!(cluster.api_failures.unready_reasons(), None, "nodes are not sent elsewhere for that");
        reading.abort();
        everything_is_there(&replica).await;
        let error = replica.try_request_segments("b", "r").await.unwrap_err().to_string();
        assert!(error.contains("10-rbac.yaml"), "{error}");
        let error = crate::behaviour::StoreFixture::open(&cluster)
            .await
            .load(tokio::sync::mpsc::channel(1).0)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("10-rbac.yaml"), "{error}");
        controller("fragile");
        community(&replica, "alpha").await;
        replica.request_segments("b", "r").await;
        let (_, snapshot, _) = loaded(&owner).await;
        assert_eq!(snapshot.segments.len(), 4);
    });
}

fn hanging() {
    run(async {
        let cluster = clean().await;
        let cloud = crate::server::controller(&cluster).await;
        let node = cloud.node("edge", "edge-1").await;
        let ready = async || monitoring_page(cloud.server.observe[0], "/readyz").await;
        until("it to be ready", async || (ready().await.0 == 200).then_some(())).await;
        PLANE.hang_api_server(true).unwrap();
        let (granted, (status, page)) = tokio::join!(
            node.request_segments("r", &["ipv4"]),
            until("the change to be waiting", async || {
                let (status, page) = ready().await;
                (status != 200 || page.contains("[!]store")).then_some((status, page))
            })
        );
        let alive = monitoring_page(cloud.server.observe[0], "/healthz").await.0;
        PLANE.hang_api_server(false).unwrap();
        assert_eq!((granted.0, status, alive), (503, 200, 200), "another replica would wait for it too: {page}");
        assert!(page.contains("[!]store: the API server has not answered for 2 s"), "{page}");
        assert!(page.contains("[+]store ok\n") && !page.contains("disk"), "{page}");
        until("the segment to be granted", async || {
            (node.request_segments("r", &["ipv4"]).await.0 == 200).then_some(())
        })
        .await;
        until("nothing to be noted any more", async || {
            let (status, page) = ready().await;
            (status == 200 && !page.contains("[!]store")).then_some(())
        })
        .await;
        cloud.server.stop().await;
    });
}

fn definitions() {
    run(async {
        let bare = ControlPlane::start("bare").unwrap();
        bare.kubectl(&["create", "namespace", crate::cluster::NAMESPACE]).unwrap();
        let cluster = as_user(bare.kubeconfig()).await;
        let error = cluster.store().load(tokio::sync::mpsc::channel(1).0).await.unwrap_err().to_string();
        assert!(error.contains("edge-cni.io") && error.contains("kubectl apply -f deploy/crds"), "{error}");
        install(&bare);
        cluster.store().load(tokio::sync::mpsc::channel(1).0).await.unwrap();
    });
}

fn storm() {
    run(async {
        let cluster = clean().await;
        let replicas = join_all((0..3).map(|_| cluster.replica())).await;
        let nodes: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        join_all(nodes.iter().map(|node| replicas[0].register(node))).await;
        for replica in &replicas {
            until("the nodes", async || (replica.registry.read().await.nodes().len() == 9).then_some(())).await;
        }
        let done = AtomicUsize::new(0);
        // As an agent does, each node repeats its request until it gets a response, each time to
        // another replica.
        let asking = nodes.iter().enumerate().map(|(n, node)| {
            let (replicas, done) = (&replicas, &done);
            async move {
                let mut responses = Vec::new();
                for request in (0..6).map(|r| format!("request {r}")) {
                    let mut attempt = 0;
                    let response = loop {
                        let replica = &replicas[(n + attempt) % 3];
                        // A request with an unknown outcome may have been granted.
                        let outcome = match attempt {
                            0 => replica.try_request_segments(node, &request).await,
                            _ => match replica.registry.reload_segments().await {
                                Ok(()) => replica.try_request_segments(node, &request).await,
                                Err(error) => Err(error.into()),
                            },
                        };
                        attempt += 1;
                        match outcome {
                            Ok(granted) => break granted,
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    };
                    done.fetch_add(1, Ordering::Relaxed);
                    responses.push((request, response));
                }
                (node.clone(), responses)
            }
        });
        let breaking = async {
            for (after, breaks) in [(6, 0), (18, 1), (30, 0), (40, 1)] {
                until("some of them to be answered", async || (done.load(Ordering::Relaxed) >= after).then_some(()))
                    .await;
                let outcome = tokio::task::spawn_blocking(move || match breaks {
                    0 => PLANE.restart_api_server(),
                    _ => PLANE.restart_etcd(),
                });
                outcome.await.unwrap().unwrap();
            }
        };
        let (responses, ()) = tokio::join!(join_all(asking), breaking);
        let granted: Vec<IpNetwork> =
            responses.iter().flat_map(|(_, responses)| responses).flat_map(|(_, granted)| granted.clone()).collect();
        assert_eq!(granted.len(), 9 * 6 * 2);
        assert_disjoint(&granted);
        // The API server stores everything that was answered: a later retry gets the same segments,
        // and no segment is held unnecessarily.
        let (_, snapshot, _) = loaded(&cluster).await;
        let mut held: BTreeMap<(String, String), Vec<IpNetwork>> = BTreeMap::new();
        for row in snapshot.segments {
            assert!(row.released_at.is_none());
            held.entry((row.node.to_string(), row.request_id)).or_default().push(row.network);
        }
        for (node, of_node) in responses {
            for (request, granted) in of_node {
                assert_eq!(held.remove(&(node.clone(), request.clone())).as_ref(), Some(&granted), "{node} {request}");
            }
        }
        assert!(held.is_empty(), "{held:?}");
    });
}
