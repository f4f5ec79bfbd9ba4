//! Measures the controller at the size for which it is designed: 10,000 nodes.
//!
//! `cargo bench -p edge-controller --bench controller` prints a table and writes
//! `target/bench/controller.json`. Names of cases as arguments select those cases
//! (`-- start grant`); the other cases keep their results in the file. The exit code is 1 if a goal
//! is missed or a selected case cannot be measured. The program itself is measured, with nodes that
//! connect over the loopback interface as agents do. `nodes=N` measures with N nodes in ten
//! communities; such results are printed and not written. Without `--bench` (as under
//! `cargo test --all-targets`) each case runs once with few nodes.
//!
//! - `rss/10000-nodes`, `fanout/p99` (`streams`): all nodes hold their view streams open; the
//!   controller has one core, the nodes have another. The reference is the same number of bare TLS
//!   connections (`bare`). `fanout-2000/p99`: the same with communities of 2,000 instead of 1,000.
//! - `grant/embedded` (`grants`): grants per second, compared with the disk's own rate of
//!   synchronous writes.
//! - `start/10000` (`start`): the time to start, compared with reading the same rows from the same
//!   file.
//! - `grant/kubernetes`, `start/kubernetes` (`kubernetes`): the same on a real API server, with
//!   etcd on a disk, compared with bare creates of the same objects and with bare lists of them.
//!
//! `cluster` makes the store and the certificates, `program` runs the controller, `nodes` connects
//! to it.

mod bare;
mod cluster;
mod grants;
mod kubernetes;
mod nodes;
mod program;
mod report;
mod start;
mod streams;

use std::process::ExitCode;

use cluster::Cluster;
use report::Report;

/// The size of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Registered nodes, all connected.
    pub(crate) nodes: usize,
    /// Members of a community.
    pub(crate) community: usize,
    /// Changes that are sent to a community.
    pub(crate) changes: usize,
    /// Nodes that request segments at the same time.
    pub(crate) requesters: usize,
    /// Seconds for which nodes request segments.
    pub(crate) seconds: u64,
    /// Number of measured starts; the median is reported.
    pub(crate) starts: usize,
}

const WHOLE: Size = Size { nodes: 10_000, community: 1000, changes: 60, requesters: 128, seconds: 5, starts: 5 };
const ONCE: Size = Size { nodes: 60, community: 20, changes: 3, requesters: 4, seconds: 1, starts: 1 };

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, directory, port] = &arguments[..]
        && word == bare::WORD
    {
        bare::serve(directory.as_ref(), port.parse().expect("a port"));
    }
    let measure = arguments.iter().any(|argument| argument == "--bench");
    let nodes = arguments.iter().find_map(|argument| argument.strip_prefix("nodes="));
    let nodes = nodes.map(|nodes| nodes.parse::<usize>().expect("nodes=N with a number of nodes"));
    let is_case = |argument: &&String| !argument.starts_with('-') && !argument.contains('=');
    let chosen: Vec<&String> = arguments.iter().filter(is_case).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|word| name.starts_with(word.as_str()));
    let cases = [
        "start/10000",
        "rss/10000-nodes",
        "fanout/p99",
        "fanout-2000/p99",
        "grant/embedded",
        "grant/kubernetes",
        "start/kubernetes",
    ];
    let unknown = chosen.iter().find(|word| !cases.iter().any(|case| case.starts_with(word.as_str())));
    // `cargo test` passes the names of tests to all programs.
    if let Some(word) = unknown.filter(|_| measure) {
        eprintln!("no case is called {word}; there are {}", cases.join(", "));
        return ExitCode::FAILURE;
    }
    let [start, rss, fanout, large_fanout, grant, grant_kubernetes, start_kubernetes] = cases.map(wanted);
    let size = match nodes {
        Some(nodes) => Size { nodes, community: nodes.div_ceil(10), ..WHOLE },
        None if measure => WHOLE,
        None => ONCE,
    };
    let mut report = Report::default();
    if start || rss || fanout || grant {
        let cluster = Cluster::embedded(size);
        if start {
            start::measure(&cluster, size, &mut report);
        }
        if rss || fanout {
            streams::measure(&cluster, size, "fanout/p99", Some("rss/10000-nodes"), &mut report);
        }
        // This case is measured last, because it makes the store grow.
        if grant {
            grants::measure(&cluster, size, &mut report);
        }
    }
    if large_fanout {
        let size = Size { community: 2 * size.community, ..size };
        streams::measure(&Cluster::embedded(size), size, "fanout-2000/p99", None, &mut report);
    }
    if grant_kubernetes || start_kubernetes {
        kubernetes::measure(size, &mut report, [grant_kubernetes, start_kubernetes]);
    }
    if measure && nodes.is_none() { report.write() } else { ExitCode::SUCCESS }
}
