//! Reports the results: a table for people and a file for programs.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Name of the file with a scenario's results, in the scenario's directory.
pub(super) const RESULTS: &str = "results.json";

/// A measured case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Name of the case: `area/what`, or `area/what/N` for N peers.
    pub(super) case: String,
    /// Unit of `ours`, of `reference`, and of a goal for `ours`.
    pub(super) unit: String,
    /// The value measured with our program.
    pub(super) ours: f64,
    /// The reference's value, measured in the same guest.
    pub(super) reference: Option<f64>,
    /// Name of the reference.
    pub(super) reference_name: Option<String>,
    /// `ours` divided by `reference`.
    pub(super) ratio: Option<f64>,
    /// The goal, a maximum value.
    pub(super) goal: Option<f64>,
    /// The value to which the goal applies: `ours` or `ratio`.
    pub(super) goal_of: Option<String>,
    /// The value above which the run fails: the goal with its allowance for noise. `None` if a
    /// missed goal only appears in the table.
    #[serde(default)]
    pub(super) fails_above: Option<f64>,
}

/// A goal, which is a maximum value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// There is no goal.
    None,
    /// The goal applies to our value.
    Ours(f64),
    /// The goal `limit` applies to our value, and the run fails if our value is above
    /// `fails_above`.
    Checked { limit: f64, fails_above: f64 },
    /// The goal applies to our value divided by the reference's.
    Ratio(f64),
}

/// The results of one scenario.
#[derive(Debug, Default)]
pub(super) struct Results(Vec<Measured>);

impl Results {
    /// Adds a case.
    pub(super) fn add(&mut self, case: &str, unit: &str, ours: f64, reference: Option<(f64, &str)>, goal: Goal) {
        let (goal, goal_of, fails_above) = match goal {
            Goal::None => (None, None, None),
            Goal::Ours(most) => (Some(most), Some("ours".to_owned()), None),
            Goal::Checked { limit, fails_above } => (Some(limit), Some("ours".to_owned()), Some(fails_above)),
            Goal::Ratio(most) => (Some(most), Some("ratio".to_owned()), None),
        };
        self.0.push(Measured {
            case: case.to_owned(),
            unit: unit.to_owned(),
            ours,
            reference: reference.map(|(value, _)| value),
            reference_name: reference.map(|(_, name)| name.to_owned()),
            ratio: reference.map(|(value, _)| ours / value).filter(|ratio| ratio.is_finite()),
            goal,
            goal_of,
            fails_above,
        });
    }

    /// Returns the cases, in the order in which they were added.
    pub(super) fn into_rows(self) -> Vec<Measured> {
        self.0
    }

    /// Writes the results into a scenario's directory, where [`read`] finds them.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let file = directory.join(RESULTS);
        std::fs::write(&file, serde_json::to_vec_pretty(&self.0)?)
            .with_context(|| format!("writing {}", file.display()))
    }
}

/// Reads the results of a scenario with its logs in `directory`; none if the scenario wrote none.
///
/// # Errors
/// Returns an error if the file has another format.
pub(super) fn read(directory: &Path) -> Result<Vec<Measured>> {
    let file = directory.join(RESULTS);
    match std::fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

impl Measured {
    /// Returns whether the goal is met; `None` if there is no goal or it cannot be checked.
    pub(super) fn met(&self) -> Option<bool> {
        let value = match self.goal_of.as_deref()? {
            "ratio" => self.ratio?,
            _ => self.ours,
        };
        Some(value <= self.goal?)
    }

    /// Returns whether the goal is missed by more than its allowance.
    pub(super) fn fails(&self) -> bool {
        // A value that is no number is not within the allowance either.
        self.fails_above.is_some_and(|most| self.ours.is_nan() || self.ours > most)
    }

    /// Returns the word for the result, in the last column of the table.
    fn verdict(&self) -> &'static str {
        match self.met() {
            None => "",
            Some(true) => "met",
            Some(false) if self.fails() => "FAILED",
            Some(false) if self.fails_above.is_some() => "missed, but within the allowance",
            Some(false) => "MISSED",
        }
    }
}

/// Formats the results as a table.
pub(super) fn table(results: &[Measured]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["case", "unit", "ours", "reference", "ratio", "wanted", ""]);
    for row in results {
        let reference = match (row.reference, &row.reference_name) {
            (Some(value), Some(name)) => format!("{} ({name})", short(value)),
            _ => String::new(),
        };
        let wanted = match (row.goal, row.goal_of.as_deref()) {
            (Some(goal), Some("ratio")) => format!("ratio at most {}", short(goal)),
            (Some(goal), _) if row.fails_above.is_some_and(|most| most > goal) => {
                format!("at most {}, fails above {}", short(goal), short(row.fails_above.unwrap_or(goal)))
            }
            (Some(goal), _) => format!("at most {}", short(goal)),
            _ => String::new(),
        };
        table.add_row([
            row.case.clone(),
            row.unit.clone(),
            short(row.ours),
            reference,
            row.ratio.map(short).unwrap_or_default(),
            wanted,
            row.verdict().to_owned(),
        ]);
    }
    table
}

/// Formats a value with at least three significant digits.
fn short(value: f64) -> String {
    let digits: usize = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// Merges the results into the file `NAME.json` of a directory. Cases that were not measured this
/// time keep their earlier results.
///
/// # Errors
/// Returns an error if the file cannot be read or written.
pub(super) fn merge(directory: &Path, name: &str, results: &[Measured]) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct File {
        name: String,
        results: Vec<Measured>,
    }
    let file = &directory.join(format!("{name}.json"));
    let mut all = match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            File { name: name.to_owned(), results: Vec::new() }
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    all.results.retain(|before| results.iter().all(|result| result.case != before.case));
    all.results.extend_from_slice(results);
    std::fs::create_dir_all(directory)?;
    std::fs::write(file, format!("{:#}\n", serde_json::to_value(&all)?))
        .with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(ours: f64, goal: Goal) -> Vec<Measured> {
        let mut results = Results::default();
        results.add("up/cpu-per-tunnel/100", "ms", ours, Some((30.0, "charon")), goal);
        results.0
    }

    #[test]
    fn a_goal_is_about_our_value_or_about_the_ratio() {
        let met = |goal| results(6.0, goal)[0].met();
        assert_eq!(met(Goal::None), None);
        assert_eq!((met(Goal::Ours(6.0)), met(Goal::Ours(5.0))), (Some(true), Some(false)));
        assert_eq!((met(Goal::Ratio(0.2)), met(Goal::Ratio(0.1))), (Some(true), Some(false)));
    }

    #[test]
    fn a_run_fails_only_beyond_the_allowance_of_a_goal_that_has_one() {
        let row = |ours, goal| results(ours, goal)[0].clone();
        let checked = Goal::Checked { limit: 2.0, fails_above: 2.75 };
        for (ours, fails, verdict) in [
            (2.0, false, "met"),
            (2.75, false, "missed, but within the allowance"),
            (2.76, true, "FAILED"),
            (f64::NAN, true, "FAILED"),
        ] {
            let row = row(ours, checked);
            assert_eq!((row.fails(), row.verdict()), (fails, verdict), "{ours}");
        }
        assert!(!row(6.0, Goal::Ours(5.0)).fails() && !row(6.0, Goal::None).fails());
        assert_eq!(row(6.0, Goal::Ours(5.0)).verdict(), "MISSED");
        assert!(table(&[row(6.0, checked)]).to_string().contains("at most 2.00, fails above 2.75"));
    }

    #[test]
    fn what_a_scenario_writes_is_read_from_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), []);
        let rows = results(6.0, Goal::Ratio(0.2));
        Results(rows.clone()).write(directory.path()).unwrap();
        assert_eq!(read(directory.path()).unwrap(), rows);
    }

    #[test]
    fn a_case_that_is_measured_again_replaces_its_result() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("bench");
        let mut other = Results::default();
        other.add("mesh/50/cpu", "s", 2.0, None, Goal::None);
        merge(&directory, "agent", &other.0).unwrap();
        merge(&directory, "agent", &results(6.0, Goal::None)).unwrap();
        merge(&directory, "agent", &results(5.0, Goal::None)).unwrap();
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(directory.join("agent.json")).unwrap()).unwrap();
        assert_eq!(written["name"], "agent");
        let cases: Vec<_> =
            written["results"].as_array().unwrap().iter().map(|row| (&row["case"], &row["ours"])).collect();
        assert_eq!(cases, [(&"mesh/50/cpu".into(), &2.0.into()), (&"up/cpu-per-tunnel/100".into(), &5.0.into())]);
    }
}
