//! The table `inet edge-cni` on a real kernel: who reaches whom, and under which source. In network
//! namespaces that are made for each test; what comes out of ESP is for the lab.

mod keys;
mod obstacles;
mod reach;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};

/// A test: its name is the sentence that it proves.
type Test = (&'static str, fn());

/// Runs those whose names hold one of the words on the command line, or all; those that this
/// machine cannot run are skipped, never passed.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let all = [reach::TESTS, keys::TESTS, obstacles::TESTS].into_iter().flatten();
    let chosen: Vec<&Test> =
        all.filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(*word))).collect();
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
    let mut failed = 0;
    for (name, test) in &chosen {
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed; 0 skipped\n", chosen.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}

/// Why nothing here can be run, if so: tried, not guessed.
fn obstacle() -> Option<String> {
    let name = format!("fw-{}-probe", std::process::id());
    match Command::new("ip").args(["netns", "add", &name]).output() {
        Err(error) => return Some(format!("`ip` (iproute2) cannot be run: {error}")),
        Ok(output) if !output.status.success() => {
            let why = String::from_utf8_lossy(&output.stderr);
            return Some(format!("network namespaces cannot be made; it needs root: {}", why.trim()));
        }
        Ok(_) => {}
    }
    let nft = Command::new("ip").args(["netns", "exec", &name, "nft", "list", "ruleset"]).output();
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    match nft {
        Ok(output) if output.status.success() => None,
        _ => Some("`nft` (nftables) cannot be run".into()),
    }
}
