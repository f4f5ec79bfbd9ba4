//! Runs the plugin on a real kernel as a runtime does, in network namespaces that each test makes.

mod attach;
mod between_networks;
mod check_and_gc;
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
    let own = suite::run(&tests, netns::unavailable, Unrunnable::Skip);
    let with_portmap = suite::run(portmap::TESTS, portmap::unavailable, Unrunnable::Skip);
    if own == ExitCode::SUCCESS { with_portmap } else { own }
}
