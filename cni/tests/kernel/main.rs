//! Runs the plugin on a real kernel as a runtime does, in network namespaces that each test makes.

mod attach;
mod between_networks;
mod check_and_gc;
mod cnitool;
mod crashes;
mod earlier_release;
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
mod portmap;
mod power_cut;
mod random_calls;
mod requested;
mod several_networks;
mod spoof;
mod world;

use std::process::ExitCode;

use interop_tests::netns;
use interop_tests::suite::{self, Test, Unrunnable};

fn main() -> ExitCode {
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
    ];
    runs.into_iter().find(|run| *run != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}
