//! Time, as passed by the owner.

use std::time::Duration;

/// A point in time on the owner's monotonic clock, as the time since an arbitrary fixed start. The
/// agent uses CLOCK_BOOTTIME, so the time continues while the machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(Duration);

impl Instant {
    /// Returns the point `since_start` after the clock's start.
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Returns the time since the clock's start.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Returns the time from `earlier` to this point, or zero if `earlier` is later.
    pub const fn saturating_since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Returns the time at which `interval` after `since` is over, moved back to the last whole second
/// since `since`, or unchanged if no whole second lies between them. As a result, the deadlines of
/// many owners share few distinct times.
pub(crate) fn on_whole_second(since: Instant, interval: Duration) -> Instant {
    let due = since + interval;
    let second = Instant::new(Duration::from_secs(due.since_start().as_secs()));
    if second > since { second } else { due }
}
