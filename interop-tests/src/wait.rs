//! Waits for events. The lab never waits for a fixed time instead of an event.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Time limit for an event on a loaded machine, unless a scenario gives another timeout.
pub const TIMEOUT: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(20);

/// Calls `probe` until it succeeds. After `timeout` the error contains the last error from `probe`,
/// which describes what was still missing.
///
/// # Errors
/// Returns an error if the event does not happen in time.
pub fn until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if started.elapsed() >= timeout => {
                return Err(anyhow!("waited {timeout:.0?} for {what}: {last:#}"));
            }
            #[expect(clippy::disallowed_methods, reason = "this is the one poll that tests use")]
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Waits as [`until`] does, for tests that panic if an event does not happen: calls `probe` until
/// it returns a value.
///
/// # Panics
/// Panics if `probe` returns no value within `timeout`.
#[track_caller]
pub fn expect<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    match until(what, timeout, || probe().ok_or_else(|| anyhow!("it did not happen"))) {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// Calls [`until`] with [`TIMEOUT`].
///
/// # Errors
/// Returns an error if the event does not happen in time.
pub fn for_event<T>(what: &str, probe: impl FnMut() -> Result<T>) -> Result<T> {
    until(what, TIMEOUT, probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_does_not_happen_says_what_was_missing() {
        let error = until("rain", Duration::ZERO, || -> Result<()> { Err(anyhow!("blue sky")) }).unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns for rain: blue sky");
    }

    #[test]
    fn an_event_that_happens_late_is_seen() {
        let mut tries = 0;
        let got = until("three", TIMEOUT, || {
            tries += 1;
            anyhow::ensure!(tries == 3, "only {tries}");
            Ok(tries)
        });
        assert_eq!(got.unwrap(), 3);
    }
}
