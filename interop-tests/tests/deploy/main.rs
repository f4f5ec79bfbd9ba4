//! Tests the content of `deploy/`: the chart, the manifests that are rendered from the chart, the
//! image and the packages.
//!
//! - `chart`: tests the effect of the chart's values, and Helm on a real API server.
//! - `cleanup`: tests the chart's cleanup of a node.
//! - `cluster_pages`: follows the pages about Kubernetes, KubeEdge and k3s on a real API server.
//! - `completions`: tests the completions in zsh and fish.
//! - `cross`: tests when `.ci/cross` skips the builds for other machines.
//! - `dashboard`: tests the Grafana dashboard.
//! - `image`: tests the image in containerd.
//! - `install`: tests the files and commands in `docs/install`.
//! - `join`: tests `edge-agent join` on a machine whose systemd is played by a script.
//! - `layouts`: tests state that earlier releases left on disk.
//! - `manifests`: checks that `deploy/kubernetes` is the chart with its default values.
//! - `monitoring`: tests the alert rules and the metrics.
//! - `older_programs`: tests the programs of an earlier release together with the present ones.
//! - `packages`: tests the Debian packages in a copy of this machine's system.
//! - `two_machines`: follows the page about two plain machines; `machine`: boots a machine for it.
//! - `readme`: follows README.
//! - `sbom`: tests the software bills of materials of the programs.
//! - `helm`: renders the chart; `page`: reads a page with commands; `pair`: runs a controller and
//!   an agent; `programs`: finds workspace files and runs programs.

mod chart;
mod cleanup;
mod cluster_pages;
mod completions;
mod cross;
mod dashboard;
mod helm;
mod image;
mod install;
mod join;
mod layouts;
mod machine;
mod manifests;
mod monitoring;
mod older_programs;
mod packages;
mod page;
mod pair;
mod programs;
mod readme;
mod sbom;
mod two_machines;

use std::process::ExitCode;

use interop_tests::suite::{Test, Unrunnable, run};

fn main() -> ExitCode {
    let tests: Vec<Test> = [
        manifests::TESTS,
        chart::TESTS,
        cleanup::TESTS,
        cluster_pages::TESTS,
        completions::TESTS,
        cross::TESTS,
        image::TESTS,
        install::TESTS,
        join::TESTS,
        layouts::TESTS,
        monitoring::TESTS,
        older_programs::TESTS,
        dashboard::TESTS,
        packages::TESTS,
        readme::TESTS,
        sbom::TESTS,
        two_machines::TESTS,
    ]
    .concat();
    let unavailable = || {
        helm::unavailable()
            .or_else(image::unavailable)
            .or_else(machine::unavailable)
            .or_else(monitoring::unavailable)
            .or_else(interop_tests::kube::unavailable)
    };
    run(&tests, unavailable, Unrunnable::FailInCi)
}
