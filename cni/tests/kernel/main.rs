//! Tests of the plugin. They run it on a real kernel, as a runtime does, in network namespaces that
//! each test creates.

mod attach;
mod between_networks;
mod check_and_gc;
mod cloudcore;
mod cnitool;
mod containerd;
mod crashes;
mod earlier_release;
mod edgecore;
mod filter_table;
mod frames;
mod growth;
mod hairpin;
mod hidden;
mod ingress;
mod input;
mod lenient;
mod loopback;
mod node;
mod podman;
mod portmap;
mod power_cut;
mod random_calls;
mod requested;
mod runtime_host;
mod several_networks;
mod spoof;
mod world;

use std::process::{Command, ExitCode};

use interop_tests::netns;
use interop_tests::suite::{self, Test, Unrunnable};

/// Set in the process whose `/tmp` is in memory.
const IN_MEMORY: &str = "EDGE_CNI_TESTS_IN_MEMORY";

/// Runs the tests in a process whose `/tmp` is in memory. The tests run thousands of ADDs, each of
/// which waits for the disk. `None` if this is already the process with `/tmp` in memory, or if
/// that process cannot be started.
fn run_in_memory() -> Option<ExitCode> {
    let with_mounts = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command
    };
    let mount = "mount -t tmpfs -o mode=1777 tmpfs /tmp";
    let possible = || with_mounts().arg(mount).output().is_ok_and(|output| output.status.success());
    if std::env::var_os(IN_MEMORY).is_some() || !possible() {
        return None;
    }
    let script = format!("{mount} && exec \"$@\"");
    let mut command = with_mounts();
    command.args([&script, "sh"]).arg(std::env::current_exe().ok()?).args(std::env::args_os().skip(1));
    let status = command.env(IN_MEMORY, "1").status().ok()?;
    Some(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn main() -> ExitCode {
    if let Some(ended) = run_in_memory() {
        return ended;
    }
    let tests: Vec<Test> = [
        attach::TESTS,
        requested::TESTS,
        several_networks::TESTS,
        spoof::TESTS,
        hidden::TESTS,
        filter_table::TESTS,
        earlier_release::TESTS,
        hairpin::TESTS,
        lenient::TESTS,
        node::TESTS,
        ingress::TESTS,
        loopback::TESTS,
        between_networks::TESTS,
        input::TESTS,
        crashes::TESTS,
        random_calls::TESTS,
        growth::TESTS,
        check_and_gc::TESTS,
    ]
    .concat();
    let runs = [
        suite::run(&tests, netns::unavailable, Unrunnable::Skip),
        suite::run(portmap::TESTS, portmap::unavailable, Unrunnable::Skip),
        suite::run(power_cut::TESTS, power_cut::unavailable, Unrunnable::Skip),
        suite::run(cnitool::TESTS, cnitool::unavailable, Unrunnable::Skip),
        suite::run(cnitool::CHAINED, cnitool::unavailable_chained, Unrunnable::Skip),
        suite::run(containerd::TESTS, containerd::unavailable, Unrunnable::Skip),
        suite::run(containerd::TESTS_1_7, containerd::unavailable_1_7, Unrunnable::Skip),
        suite::run(containerd::TESTS_2_1, containerd::unavailable_2_1, Unrunnable::Skip),
        suite::run(edgecore::TESTS, edgecore::unavailable, Unrunnable::Skip),
        suite::run(cloudcore::TESTS, cloudcore::unavailable, Unrunnable::Skip),
        suite::run(podman::TESTS, podman::unavailable, Unrunnable::Skip),
    ];
    runs.into_iter().find(|run| *run != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}
