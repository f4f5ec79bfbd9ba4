//! The table `inet edge-cni` on a real kernel: who reaches whom, and under which source. In network
//! namespaces that are made for each test; what comes out of ESP is for the lab.

mod keys;
mod obstacles;
mod reach;
mod world;

use std::process::ExitCode;

use interop_tests::netns;
use interop_tests::suite::{self, Test, Unrunnable};

fn main() -> ExitCode {
    let tests: Vec<Test> = [reach::TESTS, keys::TESTS, obstacles::TESTS].concat();
    suite::run(&tests, netns::obstacle_with_nft, Unrunnable::Skip)
}
