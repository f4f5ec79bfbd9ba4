//! Time, as passed by the owner.

use std::num::NonZeroU64;
use std::time::Duration;

/// A point in time on the owner's monotonic clock, as the time since an arbitrary fixed start. The
/// agent uses CLOCK_BOOTTIME, so the time continues while the machine is suspended.
///
/// Fractions of a microsecond are dropped, and times beyond half a million years are all the same:
/// there are dozens of points for each tunnel, and each takes eight octets this way, also as an
/// `Option`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(
    /// Microseconds since the start, and one more.
    NonZeroU64,
);

impl Instant {
    /// Returns the point `since_start` after the clock's start.
    pub const fn new(since_start: Duration) -> Self {
        Self(NonZeroU64::MIN.saturating_add(micros(since_start)))
    }

    /// Returns the time since the clock's start.
    pub const fn since_start(self) -> Duration {
        Duration::from_micros(self.0.get().saturating_sub(1))
    }

    /// Returns the time from `earlier` to this point, or zero if `earlier` is later.
    pub const fn saturating_since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.get().saturating_sub(earlier.0.get()))
    }
}

const fn micros(time: Duration) -> u64 {
    let micros = time.as_micros();
    if micros > u64::MAX as u128 { u64::MAX } else { micros as u64 }
}

impl Default for Instant {
    fn default() -> Self {
        Self::new(Duration::ZERO)
    }
}

impl std::fmt::Debug for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instant({:?})", self.since_start())
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(micros(time)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_takes_eight_octets_and_keeps_its_microseconds() {
        assert_eq!((size_of::<Instant>(), size_of::<Option<Instant>>()), (8, 8));
        for micros in [0, 1, 999_999, 1_000_001, u64::from(u32::MAX) * 1_000_000] {
            let time = Duration::from_micros(micros);
            assert_eq!(Instant::new(time).since_start(), time);
            assert_eq!((Instant::default() + time).saturating_since(Instant::default()), time);
        }
        assert_eq!(Instant::default().saturating_since(Instant::new(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(format!("{:?}", Instant::new(Duration::from_millis(1500))), "Instant(1.5s)");
    }

    #[test]
    fn the_end_of_time_is_not_exceeded() {
        let end = Instant::new(Duration::MAX);
        assert_eq!(end + Duration::from_secs(1), end);
        assert!(end > Instant::new(Duration::from_secs(1 << 43)));
    }
}
