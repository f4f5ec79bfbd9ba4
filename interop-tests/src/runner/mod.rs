//! Running scenarios: from the command line, through a guest, to one process a scenario.
//!
//! - `build`: what is run is built before.
//! - `cli`: the host's side. Boots a guest, hands it the names, prints what comes back.
//! - `serial`: the guest's side. One scenario after the other, each in fresh namespaces, each
//!   killed at its deadline.
//! - `single`: the scenario's own process.
//! - [`Lab`]: what a scenario gets.

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

/// A test of the whole, in the lab.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// `area/what`, unique.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// When it is killed, in the guest's time.
    pub deadline: Duration,
    /// Part of `run` without names. Scenarios that are long, or that must fail, are run by name
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
    /// It did not, or it did not end in time.
    Fail,
    /// It cannot be tried on this machine.
    Skip,
}

/// The line that a scenario leaves on standard output.
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

/// The folder of a scenario's logs below the folder of all.
pub(crate) fn folder(out: &std::path::Path, name: &str) -> std::path::PathBuf {
    out.join(name)
}
