//! Runs the host's side of a run of scenarios.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::build;
use crate::guest::{Backend, Event, Guest, Job, Output, Spec, choose};
use crate::kernel::Purpose;
use crate::scenario::{Outcome, Scenario, TestResult, directory, select};

/// Time after a scenario's deadline without any report, after which the guest itself counts as
/// hanging.
const GUEST_GRACE: Duration = Duration::from_secs(60);

/// Options of a run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Whole names or prefixes of names; empty for all.
    pub names: Vec<String>,
    /// `uml` or `host`.
    pub backend: Option<String>,
    /// Whether to open a shell in the lab of a failed scenario.
    pub keep: bool,
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
        match outcome.result {
            TestResult::Pass => eprintln!("  passed in {:.1} s", outcome.seconds),
            TestResult::Skip => eprintln!("  skipped: {}", outcome.why),
            TestResult::Fail => eprintln!("  FAILED: {}\n  logs and captures: {}", outcome.why, kept.display()),
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
    let mut queue = select(scenarios, &options.names)
        .map_err(|word| anyhow::anyhow!("no scenario begins with {word:?}; `interop-tests list` shows them all"))?;
    if options.keep && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        bail!("--keep opens a shell in the failed lab: it needs a terminal");
    }
    let (backend, programs) = backend_and_programs(options)?;
    let env: Vec<_> = build::tests(&queue)?.into_iter().chain(options.env.iter().cloned()).collect();
    build::control_plane(&queue)?;
    let out = build::target_directory()?.join("lab-logs");
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let mut all = Vec::new();
    let mut record = |outcome: Outcome| {
        ended(&outcome, &directory(&out, &outcome.scenario))?;
        all.push(outcome);
        anyhow::Ok(())
    };
    // Name of the scenario that is repeated because the lab kernel panicked.
    let mut repeated = None;
    while !queue.is_empty() {
        let (done, death) = one_lab(&queue, &backend, &out, &programs, &env, options.keep, |mut outcome| {
            if outcome.result == TestResult::Pass && repeated.as_ref() == Some(&outcome.scenario) {
                outcome.why = "at its second run: in the first one, the lab's kernel panicked".to_owned();
            }
            record(outcome)
        })?;
        queue.drain(..done);
        let Some(LabDeath { why, console, seconds }) = death else { continue };
        let Some(scenario) = queue.first() else { bail!("{why}") };
        let name = scenario.name.to_owned();
        if is_kernel_panic(&console) && repeated.as_ref() != Some(&name) {
            eprintln!("  after {seconds:.1} s, {why}\n  the lab's kernel panicked; {name} runs once more");
            repeated = Some(name);
            continue;
        }
        std::fs::write(directory(&out, &name).join("console.log"), console).ok();
        record(Outcome { scenario: name, result: TestResult::Fail, seconds, why })?;
        queue.remove(0);
    }
    Ok(all)
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

/// A lab that ended unexpectedly, while a scenario ran or after the last one.
struct LabDeath {
    /// The description, with the lab's console.
    why: String,
    console: String,
    /// Time for which the scenario had run, in seconds.
    seconds: f64,
}

/// Returns whether a kernel ended by its own fault. A kernel also panics if its first process ends,
/// but that process is our program.
fn is_kernel_panic(console: &str) -> bool {
    console.contains("Kernel panic") && !console.contains("Attempted to kill init")
}

/// Runs scenarios in one lab until all of them or the lab have ended. Returns how many scenarios
/// have ended, and how the lab ended if it ended early.
fn one_lab(
    queue: &[&Scenario],
    backend: &Backend,
    out: &Path,
    programs: &Path,
    env: &[(String, String)],
    keep: bool,
    mut ended: impl FnMut(Outcome) -> Result<()>,
) -> Result<(usize, Option<LabDeath>)> {
    let spec = Spec {
        writable: vec![out.to_owned()],
        disk: None,
        cwd: out.to_owned(),
        env: crate::exec::environment().into_iter().chain(env.iter().cloned()).collect(),
        window: rustix::termios::tcgetwinsize(std::io::stderr()).ok().map(|size| (size.ws_row, size.ws_col)),
        job: Job::Run {
            scenarios: queue.iter().map(|scenario| scenario.name.to_owned()).collect(),
            out: out.to_owned(),
            programs: programs.to_owned(),
            keep,
        },
    };
    let output = if keep { Output::Terminal } else { Output::Inherit };
    let mut lab = Guest::start(backend, &spec, output)?;
    let mut done = 0;
    let mut begun = Instant::now();
    loop {
        let timeout = match queue.get(done) {
            Some(scenario) if !keep => Some((scenario.deadline + GUEST_GRACE).saturating_sub(begun.elapsed())),
            _ => None,
        };
        let why = match lab.event(timeout) {
            Ok(Some(Event::Ready)) => continue,
            Ok(Some(Event::Begun { scenario })) => {
                begun = Instant::now();
                eprintln!("{scenario} ...");
                continue;
            }
            Ok(Some(Event::Ended { outcome })) => {
                done += 1;
                ended(outcome)?;
                continue;
            }
            Ok(Some(Event::Exit { .. })) => {
                lab.finish()?;
                anyhow::ensure!(done == queue.len(), "the lab ended after {done} of {} scenarios", queue.len());
                return Ok((done, None));
            }
            Ok(Some(Event::Broken { why })) => bail!("the lab could not begin: {why}"),
            Ok(None) => {
                lab.kill();
                format!("the lab hung; its console:\n{}", lab.console())
            }
            Err(error) => format!("{error:#}"),
        };
        let (console, seconds) = (lab.console(), begun.elapsed().as_secs_f64());
        return Ok((done, Some(LabDeath { why, console, seconds })));
    }
}

#[cfg(test)]
mod tests {
    use super::is_kernel_panic;

    #[test]
    fn a_kernel_that_panics_is_told_apart_from_our_first_process_that_ends() {
        assert!(is_kernel_panic("x\nKernel panic - not syncing: Segfault without recovery target"));
        assert!(!is_kernel_panic("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"));
        assert!(!is_kernel_panic(""));
    }
}
