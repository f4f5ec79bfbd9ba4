//! Tests objects as people see and edit them.

use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::archive::{self, Archive};
use edge_controller_domain::ca::storage::CaStorage;
use edge_controller_domain::ca::{Ca, Files};
use edge_controller_domain::registry::Registry;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Change, CommunityRecord};
use edge_controller_domain::store::embedded::{Embedded, FILE};
use edge_controller_domain::store::{Store, StoreError};
use edge_controller_kubernetes::ca_secret::CaSecret;
use edge_controller_kubernetes::orphans::OrphanCollector;
use interop_tests::kube::suite::Test;
use tokio::sync::{mpsc, watch};

use crate::behaviour::{Grants, edge, loaded, name, network, until};
use crate::cluster::{NAMESPACE, PLANE, clean, deploy, run};

pub(crate) const TESTS: &[Test] = &[
    ("the_api_server_takes_all_that_is_shipped", shipped),
    ("kubectl_shows_who_holds_what", shown),
    ("the_api_server_refuses_objects_that_no_controller_would_write", refused),
    ("a_community_that_kubectl_applies_counts", community),
    ("communities_that_differ_only_in_capital_letters_do_not_overwrite_each_other", capitals),
    ("deleting_an_edgenode_with_kubectl_deregisters_it", deleted),
    ("an_object_that_cannot_be_read_frees_nothing", unreadable),
    ("what_one_machine_kept_moves_here_and_back_without_a_loss", moved),
    ("labels_and_annotations_of_others_outlive_our_writes", foreign),
];

fn shipped() {
    let manifests = deploy("kubernetes");
    // The API server validates a dry run like a real request: kinds, fields, values, references
    // between them.
    let applied = PLANE.kubectl(&["apply", "--dry-run=server", "-f", manifests.to_str().unwrap()]).unwrap();
    for part in ["deployment", "daemonset", "service/", "namespace/edge-cni"] {
        assert!(applied.contains(part), "{part} in {applied}");
    }
    assert_eq!(applied.matches("daemonset").count(), 4, "hub, cloud, edge, and the holder of sockets: {applied}");
}

fn shown() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("edge-1").await;
        let granted = replica.request_segments("edge-1", "r").await;
        let segments = PLANE.kubectl(&["get", "segments"]).unwrap();
        for part in ["NETWORK", "NODE", "STATE", "edge-1", "held", &granted[0].to_string(), &granted[1].to_string()] {
            assert!(segments.contains(part), "{part} in {segments}");
        }
        let nodes = PLANE.kubectl(&["get", "en"]).unwrap();
        for part in ["ROLE", "COMMUNITIES", "ADDRESSES", "SEGMENTS", "TUNNELS", "CONNECTED", "CERTIFICATE", "edge-1"] {
            assert!(nodes.contains(part), "{part} in {nodes}");
        }
        let all = PLANE.kubectl(&["get", "edge-cni", "--output=name"]).unwrap();
        assert_eq!(all.lines().count(), 3, "{all}");
        let of_edge =
            PLANE.kubectl(&["get", "segments", "--field-selector=spec.node=edge-1", "--output=name"]).unwrap();
        assert_eq!(of_edge.lines().count(), 2);
    });
}

fn segment(name: &str, network: &str, state: &str, more: &str) -> String {
    format!(
        "apiVersion: edge-cni.io/v1alpha1\nkind: Segment\nmetadata: {{name: {name}}}\nspec:\n  network: {network:?}\n  node: a\n  \
         state: {state}\n  requestId: r\n  grantedAt: \"2026-11-24T00:00:00Z\"\n{more}"
    )
}

fn refused() {
    run(async {
        clean().await;
        for (name, network, state, more, said) in [
            ("10.77.0.0-28", "10.77.0.16/28", "held", "", "metadata.name must be"),
            ("10.77.0.1-28", "10.77.0.1/28", "held", "", "CIDR"),
            ("10.77.0.0-28", "10.77.0.0", "held", "", "CIDR"),
            ("fd77-0-0-0-0-0-0-0-125", "fd77::/124", "held", "", "metadata.name must be"),
            ("10.77.0.0-28", "10.77.0.0/28", "free", "", "Unsupported value"),
            ("10.77.0.0-28", "10.77.0.0/28", "released", "", "releasedAt"),
            ("10.77.0.0-28", "10.77.0.0/28", "held", "  releasedAt: \"2026-11-25T00:00:00Z\"\n", "releasedAt"),
        ] {
            let error = PLANE.apply_text(&segment(name, network, state, more)).unwrap_err().to_string();
            assert!(error.contains(said), "{name} {network} {state}: {error}");
        }
        PLANE.apply_text(&segment("fd77-0000-0000-0000-0000-0000-0000-0000-124", "fd77::/124", "held", "")).unwrap();
        PLANE.apply_text(&segment("10.77.0.0-28", "10.77.0.0/28", "held", "")).unwrap();
        let patch =
            |patch: &str| PLANE.kubectl(&["patch", "segment", "10.77.0.0-28", "--type=merge", "--patch", patch]);
        let error = patch(r#"{"spec":{"node":"b"}}"#).unwrap_err().to_string();
        assert!(error.contains("does not change hands"), "{error}");
        let community = |name: &str, member: &str| {
            let text = format!(
                "apiVersion: edge-cni.io/v1alpha1\nkind: Community\nmetadata: {{name: {name}}}\nspec: {{members: [{member:?}]}}\n"
            );
            PLANE.apply_text(&text).map_err(|error| error.to_string())
        };
        assert!(community("alpha", "A b").unwrap_err().contains("spec.members[0]"));
        assert!(community(&"a".repeat(64), "a").unwrap_err().contains("63"));
        community("alpha", "edge-1.site").unwrap();
        let tunnels = |word: &str| {
            let patch = format!(r#"{{"spec":{{"tunnels":{word:?}}}}}"#);
            PLANE.kubectl(&["patch", "community", "alpha", "--type=merge", "--patch", &patch])
        };
        tunnels("on-demand").unwrap();
        let error = tunnels("lazy").unwrap_err().to_string();
        assert!(error.contains("spec.tunnels") && error.contains("eager"), "{error}");
        let role = |role: &str| {
            PLANE.apply_text(&format!(
                "apiVersion: edge-cni.io/v1alpha1\nkind: EdgeNode\nmetadata: {{name: a}}\nspec: {{role: {role}, joinedAt: \
                 \"2026-11-24T00:00:00Z\"}}\n"
            ))
        };
        role("edge").unwrap();
        let error = role("hub").unwrap_err().to_string();
        assert!(error.contains("role cannot be changed"), "{error}");
    });
}

fn community() {
    run(async {
        let replica = clean().await.replica().await;
        for node in ["a", "b"] {
            replica.register(node).await;
        }
        let apply = |members: &str| {
            PLANE
                .apply_text(&format!(
                    "apiVersion: edge-cni.io/v1alpha1\nkind: Community\nmetadata: {{name: alpha}}\nspec: {{members: [{members}]}}\n"
                ))
                .unwrap();
        };
        let peers = async |count: usize| {
            until("the community to be as listed", async || {
                let state = replica.registry.read().await;
                let a = state.node(&name("a")).unwrap();
                (state.peers_of(a).len() == count).then_some(())
            })
            .await;
        };
        apply("a, b");
        peers(1).await;
        apply("b");
        peers(0).await;
        apply("a, b");
        peers(1).await;
        for (word, on_demand) in [("on-demand", Some(true)), ("eager", Some(false)), ("auto", None)] {
            let patch = format!(r#"{{"spec":{{"tunnels":{word:?}}}}}"#);
            PLANE.kubectl(&["patch", "community", "alpha", "--type=merge", "--patch", &patch]).unwrap();
            until("the community to decide about its tunnels", async || {
                let state = replica.registry.read().await;
                let decided = state.on_demand_in(state.node(&name("b")).unwrap());
                (decided.values().next().copied() == on_demand).then_some(())
            })
            .await;
        }
        PLANE.kubectl(&["delete", "community", "alpha"]).unwrap();
        peers(0).await;
    });
}

fn capitals() {
    run(async {
        let cluster = clean().await;
        let (one, other) = (cluster.replica().await, cluster.replica().await);
        let set = |community: &str, members: &[&str]| {
            let members = members.iter().map(|node| name(node)).collect();
            let record = CommunityRecord::new(community.parse().unwrap(), members);
            one.registry.change(move |_| Ok::<_, StoreError>(((), vec![Change::PutCommunity(record.clone())])))
        };
        set("alpha", &["a", "b"]).await.unwrap();
        let error = set("Alpha", &["c", "d"]).await.unwrap_err().to_string();
        for part in ["alpha", "Alpha", "communities.edge-cni.io", "capital letters"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        set("alpha", &["a"]).await.unwrap();
        let delete = |name: &'static str| {
            one.registry
                .change(move |_| Ok::<_, StoreError>(((), vec![Change::DeleteCommunity(name.parse().unwrap())])))
        };
        delete("alpha").await.unwrap();
        set("Alpha", &["c", "d"]).await.unwrap();
        let listed = async |replica: &Registry| {
            let state = replica.read().await;
            state.listed_communities().map(|community| community.name.to_string()).collect::<Vec<_>>()
        };
        until("the other replica to have it", async || (listed(&other.registry).await == ["Alpha"]).then_some(()))
            .await;
        assert_eq!(listed(&one.registry).await, ["Alpha"]);
    });
}

fn deleted() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        let granted = replica.request_segments("a", "r").await;
        let (lead, leading) = watch::channel(true);
        let garbage = OrphanCollector::new(&cluster.client, replica.registry.clone(), Duration::from_secs(1));
        let collecting = tokio::spawn(garbage.run(leading));
        PLANE.kubectl(&["delete", "edgenode", "a"]).unwrap();
        until("the node to be deregistered", async || {
            replica.registry.read().await.node(&name("a")).is_none().then_some(())
        })
        .await;
        until("its segments to be released", async || {
            let state = replica.registry.read().await;
            let released = |network| state.ledger().row(network).is_some_and(|row| row.released_at.is_some());
            granted.iter().all(released).then_some(())
        })
        .await;
        collecting.abort();
        drop(lead);
        replica.register("a").await;
    });
}

fn unreadable() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        let granted = replica.request_segments("a", "r1").await;
        // These objects match the schema but are not valid records.
        let odd = |kind: &str, name: &str, patch: &str| {
            PLANE.kubectl(&["patch", kind, name, "--type=merge", "--patch", patch]).unwrap();
        };
        odd("edgenode", "a", r#"{"spec":{"observed":"nowhere"}}"#);
        let object = edge_controller_kubernetes::resources::object_name(&granted[0]);
        odd(
            "segment",
            &object,
            r#"{"spec":{"past":[{"node":"No Node","grantedAt":"2026-11-24T00:00:00Z","releasedAt":"2026-11-24T00:00:00Z"}]}}"#,
        );
        PLANE
            .apply_text(&segment("10.77.0.16-28", "10.77.0.16/28", "held", "").replace("node: a", "node: No Node"))
            .unwrap();
        // A later change was processed, so the earlier ones were processed too.
        let community = CommunityRecord::new("seen".parse().unwrap(), [].into());
        let (other, ..) = loaded(&cluster).await;
        crate::behaviour::commit(&other, vec![Change::PutCommunity(community.clone())]).await.unwrap();
        until("what was blocked to be blocked", async || {
            let state = replica.registry.read().await;
            state.ledger().row(&network("10.77.0.16/28")).map(drop)
        })
        .await;
        {
            let state = replica.registry.read().await;
            assert!(state.node(&name("a")).is_some());
            assert_eq!(state.ledger().held_by(&name("a")).len(), 2);
        }
        let more = replica.request_segments("a", "r2").await;
        assert!(!more.contains(&granted[0]) && !more.contains(&network("10.77.0.16/28")), "{more:?}");
        // After a restart its last readable state is unknown. Its addresses are still not granted.
        let again = cluster.replica().await;
        assert!(again.registry.read().await.ledger().row(&granted[0]).is_some());
        // Readable segments of the unreadable node are not released either, because the node exists
        // and uses them.
        let (lead, leading) = watch::channel(true);
        let garbage = OrphanCollector::new(&cluster.client, again.registry.clone(), Duration::from_secs(1));
        let collecting = tokio::spawn(garbage.run(leading));
        assert!(again.registry.read().await.node(&name("a")).is_none(), "this replica has never read it");
        // The second segment was added later than the first. When the second is released, the
        // node's segments would have been due long before.
        for ghost in ["10.77.1.0/28", "10.77.2.0/28"].map(network) {
            let row = SegmentRecord::new(ghost, name("ghost"), "join".into(), 1_793_491_300, None);
            crate::behaviour::commit(&other, vec![Change::GrantSegment(row)]).await.unwrap();
            until("what nobody holds to be released", async || {
                again.registry.read().await.ledger().row(&ghost)?.released_at.map(drop)
            })
            .await;
        }
        assert_eq!(again.registry.read().await.ledger().row(&granted[1]).unwrap().released_at, None);
        collecting.abort();
        drop(lead);
    });
}

fn foreign() {
    run(async {
        let cluster = clean().await;
        let replica = cluster.replica().await;
        replica.register("a").await;
        PLANE.kubectl(&["label", "edgenode", "a", "team=blue"]).unwrap();
        PLANE.kubectl(&["annotate", "edgenode", "a", "note=on the roof"]).unwrap();
        let port = |port| {
            let registry = replica.registry.clone();
            let record = edge_controller_domain::state::NodeRecord { port, ..edge("a") };
            async move {
                registry
                    .change(move |_| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())])))
                    .await
                    .unwrap()
            }
        };
        port(4500).await;
        port(4501).await;
        let object = cluster.edge_nodes().get("a").await.unwrap();
        assert_eq!(object.spec.port, 4501);
        assert_eq!(object.metadata.labels.unwrap()["team"], "blue");
        assert_eq!(object.metadata.annotations.unwrap()["note"], "on the roof");
    });
}

fn moved() {
    run(async {
        let cluster = clean().await;
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (granted, rows) = {
            let grants = Grants::start(Arc::new(Embedded::open(directories[0].path()).unwrap())).await;
            grants.register("a").await;
            let granted = grants.request_segments("a", "r").await;
            let backup = tempfile::tempdir().unwrap();
            std::fs::copy(directories[0].path().join(FILE), backup.path().join(FILE)).unwrap();
            let rows = Embedded::open(backup.path()).unwrap().load(mpsc::channel(1).0).await.unwrap();
            (granted, rows)
        };
        let now = 1_793_500_000;
        let ca = Ca::open(Box::new(Files::new(directories[0].path(), now)), None, now).await.unwrap();
        let first = ca.current().active().id();
        let kept = Files::new(directories[0].path(), now).load().await.unwrap().map(|(document, _)| document);
        let secret = CaSecret::new(&cluster.client, NAMESPACE);
        let before = rows.revision;
        let missing = archive::import(&*cluster.store(), &secret, Archive::new(now, rows, kept), now).await.unwrap();
        assert_eq!(missing, 3);
        let replica = cluster.replica().await;
        assert_eq!(replica.request_segments("a", "r").await, granted, "nobody is renumbered");
        assert!(replica.registry.read().await.revision() > before);
        let here = Ca::open(Box::new(CaSecret::new(&cluster.client, NAMESPACE)), None, now).await.unwrap();
        assert_eq!(here.current().active().id(), first);
        let (_, rows, _) = loaded(&cluster).await;
        let kept = secret.load().await.unwrap().map(|(document, _)| document);
        let store = Embedded::open(directories[1].path()).unwrap();
        let files = Files::new(directories[1].path(), now);
        archive::import(&store, &files, Archive::new(now, rows, kept), now).await.unwrap();
        let rows = store.load(mpsc::channel(1).0).await.unwrap();
        assert_eq!(rows.segments.iter().map(|row| row.network).collect::<Vec<_>>(), granted);
    });
}
