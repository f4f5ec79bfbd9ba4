//! Tests which replica leads and what the leader does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Certificate, Change, NodeObject, NodeRecord, State};
use edge_controller_domain::store::StoreError;
use edge_controller_kubernetes::orphans::OrphanCollector;
use edge_controller_kubernetes::replica_leases::{LEADER, ReplicaLeases, Replicas};
use interop_tests::kube::suite::Test;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::behaviour::{Grants, commit, loaded, name, network, until};
use crate::cluster::{Cluster, NAMESPACE, PLANE, as_user, clean, run};

pub(crate) const TESTS: &[Test] = &[
    ("one_leads_and_when_it_is_killed_another_does", killed),
    ("a_leader_that_ends_gives_the_lease_back_at_once", ended),
    ("whatever_clock_a_leader_has_it_leads_as_long_as_it_renews_and_no_longer", clocks),
    ("a_replica_that_does_not_show_itself_any_more_is_gone", gone),
    ("a_segment_that_is_held_by_nobody_is_released_after_a_while_and_no_other", orphans),
    ("segments_of_an_interrupted_deregistration_are_kept_as_long_as_the_machine_may_use_them", interrupted),
    ("a_new_leader_keeps_the_segments_of_an_interrupted_deregistration_as_long_too", interrupted_before_a_new_leader),
    (
        "a_new_leader_knows_until_when_the_machine_of_a_deleted_edgenode_may_use_its_segments",
        deleted_before_a_new_leader,
    ),
];

const DURATION: Duration = Duration::from_secs(3);

struct Elector {
    leading: watch::Receiver<bool>,
    stopping: CancellationToken,
    task: JoinHandle<()>,
}

fn leases(cluster: &Cluster, identity: &str, duration: Duration) -> ReplicaLeases {
    ReplicaLeases::new(&cluster.client, NAMESPACE, identity, duration, cluster.api_failures.clone())
}

fn elector(cluster: &Cluster, identity: &str, duration: Duration) -> Elector {
    let leases = leases(cluster, identity, duration);
    let (lead, leading) = watch::channel(false);
    let stopping = CancellationToken::new();
    let stop = stopping.clone();
    let task = tokio::spawn(async move { leases.lead(lead, stop).await });
    Elector { leading, stopping, task }
}

impl Elector {
    async fn leads(&mut self) {
        let leads = self.leading.wait_for(|leads| *leads);
        tokio::time::timeout(Duration::from_secs(60), leads).await.expect("it leads within 60 s").unwrap();
    }
}

fn killed() {
    run(async {
        let cluster = clean().await;
        let mut first = elector(&cluster, "first", DURATION);
        first.leads().await;
        let mut others = [elector(&cluster, "second", DURATION), elector(&cluster, "third", DURATION)];
        first.task.abort();
        let [second, third] = &mut others;
        tokio::select! {
            () = second.leads() => {}
            () = third.leads() => {}
        }
        assert!(!(*second.leading.borrow() && *third.leading.borrow()));
    });
}

fn clocks() {
    run(async {
        for days in [-2, 2] {
            let cluster = clean().await;
            let api: Api<Lease> = Api::namespaced(as_user(PLANE.kubeconfig()).await.client, NAMESPACE);
            let renewed = |n: i64| {
                let at = Timestamp::now() + SignedDuration::from_hours(days * 24) + SignedDuration::from_secs(n);
                let spec = LeaseSpec {
                    holder_identity: Some("odd".into()),
                    lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                    renew_time: Some(MicroTime(at)),
                    ..LeaseSpec::default()
                };
                let metadata = ObjectMeta { name: Some(LEADER.into()), ..ObjectMeta::default() };
                Lease { metadata, spec: Some(spec) }
            };
            api.create(&PostParams::default(), &renewed(0)).await.unwrap();
            let mut other = elector(&cluster, "other", DURATION);
            // A Lease counts as abandoned after twice its duration without a renewal.
            let mut renewals = tokio::time::interval(DURATION / 6);
            for n in 0..12 {
                renewals.tick().await;
                let patch = Patch::Merge(renewed(n));
                api.patch(LEADER, &PatchParams::default(), &patch).await.unwrap();
                assert!(!*other.leading.borrow(), "there are two");
            }
            let since = Instant::now();
            other.leads().await;
            assert!(since.elapsed() >= DURATION - DURATION / 6, "{:?}", since.elapsed());
            other.task.abort();
        }
    });
}

fn ended() {
    run(async {
        let cluster = clean().await;
        // The duration is longer than the test.
        let duration = Duration::from_secs(600);
        let mut first = elector(&cluster, "first", duration);
        first.leads().await;
        first.stopping.cancel();
        first.task.await.unwrap();
        assert!(!*first.leading.borrow());
        elector(&cluster, "second", duration).leads().await;
    });
}

fn gone() {
    run(async {
        let cluster = clean().await;
        let there: Vec<_> = ["a", "b"]
            .map(|identity| {
                let leases = leases(&cluster, identity, Duration::from_secs(1));
                tokio::spawn(async move { leases.renew_own_lease(CancellationToken::new()).await })
            })
            .into();
        let mine = leases(&cluster, "c", Duration::from_secs(1));
        let mut replicas = Replicas::default();
        until("both to be there", async || {
            let mut seen = replicas.look(&mine).await.unwrap();
            seen.sort();
            (seen == ["a", "b"]).then_some(())
        })
        .await;
        there[0].abort();
        until("one to be gone", async || (replicas.look(&mine).await.unwrap() == ["b"]).then_some(())).await;
        there[1].abort();
    });
}

fn orphans() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        let kept = replica.request_segments("a", "r").await;
        // The state that a replica leaves if it dies before it has registered the node, or before
        // it has released the segments of a deregistered one.
        let (other, ..) = loaded(&cluster).await;
        let orphan = network("10.77.1.0/28");
        let row = SegmentRecord::new(orphan, name("ghost"), "join".into(), 1_793_491_300, None);
        commit(&other, vec![Change::GrantSegment(row)]).await.unwrap();
        let (lead, leading) = watch::channel(true);
        let garbage = OrphanCollector::new(&cluster.client, replica.registry.clone(), Duration::from_secs(1));
        let collecting = tokio::spawn(garbage.run(leading));
        let registry = Arc::new(replica.registry.clone());
        until("the orphan to be released", async || registry.read().await.ledger().row(&orphan)?.released_at.map(drop))
            .await;
        assert_eq!(replica.held().await.len(), kept.len());
        collecting.abort();
        drop(lead);
    });
}

/// Gives a node a Node object and a certificate. Returns when the certificate ends.
async fn give_certificate_and_object(replica: &Grants, node: &str) -> i64 {
    let until_when = replica.registry.clock.now() + 3600;
    let record = replica.registry.read().await.node(&name(node)).cloned().unwrap();
    let certificate = Certificate {
        serial: "01".into(),
        key: "02".into(),
        not_after: until_when,
        not_before: 0,
        issuer: String::new(),
        used: true,
    };
    let object = Some(NodeObject { uid: "u".into(), ..NodeObject::default() });
    let record = NodeRecord { object, certificates: vec![certificate], ..record };
    let put = move |_: &mut State| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())]));
    replica.registry.change(put).await.unwrap();
    until_when
}

/// A node's Node object was deleted, and the deregistration was interrupted after the deletion of
/// the EdgeNode. The segments are released, and kept until the certificate ends.
fn interrupted() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        let segments = replica.request_segments("a", "r").await;
        let until_when = give_certificate_and_object(&replica, "a").await;
        let (_lead, leading) = watch::channel(true);
        let garbage = OrphanCollector::new(&cluster.client, replica.registry.clone(), Duration::from_secs(1));
        let collecting = tokio::spawn(garbage.run(leading));
        // When another orphan has been released, the collector has seen the node.
        let (other, ..) = loaded(&cluster).await;
        let orphan = network("10.77.1.0/28");
        let row = SegmentRecord::new(orphan, name("ghost"), "join".into(), 1_793_491_300, None);
        commit(&other, vec![Change::GrantSegment(row)]).await.unwrap();
        let registry = Arc::new(replica.registry.clone());
        let released = |segment| {
            let registry = registry.clone();
            async move { registry.read().await.ledger().row(&segment).cloned().filter(|row| row.released_at.is_some()) }
        };
        let ghosts = until("the orphan to be released", async || released(orphan).await).await;
        assert_eq!(ghosts.kept_until, None);
        commit(&other, vec![Change::DeleteNode(name("a"))]).await.unwrap();
        for segment in segments {
            let row = until("its segment to be released", async || released(segment).await).await;
            assert_eq!(row.kept_until, Some(until_when), "{row:?}");
        }
        collecting.abort();
    });
}

/// As [`interrupted`], and the replica that leads from then on has never seen the node.
fn interrupted_before_a_new_leader() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        let segments = replica.request_segments("a", "r").await;
        let until_when = give_certificate_and_object(&replica, "a").await;
        let now = replica.registry.clock.now();
        let announcement =
            move |state: &mut State| Ok::<_, StoreError>(((), state.announce_keeping_segments(&name("a"), now, 0)));
        replica.registry.change(announcement).await.unwrap();
        let (other, ..) = loaded(&cluster).await;
        commit(&other, vec![Change::DeleteNode(name("a"))]).await.unwrap();
        let registry = Arc::new(replica.registry.clone());
        until("the node to be gone", async || registry.read().await.node(&name("a")).is_none().then_some(())).await;
        let (_lead, leading) = watch::channel(true);
        let garbage = OrphanCollector::new(&cluster.client, replica.registry.clone(), Duration::from_secs(1));
        let collecting = tokio::spawn(garbage.run(leading));
        for segment in segments {
            let row = until("its segment to be released", async || {
                registry.read().await.ledger().row(&segment).cloned().filter(|row| row.released_at.is_some())
            });
            let row = row.await;
            assert_eq!(row.kept_until, Some(until_when), "{row:?}");
        }
        collecting.abort();
    });
}

/// Somebody deletes an EdgeNode, which announces nothing, and then another replica leads.
fn deleted_before_a_new_leader() {
    run(async {
        let cluster = clean().await;
        let (first, second) = (cluster.replica().await, cluster.replica().await);
        first.register("a").await;
        let segments = first.request_segments("a", "r").await;
        let until_when = give_certificate_and_object(&first, "a").await;
        let registry = Arc::new(second.registry.clone());
        until("the other replica to know it", async || {
            registry.read().await.node(&name("a")).is_some_and(|node| !node.certificates.is_empty()).then_some(())
        })
        .await;
        let collector = |replica: &Grants, leading| {
            OrphanCollector::new(&cluster.client, replica.registry.clone(), Duration::from_secs(1)).run(leading)
        };
        let (lead, leading) = watch::channel(false);
        let next = tokio::spawn(collector(&second, leading));
        // When the leader has released an orphan, both collectors have looked several times.
        let (other, ..) = loaded(&cluster).await;
        let orphan = network("10.77.1.0/28");
        let row = SegmentRecord::new(orphan, name("ghost"), "join".into(), 1_793_491_300, None);
        commit(&other, vec![Change::GrantSegment(row)]).await.unwrap();
        let released = |segment| {
            let registry = registry.clone();
            async move { registry.read().await.ledger().row(&segment).cloned().filter(|row| row.released_at.is_some()) }
        };
        let (_first_leads, leading) = watch::channel(true);
        let leader = tokio::spawn(collector(&first, leading));
        until("the orphan to be released", async || released(orphan).await).await;
        leader.abort();
        cluster.edge_nodes().delete("a", &DeleteParams::default()).await.unwrap();
        until("the node to be gone", async || registry.read().await.node(&name("a")).is_none().then_some(())).await;
        lead.send_replace(true);
        for segment in segments {
            let row = until("its segment to be released", async || released(segment).await).await;
            assert_eq!(row.kept_until, Some(until_when), "{row:?}");
        }
        next.abort();
    });
}
