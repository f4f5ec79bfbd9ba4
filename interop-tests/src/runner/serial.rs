//! Runs one scenario after the other, inside the lab.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kept_logs;
use crate::guest::{Event, JobIo};
use crate::scenario::{Outcome, Scenario, TestResult, directory, find};

/// Time after its deadline in which a scenario can write its outcome. After that it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// The values that all scenarios of a run share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunContext<'a> {
    /// All scenarios.
    pub(crate) scenarios: &'a [&'static Scenario],
    /// Directory that contains a directory for each scenario.
    pub(crate) out: &'a Path,
    /// Directory of the programs under test.
    pub(crate) programs: &'a Path,
    /// Whether to open a shell in a failed scenario.
    pub(crate) keep: bool,
    /// The environment of a scenario.
    pub(crate) env: &'a [(String, String)],
    /// Destination of a scenario's own output.
    pub(crate) io: JobIo,
}

/// Runs the scenarios and reports when each begins and ends.
///
/// # Errors
/// Returns an error if `report` fails. A scenario's failure is an [`Outcome`].
pub(crate) fn run_all(
    names: &[String],
    context: &RunContext<'_>,
    mut report: impl FnMut(Event) -> Result<()>,
) -> Result<()> {
    for name in names {
        report(Event::Begun { scenario: name.clone() })?;
        let started = Instant::now();
        let outcome = match find(context.scenarios, name) {
            None => Err(anyhow::anyhow!("there is no scenario {name:?}")),
            Some(scenario) => run_one(scenario, context),
        };
        let outcome = outcome.unwrap_or_else(|error| Outcome {
            scenario: name.clone(),
            result: TestResult::Fail,
            seconds: started.elapsed().as_secs_f64(),
            why: format!("{error:#}"),
        });
        report(Event::Ended { outcome })?;
    }
    Ok(())
}

fn run_one(scenario: &Scenario, context: &RunContext<'_>) -> Result<Outcome> {
    let kept = directory(context.out, scenario.name);
    kept_logs::begin(&kept)?;
    // In the guest, logs are kept in memory until the scenario has ended. In a directory of the
    // host, a file's size is visible in the guest with a delay, so readers would miss the ends of
    // logs.
    let out = match context.io {
        JobIo::Inherited => kept.clone(),
        JobIo::Lines | JobIo::Terminal(_) => directory(Path::new("/tmp/edge-lab-out"), scenario.name),
    };
    kept_logs::empty(&out)?;
    let outcome = run_in(scenario, context, &out);
    if out != kept {
        copy(&out, &kept).with_context(|| format!("keeping the logs in {}", kept.display()))?;
        fs::remove_dir_all(&out)?;
    }
    outcome
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()? {
            kind if kind.is_dir() => {
                fs::create_dir_all(&target)?;
                copy(&entry.path(), &target)?;
            }
            kind if kind.is_file() => {
                fs::copy(entry.path(), target)?;
            }
            // Sockets, pipes and links have no use after the scenario.
            _ => {}
        }
    }
    Ok(())
}

fn run_in(scenario: &Scenario, context: &RunContext<'_>, out: &Path) -> Result<Outcome> {
    let keep = context.keep;
    // The scenario gets its own pid namespace. When the first process in it ends, the kernel kills
    // all others.
    let mut argv: Vec<String> = "unshare --pid --fork --kill-child=SIGKILL --mount-proc --mount --net --uts --ipc --"
        .split(' ')
        .map(str::to_owned)
        .collect();
    let program = std::env::current_exe()?;
    for word in
        [program.as_path(), "guest".as_ref(), "scenario".as_ref(), scenario.name.as_ref(), out, context.programs]
    {
        argv.push(word.to_str().context("a path that is not UTF-8")?.to_owned());
    }
    if keep {
        argv.push("--keep".to_owned());
    }
    let mut child = context
        .io
        .command(&argv)?
        .env_clear()
        .envs(context.env.iter().map(|(key, value)| (key, value)))
        .current_dir(out)
        .spawn()
        .context("unshare cannot be run")?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if !keep && started.elapsed() > scenario.deadline + GRACE {
            child.kill()?;
            child.wait()?;
            break None;
        }
        #[expect(clippy::disallowed_methods, reason = "std cannot wait for a process with a deadline")]
        std::thread::sleep(Duration::from_millis(10));
    };
    let file = out.join("outcome.json");
    match fs::read(&file) {
        Ok(bytes) => {
            fs::remove_file(&file).ok();
            Ok(serde_json::from_slice(&bytes)?)
        }
        Err(_) => Ok(Outcome {
            scenario: scenario.name.to_owned(),
            result: TestResult::Fail,
            seconds: started.elapsed().as_secs_f64(),
            why: match status {
                Some(status) => format!("its process ended ({status}) without a result"),
                None => format!("it hung: killed {GRACE:?} after its deadline of {:?}", scenario.deadline),
            },
        }),
    }
}
