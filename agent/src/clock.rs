//! Boot time for lifetimes, and the time of the world for certificates.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edge_ike::Instant;
use rustix::time::{ClockId, clock_gettime};

/// Released after this moment: no clock before it is right. Seconds since 1970-01-01 UTC (2026-11-01).
const RELEASE_TIME: u64 = 1_793_491_200;

/// The time of the world on a device that may have no battery clock: max(clock, release, last time kept on disk).
#[derive(Debug)]
pub struct WorldClock {
    floor: AtomicU64,
}

impl Default for WorldClock {
    fn default() -> Self {
        Self { floor: AtomicU64::new(RELEASE_TIME) }
    }
}

impl WorldClock {
    /// Seconds since 1970-01-01 UTC, never before the floor.
    pub fn unix_time(&self) -> u64 {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        clock.max(self.floor.load(Ordering::Relaxed))
    }

    /// Raises the floor: a time that was certainly reached once (kept on disk, or said by the authenticated controller).
    pub fn raise(&self, unix_time: u64) {
        self.floor.fetch_max(unix_time, Ordering::Relaxed);
    }
}

/// Now on CLOCK_BOOTTIME, which goes on while the machine sleeps and which nobody can set.
pub fn boot_time() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Instant::new(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_only_rises() {
        let clock = WorldClock::default();
        let far = 4_000_000_000;
        clock.raise(far);
        clock.raise(5);
        assert_eq!(clock.unix_time(), far);
    }

    #[test]
    fn boot_time_does_not_run_backwards() {
        let first = boot_time();
        assert!(boot_time() >= first);
    }
}
