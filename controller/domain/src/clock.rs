//! Provides wall-clock time that never runs backwards.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Seconds since 1970-01-01 UTC.
pub type Seconds = i64;

/// 2026-11-01. No release of this program is older, so a machine's clock that shows an earlier time
/// is wrong.
const EARLIEST: Seconds = 1_793_491_200;
/// One second in nanoseconds.
const SECOND: i64 = 1_000_000_000;

/// Wall-clock time that never runs backwards. It is at least 2026-11-01, and at least the time that
/// [`Clock::not_before`] received. Machines without a battery-backed clock start in 1970, and that
/// time must not be used for quarantines and tokens.
///
/// If the machine's clock is set back, or starts behind the latest time in the store, this clock
/// runs at half speed until both agree. So nothing that has expired becomes valid again, nothing
/// waits forever, and the effect of a machine's clock that was ahead for a while does not last.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    last: Mutex<LastReading>,
    /// Time that tests have added, in nanoseconds; otherwise zero.
    passed: AtomicI64,
    /// Offset that tests have added to the machine's clock, in nanoseconds; otherwise zero.
    set: AtomicI64,
}

/// The last reading of both clocks, in nanoseconds.
#[derive(Debug)]
struct LastReading {
    monotonic: i64,
    now: i64,
}

impl Clock {
    /// Makes a clock that follows the machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            last: Mutex::new(LastReading { monotonic: 0, now: EARLIEST * SECOND }),
            passed: AtomicI64::new(0),
            set: AtomicI64::new(0),
        }))
    }

    /// Returns the seconds since 1970-01-01 UTC; never fewer than an earlier call.
    pub fn now(&self) -> Seconds {
        let (system, mut last) = (self.machine(), self.last());
        let monotonic = self.elapsed();
        let passed = (monotonic - last.monotonic).max(0);
        // A machine's clock that shows a time before the first release is no reason to slow down.
        let pace = if system < EARLIEST * SECOND { passed } else { passed / 2 };
        *last =
            LastReading { monotonic: last.monotonic.max(monotonic), now: system.max(last.now.saturating_add(pace)) };
        last.now / SECOND
    }

    /// Makes the time at least `known`, which is the latest time in the store.
    pub fn not_before(&self, known: Seconds) {
        self.now();
        let mut last = self.last();
        last.now = last.now.max(known.saturating_mul(SECOND));
    }

    /// Returns the earlier of the time now and the machine's clock. A validity period that other
    /// machines check begins at this time: this machine's clock may have been ahead for a while,
    /// but the clocks of the other machines were not.
    pub fn issue_time(&self) -> Seconds {
        let (now, machine) = (self.now(), self.machine() / SECOND);
        if machine < EARLIEST { now } else { now.min(machine) }
    }

    /// Returns the seconds since this clock was created, independent of changes to the machine's
    /// clock.
    pub fn monotonic(&self) -> Seconds {
        self.elapsed() / SECOND
    }

    /// Advances the time. For tests.
    pub fn advance(&self, seconds: Seconds) {
        // The time is read first, because the clock may have run at another pace until now.
        self.now();
        self.0.passed.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    /// Sets the machine's clock ahead or back. For tests.
    pub fn step(&self, seconds: Seconds) {
        self.now();
        self.0.set.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    fn last(&self) -> MutexGuard<'_, LastReading> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> i64 {
        let elapsed = i64::try_from(self.0.started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        elapsed.saturating_add(self.0.passed.load(Ordering::Relaxed))
    }

    fn machine(&self) -> i64 {
        let unix = i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(0);
        unix + self.0.passed.load(Ordering::Relaxed) + self.0.set.load(Ordering::Relaxed)
    }
}

/// Formats a time as RFC 3339, UTC.
pub fn rfc3339(at: Seconds) -> String {
    time::OffsetDateTime::from_unix_timestamp(at)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("second {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_runs_before_what_was_known() {
        let clock = Clock::system();
        let future = clock.now() + 1_000_000;
        clock.not_before(future);
        assert_eq!(clock.now(), future);
        clock.not_before(0);
        assert_eq!(clock.now(), future);
    }

    #[test]
    fn set_back_it_goes_on_at_half_its_pace_until_the_machine_has_caught_up() {
        let clock = Clock::system();
        let before = clock.now();
        clock.step(-1000);
        assert!((0..2).contains(&(clock.now() - before)));
        assert!((-1001..-998).contains(&(clock.issue_time() - before)));
        clock.advance(1000);
        assert!((499..502).contains(&(clock.now() - before)));
        clock.advance(1000);
        assert!((999..1002).contains(&(clock.now() - before)), "they have met");
        clock.advance(100);
        assert!((1099..1102).contains(&(clock.now() - before)));
        assert!((2100..2102).contains(&clock.monotonic()), "the monotonic time is not affected");
    }

    #[test]
    fn without_a_valid_machine_clock_time_goes_on_from_what_was_known() {
        let clock = Clock::system();
        let known = clock.now();
        clock.step(-known);
        clock.advance(100);
        assert!((99..102).contains(&(clock.now() - known)));
        assert_eq!(clock.issue_time(), clock.now());
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(rfc3339(EARLIEST), "2026-11-01T00:00:00Z");
    }
}
