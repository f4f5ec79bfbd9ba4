//! The table that people read and the file that programs read.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Report(Vec<Value>);

/// What must hold.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// Ours is at most this.
    AtMost(f64),
    /// Ours divided by the reference is at least this.
    RatioAtLeast(f64),
}

impl Report {
    /// Adds a case.
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
        self.0.push(json!({
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

    /// Writes `target/bench/controller.json`.
    pub(crate) fn write(self) -> ExitCode {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
        let results = json!({ "name": "controller", "results": self.0 });
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(folder.join("controller.json"), format!("{results:#}\n")));
        match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cannot write {}: {error}", folder.join("controller.json").display());
                ExitCode::FAILURE
            }
        }
    }
}

/// The value below which this part of all values lies.
pub(crate) fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * part).ceil() as usize).clamp(1, values.len()) - 1]
}
