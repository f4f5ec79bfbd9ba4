//! Runs a job. The worker is the same in the guest, where it uses serial lines, and in namespaces
//! of the host, where it uses inherited pipes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use rustix::termios::{Winsize, tcdrain};

use super::{Event, Job, Spec, backend, tty};

/// The standard input and output of a job's programs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum JobIo {
    /// Serial lines of the guest, for output only.
    Lines,
    /// A serial line that is connected to a terminal of the host.
    Terminal(Option<(u16, u16)>),
    /// What the worker inherited.
    Inherited,
}

/// Runs the [`Spec`] in `dir`. Reports to `events`, by default the guest's serial line.
///
/// # Errors
/// If the spec cannot be read or nothing can be reported.
pub fn main(dir: &Path, events: Option<&Path>) -> Result<ExitCode> {
    let spec: Spec = serde_json::from_slice(&fs::read(dir.join("spec.json"))?)?;
    let mut tell = Events(match events {
        None => tty::open_raw(tty::EVENTS)?,
        Some(path) => File::options().write(true).open(path)?,
    });
    let wiring = match (&spec.job, events) {
        (_, Some(_)) => JobIo::Inherited,
        (Job::Exec { terminal: true, .. } | Job::Run { keep: true, .. }, None) => JobIo::Terminal(spec.window),
        _ => JobIo::Lines,
    };
    tell.tell(&Event::Ready)?;
    let event = match run(&spec, wiring, &mut tell) {
        Ok(status) => Event::Exit { status },
        Err(error) => Event::Broken { why: format!("{error:#}") },
    };
    tell.tell(&event)?;
    if events.is_none() {
        tcdrain(&tell.0)?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Events(File);

impl Events {
    fn tell(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        Ok(self.0.write_all(&line)?)
    }
}

fn run(spec: &Spec, wiring: JobIo, events: &mut Events) -> Result<i32> {
    if matches!(wiring, JobIo::Inherited) {
        backend::protect_host()?;
    }
    Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .env("PATH", crate::executables::search_path())
        .status()
        .context("ip cannot be run")?;
    match &spec.job {
        Job::Exec { argv, .. } => {
            let status = exec(spec, argv, wiring)?;
            Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
        }
        Job::Run { scenarios, out, programs, keep } => {
            let context = crate::runner::RunContext { out, programs, keep: *keep, env: &spec.env, wiring };
            crate::runner::run_all(scenarios, &context, |event| events.tell(&event))?;
            Ok(0)
        }
    }
}

fn exec(spec: &Spec, argv: &[String], wiring: JobIo) -> Result<ExitStatus> {
    let mut command = wiring.command(argv)?;
    command.env_clear().envs(spec.env.iter().map(|(key, value)| (key, value))).current_dir(&spec.cwd);
    let name = argv.first().map_or("", String::as_str);
    if !matches!(wiring, JobIo::Lines) {
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

impl JobIo {
    /// A command whose input and output are connected in this way.
    pub(crate) fn command(self, argv: &[String]) -> Result<Command> {
        let (program, args) = argv.split_first().context("no program was given")?;
        let plain = || {
            let mut command = Command::new(program);
            command.args(args);
            command
        };
        match self {
            Self::Inherited => Ok(plain()),
            Self::Lines => {
                let mut command = plain();
                command.stdin(Stdio::null()).stdout(tty::open_raw(tty::STDOUT)?).stderr(tty::open_raw(tty::STDERR)?);
                Ok(command)
            }
            Self::Terminal(window) => on_terminal(argv, window),
        }
    }
}

/// A session with the guest's end of the terminal as controlling terminal, so that a shell has job
/// control.
fn on_terminal(argv: &[String], window: Option<(u16, u16)>) -> Result<Command> {
    let line = tty::open(tty::STDOUT)?;
    if let Some((rows, columns)) = window {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&line, size)?;
    }
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", "--"]).args(argv).stdin(line.try_clone()?).stdout(line.try_clone()?).stderr(line);
    Ok(command)
}
