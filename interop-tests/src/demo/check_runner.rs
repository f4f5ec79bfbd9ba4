//! Runs, counts and shows the demo's checks.

use std::cell::Cell;
use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::wait;

/// Time limit for the expected state of a check. The state usually comes much sooner, and the time
/// that it took is shown; but a busy machine may be slow.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// The checks that have run so far. The first failed check ends the demo.
pub(super) struct Checks {
    passed: Cell<u32>,
    started: Instant,
}

impl Checks {
    /// Makes a runner without checks. The time starts now.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { passed: Cell::new(0), started: Instant::now() }
    }

    /// Returns the number of checks that passed.
    #[must_use]
    pub(super) fn passed(&self) -> u32 {
        self.passed.get()
    }

    /// Returns the time since the start.
    #[must_use]
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows the title of a part of the demo.
    pub(super) fn part(&self, name: &str) {
        eprintln!("\n{:7.2}s  {name}", self.elapsed().as_secs_f64());
    }

    /// Prints a note, without a check.
    pub(super) fn note(&self, what: impl Display) {
        eprintln!("{:7.2}s    .. {what}", self.elapsed().as_secs_f64());
    }

    /// Checks `what` once. `look` names the logs for a failure. The probe's result is shown after
    /// the check.
    ///
    /// # Errors
    /// Returns an error if the probe fails. The message contains the expectation, the observation
    /// and `look`.
    pub(super) fn check<T: Display>(&self, what: &str, look: &str, probe: impl FnOnce() -> Result<T>) -> Result<()> {
        let seen = probe().map_err(|error| failed(what, look, &error))?;
        self.passed_check(what, &seen.to_string());
        Ok(())
    }

    /// Checks that `what` becomes true within `timeout`. Shows the time that this took.
    ///
    /// # Errors
    /// Returns the same errors as [`Self::check`].
    pub(super) fn eventually<T>(
        &self,
        what: &str,
        look: &str,
        timeout: Duration,
        probe: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let began = Instant::now();
        let value = wait::until(what, timeout, probe).map_err(|error| failed(what, look, &error))?;
        self.passed_check(what, &format!("after {:.2} s", began.elapsed().as_secs_f64()));
        Ok(value)
    }

    fn passed_check(&self, what: &str, seen: &str) {
        self.passed.set(self.passed.get() + 1);
        let gap = if seen.is_empty() { "" } else { ": " };
        eprintln!("{:7.2}s    ok {what}{gap}{seen}", self.elapsed().as_secs_f64());
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::new()
    }
}

fn failed(what: &str, look: &str, error: &anyhow::Error) -> anyhow::Error {
    anyhow!("check failed\n  expected: {what}\n  seen:     {error:#}\n  look at:  {look}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_what_was_expected_what_was_seen_and_where_to_look() {
        let checks = Checks::new();
        checks.check("water is wet", "the sea", || Ok("")).unwrap();
        let error = checks.check("fire is cold", "the stove", || Err::<String, _>(anyhow!("it burns"))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("fire is cold") && text.contains("it burns") && text.contains("the stove"), "{text}");
        assert_eq!(checks.passed(), 1);
    }
}
