//! Wall-clock time that never runs before what is already known.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Seconds since 1970-01-01 UTC.
pub type Seconds = i64;

/// No release of this program is older: 2026-11-01. A clock that shows less is wrong.
const EARLIEST: Seconds = 1_793_491_200;
/// In nanoseconds.
const SECOND: i64 = 1_000_000_000;

/// Wall-clock time that never runs backwards: at least [`EARLIEST`], and at least what
/// [`Clock::not_before`] was told. Machines without a battery clock start in 1970; a quarantine or
/// a token must not be judged by that.
///
/// Where the machine's clock is set back, or starts behind what was known, time goes on from there
/// at half its pace until they meet: nothing that had expired opens again, what waits for its end
/// does not wait for ever, and a clock that was ahead for a while is not followed for ever.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    last: Mutex<Last>,
    /// Tests let time pass by this, nanoseconds; zero otherwise.
    passed: AtomicI64,
    /// Tests set the machine's clock by this, nanoseconds; zero otherwise.
    set: AtomicI64,
}

/// Nanoseconds, when time was asked for last.
#[derive(Debug)]
struct Last {
    steady: i64,
    now: i64,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            last: Mutex::new(Last { steady: 0, now: EARLIEST * SECOND }),
            passed: AtomicI64::new(0),
            set: AtomicI64::new(0),
        }))
    }

    /// Time now.
    pub fn now(&self) -> Seconds {
        let (system, mut last) = (self.machine(), self.last());
        let steady = self.elapsed();
        let passed = (steady - last.steady).max(0);
        // One that shows a time before this program was made shows nothing that time could be
        // brought back to.
        let pace = if system < EARLIEST * SECOND { passed } else { passed / 2 };
        *last = Last { steady: last.steady.max(steady), now: system.max(last.now.saturating_add(pace)) };
        last.now / SECOND
    }

    /// Time has been at least this late before: taken from the store at start.
    pub fn not_before(&self, known: Seconds) {
        self.now();
        let mut last = self.last();
        last.now = last.now.max(known.saturating_mul(SECOND));
    }

    /// The earlier of time now and what the machine's clock shows. What is to be valid for others
    /// from now on begins by this.
    pub fn shown(&self) -> Seconds {
        let (now, machine) = (self.now(), self.machine() / SECOND);
        if machine < EARLIEST { now } else { now.min(machine) }
    }

    /// Seconds since this clock was made, whatever the machine's clock was set to meanwhile.
    pub fn steady(&self) -> Seconds {
        self.elapsed() / SECOND
    }

    /// Lets time pass. For tests of what happens later.
    pub fn advance(&self, seconds: Seconds) {
        // Seen at this moment: time may have passed at another pace before.
        self.now();
        self.0.passed.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    /// Sets the machine's clock ahead or back. For tests of that.
    pub fn step(&self, seconds: Seconds) {
        self.now();
        self.0.set.fetch_add(seconds * SECOND, Ordering::Relaxed);
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> i64 {
        let elapsed = i64::try_from(self.0.started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        elapsed.saturating_add(self.0.passed.load(Ordering::Relaxed))
    }

    fn machine(&self) -> i64 {
        let shown = i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(0);
        shown + self.0.passed.load(Ordering::Relaxed) + self.0.set.load(Ordering::Relaxed)
    }
}

/// A time as people read it (RFC 3339, UTC).
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
        assert!((-1001..-998).contains(&(clock.shown() - before)));
        clock.advance(1000);
        assert!((499..502).contains(&(clock.now() - before)));
        clock.advance(1000);
        assert!((999..1002).contains(&(clock.now() - before)), "they have met");
        clock.advance(100);
        assert!((1099..1102).contains(&(clock.now() - before)));
        assert!((2100..2102).contains(&clock.steady()), "that one knows of nothing");
    }

    #[test]
    fn a_machine_that_knows_no_time_goes_on_from_what_was_known() {
        let clock = Clock::system();
        let known = clock.now();
        clock.step(-known);
        clock.advance(100);
        assert!((99..102).contains(&(clock.now() - known)));
        assert_eq!(clock.shown(), clock.now());
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(rfc3339(EARLIEST), "2026-11-01T00:00:00Z");
    }
}
