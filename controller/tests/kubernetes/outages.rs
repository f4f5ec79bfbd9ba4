//! The API server is away, has forgotten, or does not let us: nothing is torn down, and all is made good afterwards.

use interop_tests::kube::suite::Test;
use interop_tests::kube::{ControlPlane, Subject};

use crate::behaviour::{Grants, loaded, name, until};
use crate::cluster::{PLANE, as_user, clean, controller, install, run};

pub(crate) const TESTS: &[Test] = &[
    ("while_the_api_server_is_away_what_was_known_holds_and_afterwards_all_goes_on", away),
    ("after_etcd_was_compacted_everything_is_read_anew", compacted),
    ("a_lost_right_tears_nothing_down_and_is_told_with_its_manifest", rights),
    ("without_its_definitions_a_controller_does_not_start_and_says_which_manifest_helps", definitions),
];

async fn set_up(cluster: &crate::cluster::Cluster) -> Grants {
    let replica = cluster.replica().await;
    for node in ["a", "b"] {
        replica.register(node).await;
    }
    replica.apply("a", "r").await;
    replica
}

async fn everything_is_there(replica: &Grants) {
    let view = replica.registry.read().await;
    assert_eq!(view.state().nodes().len(), 2);
    assert_eq!(view.state().ledger().held_by(&name("a")).len(), 2);
}

async fn community(replica: &Grants, name: &str) {
    PLANE
        .apply_text(&format!(
            "apiVersion: edge-cni.io/v1alpha1\nkind: Community\nmetadata: {{name: {name}}}\nspec: {{members: [a, b]}}\n"
        ))
        .unwrap();
    until("the community to be known", async || {
        replica.registry.read().await.state().listed_community(&name.parse().unwrap()).map(drop)
    })
    .await;
}

fn away() {
    run(async {
        let cluster = clean().await;
        let replica = set_up(&cluster).await;
        PLANE.kill_api_server().unwrap();
        let error = replica.try_apply("b", "r").await.unwrap_err().to_string();
        assert!(error.contains("API server"), "{error}");
        everything_is_there(&replica).await;
        until("the outage to be told", async || cluster.obstacles.all()).await;
        PLANE.start_api_server().unwrap();
        community(&replica, "alpha").await;
        everything_is_there(&replica).await;
        replica.apply("b", "r").await;
        until("nothing to stand in the way", async || cluster.obstacles.all().is_none().then_some(())).await;
    });
}

fn compacted() {
    run(async {
        let cluster = clean().await;
        let replica = set_up(&cluster).await;
        // While nobody watches, something comes, something goes, and history is forgotten.
        PLANE.kubectl(&["delete", "edgenode", "b", "--wait=false"]).unwrap();
        PLANE.forget_history().unwrap();
        community(&replica, "alpha").await;
        until("the deletion to be known", async || {
            replica.registry.read().await.state().node(&name("b")).is_none().then_some(())
        })
        .await;
        assert_eq!(replica.registry.read().await.state().ledger().held_by(&name("a")).len(), 2);
        replica.register("b").await;
        replica.apply("b", "r").await;
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
        // Watches that are open go on; those that begin anew are refused.
        PLANE.restart_api_server().unwrap();
        let told = until("the lost right to be told", async || {
            cluster.obstacles.all().filter(|told| told.contains("segments.edge-cni.io") && told.contains("nodes"))
        })
        .await;
        assert!(told.contains("deploy/kubernetes/10-rbac.yaml"), "{told}");
        everything_is_there(&replica).await;
        let error = replica.try_apply("b", "r").await.unwrap_err().to_string();
        assert!(error.contains("10-rbac.yaml"), "{error}");
        let error =
            crate::behaviour::Place::open(&cluster).await.load(tokio::sync::mpsc::channel(1).0).await.unwrap_err();
        assert!(error.to_string().contains("10-rbac.yaml"), "{error}");
        controller("fragile");
        community(&replica, "alpha").await;
        replica.apply("b", "r").await;
        let (_, snapshot, _) = loaded(&owner).await;
        assert_eq!(snapshot.segments.len(), 4);
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
