//! Tests the table `inet edge-cni` on a real kernel: which hosts can reach which other hosts, and
//! with which source address. Each test has its own network namespaces. Packets that arrive in ESP
//! are tested in the lab.

mod ike_ports;
mod keys;
mod obstacles;
mod reach;
mod world;

use std::process::ExitCode;

use interop_tests::netns;
use interop_tests::suite::{self, Test, Unrunnable};

fn main() -> ExitCode {
    let tests: Vec<Test> = [reach::TESTS, keys::TESTS, ike_ports::TESTS, obstacles::TESTS].concat();
    suite::run(&tests, netns::unavailable_with_nft, Unrunnable::Skip)
}
