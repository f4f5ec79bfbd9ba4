//! Runs a test binary's tests one after another (`harness = false`), and counts those that this
//! machine cannot run as skipped, never as passed. Where `CI` is set, they must run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test: its name is the sentence that it proves.
pub type Test = (&'static str, fn());

/// Runs those whose names hold one of the words on the command line, or all.
#[must_use]
pub fn run(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen: Vec<&Test> =
        tests.iter().filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(*word))).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    if let Some(why) = super::obstacle().filter(|_| !chosen.is_empty()) {
        return without(&chosen, &why, must_run());
    }
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        let outcome = catch_unwind(AssertUnwindSafe(test));
        println!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" });
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {} failed; 0 skipped\n", chosen.len() - failed.len(), failed.len());
    for name in &failed {
        println!("failed: {name}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells that there is no control plane to be had.
fn without(chosen: &[&Test], why: &str, fatal: bool) -> ExitCode {
    let (word, code) = if fatal { ("FAILED", ExitCode::FAILURE) } else { ("skipped", ExitCode::SUCCESS) };
    chosen.iter().for_each(|(name, _)| println!("test {name} ... {word}: {why}"));
    let (failed, skipped) = if fatal { (chosen.len(), 0) } else { (0, chosen.len()) };
    let verdict = if fatal { "FAILED" } else { "ok" };
    println!("\ntest result: {verdict}. 0 passed; {failed} failed; {skipped} skipped: {why}\n");
    code
}

/// Whether a missing program is a failure: on machines that are there to test.
pub(crate) fn must_run() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}
