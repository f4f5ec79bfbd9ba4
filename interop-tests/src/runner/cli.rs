//! Runs the host's side of a run of scenarios.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use super::build;
use super::kept_logs::mark_failed;
use super::labs::{Labs, Setup, run_in_labs};
use crate::guest::{Backend, choose};
use crate::kernel::Purpose;
use crate::scenario::{Outcome, STEP_NAMES, Scenario, TestResult, directory, select};
use crate::suite::is_ci;

/// Words in the reasons for which a build machine may skip a scenario too. Every other skipped
/// scenario fails there.
const SKIPPED_IN_CI: &[&str] = &[
    // Half an hour of CPU time each, once per machine.
    "`make edgecore` builds it",
    "`make cloudcore` builds it",
    // `make test` builds them, except in a clone without their commit.
    "run `make older`",
    // The lab kernel has it; the kernel of a machine that runs the scenarios itself may not.
    "have no memory controller",
];

/// Options of a run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Whole names or prefixes of names; empty for all.
    pub names: Vec<String>,
    /// `uml` or `host`.
    pub backend: Option<String>,
    /// Whether to open a shell in the lab of a failed scenario.
    pub keep: bool,
    /// Number of labs that run scenarios at the same time.
    pub labs: Labs,
    /// What the lab kernel is used for, if one has to be built.
    pub purpose: Purpose,
    /// Environment variables for the scenarios, in addition to this process's.
    pub env: Vec<(String, String)>,
}

/// Prints the scenarios, as a table or as JSON.
///
/// # Errors
/// Returns an error if standard output is closed.
pub fn list(all: &[&'static Scenario], json: bool) -> Result<ExitCode> {
    if json {
        let rows: Vec<_> = all
            .iter()
            .map(|scenario| {
                serde_json::json!({
                    "scenario": scenario.name,
                    "about": scenario.about,
                    "deadline_seconds": scenario.deadline.as_secs(),
                    "by_default": scenario.by_default,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["scenario", "shows"]);
    for scenario in all {
        let about =
            if scenario.by_default { scenario.about.to_owned() } else { format!("{} (by name only)", scenario.about) };
        table.add_row([scenario.name.to_owned(), about]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// Runs scenarios. Writes a line of JSON for each to standard output, and at the end the `summary`
/// of all outcomes, if there is one, to standard error. The exit status is 1 if any failed.
///
/// # Errors
/// Returns the same errors as [`outcomes`].
pub fn run(
    all: &[&'static Scenario],
    options: &RunOptions,
    summary: impl Fn(&[Outcome]) -> Option<String>,
) -> Result<ExitCode> {
    let outcomes = outcomes(all, options, |outcome, kept| {
        let mut stdout = std::io::stdout().lock();
        serde_json::to_writer(&mut stdout, outcome)?;
        writeln!(stdout)?;
        stdout.flush()?;
        let name = &outcome.scenario;
        match outcome.result {
            TestResult::Pass => eprintln!("  {name}: passed in {:.1} s", outcome.seconds),
            TestResult::Skip => eprintln!("  {name}: skipped: {}", outcome.why),
            TestResult::Fail => eprintln!("  {name}: FAILED: {}\n  logs and captures: {}", outcome.why, kept.display()),
        }
        Ok(())
    })?;
    if let Some(text) = summary(&outcomes) {
        eprintln!("\n{text}\n");
    }
    let count = |verdict| outcomes.iter().filter(|outcome| outcome.result == verdict).count();
    let (passed, failed, skipped) = (count(TestResult::Pass), count(TestResult::Fail), count(TestResult::Skip));
    eprintln!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Runs scenarios and returns the outcome of each. Calls `ended` when a scenario has ended, with
/// the directory of its logs. A scenario's own output goes to this process's standard output and
/// error.
///
/// # Errors
/// Returns an error if there is no lab, a name is unknown, the programs do not build, or `ended`
/// fails.
pub fn outcomes(
    scenarios: &[&'static Scenario],
    options: &RunOptions,
    mut ended: impl FnMut(&Outcome, &Path) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let queue = select(scenarios, &options.names)
        .map_err(|word| anyhow::anyhow!("no scenario begins with {word:?}; `interop-tests list` shows them all"))?;
    if options.keep && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        bail!("--keep opens a shell in the failed lab: it needs a terminal");
    }
    let (backend, programs) = backend_and_programs(options)?;
    let mut env: Vec<_> = build::tests(&queue)?.into_iter().chain(options.env.iter().cloned()).collect();
    if options.labs.get() > 1 {
        env.push((STEP_NAMES.to_owned(), "1".to_owned()));
    }
    build::control_plane(&queue)?;
    let out = build::target_directory()?.join("lab-logs");
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let setup = Setup { backend: &backend, out: &out, programs: &programs, env: &env, keep: options.keep };
    let mut all = Vec::new();
    run_in_labs(&setup, queue, options.labs, |outcome| {
        let outcome = judge(outcome, is_ci());
        if outcome.result == TestResult::Fail {
            mark_failed(&directory(&out, &outcome.scenario), &outcome.why)?;
        }
        ended(&outcome, &directory(&out, &outcome.scenario))?;
        all.push(outcome);
        Ok(())
    })?;
    Ok(all)
}

/// Turns the outcome of a skipped scenario into a failure on a build machine, unless the reason is
/// one of [`SKIPPED_IN_CI`].
fn judge(outcome: Outcome, ci: bool) -> Outcome {
    let accepted = !ci || SKIPPED_IN_CI.iter().any(|words| outcome.why.contains(words));
    if outcome.result != TestResult::Skip || accepted {
        return outcome;
    }
    let why = format!("skipped, which fails where CI is set: {}", outcome.why);
    Outcome { result: TestResult::Fail, why, ..outcome }
}

/// Chooses a backend and builds the programs, both at the same time, since the lab kernel may have
/// to be built too.
fn backend_and_programs(options: &RunOptions) -> Result<(Backend, PathBuf)> {
    let cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let programs = scope.spawn(|| build::programs_unless(&cancelled));
        let backend = choose(options.backend.as_deref(), options.purpose);
        cancelled.store(backend.is_err(), Ordering::Relaxed);
        let programs = programs.join();
        Ok((backend?, programs.map_err(|_| anyhow::anyhow!("the build of the programs panicked"))??))
    })
}

#[cfg(test)]
mod tests {
    use super::{SKIPPED_IN_CI, judge};
    use crate::scenario::{Outcome, TestResult};

    #[test]
    fn a_build_machine_skips_a_scenario_only_for_a_reason_on_the_list() {
        let outcome = |result, why: &str| Outcome { scenario: "a/b".into(), result, seconds: 1.0, why: why.into() };
        let unknown = outcome(TestResult::Skip, "libreswan is not there");
        assert_eq!(judge(unknown.clone(), false), unknown);
        let failed = judge(unknown, true);
        assert_eq!(failed.result, TestResult::Fail);
        assert!(failed.why.ends_with("libreswan is not there"), "{}", failed.why);
        for words in SKIPPED_IN_CI {
            let known = outcome(TestResult::Skip, &format!("x; {words}, y"));
            assert_eq!(judge(known.clone(), true), known);
        }
        let passed = outcome(TestResult::Pass, "at its second run");
        assert_eq!(judge(passed.clone(), true), passed);
    }

    #[test]
    fn the_reason_of_a_missing_edgecore_is_on_the_list() {
        let text = include_str!("../built_once.rs");
        assert!(text.contains("`make {name}` builds it"), "the list names these words");
    }
}
