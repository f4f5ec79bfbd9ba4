//! The plugin on a real kernel, run as a runtime runs it, in network namespaces that are made for
//! each test.

mod attach;
mod former;
mod frames;
mod growth;
mod hairpin;
mod harness;
mod host;
mod ingress;
mod input;
mod lenient;
mod spoof;
mod survive;
mod verify;
mod world;

fn main() -> std::process::ExitCode {
    let tests: Vec<harness::Test> = [
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
    .into_iter()
    .flatten()
    .copied()
    .collect();
    harness::run(&tests)
}
