//! The controller beside a real Kubernetes API server.
//!
//! - `join`: nodes join by the service account of their pod.

mod join;

use std::process::ExitCode;

use interop_tests::kube::suite;

fn main() -> ExitCode {
    suite::run(join::TESTS)
}
