//! Runs a program in the background on a node or pod.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::namespaces::Namespaces;
use crate::wait;

/// A started program. The program continues if this handle is dropped and ends with the scenario at
/// the latest.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Namespaces {
    /// Starts a command made by [`Self::command`] in the background. It writes to `NODE.NAME.log`
    /// in the scenario's directory, and ends with the scenario at the latest.
    ///
    /// # Errors
    /// Returns an error if the command cannot be run.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start(self, name, command)
    }
}

impl Process {
    pub(super) fn start(namespaces: &Namespaces, name: &str, command: &mut Command) -> Result<Self> {
        let log = namespaces.out().join(format!("{}.{name}.log", namespaces.name()));
        // A program that is started again appends to its log.
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} on {}", namespaces.name()))?;
        Ok(Self { name: format!("{name} on {}", namespaces.name()), log, child, ended: None })
    }

    /// Returns the program's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the path of the log file, which holds the process's standard output and error.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Returns the program's output so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log contains `text`.
    ///
    /// # Errors
    /// Returns an error if the text does not appear in time, or the program ends before that.
    pub fn wait_log(&mut self, text: &str) -> Result<()> {
        let what = format!("{:?} in the log of {}", text, self.name);
        let mut ended = None;
        let waited = wait::for_event(&what, || {
            // The status is read before the log, so that the program's last output is also
            // searched.
            ended = self.exit_status()?;
            if self.log().contains(text) {
                return Ok(true);
            }
            match ended {
                Some(_) => Ok(false),
                None => Err(anyhow!("not there")),
            }
        });
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => bail!(
                "{} ended ({}) without {text:?} in its log:\n{}",
                self.name,
                ended.map(|status| status.to_string()).unwrap_or_default(),
                self.tail()
            ),
            Err(error) => Err(error.context(self.tail())),
        }
    }

    /// Returns how the program ended; `None` while it runs.
    ///
    /// # Errors
    /// Returns an error if the program cannot be waited for.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    /// Returns an error if the program has not ended after `timeout`.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, timeout, || self.exit_status()?.context("it is still running"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Returns an error if the program has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.exit_status()? {
            bail!("{} has ended ({status}):\n{}", self.name, self.tail());
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Sends SIGTERM and waits until the program ends.
    ///
    /// # Errors
    /// Returns an error if the program does not end within 10 s. In that case it is killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.exit_status()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        match self.wait_end(Duration::from_secs(10)) {
            Ok(status) => Ok(status),
            Err(error) => {
                self.kill()?;
                Err(error.context("it was asked to end, and had to be killed"))
            }
        }
    }

    /// Kills the program (SIGKILL), as a crash would.
    ///
    /// # Errors
    /// Returns an error if the program had already ended, other than by that signal.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(status) = self.exit_status()? {
            if status.signal() == Some(9) {
                return Ok(());
            }
            bail!("{} had already ended ({status}):\n{}", self.name, self.tail());
        }
        self.child.kill()?;
        self.ended = Some(self.child.wait()?);
        Ok(())
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
