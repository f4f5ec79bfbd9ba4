//! Runs one scenario, in its own process and namespaces.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::scenario::{Lab, Outcome, Scenario, Skip, TestResult, find};
use crate::topology::dump_all;

/// Runs a scenario as process 1 of fresh namespaces and writes its [`Outcome`] to `outcome.json` in
/// `out`.
///
/// # Errors
/// Returns an error if the namespaces cannot be prepared or the outcome cannot be written.
pub fn main(scenarios: &[&'static Scenario], name: &str, out: &Path, programs: &Path, keep: bool) -> Result<ExitCode> {
    let Some(scenario) = find(scenarios, name) else {
        bail!("there is no scenario {name:?}");
    };
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"mode=0755")?;
    rustix::mount::mount("sysfs", "/sys", "sysfs", MountFlags::empty(), c"")?;
    Command::new("ip").args(["link", "set", "lo", "up"]).status()?;

    let started = Instant::now();
    if !keep {
        end_at_deadline(scenario, out.to_owned(), started);
    }
    let lab = Lab::new(name, out, programs, keep);
    let ended = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&lab)));
    let outcome = outcome(scenario, started, ended);
    if outcome.result == TestResult::Fail {
        dump_all(out);
        if keep {
            eprintln!("{name} failed: {}", outcome.why);
            shell(&lab).context("the shell in the failed lab")?;
        }
    }
    write(out, &outcome)?;
    Ok(ExitCode::SUCCESS)
}

type Ended = std::thread::Result<Result<()>>;

fn outcome(scenario: &Scenario, started: Instant, ended: Ended) -> Outcome {
    let (result, why) = match ended {
        Ok(Ok(())) => (TestResult::Pass, String::new()),
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(skip) => (TestResult::Skip, skip.to_string()),
            None => (TestResult::Fail, format!("{error:#}").trim_end().to_owned()),
        },
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "without a message".to_owned());
            (TestResult::Fail, format!("panicked: {text}"))
        }
    };
    Outcome { scenario: scenario.name.to_owned(), result, seconds: started.elapsed().as_secs_f64(), why }
}

/// Writes a failed outcome and the kernel's state at the deadline. Then ends the process, and with
/// it all its namespaces.
fn end_at_deadline(scenario: &'static Scenario, out: std::path::PathBuf, started: Instant) {
    std::thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "the deadline is the event")]
        std::thread::sleep(scenario.deadline);
        let outcome = Outcome {
            scenario: scenario.name.to_owned(),
            result: TestResult::Fail,
            seconds: started.elapsed().as_secs_f64(),
            why: format!("it did not end within {:?}", scenario.deadline),
        };
        write(&out, &outcome).ok();
        dump_all(&out);
        std::process::exit(1);
    });
}

/// Writes the outcome in one step, since the reader treats a missing file as a crash.
fn write(out: &Path, outcome: &Outcome) -> Result<()> {
    let file = out.join("outcome.json");
    let staged = out.join("outcome.json.new");
    std::fs::write(&staged, serde_json::to_vec(outcome)?)?;
    std::fs::rename(staged, &file).with_context(|| format!("writing {}", file.display()))
}

/// Opens a shell in the failed lab. All programs still run.
fn shell(lab: &Lab) -> Result<()> {
    let shell = lab.shell()?;
    eprintln!(
        "a shell in the failed lab; each node is a command: `{} ip xfrm state`\nnodes: {}\nlogs: {}\n`exit` ends it",
        shell.names.first().map_or("NODE", String::as_str),
        shell.names.join(" "),
        lab.out().display()
    );
    shell.interact()
}
