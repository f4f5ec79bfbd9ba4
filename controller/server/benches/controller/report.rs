//! Reports the results: a table for people and a file for programs.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Report {
    results: Vec<Value>,
    /// Whether a goal was missed, or something was not measured.
    failed: bool,
}

/// A goal for a measured value.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// The measured value is at most this.
    AtMost(f64),
    /// The measured value divided by the reference is at least this.
    RatioAtLeast(f64),
}

impl Report {
    /// Adds the result of a case.
    pub(crate) fn add(&mut self, case: &str, unit: &str, ours: f64, reference: (f64, &str), goal: Goal) {
        let (reference, name) = reference;
        let ratio = ours / reference;
        let (met, goal, goal_of) = match goal {
            Goal::AtMost(most) => (ours <= most, most, "ours, at most"),
            Goal::RatioAtLeast(least) => (ratio >= least, least, "ratio, at least"),
        };
        let verdict = if met { "met" } else { "MISSED" };
        println!(
            "{case:<20} {ours:>8.1} {unit}; {name}: {reference:.1} {unit}; ratio {ratio:.2}; goal ({goal_of} {goal}) {verdict}"
        );
        self.failed |= !met;
        self.results.push(json!({
            "case": case,
            "unit": unit,
            "ours": ours,
            "reference": reference,
            "reference_name": name,
            "ratio": ratio,
            "goal": goal,
            "goal_of": goal_of,
        }));
    }

    /// Records that a selected case could not be measured.
    pub(crate) fn not_measured(&mut self, what: &str, why: &anyhow::Error) {
        println!("{what:<20} not measured: {why:#}");
        self.failed = true;
    }

    /// Writes `target/bench/controller.json`. The exit code is a failure if a goal was missed or a
    /// case was not measured.
    pub(crate) fn write(self) -> ExitCode {
        let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bench/controller.json"));
        if let Err(error) = write(file, self.results) {
            eprintln!("cannot bring {} up to date: {error}", file.display());
            return ExitCode::FAILURE;
        }
        if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Writes the results. Cases that were not measured this time keep their earlier results.
fn write(file: &Path, results: Vec<Value>) -> std::io::Result<()> {
    let mut all: Vec<Value> = match std::fs::read(file) {
        Ok(before) => {
            let mut before: Value = serde_json::from_slice(&before)?;
            serde_json::from_value(before["results"].take())?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    all.retain(|before| results.iter().all(|result| result["case"] != before["case"]));
    all.extend(results);
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(file, format!("{:#}\n", json!({ "name": "controller", "results": all })))
}

/// Returns the value below which this fraction of all values lies.
pub(crate) fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * part).ceil() as usize).clamp(1, values.len()) - 1]
}
