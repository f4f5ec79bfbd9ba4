//! Measures how many segments are granted per second to nodes that request them at the same time.
//! Each grant is durable before the response. The reference is the number of single synchronous
//! writes to the same disk.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;

use crate::Size;
use crate::cluster::Cluster;
use crate::nodes::Connection;
use crate::program::Program;
use crate::report::{Goal, Report};

/// Goal, as a fraction of the reference value.
pub(crate) const GOAL: Goal = Goal::RatioAtLeast(0.5);
/// Size of a write in the reference measurement, in bytes: a page.
const PAGE: usize = 4096;
/// Number of pages in the reference measurement's file. The pages exist already, so that no write
/// makes the file grow.
const PAGES: u64 = 1024;

pub(crate) fn measure(cluster: &Cluster, size: Size, report: &mut Report) {
    let limit = Duration::from_secs(size.seconds);
    let before = writes(cluster, limit / 2);
    let controller = Program::controller(cluster, None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let grants = runtime.block_on(grants(cluster, size, &controller, limit));
    controller.stop();
    let reference = (before + writes(cluster, limit / 2)) / 2.0;
    report.add("grant/embedded", "1/s", grants, (reference, "fdatasync, a page each"), GOAL);
}

/// Returns the number of segments granted per second.
pub(crate) async fn grants(cluster: &Cluster, size: Size, controller: &Program, limit: Duration) -> f64 {
    let mut connections = Vec::new();
    for node in &cluster.nodes[1..=size.requesters] {
        connections.push((node, Connection::open(controller.address, cluster.tls(node)).await));
    }
    let started = Instant::now();
    let requesting = connections.into_iter().map(async |(node, mut connection)| {
        let path = format!("/v1/nodes/{}/segments", node.name);
        let mut granted = 0;
        while started.elapsed() < limit {
            let request = json!({"request_id": format!("bench-{granted}"), "families": ["ipv4"]});
            connection.ask(Method::POST, &path, Some(request)).await;
            granted += 1;
        }
        granted
    });
    let granted: u32 = futures_util::future::join_all(requesting).await.into_iter().sum();
    f64::from(granted) / started.elapsed().as_secs_f64()
}

/// Returns the number of writes per second. Each write is on disk before the next one starts.
fn writes(cluster: &Cluster, limit: Duration) -> f64 {
    let file = std::fs::File::create(cluster.path("pages")).expect("a file");
    file.write_all_at(&vec![1; PAGE * PAGES as usize], 0).and_then(|()| file.sync_all()).expect("a file");
    let started = Instant::now();
    let mut written = 0;
    while started.elapsed() < limit {
        let at = written % PAGES * PAGE as u64;
        file.write_all_at(&[2; PAGE], at).and_then(|()| file.sync_data()).expect("a file");
        written += 1;
    }
    written as f64 / started.elapsed().as_secs_f64()
}
