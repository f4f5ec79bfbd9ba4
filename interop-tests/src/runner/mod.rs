//! Runs scenarios: from the command line, through a guest, to a process for each scenario.
//!
//! - `build`: builds what the scenarios run.
//! - `cli`: the host's side. It boots a guest, gives it the names, and prints the outcomes.
//! - `serial`: the guest's side. It runs one scenario after the other in fresh namespaces, and
//!   kills it at its deadline.
//! - `single`: the scenario's own process.
//! - [`Lab`]: a scenario's means.

mod build;
mod cli;
mod lab;
mod serial;
mod single;

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use cli::{RunOptions, list, outcomes, run};
pub use lab::{Lab, Skip, skip};
pub(crate) use serial::{RunContext, run_all};
pub use single::main as single;

/// A test of whole programs in the lab.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// `area/what`, unique.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// When it is killed, in the guest's time.
    pub deadline: Duration,
    /// Whether `run` without names runs it. Scenarios that are long, or that must fail, run by name
    /// only.
    pub by_default: bool,
    /// The scenario itself.
    pub run: fn(&Lab) -> Result<()>,
}

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestResult {
    /// It held.
    Pass,
    /// It did not hold, or did not end in time.
    Fail,
    /// It cannot run on this machine.
    Skip,
}

/// A scenario's line on standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// How it ended.
    pub result: TestResult,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Why it failed or was skipped; empty for one that passed.
    pub why: String,
}

/// The folder of a scenario's logs, below the folder of all logs.
pub(crate) fn folder(out: &std::path::Path, name: &str) -> std::path::PathBuf {
    out.join(name)
}
