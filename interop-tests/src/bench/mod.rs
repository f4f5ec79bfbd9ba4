//! Measures the cost of edge-agent with many peers: CPU time, memory and traffic, compared with
//! charon in the same guest.
//!
//! Each measurement is a scenario that runs by name only and writes its results to a file. Elapsed
//! times have little meaning on a busy machine, and the guest counts stolen time as CPU time.
//! Ratios to charon have more meaning. Threads are slow in User-Mode Linux, so charon costs many
//! times as much as on a real machine.
//!
//! - `tunnels`: measures N static peers against one agent when they are set up, at rest, rekeyed
//!   and listed, and at rest while each checks the agent as often as an edge checks its hub.
//! - `mesh`: measures agents that all have tunnels to each other, and an idle edge with one hub.
//! - `interruptions`: measures the pings through tunnels that are lost at an event, such as a
//!   restart.
//! - `view`: measures the change of a hub's view with N edges by one edge.
//! - `usage`: reads CPU time, memory and traffic. `report`: writes the table and the files in
//!   `target/bench`.

mod interruptions;
mod mesh;
mod report;
mod tunnels;
mod usage;
mod view;

use std::process::ExitCode;

use anyhow::Result;

use crate::runner::{RunOptions, outcomes, target_directory};
use crate::scenario::{Scenario, TestResult};
use report::{Goal, Measured, Results};

/// Prefix that distinguishes the names of measurements from other scenarios.
const AREA: &str = "bench/";

/// Measurements that run if no names are given. They take about an hour.
const DEFAULT: [&str; 9] = [
    "tunnels-100",
    "tunnels-1000",
    "tunnels-10000",
    "checked-10000",
    "view-100",
    "view-1000",
    "view-10000",
    "mesh-50",
    "idle-edge",
];

/// Returns all measurements, and the scenario that shows that they can measure.
pub(crate) fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    let agent = tunnels::SCENARIOS.iter().chain(mesh::SCENARIOS).chain(view::SCENARIOS);
    agent.chain(interruptions::scenarios())
}

/// Runs measurements, prints a table and updates `target/bench/agent.json`. The exit status is 1 if
/// a case could not be measured. A missed goal of these cases appears only in the table.
///
/// # Errors
/// Returns an error if there is no lab, a name is unknown, or the file cannot be written.
pub fn main(names: &[String], backend: Option<String>) -> Result<ExitCode> {
    let names = if names.is_empty() { DEFAULT.map(str::to_owned).into() } else { names.to_owned() };
    measure(AREA, "agent", names, RunOptions { backend, ..RunOptions::default() }, growth)
}

/// Measures the packets that are lost at an event, such as an agent's restart, as [`main`] measures
/// its cases. Each event happens three times. Without names, runs all measurements. Writes
/// `target/bench/interruptions.json`. The exit status is also 1 if a median misses its goal by more
/// than the allowance.
///
/// # Errors
/// Returns the same errors as [`main`].
pub fn interruptions(names: &[String], backend: Option<String>) -> Result<ExitCode> {
    let all = || interruptions::scenarios().map(|scenario| scenario.name.to_owned()).collect();
    let names = if names.is_empty() { all() } else { names.to_owned() };
    let env = vec![(interruptions::RUNS_VARIABLE.to_owned(), interruptions::RUNS.to_string())];
    let options = RunOptions { backend, env, ..RunOptions::default() };
    measure(interruptions::AREA, "interruptions", names, options, |_| Vec::new())
}

/// Runs the measurements of one area. `summary` computes further results from the results of all
/// these measurements.
fn measure(
    area: &str,
    file: &str,
    names: Vec<String>,
    options: RunOptions,
    summary: fn(&[Measured]) -> Vec<Measured>,
) -> Result<ExitCode> {
    let names = names.iter().map(|name| format!("{area}{}", name.trim_start_matches(area))).collect();
    let scenarios: Vec<&Scenario> = scenarios().filter(|scenario| scenario.name.starts_with(area)).collect();
    let mut results: Vec<Measured> = Vec::new();
    let options = RunOptions { names, ..options };
    let directory = target_directory()?.join("bench");
    let all = outcomes(&scenarios, &options, |outcome, kept| {
        if outcome.result != TestResult::Pass {
            eprintln!("{}: {}\n  logs: {}", outcome.scenario, outcome.why, kept.display());
        }
        // Results that were measured before a failure are also reported.
        results.extend(report::read(kept)?);
        report::merge(&directory, file, &results)
    })?;
    results.extend(summary(&results));
    report::merge(&directory, file, &results)?;
    println!("{}", report::table(&results));
    for row in results.iter().filter(|row| row.fails()) {
        eprintln!("{} misses its goal by more than the allowance", row.case);
    }
    let failed = all.iter().any(|outcome| outcome.result != TestResult::Pass) || results.iter().any(Measured::fails);
    Ok(ExitCode::from(u8::from(failed)))
}

/// Returns the cost of a tunnel with the maximum number of peers, divided by the cost with the
/// minimum number.
fn growth(results: &[Measured]) -> Vec<Measured> {
    let mut costs: Vec<(u32, f64)> =
        results.iter().filter_map(|row| Some((row.case.strip_prefix(tunnels::UP)?.parse().ok()?, row.ours))).collect();
    costs.sort_by_key(|(peers, _)| *peers);
    let mut growth = Results::default();
    if let [(few, least), .., (many, most)] = costs[..] {
        growth.add(&format!("up/cpu-growth/{few}-to-{many}"), "times", most / least, None, Goal::Ours(1.3));
    }
    growth.into_rows()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_from_the_fewest_to_the_most_peers() {
        let mut results = Results::default();
        for (peers, cost) in [(1000, 7.2), (100, 1.8), (400, 3.2)] {
            results.add(&format!("{}{peers}", tunnels::UP), "ms", cost, None, Goal::None);
        }
        let rows = growth(&results.into_rows());
        assert_eq!((rows[0].case.as_str(), rows[0].ours), ("up/cpu-growth/100-to-1000", 4.0));
        assert_eq!(rows[0].met(), Some(false));
        assert!(growth(&[]).is_empty());
    }
}
