//! The plugin on a real kernel, run as a runtime runs it, in network namespaces that are made for
//! each test.

mod attach;
mod former;
mod frames;
mod growth;
mod hairpin;
mod host;
mod ingress;
mod input;
mod lenient;
mod spoof;
mod survive;
mod verify;
mod world;

use std::process::ExitCode;

use interop_tests::netns;
use interop_tests::suite::{self, Test, Unrunnable};

fn main() -> ExitCode {
    let tests: Vec<Test> = [
        attach::TESTS,
        spoof::TESTS,
        former::TESTS,
        hairpin::TESTS,
        lenient::TESTS,
        host::TESTS,
        ingress::TESTS,
        input::TESTS,
        survive::TESTS,
        growth::TESTS,
        verify::TESTS,
    ]
    .concat();
    suite::run(&tests, netns::obstacle, Unrunnable::Skip)
}
