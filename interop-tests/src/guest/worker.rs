//! What runs a job: the same program in the guest (over serial lines) and in namespaces of the host (over inherited pipes).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use rustix::termios::{Winsize, tcdrain};

use super::{Event, Job, Spec, tty};

/// Runs the [`Spec`] in `dir`. `lines` tells that this is the guest, where output goes over serial lines.
pub fn main(dir: &Path, lines: bool) -> Result<ExitCode> {
    let spec: Spec = serde_json::from_slice(&fs::read(dir.join("spec.json"))?)?;
    let mut events = if lines {
        Events(tty::open_raw(tty::EVENTS)?)
    } else {
        Events(File::options().append(true).open(dir.join("events"))?)
    };
    events.tell(&Event::Ready)?;
    let event = match run(&spec, lines) {
        Ok(status) => Event::Exit { status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) },
        Err(error) => Event::Broken { why: format!("{error:#}") },
    };
    events.tell(&event)?;
    if lines {
        tcdrain(&events.0)?;
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

fn run(spec: &Spec, lines: bool) -> Result<ExitStatus> {
    let Job::Exec { argv, terminal } = &spec.job;
    Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .env("PATH", crate::tools::search_path())
        .status()
        .context("ip cannot be run")?;
    let mut command = if *terminal && lines {
        on_terminal(argv, spec.window)?
    } else {
        let (program, args) = argv.split_first().context("no program was given")?;
        let mut command = Command::new(program);
        command.args(args);
        command
    };
    command.env_clear().envs(spec.env.iter().map(|(key, value)| (key, value))).current_dir(&spec.cwd);
    let name = command.get_program().to_string_lossy().into_owned();
    if *terminal || !lines {
        return command.status().with_context(|| format!("{name} cannot be run"));
    }
    // A pipe in between: programs see no terminal, and all they wrote has been passed on before the status is told.
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

/// A session of its own, with the guest's end of the terminal as the controlling one, so that job control works in a shell.
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
