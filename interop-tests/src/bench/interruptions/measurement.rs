//! The goals of interruptions, and the measurement of one event.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::report::{Goal, Results};
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Ping, PingReport, Pod};
use crate::wait;

/// Environment variable with the number of times that each event happens; once without it.
pub(in super::super) const RUNS_VARIABLE: &str = "EDGE_INTERRUPTION_RUNS";
/// Number of times that each event happens for `make interruptions`.
pub(in super::super) const RUNS: usize = 3;

/// Interval of the pings in each direction.
pub(super) const PACE: Duration = Duration::from_millis(10);
/// Number of pings that must be answered before and after an event.
const ANSWERED: u64 = 100;
/// Time limit for an answer after an event, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(150);

/// Allowance of goals for lost pings, in pings. A goal of zero has no allowance.
const LOST_ALLOWANCE: f64 = 3.0;
/// Allowance of goals for a silence: this share of the goal, and this time in seconds. On a busy
/// machine, silences of half a second are noise.
const SILENCE_ALLOWANCE: (f64, f64) = (0.25, 0.25);

/// Makes a scenario that runs by name only.
pub(super) const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(600), by_default: false, needs: Needs::Nothing, run }
}

/// Makes a scenario that `make test` runs too.
pub(super) const fn tested(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { by_default: true, ..scenario(name, about, run) }
}

/// Goals: the maximum values for each direction.
#[derive(Clone, Copy)]
pub(super) struct Goals {
    /// Maximum number of lost pings.
    lost: Option<f64>,
    /// Maximum number of seconds without an answer.
    silence: Option<f64>,
}

impl Goals {
    /// Nothing is lost.
    pub(super) const LOSSLESS: Self = Self { lost: Some(0.0), silence: None };
    /// At most two pings are lost, and answers come again within a second.
    pub(super) const REPAIRED_AT_ONCE: Self = Self { lost: Some(2.0), silence: Some(1.0) };
    /// What is under way is lost, and one round trip with 50 ms.
    pub(super) const IN_FLIGHT: Self = Self::silence(0.1);

    /// Answers come again within this number of seconds.
    pub(super) const fn silence(seconds: f64) -> Self {
        Self { lost: None, silence: Some(seconds) }
    }
}

/// A goal for lost pings, with its allowance.
fn lost_goal(limit: Option<f64>) -> Goal {
    let allowance = |limit: f64| if limit > 0.0 { LOST_ALLOWANCE } else { 0.0 };
    limit.map_or(Goal::None, |limit| Goal::Checked { limit, fails_above: limit + allowance(limit) })
}

/// A goal for a silence, with its allowance.
pub(super) fn silence_goal(limit: Option<f64>) -> Goal {
    let (share, time) = SILENCE_ALLOWANCE;
    limit.map_or(Goal::None, |limit| Goal::Checked { limit, fails_above: limit * (1.0 + share) + time })
}

/// A pod, and the address that it pings.
pub(super) struct Direction<'s> {
    /// Name of the direction, such as `from-edge`.
    pub(super) name: &'static str,
    /// The pod.
    pub(super) pod: &'s Pod,
    /// The address.
    pub(super) to: &'s str,
}

/// A network in which events happen.
pub(super) trait Site {
    /// Returns the tools of the scenario.
    fn lab(&self) -> &Lab;

    /// Returns the directions in which pods ping each other.
    fn directions(&self) -> [Direction<'_>; 2];
}

/// Returns how often each event happens in this run.
///
/// # Errors
/// Returns an error if the environment variable is no number.
pub(super) fn runs() -> Result<usize> {
    let Ok(text) = std::env::var(RUNS_VARIABLE) else { return Ok(1) };
    text.parse().with_context(|| format!("{RUNS_VARIABLE} is {text:?}, and should be a number"))
}

/// Measures the loss at an event. `prepare` runs before each event, and `happens` is the event,
/// which ends when it can be judged.
///
/// # Errors
/// Returns an error if a ping is not answered before or after the event, or if the event happens
/// once, and a ping is lost although none should be.
pub(super) fn measure<S: Site>(
    site: &mut S,
    what: &str,
    goals: Goals,
    mut prepare: impl FnMut(&mut S) -> Result<()>,
    mut happens: impl FnMut(&mut S) -> Result<()>,
) -> Result<()> {
    let runs = runs()?;
    let mut reports = Vec::new();
    for run in 1..=runs {
        prepare(site).with_context(|| format!("preparing {what}, run {run}"))?;
        let mut pings = start_pings(site)?;
        let began = Instant::now();
        happens(site).with_context(|| format!("{what}, run {run}"))?;
        for (index, ping) in pings.iter_mut().enumerate() {
            if let Err(error) = answers(ping, ANSWERED) {
                let name = site.directions()[index].name;
                let mut results = Results::default();
                let (silent, goal) = (began.elapsed().as_secs_f64(), silence_goal(goals.silence));
                results.add(&format!("{what}/{name}/silence"), "s", silent, None, goal);
                results.write(site.lab().out())?;
                return Err(error.context(format!("nothing is answered {name} after {what}, run {run}")));
            }
        }
        let [there, back] = pings;
        let both = [there.stop()?, back.stop()?];
        for (direction, report) in site.directions().iter().zip(&both) {
            site.lab().step(&format!("{what}, run {run}: {} {}", direction.name, shown(report)));
        }
        reports.push(both);
    }
    let mut results = Results::default();
    for (index, direction) in site.directions().iter().enumerate() {
        let lost = median(reports.iter().map(|both| both[index].lost() as f64));
        let silent = median(reports.iter().map(|both| both[index].longest_silence.as_secs_f64()));
        results.add(&format!("{what}/{}/lost", direction.name), "pings", lost, None, lost_goal(goals.lost));
        let goal = silence_goal(goals.silence);
        results.add(&format!("{what}/{}/silence", direction.name), "s", silent, None, goal);
        if runs == 1 && goals.lost == Some(0.0) {
            ensure!(lost == 0.0, "{what}: {lost} pings {} were lost, and none should be", direction.name);
        }
    }
    results.write(site.lab().out())
}

/// Measures how long the second direction is without an answer after an event that happens while no
/// pod sends anything.
///
/// # Errors
/// Returns an error if a ping is not answered before or after the event.
pub(super) fn measure_idle<S: Site>(
    site: &mut S,
    what: &str,
    most_seconds: f64,
    mut happens: impl FnMut(&mut S) -> Result<()>,
) -> Result<()> {
    let mut silences = Vec::new();
    for run in 1..=runs()? {
        for ping in start_pings(site)? {
            ping.stop()?;
        }
        happens(site).with_context(|| format!("{what}, run {run}"))?;
        let began = Instant::now();
        let [_, Direction { name, pod, to }] = site.directions();
        let mut ping = Ping::start(pod, to, PACE)?;
        answers(&mut ping, 1).with_context(|| format!("nothing is answered after {what}, run {run}"))?;
        let silent = began.elapsed().as_secs_f64();
        ping.stop()?;
        site.lab().step(&format!("{what}, run {run}: {name} after {silent:.2} s"));
        silences.push(silent);
    }
    let mut results = Results::default();
    let name = site.directions()[1].name;
    let goal = silence_goal(Some(most_seconds));
    results.add(&format!("{what}/{name}/silence"), "s", median(silences.into_iter()), None, goal);
    results.write(site.lab().out())
}

/// Starts a ping in each direction, and waits until both are answered.
fn start_pings(site: &impl Site) -> Result<[Ping; 2]> {
    let [there, back] = site.directions();
    for direction in [&there, &back] {
        wait::until(&format!("a ping {}", direction.name), RECOVERY, || {
            let reached = direction.pod.reaches(direction.to, Duration::from_secs(1))?;
            ensure!(reached, "{} does not answer", direction.to);
            Ok(())
        })?;
    }
    let mut pings = [Ping::start(there.pod, there.to, PACE)?, Ping::start(back.pod, back.to, PACE)?];
    for ping in &mut pings {
        answers(ping, ANSWERED)?;
    }
    Ok(pings)
}

/// Waits until this number of further pings is answered.
fn answers(ping: &mut Ping, count: u64) -> Result<()> {
    let wanted = ping.received() + count;
    wait::until(&format!("{count} more answers to a ping"), RECOVERY, || {
        let received = ping.received();
        ensure!(received >= wanted, "{} are missing", wanted - received);
        Ok(())
    })
}

/// Waits for a time that belongs to an event.
pub(super) fn pass(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the time is a part of the event")]
    std::thread::sleep(time);
}

fn shown(report: &PingReport) -> String {
    let silent = report.longest_silence.as_secs_f64();
    format!("{} of {} lost, {silent:.2} s", report.lost(), report.sent)
}

/// Returns the median, or of an even number of values the larger one in the middle.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_of_nothing_lost_has_no_allowance_and_others_have_one() {
        let fails_above = |goal| match goal {
            Goal::Checked { fails_above, .. } => fails_above,
            _ => f64::NAN,
        };
        assert_eq!(fails_above(lost_goal(Some(0.0))), 0.0);
        assert_eq!(fails_above(lost_goal(Some(2.0))), 5.0);
        assert_eq!(fails_above(silence_goal(Some(2.0))), 2.75);
        assert!(matches!(lost_goal(None), Goal::None));
    }

    #[test]
    fn one_bad_run_of_three_does_not_move_the_median() {
        assert_eq!(median([0.0, 900.0, 1.0].into_iter()), 1.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
