//! Time as the owner passes it.

use std::time::Duration;

/// A point in time on the owner's monotonic clock, as time since any fixed start. The agent uses
/// CLOCK_BOOTTIME, so that time counts while the machine is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(Duration);

impl Instant {
    /// The point `since_start` after the clock's start.
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Time since the clock's start.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to this point; zero if `earlier` is later.
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
/// since `since`, or unchanged if no whole second lies between them. Deadlines of many owners thus
/// fall on few distinct times.
pub(crate) fn on_whole_second(since: Instant, interval: Duration) -> Instant {
    let due = since + interval;
    let second = Instant::new(Duration::from_secs(due.since_start().as_secs()));
    if second > since { second } else { due }
}
