//! Provides wall-clock time that never runs backwards.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Seconds since 1970-01-01 UTC.
pub type Seconds = i64;

/// 2026-11-01. No release of this program is older, so a machine's clock that shows an earlier time
/// is wrong.
const EARLIEST: Seconds = 1_793_491_200;
/// One day in seconds.
pub const DAY: Seconds = 24 * 3600;
/// Seconds by which the time in the store may be ahead of the machine's clock when a controller
/// starts. It is less than half of the shortest validity of nodes' certificates that is of use, so
/// that they are renewed in time although the clock is ahead.
pub const MOST_AHEAD: Seconds = DAY;
/// One second in nanoseconds.
const SECOND: i64 = 1_000_000_000;

/// Wall-clock time that never runs backwards. It is at least 2026-11-01, and at least the time that
/// [`Clock::not_before`] received. Machines without a battery-backed clock start in 1970, and that
/// time must not be used for quarantines and tokens.
///
/// If the machine's clock is set back, or starts behind the latest time in the store, this clock
/// runs at half speed until both agree. So nothing that has expired becomes valid again, nothing
/// waits forever, and the effect of a machine's clock that was ahead for hours does not last. If it
/// was ahead for longer than nodes' certificates are valid, this clock refuses them all for as
/// long; so [`StoredTime`] decides at the start whether the latest time in the store is believed.
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

/// Which times in the store are believed at the start, if the machine's clock is behind them.
#[derive(Debug, Clone, Copy)]
pub struct StoredTime {
    /// Seconds by which the stored time may be ahead of the machine's clock.
    pub most_ahead: Seconds,
    /// A stored time up to this one is dropped, because the operator says that it is wrong.
    pub wrong_up_to: Option<Seconds>,
}

impl Default for StoredTime {
    /// Believes every time.
    fn default() -> Self {
        Self { most_ahead: Seconds::MAX, wrong_up_to: None }
    }
}

/// The reason why the time in the store is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the latest time in the store is {}, and this machine's clock shows {}: either this clock is behind (set it, and start again), or a \
     controller ran with a clock that was ahead. In that case stop all replicas and start them with accept_clock = \"{}\", which drops \
     that time; with it, every node's certificate would be refused until then",
    rfc3339(*.stored), rfc3339(*.machine), rfc3339(*.stored)
)]
pub struct StoredTimeAhead {
    /// The time in the store.
    pub stored: Seconds,
    /// The time by the machine's clock.
    pub machine: Seconds,
}

impl StoredTime {
    /// Decides about the time in the store. Returns the machine's time if that replaces the stored
    /// one; `None` if the stored one is believed.
    ///
    /// # Errors
    /// Returns an error if the stored time is too far ahead and the operator has not said which of
    /// the two is wrong.
    pub fn judge(&self, clock: &Clock, stored: Seconds) -> Result<Option<Seconds>, StoredTimeAhead> {
        match clock.machine_time() {
            Some(machine) if stored.saturating_sub(machine) > self.most_ahead => match self.wrong_up_to {
                Some(wrong) if stored <= wrong => Ok(Some(machine)),
                _ => Err(StoredTimeAhead { stored, machine }),
            },
            _ => Ok(None),
        }
    }
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

    /// Returns the time by the machine's clock; `None` if that shows a time before the first
    /// release, and so is certainly wrong.
    pub fn machine_time(&self) -> Option<Seconds> {
        Some(self.machine() / SECOND).filter(|machine| *machine >= EARLIEST)
    }

    /// Returns by how many seconds this clock is ahead of the machine's; 0 if the machine's clock
    /// is certainly wrong.
    pub fn ahead(&self) -> Seconds {
        let now = self.now();
        self.machine_time().map_or(0, |machine| (now - machine).max(0))
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

/// Reads a time as RFC 3339; `None` if it is none.
pub fn parse_rfc3339(text: &str) -> Option<Seconds> {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text, format).ok().map(time::OffsetDateTime::unix_timestamp)
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
    fn a_stored_time_far_ahead_is_believed_only_without_a_valid_clock_and_dropped_only_by_name() {
        let (clock, rule) = (Clock::system(), StoredTime { most_ahead: 100, wrong_up_to: None });
        let machine = clock.machine_time().unwrap();
        let ahead = machine + 1000;
        assert_eq!(rule.judge(&clock, machine + 50), Ok(None));
        let error = rule.judge(&clock, ahead).unwrap_err().to_string();
        assert!(error.contains(&format!("accept_clock = \"{}\"", rfc3339(ahead))), "{error}");
        let wrong = |up_to| StoredTime { wrong_up_to: Some(up_to), ..rule };
        assert!(wrong(ahead).judge(&clock, ahead).unwrap().is_some());
        wrong(ahead).judge(&clock, ahead + 1).expect_err("another time than the operator named");
        clock.step(-machine);
        assert_eq!((rule.judge(&clock, ahead), clock.ahead()), (Ok(None), 0));
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(rfc3339(EARLIEST), "2026-11-01T00:00:00Z");
        assert_eq!(parse_rfc3339("2026-11-01T01:00:00+01:00"), Some(EARLIEST));
        assert_eq!(parse_rfc3339("tomorrow"), None);
    }
}
