//! Measures the controller while all nodes hold their view streams open: its memory, and the time
//! until all members of a community have received the new address of one member.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::nodes::{self, ReceivedLine, ViewConnection};
use crate::program::{Program, cores, stay_on};
use crate::report::{Goal, Report, percentile};
use crate::{Size, bare};

/// Goal for resident memory, MiB.
const MEMORY: Goal = Goal::AtMost(300.0);
/// Goal for the time from the request of the moved node to the line about it, ms.
const LATENCY: Goal = Goal::AtMost(50.0);
/// Time limit for a run that hangs.
const HANG: Duration = Duration::from_secs(60);

/// The results for one program.
pub(crate) struct Measured {
    pub(crate) memory: (f64, f64),
    /// Milliseconds, one for each change and each member that received it.
    pub(crate) latencies: Vec<f64>,
}

/// Reports the latencies as the case `fanout`, and the memory as the case `rss` if it has a name.
pub(crate) fn measure(cluster: &Cluster, size: Size, fanout: &str, rss: Option<&str>, report: &mut Report) {
    let [core, other] = cores();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(move || stay_on(other))
        .enable_all()
        .build()
        .expect("a runtime");
    let controller = Program::controller(cluster, Some(core));
    let mut ours = runtime.block_on(ours(cluster, size, &controller));
    controller.stop();
    let bare = bare::start(cluster, core);
    let mut floor = runtime.block_on(bare::measure(cluster, size, &bare));
    bare.kill();
    println!("{:<20} {:.0} MiB at most, of bare connections {:.0} MiB", "", ours.memory.1, floor.memory.1);
    let name = "as many TLS connections without HTTP";
    if let Some(rss) = rss {
        report.add(rss, "MiB", ours.memory.0, (floor.memory.0, name), MEMORY);
    }
    let p50 = percentile(&mut ours.latencies, 0.5);
    println!("{:<20} half of them within {p50:.1} ms, all within {:.1} ms", "", percentile(&mut ours.latencies, 1.0));
    let p99 = percentile(&mut ours.latencies, 0.99);
    let name = "as many bytes to as many TLS connections";
    report.add(fanout, "ms", p99, (percentile(&mut floor.latencies, 0.99), name), LATENCY);
}

async fn ours(cluster: &Cluster, size: Size, controller: &Program) -> Measured {
    let (heard, mut news) = mpsc::unbounded_channel();
    let started = Instant::now();
    let connections = nodes::each(cluster, |_, node| {
        let heard = heard.clone();
        async move { ViewConnection::open(controller.address, &cluster.tls(node), node.name.as_str(), heard).await }
    });
    let mut connections = connections.await;
    // When only heartbeats arrive, every node has its view.
    let mut views = 0;
    while views < size.nodes {
        views += usize::from(next(&mut news).await.is("view"));
    }
    println!("{:<20} {} nodes connected and had their views after {:.1?}", "", size.nodes, started.elapsed());
    for _ in 0..2 * size.nodes {
        assert!(next(&mut news).await.is("heartbeat"), "nothing changes");
    }
    let memory = controller.memory();
    let mut latencies = Vec::new();
    for change in 0..size.changes {
        // A node of the first community moves, a different one each time.
        let mover = 1 + change % size.community;
        let address = format!("198.18.{}.{}", change / 250, 1 + change % 250);
        let report = json!({"addresses": [address], "port": 4500});
        let connection = connections[mover].clone();
        let sent = Instant::now();
        let response = tokio::spawn(async move { connection.report(&report).await });
        // The hub receives the change too.
        let mut received = 0;
        while received < size.community {
            let heard = next(&mut news).await;
            if heard.is("change") && heard.holds(&address) {
                received += 1;
                latencies.push((heard.at - sent).as_secs_f64() * 1e3);
            }
        }
        response.await.expect("a response");
    }
    connections.clear();
    Measured { memory, latencies }
}

async fn next(news: &mut mpsc::UnboundedReceiver<ReceivedLine>) -> ReceivedLine {
    tokio::time::timeout(HANG, news.recv()).await.expect("something is said").expect("streams are open")
}
