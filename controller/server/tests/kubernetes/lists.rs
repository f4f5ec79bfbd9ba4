//! Tests whether long lists are read from the watch cache.

use edge_controller_domain::state::Change;
use edge_types::IpNetwork;
use futures_util::future::join_all;
use interop_tests::kube::Subject;
use interop_tests::kube::suite::Test;

use crate::behaviour::{loaded, row};
use crate::cluster::{PLANE, as_user, clean, run};

pub(crate) const TESTS: &[Test] = &[
    ("a_long_list_is_read_from_memory_and_holds_what_was_there_when_it_was_asked_for", memory),
    ("a_long_list_is_read_also_by_one_who_may_not_write", reader),
];

/// A number of objects for which the store reads from the watch cache.
const MANY: u32 = 600;

async fn filled() {
    let cluster = clean().await;
    let (store, ..) = loaded(&cluster).await;
    let batch = (0..MANY).map(|n| {
        let network = IpNetwork::new(std::net::Ipv4Addr::from((10 << 24) | (n * 16)).into(), 28).unwrap();
        vec![Change::GrantSegment(row(&network.to_string(), "edge-1"))]
    });
    let committed = store.commit(batch.collect(), 1_793_492_000).await;
    committed.results.into_iter().collect::<Result<(), _>>().unwrap();
}

/// Returns the number of lists of segments that the API server has answered from its watch cache.
fn from_memory() -> u32 {
    let metrics = PLANE.kubectl(&["get", "--raw=/metrics"]).unwrap();
    let counters = metrics.lines().filter(|line| {
        line.starts_with("apiserver_storage_list_total{")
            && line.contains("resource=\"segments\"")
            && line.contains("storage=\"watchcache\"")
    });
    counters.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok()).sum()
}

fn memory() {
    run(async {
        filled().await;
        let cluster = as_user(&crate::cluster::CONTROLLER).await;
        for round in 0..3 {
            // Another replica writes this row just before this one lists.
            let more = row(&format!("10.200.0.{}/28", round * 16), "edge-1");
            let (store, ..) = loaded(&cluster).await;
            let before = from_memory();
            crate::behaviour::commit(&store, vec![Change::GrantSegment(more)]).await.unwrap();
            let readers = join_all((0..3).map(|_| loaded(&cluster))).await;
            for (_, snapshot, _) in &readers {
                assert_eq!(snapshot.segments.len(), MANY as usize + round + 1);
            }
            assert!(from_memory() >= before + 3, "{before}, and then {}", from_memory());
        }
        let marked = PLANE.kubectl(&["get", "segments", "--output=jsonpath={.items[*].metadata.annotations}"]).unwrap();
        assert_eq!(marked.matches("edge-cni.io/all-read-after").count(), 1, "{marked}");
    });
}

fn reader() {
    run(async {
        filled().await;
        let user = Subject::User("reader");
        let custom = ["segments.edge-cni.io", "edgenodes.edge-cni.io", "communities.edge-cni.io"];
        PLANE.grant("reader-custom", user, &["get", "list", "watch"], &custom).unwrap();
        PLANE.grant("reader-definitions", user, &["get"], &["customresourcedefinitions.apiextensions.k8s.io"]).unwrap();
        let all = ["get", "list", "watch", "create", "update"];
        PLANE.grant("reader-core", user, &all, &["secrets", "configmaps"]).unwrap();
        let reader = as_user(&PLANE.kubeconfig_for_user("reader", None).unwrap()).await;
        let (_, snapshot, _) = loaded(&reader).await;
        assert_eq!(snapshot.segments.len(), MANY as usize);
    });
}
