//! Tests the controller on a real Kubernetes API server.
//!
//! - `behaviour`: the tests for every store, run on this one.
//! - `cluster`: the control plane, as a replica reaches it.
//! - `replicas`: several replicas at once.
//! - `absences`: definitions and objects are deleted; another cluster answers.
//! - `outages`: the API server restarts, loses its history, and revokes permissions.
//! - `objects`: objects as people see and edit them.
//! - `authorities`: the authorities in their Secret.
//! - `join`: nodes join by the service account of their pod.
//! - `nodes`: labels and addresses of Node objects; `node_deletions`: Node objects that are
//!   deleted.
//! - `labels`: who may label Nodes, and which labels count.
//! - `leader`: which replica leads, and the leader's work.
//! - `lists`: long lists.
//! - `history`: random histories of three controllers, which are killed, as is the API server.
//! - `streams`: nodes that follow their views at one replica and continue at another.
//! - `shipped`: the controller as the manifests run it.
//! - `server`: the whole controller, with nodes that connect.

mod absences;
mod authorities;
#[path = "../behaviour/mod.rs"]
mod behaviour;
mod cluster;
#[path = "../api/harness.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
mod harness;
mod history;
mod join;
mod labels;
mod leader;
mod lists;
#[path = "../model/mod.rs"]
mod model;
mod node_deletions;
mod nodes;
mod objects;
mod outages;
#[path = "../api/process.rs"]
#[allow(dead_code, reason = "some of it is for other tests")]
mod process;
mod replicas;
mod server;
mod shipped;
mod streams;

use std::process::ExitCode;

use interop_tests::kube::suite;

macro_rules! on_a_cluster {
    ($($behaviour:ident),* $(,)?) => {
        &[$((stringify!($behaviour), || cluster::run(async {
            behaviour::$behaviour(&cluster::clean().await).await;
        }))),*]
    };
}

const BEHAVIOURS: &[suite::Test] = behaviour::all!(on_a_cluster);

fn main() -> ExitCode {
    let tests: Vec<suite::Test> = [
        BEHAVIOURS,
        objects::TESTS,
        replicas::TESTS,
        nodes::TESTS,
        node_deletions::TESTS,
        leader::TESTS,
        lists::TESTS,
        authorities::TESTS,
        join::TESTS,
        labels::TESTS,
        server::TESTS,
        shipped::TESTS,
        streams::TESTS,
        outages::TESTS,
        absences::TESTS,
        history::TESTS,
    ]
    .concat();
    suite::run(&tests)
}
