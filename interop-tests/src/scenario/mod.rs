//! What a scenario is: its description, its means ([`Lab`]) and its outcome.

mod lab;

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub use lab::{Lab, Skip, skip};

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
    /// What a run builds for it, besides the programs under test.
    pub needs: Needs,
    /// The scenario itself.
    pub run: fn(&Lab) -> Result<()>,
}

/// What a run builds for a scenario, besides the programs under test.
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
    /// The environment variable with the path of the built program.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("EDGE_LAB_TEST_{}_{}", self.package, self.target).replace('-', "_").to_uppercase()
    }
}

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestResult {
    /// All that it checks is true.
    Pass,
    /// A check failed, or it did not end in time.
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
    /// Why it failed or was skipped; for one that passed, empty or why it had to run twice.
    pub why: String,
}

/// The directory of a scenario's logs, below the directory of all logs.
pub(crate) fn directory(out: &std::path::Path, name: &str) -> std::path::PathBuf {
    out.join(name)
}

/// The scenario with this whole name.
#[must_use]
pub fn find(scenarios: &[&'static Scenario], name: &str) -> Option<&'static Scenario> {
    scenarios.iter().find(|scenario| scenario.name == name).copied()
}

/// The scenarios that the words name. A word is a whole name, or the beginning of names of
/// scenarios that run by default. No word means all that run by default.
///
/// # Errors
/// If a word names none. Returns the word.
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
