//! Tests several replicas of the controller on one cluster.

use edge_controller_domain::archive::{self, Archive, ImportError};
use edge_controller_domain::state::{Change, Snapshot};
use edge_controller_domain::store::StoreError;
use edge_controller_kubernetes::ca_secret::CaSecret;
use edge_types::IpNetwork;
use edge_types::view::SegmentPrefix;
use futures_util::future::join_all;
use interop_tests::kube::suite::Test;
use kube::api::ListParams;
use tokio::sync::mpsc;

use crate::behaviour::{assert_disjoint, name, network, until};
use crate::cluster::{Cluster, NAMESPACE, PLANE, as_user, clean, run};

pub(crate) const TESTS: &[Test] = &[
    ("three_replicas_that_grant_at_once_give_no_address_to_two_nodes", three),
    ("what_one_replica_writes_the_others_know", known_to_all),
    ("of_two_replicas_that_change_one_node_none_loses_the_others_change", both),
    ("a_segment_request_that_is_repeated_at_another_replica_gets_the_same_segment", repeated),
    ("a_replica_catches_up_with_the_revision_of_another", caught_up),
    ("a_replica_whose_clock_is_ahead_ends_no_quarantine_that_it_saw_begin", fast),
    ("replicas_with_other_sizes_of_segments_grant_nothing_that_overlaps", sizes),
    ("an_export_and_a_refused_import_put_nothing_in_force", aside),
    ("what_a_later_release_has_written_is_neither_read_nor_written", later),
];

fn fast() {
    run(async {
        let cluster = clean().await;
        let (mut one, mut fast) = (cluster.replica().await, cluster.replica().await);
        for replica in [&mut one, &mut fast] {
            replica.policy.ranges = vec![network("10.77.0.0/28"), network("fd77::/124")];
            replica.policy.quarantine = 100;
        }
        fast.registry.clock.step(3 * 24 * 3600);
        one.register("a").await;
        one.register("b").await;
        one.request_segments("a", "r").await;
        until("the other to know them", async || (fast.held().await.len() == 2).then_some(())).await;
        one.deregister("a").await;
        until("the other to know of the release", async || fast.held().await.is_empty().then_some(())).await;
        fast.try_request_segments("b", "r").await.expect_err("by its clock that was days ago");
        fast.registry.clock.advance(100);
        fast.request_segments("b", "r").await;
    });
}

fn three() {
    run(async {
        let cluster = clean().await;
        let replicas = join_all((0..3).map(|_| cluster.replica())).await;
        let nodes: Vec<String> = (0..15).map(|n| format!("n{n}")).collect();
        join_all(nodes.iter().map(|node| replicas[0].register(node))).await;
        let mut granted: Vec<IpNetwork> = Vec::new();
        for round in 0..3 {
            let known = |replica: usize| {
                let (replica, wanted) = (&replicas[replica], nodes.len());
                until("the nodes", async move || (replica.registry.read().await.nodes().len() == wanted).then_some(()))
            };
            join_all((0..3).map(known)).await;
            let request = format!("round {round}");
            let asked = nodes.iter().enumerate().map(|(n, node)| replicas[n % 3].request_segments(node, &request));
            granted.extend(join_all(asked).await.concat());
        }
        assert_eq!(granted.len(), 15 * 2 * 3);
        assert_disjoint(&granted);
        granted.sort();
        // Every replica has all segments in its state, and the API server stores all of them.
        for replica in &replicas {
            until("the replica to know all that was granted", async || {
                let mut held: Vec<IpNetwork> = replica.held().await.into_iter().map(|(network, _)| network).collect();
                held.sort();
                (held == granted).then_some(())
            })
            .await;
        }
        let objects = cluster.segments().list(&kube::api::ListParams::default()).await.unwrap();
        assert_eq!(objects.items.len(), granted.len());
    });
}

fn known_to_all() {
    run(async {
        let cluster = clean().await;
        let (one, other) = (cluster.replica().await, cluster.replica().await);
        one.register("a").await;
        until("the other to know the node", async || other.registry.read().await.node(&name("a")).map(drop)).await;
        let mut changes = other.registry.read().await.watch(&name("a")).unwrap();
        let before = *changes.borrow_and_update();
        let granted = one.request_segments("a", "r").await;
        changes.changed().await.unwrap();
        until("the other to know the segments", async || (other.held().await.len() == granted.len()).then_some(()))
            .await;
        assert!(*changes.borrow() > before);
        one.registry.change(|_| Ok::<_, StoreError>(((), vec![Change::DeleteNode(name("a"))]))).await.unwrap();
        until("the watch to end", async || changes.changed().await.is_err().then_some(())).await;
    });
}

fn both() {
    run(async {
        let cluster = clean().await;
        let replicas = [cluster.replica().await, cluster.replica().await];
        replicas[0].register("a").await;
        let other = &replicas[1].registry;
        until("both to know the node", async || other.read().await.node(&name("a")).map(drop)).await;
        // Each replica adds its own labels one by one, at the same time as the other one.
        let adding = replicas.iter().enumerate().map(|(who, replica)| async move {
            for n in 0..10 {
                replica
                    .registry
                    .change(move |state| -> Result<_, StoreError> {
                        let mut record = state.node(&name("a")).unwrap().clone();
                        let mut labels = record.labels.clone();
                        labels.insert(format!("of-{who}-{n}"), String::new());
                        record.set_labels(labels).unwrap();
                        Ok(((), vec![Change::PutNode(record)]))
                    })
                    .await
                    .unwrap();
            }
        });
        join_all(adding).await;
        let object = cluster.edge_nodes().get("a").await.unwrap();
        assert_eq!(object.spec.labels.len(), 20, "{:?}", object.spec.labels);
        for replica in &replicas {
            until("both to know all labels", async || {
                (replica.registry.read().await.node(&name("a")).unwrap().labels.len() == 20).then_some(())
            })
            .await;
        }
    });
}

fn repeated() {
    run(async {
        let cluster = clean().await;
        let (one, other) = (cluster.replica().await, cluster.replica().await);
        one.register("a").await;
        let first = one.request_segments("a", "r").await;
        let revision = one.registry.read().await.revision();
        other.registry.catch_up(revision).await.unwrap();
        assert_eq!(other.request_segments("a", "r").await, first);
        // A replica that dies between two grants leaves half of the request, as if one object had
        // been deleted.
        let object = edge_controller_kubernetes::resources::object_name(&first[1]);
        PLANE.kubectl(&["annotate", "segment", &object, "edge-cni.io/deleting=test"]).unwrap();
        PLANE.kubectl(&["delete", "segment", &object]).unwrap();
        until("the other half to be gone", async || (other.held().await.len() == 1).then_some(())).await;
        let again = other.request_segments("a", "r").await;
        assert!(again.len() == 2 && again.contains(&first[0]), "{again:?}");
    });
}

fn caught_up() {
    run(async {
        let cluster = clean().await;
        let (one, other) = (cluster.replica().await, cluster.replica().await);
        for n in 0..10 {
            let node = format!("n{n}");
            one.register(&node).await;
            let revision = one.registry.read().await.revision();
            other.registry.catch_up(revision).await.unwrap();
            let state = other.registry.read().await;
            assert!(
                state.node(&name(&node)).is_some(),
                "what was there at a revision is known when it is caught up with"
            );
            assert!(state.revision() > revision || n == 0 || state.revision() >= revision);
        }
        // The replica does not wait for a revision that never existed.
        other.registry.catch_up(u64::MAX).await.unwrap();
        assert!(other.registry.read().await.revision() < u64::MAX / 2);
    });
}

fn sizes() {
    run(async {
        let small = clean().await;
        let large = Cluster { sizes: SegmentPrefix { v4: 26, v6: 120 }, ..as_user(PLANE.kubeconfig()).await };
        let first = small.replica().await;
        first.register("a").await;
        let mut granted = first.request_segments("a", "r1").await;
        let second = large.replica().await;
        second.register("b").await;
        // Both replicas request segments at the same time, repeatedly. The first replica, whose
        // segment sizes are no longer in force, gets only refusals.
        for round in 0..20 {
            let (request, more) = (format!("r{round}"), format!("more {round}"));
            let refused = first.try_request_segments("a", &more);
            let (refused, got) = tokio::join!(refused, second.request_segments("b", &request));
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("segments of /26 and /120 are in force"), "{error}");
            granted.extend(got);
            assert_disjoint(&granted);
        }
        until("the first to know what is granted, and nothing of its own", async || {
            let mut held: Vec<IpNetwork> = first.held().await.into_iter().map(|(network, _)| network).collect();
            held.sort();
            granted.sort();
            (held == granted).then_some(())
        })
        .await;
    });
}

fn aside() {
    run(async {
        let cluster = clean().await;
        let other = Cluster { sizes: SegmentPrefix { v4: 26, v6: 120 }, ..as_user(PLANE.kubeconfig()).await };
        let replica = cluster.replica().await;
        replica.register("a").await;
        let granted = replica.request_segments("a", "r1").await;
        let before = cluster.segments().list(&ListParams::default()).await.unwrap();
        let read = other.store().read().await.unwrap();
        assert_eq!((read.nodes.len(), read.segments.len()), (1, granted.len()));
        assert!(read.revision > 0);
        let ca_secret = CaSecret::new(&other.client, NAMESPACE);
        let empty = Archive::new(0, Snapshot::default(), None);
        let refused = archive::import(&*other.store(), &ca_secret, empty, 1_793_500_000).await.unwrap_err();
        assert!(matches!(refused, ImportError::NotEmpty(_)), "{refused}");
        let after = cluster.segments().list(&ListParams::default()).await.unwrap();
        assert_eq!(after.items.len(), before.items.len());
        replica.request_segments("a", "r2").await;
    });
}

fn later() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        let layout = |layout: u32| {
            let patch = format!(r#"{{"data":{{"layout":"{layout}"}}}}"#);
            let map =
                ["patch", "configmap", "edge-cni-controller", "--namespace", NAMESPACE, "--type=merge", "--patch"];
            PLANE.kubectl(&[&map[..], &[&patch]].concat()).unwrap();
        };
        layout(2);
        let (followed, _news) = mpsc::channel(1);
        for refused in [cluster.store().load(followed).await, cluster.store().read().await] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("layout \"2\"") && error.contains("this release writes 1"), "{error}");
        }
        // A replica that was started before also does not grant or write.
        let error = replica.try_request_segments("a", "r").await.unwrap_err().to_string();
        assert!(error.contains("layout"), "{error}");
        let error = replica
            .registry
            .change(|_| Ok::<_, StoreError>(((), vec![Change::DeleteNode(name("a"))])))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("layout"), "{error}");
        layout(1);
        replica.request_segments("a", "r").await;
    });
}
