//! The tools that a scenario uses.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::shell::Shell;
use crate::topology::{Net, NetworkPlan};

/// A scenario's network, the programs under test, and a directory for its logs.
pub struct Lab {
    out: PathBuf,
    programs: PathBuf,
    net: OnceCell<Net>,
    started: Instant,
    terminal: bool,
    step_prefix: String,
}

/// Environment variable that asks for the scenario's name before each of its steps: the output of
/// scenarios that run at the same time is mixed.
pub(crate) const STEP_NAMES: &str = "EDGE_LAB_STEP_NAMES";

/// The error of a scenario that cannot run on this machine; made by [`skip`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// Ends a scenario as skipped: `return skip("this kernel has no IP-TFS")`.
///
/// # Errors
/// Always returns an error, which is a [`Skip`].
pub fn skip<T>(why: &str) -> Result<T> {
    Err(Skip(why.to_owned()).into())
}

impl Lab {
    /// Makes the tools for the scenario of this name. `terminal` is whether a person watches the
    /// scenario on a terminal.
    pub(crate) fn new(scenario: &str, out: &Path, programs: &Path, terminal: bool) -> Self {
        let (out, programs) = (out.to_owned(), programs.to_owned());
        let step_prefix = if std::env::var_os(STEP_NAMES).is_some() { format!("{scenario} ") } else { String::new() };
        Self { out, programs, net: OnceCell::new(), started: Instant::now(), terminal, step_prefix }
    }

    /// Returns whether a person watches the scenario, and can type, on a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// Makes a shell in which each node and pod of the network is a command.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written.
    pub(crate) fn shell(&self) -> Result<Shell> {
        Shell::new(&self.out, &self.programs)
    }

    /// Builds the scenario's network, which exists until the scenario ends. A scenario has only one
    /// network.
    ///
    /// # Errors
    /// Returns the errors of [`Net::build`], or an error if the scenario has a network already.
    pub fn build(&self, plan: &NetworkPlan) -> Result<&Net> {
        let net = Net::build(plan, &self.out)?;
        anyhow::ensure!(self.net.set(net).is_ok(), "a scenario has one network");
        self.net.get().context("just set")
    }

    /// Returns the directory for logs, captures and other files that help to understand a failure.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Returns the path of one of our programs (`edge-agent`, `edge-cni`, `edge-controller`), as
    /// built for this run.
    ///
    /// # Errors
    /// Returns an error if the program was not built.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        anyhow::ensure!(path.is_file(), "{} is not there: it was not built", path.display());
        Ok(path)
    }

    /// Returns the path of a program of an earlier release, which `make older` builds.
    ///
    /// # Errors
    /// Ends the scenario as skipped if the program is not there.
    pub fn older_program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join("../older").join(name);
        if path.is_file() {
            Ok(path)
        } else {
            skip("target/older has no programs of an earlier release: run `make older`")
        }
    }

    /// Writes the present step of the scenario to standard error, with the time since its start.
    pub fn step(&self, what: &str) {
        eprintln!("  {}{:6.2}s {what}", self.step_prefix, self.started.elapsed().as_secs_f64());
    }
}
