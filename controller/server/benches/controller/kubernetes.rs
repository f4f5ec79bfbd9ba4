//! Measures the store at a real API server, with an etcd that waits for its disk. Grants per second
//! to nodes that request them at the same time are compared with bare creates of such objects by as
//! many clients. The start with the objects of all nodes is compared with bare lists of them.

use std::path::Path;
use std::time::{Duration, Instant};

use edge_controller_domain::clock::Clock;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_kubernetes::ca_secret::CaSecret;
use edge_controller_kubernetes::client::{ApiFailures, connect};
use edge_controller_kubernetes::events::EventRecorder;
use edge_controller_kubernetes::resources::{EdgeNode, Segment, SegmentSpec, object_name};
use edge_controller_kubernetes::store::Kubernetes;
use edge_types::IpNetwork;
use edge_types::view::SegmentPrefix;
use futures_util::future::join_all;
use interop_tests::kube::{ControlPlane, Options, Storage};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use crate::Size;
use crate::cluster::Cluster;
use crate::grants;
use crate::program::Program;
use crate::report::{Goal, Report, percentile};

const NAMESPACE: &str = "edge-cni";
/// The controller's default sizes.
const SIZES: SegmentPrefix = SegmentPrefix { v4: 26, v6: 120 };
/// Goal for the start, in milliseconds.
const START: Goal = Goal::AtMost(2000.0);
/// Time limit for a run that hangs.
const SHOWN: Duration = Duration::from_secs(300);
/// Number of objects on a page of the bare lists; larger pages are not cheaper.
const PAGE: u32 = 5000;

/// Measures grants, the controller's start, or both.
pub(crate) fn measure(mut size: Size, report: &mut Report, [grant, start]: [bool; 2]) {
    if !start {
        // Writing thousands of objects takes minutes, and grants do not depend on these objects.
        size.nodes = size.nodes.min(2 * size.requesters);
    }
    let plane = match ControlPlane::start_with("bench", Options { storage: Storage::Disk, ..Options::default() }) {
        Ok(plane) => plane,
        Err(error) => return report.not_measured("kubernetes", &error),
    };
    for manifests in ["kubernetes/10-rbac.yaml", "crds"] {
        plane
            .apply(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(manifests))
            .expect("the manifests");
    }
    plane.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).expect("the definitions");
    let kubeconfig = plane.kubeconfig_for_service_account(NAMESPACE, "edge-controller").expect("a kubeconfig");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = runtime.block_on(connect(Some(&kubeconfig))).expect("a client");
    let (cluster, filled) = runtime.block_on(async {
        let store = Kubernetes::new(&client, NAMESPACE, SIZES, ApiFailures::default(), EventRecorder::default());
        let ca_secret = Box::new(CaSecret::new(&client, NAMESPACE));
        let began = Instant::now();
        let config = format!("[kubernetes]\nkubeconfig = {kubeconfig:?}\n");
        (Cluster::elsewhere(size, &store, ca_secret, config).await, began.elapsed())
    });
    println!("{:<20} {} nodes and their segments written in {:.1} s", "", size.nodes, filled.as_secs_f64());
    if start {
        let (mut ours, mut reference) = (Vec::new(), Vec::new());
        for _ in 0..size.starts {
            reference.push(runtime.block_on(lists(&client)));
            let controller = Program::controller(&cluster, None);
            ours.push(controller.took.as_secs_f64() * 1e3);
            controller.stop();
        }
        let reference = (percentile(&mut reference, 0.5), "listing the same objects");
        report.add("start/kubernetes", "ms", percentile(&mut ours, 0.5), reference, START);
    }
    if grant {
        let limit = Duration::from_secs(size.seconds);
        let mut number = 0;
        let before = runtime.block_on(creates(&client, size.requesters, &mut number, limit / 2));
        let controller = Program::controller(&cluster, None);
        // The first statuses of all nodes are not part of the measurement.
        runtime.block_on(shown(&client));
        let granted = runtime.block_on(grants::grants(&cluster, size, &controller, limit));
        controller.stop();
        let after = runtime.block_on(creates(&client, size.requesters, &mut number, limit / 2));
        let reference = ((before + after) / 2.0, "bare creates");
        report.add("grant/kubernetes", "1/s", granted, reference, grants::GOAL);
    }
}

/// Returns the milliseconds to list the objects that a controller reads at its start.
async fn lists(client: &Client) -> f64 {
    async fn all<K>(api: Api<K>)
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = api.list(&page).await.expect("a list");
            match list.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => page = page.continue_token(&next),
                None => return,
            }
        }
    }
    let began = Instant::now();
    tokio::join!(all::<Segment>(Api::all(client.clone())), all::<EdgeNode>(Api::all(client.clone())));
    began.elapsed().as_secs_f64() * 1e3
}

/// Waits until the statuses of all nodes list their segments.
async fn shown(client: &Client) {
    let api: Api<EdgeNode> = Api::all(client.clone());
    let began = Instant::now();
    loop {
        let nodes = api.list(&ListParams::default()).await.expect("a list");
        if nodes.iter().all(|node| node.status.as_ref().is_some_and(|status| !status.segments.is_empty())) {
            return;
        }
        assert!(began.elapsed() < SHOWN, "the statuses are not written");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Returns the number of segments created per second by this number of clients. Each client waits
/// for one create before it sends the next.
async fn creates(client: &Client, clients: usize, number: &mut u32, limit: Duration) -> f64 {
    let began = Instant::now();
    let first = *number;
    let next = std::cell::Cell::new(first);
    let creating = (0..clients).map(async |_| {
        let api: Api<Segment> = Api::all(client.clone());
        while began.elapsed() < limit {
            let nth = next.replace(next.get() + 1);
            // The address is in a range where no node holds a segment and none is granted.
            let address = std::net::Ipv4Addr::from((10 << 24 | 1 << 22) + nth * 64);
            let network = IpNetwork::new(address.into(), SIZES.v4).expect("a segment");
            let row = SegmentRecord::new(
                network,
                "node-00001".parse().expect("a name"),
                format!("bare-{nth}"),
                Clock::system().now(),
                None,
            );
            api.create(&PostParams::default(), &Segment::new(&object_name(&network), SegmentSpec::of(&row)))
                .await
                .expect("a segment");
        }
    });
    join_all(creating).await;
    *number = next.get();
    f64::from(*number - first) / began.elapsed().as_secs_f64()
}
