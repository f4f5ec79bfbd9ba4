//! Defines a scenario: its description, its tools ([`Lab`]) and its outcome.

mod lab;
mod shell;

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub(crate) use lab::STEP_NAMES;
pub use lab::{Lab, Skip, skip};

/// A test of whole programs in the lab.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Unique name, in the form `area/what`.
    pub name: &'static str,
    /// Description in one line.
    pub about: &'static str,
    /// Time after which the scenario is killed, in the guest's time.
    pub deadline: Duration,
    /// Whether `run` without names runs it. Scenarios that are long, or that must fail, run by name
    /// only.
    pub by_default: bool,
    /// Programs that a run builds for the scenario, in addition to the programs under test.
    pub needs: Needs,
    /// The scenario itself.
    pub run: fn(&Lab) -> Result<()>,
}

/// Programs that a run builds for a scenario, in addition to the programs under test.
#[derive(Debug, Clone, Copy)]
pub enum Needs {
    /// Only the programs under test.
    Nothing,
    /// A test binary of a crate.
    CrateTest(CrateTest),
    /// The programs of a Kubernetes control plane.
    ControlPlane,
}

/// A test binary of a crate.
#[derive(Debug, Clone, Copy)]
pub struct CrateTest {
    /// The package's name, as in its `Cargo.toml`.
    pub package: &'static str,
    /// The test's name in the package.
    pub target: &'static str,
}

impl CrateTest {
    /// Returns the environment variable with the path of the built program.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("EDGE_LAB_TEST_{}_{}", self.package, self.target).replace('-', "_").to_uppercase()
    }
}

/// The result of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestResult {
    /// All checks passed.
    Pass,
    /// A check failed, or the scenario did not end in time.
    Fail,
    /// The scenario cannot run on this machine.
    Skip,
}

/// A scenario's line on standard output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// The result.
    pub result: TestResult,
    /// The duration, in seconds.
    pub seconds: f64,
    /// The reason for a failure or a skip. For a passed scenario: empty, or the reason why it ran
    /// twice.
    pub why: String,
}

/// Returns the directory of a scenario's logs, below the directory of all logs.
pub(crate) fn directory(out: &std::path::Path, name: &str) -> std::path::PathBuf {
    out.join(name)
}

/// Returns the scenario with this whole name.
#[must_use]
pub fn find(scenarios: &[&'static Scenario], name: &str) -> Option<&'static Scenario> {
    scenarios.iter().find(|scenario| scenario.name == name).copied()
}

/// Returns the scenarios that the words name. A word is a whole name, or a prefix of names of
/// scenarios that run by default. Without words, returns all that run by default.
///
/// # Errors
/// Returns the first word that names no scenario as the error.
pub fn select(all: &[&'static Scenario], words: &[String]) -> Result<Vec<&'static Scenario>, String> {
    if words.is_empty() {
        return Ok(all.iter().filter(|scenario| scenario.by_default).copied().collect());
    }
    let mut chosen: Vec<&'static Scenario> = Vec::new();
    for word in words {
        let exact: Vec<_> = all.iter().filter(|scenario| scenario.name == *word).collect();
        let named = if exact.is_empty() {
            all.iter().filter(|scenario| scenario.by_default && scenario.name.starts_with(word.as_str())).collect()
        } else {
            exact
        };
        if named.is_empty() {
            return Err(word.clone());
        }
        for scenario in named {
            if !chosen.iter().any(|have| have.name == scenario.name) {
                chosen.push(scenario);
            }
        }
    }
    Ok(chosen)
}
