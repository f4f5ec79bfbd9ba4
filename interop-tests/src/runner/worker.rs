//! Runs a job. The worker is the same in the guest, where it uses serial lines, and in namespaces
//! of the host, where it uses inherited pipes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use rustix::termios::tcdrain;

use super::{RunContext, run_all};
use crate::guest::{Event, Job, JobIo, Spec, protect_host, tty};
use crate::scenario::Scenario;

/// Runs the [`Spec`] in `dir`, whose job may name these scenarios. Reports to `events`, by default
/// the guest's serial line.
///
/// # Errors
/// Returns an error if the spec cannot be read or nothing can be reported.
pub fn main(scenarios: &[&'static Scenario], dir: &Path, events: Option<&Path>) -> Result<ExitCode> {
    let spec: Spec = serde_json::from_slice(&fs::read(dir.join("spec.json"))?)?;
    let mut writer = EventWriter(match events {
        None => tty::open_raw(tty::EVENTS)?,
        Some(path) => File::options().write(true).open(path)?,
    });
    let io = match (&spec.job, events) {
        (_, Some(_)) => JobIo::Inherited,
        (Job::Exec { terminal: true, .. } | Job::Run { keep: true, .. }, None) => JobIo::Terminal(spec.window),
        _ => JobIo::Lines,
    };
    writer.write(&Event::Ready)?;
    let event = match run(scenarios, &spec, io, &mut writer) {
        Ok(status) => Event::Exit { status },
        Err(error) => Event::Broken { why: format!("{error:#}") },
    };
    writer.write(&event)?;
    if events.is_none() {
        tcdrain(&writer.0)?;
    }
    Ok(ExitCode::SUCCESS)
}

struct EventWriter(File);

impl EventWriter {
    fn write(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        Ok(self.0.write_all(&line)?)
    }
}

fn run(all: &[&'static Scenario], spec: &Spec, io: JobIo, events: &mut EventWriter) -> Result<i32> {
    if matches!(io, JobIo::Inherited) {
        protect_host()?;
    }
    Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .env("PATH", crate::executables::search_path())
        .status()
        .context("ip cannot be run")?;
    match &spec.job {
        Job::Exec { argv, .. } => {
            let status = exec(spec, argv, io)?;
            Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
        }
        Job::Run { scenarios, out, programs, keep } => {
            let context = RunContext { scenarios: all, out, programs, keep: *keep, env: &spec.env, io };
            run_all(scenarios, &context, |event| events.write(&event))?;
            Ok(0)
        }
    }
}

fn exec(spec: &Spec, argv: &[String], io: JobIo) -> Result<ExitStatus> {
    let mut command = io.command(argv)?;
    command.env_clear().envs(spec.env.iter().map(|(key, value)| (key, value))).current_dir(&spec.cwd);
    let name = argv.first().map_or("", String::as_str);
    if !matches!(io, JobIo::Lines) {
        return command.status().with_context(|| format!("{name} cannot be run"));
    }
    // A pipe in between hides the terminal from programs, and lets the worker copy all output
    // before it reports the status.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} cannot be run"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    std::thread::scope(|scope| {
        let err = scope.spawn(|| carry(stderr, tty::STDERR));
        let out = carry(stdout, tty::STDOUT);
        out.and(err.join().unwrap_or(Ok(())))
    })?;
    Ok(child.wait()?)
}

fn carry(mut from: impl Read, to: &str) -> Result<()> {
    let mut line = tty::open_raw(to)?;
    std::io::copy(&mut from, &mut line)?;
    tcdrain(&line)?;
    Ok(())
}
