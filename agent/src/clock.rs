//! Boot time for lifetimes, and the time of the world for certificates.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edge_ike::Instant;
use serde::{Deserialize, Serialize};

use crate::state_dir::{StateDir, StoreError};

/// Released after this moment: no clock before it is right. Seconds since 1970-01-01 UTC
/// (2026-11-01).
const RELEASE_TIME: u64 = 1_793_491_200;

/// Below the state directory.
const CLOCK_FILE: &str = "clock.json";

/// The time of the world on a device that may have no battery clock and wakes up in 1970: the
/// latest of the system's clock, the release of this program, and the last time that was known for
/// certain, carried on by the boot-time clock.
///
/// Only times that somebody authenticated has vouched for count as certain and are kept on disk.
/// The system's clock is not kept: one that once ran ahead would make every certificate look
/// expired for ever.
#[derive(Debug)]
pub struct WorldClock {
    floor: Mutex<Floor>,
}

#[derive(Debug, Clone, Copy)]
struct Floor {
    unix_time: u64,
    /// On the boot-time clock, when `unix_time` was the time.
    since: Duration,
}

impl Floor {
    fn now(self, boot: Duration) -> u64 {
        self.unix_time.saturating_add(boot.saturating_sub(self.since).as_secs())
    }
}

#[derive(Serialize, Deserialize)]
struct ClockFile {
    /// Seconds since 1970-01-01 UTC.
    unix_time: u64,
}

impl Default for WorldClock {
    fn default() -> Self {
        Self { floor: Mutex::new(Floor { unix_time: RELEASE_TIME, since: since_boot() }) }
    }
}

impl WorldClock {
    /// Seconds since 1970-01-01 UTC, never before the floor.
    pub fn unix_time(&self) -> u64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.certain().max(system)
    }

    /// What the system's clock, which the kernel's times are of, shows at this time of the world,
    /// if nobody sets it.
    pub fn on_the_systems_clock(&self, unix_time: u64) -> u64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        unix_time.saturating_sub(self.certain().saturating_sub(system))
    }

    /// Raises the floor: a time that was certainly reached (kept on disk, said by the authenticated
    /// controller, or the beginning of our certificate).
    pub fn raise(&self, unix_time: u64) {
        let boot = since_boot();
        let mut floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        if unix_time > floor.now(boot) {
            *floor = Floor { unix_time, since: boot };
        }
    }

    /// Raises the floor to the time kept in `state`. A damaged file counts for nothing: it is
    /// written anew.
    pub fn raise_to_kept(&self, state: &StateDir) {
        match state.read_json::<ClockFile>(CLOCK_FILE, "it is written anew") {
            Ok(Some(kept)) => self.raise(kept.unix_time),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the last known time is lost"),
        }
    }

    /// Keeps in `state` what is known for certain.
    pub fn keep(&self, state: &StateDir) -> Result<(), StoreError> {
        state.write_json(CLOCK_FILE, &ClockFile { unix_time: self.certain() })
    }

    fn certain(&self) -> u64 {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner).now(since_boot())
    }
}

/// Now on CLOCK_BOOTTIME, which goes on while the machine sleeps and which nobody can set.
pub fn boot_time() -> Instant {
    Instant::new(since_boot())
}

/// Through the C library: rustix's `clock_gettime` panics where the kernel offers no vDSO
/// (User-Mode Linux).
#[allow(unsafe_code)]
fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec of ours, which the call fills. It cannot fail: every kernel since
    // 2.6.39 knows this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = 4_000_000_000;

    #[test]
    fn the_floor_only_rises_and_runs_on() {
        let clock = WorldClock::default();
        clock.raise(FAR);
        clock.raise(5);
        assert!(clock.unix_time() >= FAR);
        let floor = Floor { unix_time: FAR, since: Duration::from_secs(10) };
        assert_eq!(floor.now(Duration::from_secs(70)), FAR + 60);
    }

    #[test]
    fn a_time_once_known_for_certain_survives_the_loss_of_power() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let clock = WorldClock::default();
        clock.raise(FAR);
        clock.keep(&state).unwrap();
        let after = WorldClock::default();
        after.raise_to_kept(&state);
        assert!(after.unix_time() >= FAR);
    }

    #[test]
    fn the_systems_clock_is_not_kept_since_it_may_run_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        WorldClock { floor: Mutex::new(Floor { unix_time: 1_000, since: since_boot() }) }.keep(&state).unwrap();
        let kept: ClockFile = state.read_json(CLOCK_FILE, "").unwrap().unwrap();
        assert!(kept.unix_time < 1_000_000, "{}", kept.unix_time);
    }

    #[test]
    fn a_damaged_clock_file_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        state.write(CLOCK_FILE, b"\0\0\0\0").unwrap();
        let clock = WorldClock::default();
        clock.raise_to_kept(&state);
        clock.keep(&state).unwrap();
        assert!(clock.unix_time() >= RELEASE_TIME);
    }

    #[test]
    fn a_time_of_the_world_is_earlier_on_a_clock_that_runs_behind() {
        let clock = WorldClock::default();
        clock.raise(FAR);
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let on_it = clock.on_the_systems_clock(FAR + 5);
        assert!((system..system + 10).contains(&on_it), "{on_it} at {system}");
        assert_eq!(WorldClock::default().on_the_systems_clock(5), 5);
    }

    #[test]
    fn boot_time_does_not_run_backwards() {
        let first = boot_time();
        assert!(boot_time() >= first);
    }
}
