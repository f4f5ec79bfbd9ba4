//! Tests the controller on a real Kubernetes API server.
//!
//! - `behaviour`: runs the tests for every store on the Kubernetes store.
//! - `cluster`: runs the control plane for all tests.
//! - `replicas`: tests several replicas at once.
//! - `absences`: tests missing objects and definitions, and another cluster that answers.
//! - `outages`: tests an API server that restarts, loses its history or revokes permissions.
//! - `rights`: tests the controller without each of its rights in turn.
//! - `objects`: tests objects as people see and edit them.
//! - `authorities`: tests the certificate authorities in their Secret.
//! - `join`: tests joins with the service account of the node's pod.
//! - `nodes`: tests labels and addresses of Node objects; `node_deletions`: tests Node objects that
//!   are deleted.
//! - `labels`: tests who may label Nodes and which labels count.
//! - `leader`: tests which replica leads and what the leader does.
//! - `lists`: tests whether long lists are read from the watch cache.
//! - `history`: runs random sequences of operations while controllers, the API server and etcd are
//!   killed.
//! - `streams`: tests nodes that follow their views at one replica and continue at another.
//! - `shipped`: tests the controller as the manifests run it.
//! - `server`: tests the whole controller, with nodes that connect.

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
mod rights;
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
        rights::TESTS,
        history::TESTS,
    ]
    .concat();
    suite::run(&tests)
}
