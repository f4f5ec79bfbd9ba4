//! A shell in a scenario's network, in which each node and pod is a command.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::topology::enter_commands;

/// The shell of a scenario.
pub(crate) struct Shell {
    /// Directory of the scenario's logs, in which the shell starts.
    out: PathBuf,
    /// File of the functions.
    functions: PathBuf,
    /// Names of nodes and pods.
    pub(crate) names: Vec<String>,
}

impl Shell {
    /// Writes the file with a function for each node and pod that exists now. `programs` is the
    /// directory of the programs under test, which are found by their names alone.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn new(out: &Path, programs: &Path) -> Result<Self> {
        let mut script = format!("PS1='lab# '\nexport PATH='{}':\"$PATH\"\n", programs.display());
        let mut names = Vec::new();
        for (name, entrance) in enter_commands() {
            writeln!(script, "function {name} {{ {entrance} \"${{@:-bash}}\"; }}")?;
            names.push(name);
        }
        let functions = out.join("shell.rc");
        std::fs::write(&functions, script).with_context(|| format!("writing {}", functions.display()))?;
        Ok(Self { out: out.to_owned(), functions, names })
    }

    /// Lets a person use the shell on this process's terminal until it ends.
    ///
    /// # Errors
    /// Returns an error if bash cannot be run.
    pub(crate) fn interact(&self) -> Result<()> {
        let mut command = Command::new("bash");
        command.arg("--rcfile").arg(&self.functions).arg("-i").current_dir(&self.out);
        command.status().context("bash cannot be run")?;
        Ok(())
    }

    /// Runs one line as if it had been typed. Returns its standard output.
    ///
    /// # Errors
    /// Returns an error if the line does not end with status 0.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        let mut command = Command::new("bash");
        command.args(["-c", ". \"$0\"\neval \"$1\""]).arg(&self.functions).arg(line).current_dir(&self.out);
        let out = command.stdin(std::process::Stdio::null()).output().context("bash cannot be run")?;
        anyhow::ensure!(out.status.success(), "`{line}` {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}
