//! Runs the tests one after another, and counts those that this machine cannot run as skipped,
//! never as passed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};

/// A test: its name is the sentence that it proves.
pub(crate) type Test = (&'static str, fn());

/// Runs those whose names hold one of the words on the command line, or all.
pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen: Vec<&Test> =
        tests.iter().filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(*word))).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    if let Some(why) = obstacle() {
        chosen.iter().for_each(|(name, _)| println!("test {name} ... skipped: {why}"));
        println!("\ntest result: ok. 0 passed; 0 failed; {} skipped: {why}\n", chosen.len());
        return ExitCode::SUCCESS;
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
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Why nothing here can be run, if so: tried, not guessed.
fn obstacle() -> Option<String> {
    let name = format!("cni-{}-probe", std::process::id());
    match Command::new("ip").args(["netns", "add", &name]).output() {
        Err(error) => Some(format!("`ip` (iproute2) cannot be run: {error}")),
        Ok(output) if !output.status.success() => {
            let why = String::from_utf8_lossy(&output.stderr);
            Some(format!("network namespaces cannot be made; it needs root: {}", why.trim()))
        }
        Ok(_) => {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
            None
        }
    }
}
