//! Tests against a real kernel, each in its own network namespaces. A test that cannot run on this
//! machine is listed as skipped, with the reason.
//!
//! Tests with SAs need ESP: `interop-tests exec -- target/debug/deps/kernel-...` runs them in the
//! lab.

mod events;
mod guard;
mod namespace;
mod pair;
mod policies;
mod sas;
mod switching;
mod tcp;
mod transport;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// The requirements of a test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Root,
    Esp,
}

/// Name, requirements and body of a test.
pub(crate) type Test = (&'static str, Needs, fn());

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let tests: Vec<Test> =
        [policies::TESTS, events::TESTS, guard::TESTS, sas::TESTS, switching::TESTS, tcp::TESTS, transport::TESTS]
            .concat();
    let tests: Vec<Test> = tests
        .into_iter()
        .filter(|(name, ..)| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())))
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        for (name, ..) in &tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let no_root = namespace::missing_root();
    let no_esp = no_root.clone().or_else(namespace::missing_esp);
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    println!("\nrunning {} tests", tests.len());
    for (name, needs, body) in tests {
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let missing = if needs == Needs::Esp { &no_esp } else { &no_root };
        if let Some(why) = missing {
            skipped += 1;
            println!("skipped, {why}");
        } else if catch_unwind(AssertUnwindSafe(body)).is_ok() {
            passed += 1;
            println!("ok");
        } else {
            failed.push(name);
            println!("FAILED");
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {} failed; {skipped} skipped\n", failed.len());
    for name in &failed {
        println!("failed: {name}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
