//! The test runner for test binaries with `harness = false`. It runs their tests one after another.
//! Tests that this machine cannot run count as skipped, never as passed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A test with its name, which is the sentence that it proves.
pub type Test = (&'static str, fn());

/// The treatment of tests that this machine cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrunnable {
    /// The tests count as skipped.
    Skip,
    /// The tests count as failed if the environment variable `CI` is set, otherwise as skipped.
    FailInCi,
}

/// Runs the tests whose names contain one of the words on the command line, or all of them. With
/// `--exact` a name must be one of the words; with `--list` it prints the names. `unavailable`
/// returns the reason why none of the tests can run on this machine.
#[must_use]
pub fn run(tests: &[Test], unavailable: impl FnOnce() -> Option<String>, unrunnable: Unrunnable) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let is_chosen = |name: &str| words.iter().any(|word| if exact { name == *word } else { name.contains(*word) });
    let chosen: Vec<&Test> = tests.iter().filter(|(name, _)| words.is_empty() || is_chosen(name)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    if !chosen.is_empty()
        && let Some(why) = unavailable()
    {
        return report_unrunnable(&chosen, &why, unrunnable == Unrunnable::FailInCi && is_ci());
    }
    let (mut failed, mut skipped) = (Vec::new(), 0);
    let started = Instant::now();
    for (name, test) in &chosen {
        match outcome(*test) {
            Outcome::Passed => println!("test {name} ... ok"),
            Outcome::Skipped(why) => {
                println!("test {name} ... skipped: {why}");
                skipped += 1;
            }
            Outcome::Failed => {
                println!("test {name} ... FAILED");
                failed.push(*name);
            }
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {} passed; {} failed; {skipped} skipped; finished in {:.2}s\n",
        chosen.len() - failed.len() - skipped,
        failed.len(),
        started.elapsed().as_secs_f64()
    );
    failed.iter().for_each(|name| println!("failed: {name}"));
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// Ends the test that calls this: it counts as skipped, for this reason. For a test of which
/// something is missing that is not needed for the others.
pub fn skip(why: &str) -> ! {
    // Unlike a panic, this prints nothing.
    resume_unwind(Box::new(Skipped(why.to_owned())))
}

/// What a test leaves when it is skipped: the reason.
struct Skipped(String);

/// The result of one test.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed,
}

fn outcome(test: fn()) -> Outcome {
    match catch_unwind(AssertUnwindSafe(test)) {
        Ok(()) => Outcome::Passed,
        Err(left) => match left.downcast::<Skipped>() {
            Ok(skipped) => Outcome::Skipped(skipped.0),
            Err(_) => Outcome::Failed,
        },
    }
}

fn report_unrunnable(chosen: &[&Test], why: &str, fatal: bool) -> ExitCode {
    let word = if fatal { "FAILED" } else { "skipped" };
    chosen.iter().for_each(|(name, _)| println!("test {name} ... {word}: {why}"));
    let (failed, skipped) = if fatal { (chosen.len(), 0) } else { (0, chosen.len()) };
    let result = if fatal { "FAILED" } else { "ok" };
    println!("\ntest result: {result}. 0 passed; {failed} failed; {skipped} skipped: {why}\n");
    ExitCode::from(u8::from(fatal))
}

/// Returns whether this is a build machine, where nothing may be skipped: the environment variable
/// `CI` is set to something other than `0` or `false`.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_skipped_has_not_passed_and_says_why() {
        assert_eq!(outcome(|| {}), Outcome::Passed);
        assert_eq!(outcome(|| skip("a program is missing")), Outcome::Skipped("a program is missing".into()));
        assert_eq!(outcome(|| panic!("on purpose")), Outcome::Failed);
    }
}
