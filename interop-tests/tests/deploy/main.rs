//! What `deploy/` holds: the chart, and the manifests that are rendered from it.
//!
//! - `chart`: the chart's values, and a real API server that Helm installs it on.
//! - `manifests`: `deploy/kubernetes` is the chart with its default values.
//! - `helm`: renders the chart; `programs`: files and programs of the workspace.

mod chart;
mod helm;
mod manifests;
mod programs;

use std::process::ExitCode;

use interop_tests::suite::{Test, Unrunnable, run};

fn main() -> ExitCode {
    let tests: Vec<Test> = [manifests::TESTS, chart::TESTS].concat();
    run(&tests, || helm::unavailable().or_else(interop_tests::kube::unavailable), Unrunnable::FailInCi)
}
