//! Tests the content of `deploy/`: the chart and the manifests that are rendered from it, the
//! image, the packages.
//!
//! - `chart`: the chart's values, and a real API server that Helm installs it on.
//! - `cleanup`: the chart's cleanup of a node.
//! - `dashboard`: the Grafana dashboard.
//! - `image`: the image in containerd.
//! - `install`: the files and commands in `docs/install`.
//! - `layouts`: state that earlier releases left on disk.
//! - `manifests`: `deploy/kubernetes` is the chart with its default values.
//! - `monitoring`: the alert rules.
//! - `packages`: the Debian packages in a copy of this machine's system.
//! - `helm`: renders the chart; `pair`: controller and agent; `programs`: files and programs of the
//!   workspace.

mod chart;
mod cleanup;
mod dashboard;
mod helm;
mod image;
mod install;
mod layouts;
mod manifests;
mod monitoring;
mod packages;
mod pair;
mod programs;

use std::process::ExitCode;

use interop_tests::suite::{Test, Unrunnable, run};

fn main() -> ExitCode {
    let tests: Vec<Test> = [
        manifests::TESTS,
        chart::TESTS,
        cleanup::TESTS,
        image::TESTS,
        install::TESTS,
        layouts::TESTS,
        monitoring::TESTS,
        dashboard::TESTS,
        packages::TESTS,
    ]
    .concat();
    let unavailable = || {
        helm::unavailable()
            .or_else(image::unavailable)
            .or_else(monitoring::unavailable)
            .or_else(interop_tests::kube::unavailable)
    };
    run(&tests, unavailable, Unrunnable::FailInCi)
}
