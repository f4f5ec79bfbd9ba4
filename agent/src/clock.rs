//! The clocks: boot time for lifetimes, and wall-clock time for certificates.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edge_ike::Instant;
use serde::{Deserialize, Serialize};

use crate::state_dir::{StateDir, StateDirError, read_json};

/// A lower bound of the current time, in seconds since 1970-01-01 UTC (2026-11-01). This release
/// was built later than that.
const RELEASE_TIME: u64 = 1_793_491_200;

/// Name of the file in the state directory with the baseline of [`CertificateClock`].
const CLOCK_FILE: &str = "clock.json";

/// Wall-clock time for checking certificates, on devices that may have no battery clock and start
/// in 1970: the latest of the system clock, a baseline and the controller's time. The baseline and
/// the controller's time advance with the boot-time clock.
///
/// - The baseline is the release date or the notBefore of a certificate that our CA signed. It
///   never decreases.
/// - The controller's time is in each of its responses. The time in a response replaces the one
///   before, so a controller's clock that once ran ahead has no lasting effect. A time after the
///   notAfter of this node's certificate and the grace after it is ignored: a controller with a
///   correct clock would have refused the certificate.
///
/// The file stores the later of the baseline and the controller's time. The system clock changes
/// neither: otherwise, a system clock that once ran ahead would make every certificate look expired
/// from then on.
#[derive(Debug)]
pub struct CertificateClock {
    known: Mutex<KnownTimes>,
}

#[derive(Debug, Clone, Copy)]
struct KnownTimes {
    baseline: Floor,
    /// The time in the controller's last response; before the first response, the time in the file.
    said: Option<Floor>,
    /// The time in the controller's last response, even if it is ignored; `None` before the first
    /// response since the start.
    answered: Option<Floor>,
    /// notAfter of this node's certificate; `None` before it has one.
    certificate_ends: Option<u64>,
    /// Seconds for which the controller and the peers accept that certificate after its end.
    grace: u64,
}

impl KnownTimes {
    /// Returns the time until which this node's certificate is accepted.
    fn accepted_until(self) -> Option<u64> {
        self.certificate_ends.map(|end| end.saturating_add(self.grace))
    }

    fn now(self, boot: Duration) -> u64 {
        self.baseline.now(boot).max(self.said.map_or(0, |said| said.now(boot)))
    }
}

impl From<Floor> for KnownTimes {
    fn from(baseline: Floor) -> Self {
        Self { baseline, said: None, answered: None, certificate_ends: None, grace: 0 }
    }
}

/// The readings of the clocks at one moment, in seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReadings {
    /// The system clock.
    pub system: u64,
    /// The time by which certificates are judged: never earlier than `system`.
    pub certificates: u64,
    /// The controller's clock: the time in its last response, and the time that has passed since.
    /// Accurate to about two seconds. Absent if no response came since the agent started.
    pub controller: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Floor {
    unix_time: u64,
    /// The boot time at which the wall-clock time was `unix_time`.
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

impl Default for CertificateClock {
    fn default() -> Self {
        let baseline = Floor { unix_time: RELEASE_TIME, since: since_boot() };
        Self { known: Mutex::new(KnownTimes::from(baseline)) }
    }
}

impl CertificateClock {
    /// Returns the current time, in seconds since 1970-01-01 UTC.
    pub fn unix_time(&self) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "this clock is the one that reads it")]
        let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        self.floor().max(system)
    }

    /// Converts a time of this clock to the system clock, which the kernel's timestamps use. The
    /// result is correct as long as the system clock is not set.
    pub fn to_system_clock(&self, unix_time: u64) -> u64 {
        #[expect(clippy::disallowed_methods, reason = "this clock is the one that reads it")]
        let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        unix_time.saturating_sub(self.floor().saturating_sub(system))
    }

    /// Raises the baseline to a time that has certainly been reached: the notBefore of a
    /// certificate that our CA signed.
    pub fn raise_floor(&self, unix_time: u64) {
        let boot = since_boot();
        let mut known = self.known();
        if unix_time > known.baseline.now(boot) {
            known.baseline = Floor { unix_time, since: boot };
        }
    }

    /// Sets the validity of this node's certificate, in seconds since 1970-01-01 UTC. Raises the
    /// baseline to the start of the validity.
    pub fn set_own_validity(&self, not_before: u64, not_after: u64) {
        self.raise_floor(not_before);
        self.known().certificate_ends = Some(not_after);
    }

    /// Sets the time for which the controller and the peers accept this node's certificate after its
    /// end, in seconds.
    pub fn set_grace(&self, seconds: u64) {
        self.known().grace = seconds;
    }

    /// Records the time in a response of the authenticated controller. Ignores a time at which the
    /// controller would not have accepted this node's certificate.
    pub fn controller_said(&self, unix_time: u64) {
        let mut known = self.known();
        let answered = Floor { unix_time, since: since_boot() };
        known.answered = Some(answered);
        if known.accepted_until().is_none_or(|end| unix_time <= end) {
            known.said = Some(answered);
        }
    }

    /// Reads the clocks, for a comparison with the controller's.
    pub fn readings(&self) -> ClockReadings {
        let system = wall_time().as_secs();
        let boot = since_boot();
        let known = *self.known();
        ClockReadings {
            system,
            certificates: known.now(boot).max(system),
            controller: known.answered.map(|answered| answered.now(boot)),
        }
    }

    /// Reads the time in `clock.json`. It is used as the controller's time until a response brings
    /// another one. A damaged file is ignored.
    pub fn load_floor(&self, state: &StateDir) {
        if let Err(error) = self.read_floor(state.path()) {
            tracing::warn!(%error, "cannot read the last known time; using the system clock and the release date");
        }
    }

    /// Does the same without the lock on the state directory, for a diagnosis while no agent runs.
    pub fn read_floor(&self, state_dir: &Path) -> Result<(), StateDirError> {
        let kept: Option<ClockFile> = read_json(state_dir, CLOCK_FILE, "it is written again")?;
        if let Some(ClockFile { unix_time }) = kept {
            self.known().said = Some(Floor { unix_time, since: since_boot() });
        }
        Ok(())
    }

    /// Writes the later of the baseline and the controller's time to `clock.json`.
    pub fn save_floor(&self, state: &StateDir) -> Result<(), StateDirError> {
        state.write_json(CLOCK_FILE, &ClockFile { unix_time: self.floor() })
    }

    fn floor(&self) -> u64 {
        self.known().now(since_boot())
    }

    fn known(&self) -> MutexGuard<'_, KnownTimes> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns CLOCK_BOOTTIME, which includes the time in suspend and cannot be set (clock_gettime(2)).
pub fn boot_time() -> Instant {
    Instant::new(since_boot())
}

/// Returns the time of the system clock, since 1970-01-01 UTC, for timestamps that the operator
/// compares with other programs' timestamps. The system clock may be set at any time.
pub fn wall_time() -> Duration {
    read(libc::CLOCK_REALTIME)
}

/// Returns the CPU time that this thread has used.
pub fn thread_cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn since_boot() -> Duration {
    read(libc::CLOCK_BOOTTIME)
}

/// Reads a clock by calling the C library, since rustix's `clock_gettime` panics if the kernel has
/// no vDSO (User-Mode Linux).
#[allow(unsafe_code)]
fn read(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a local timespec, which the call fills. The call cannot fail, because every
    // kernel since 2.6.39 supports these clocks.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: u64 = 4_000_000_000;

    #[test]
    fn the_floor_only_rises_and_runs_on() {
        let clock = CertificateClock::default();
        clock.raise_floor(FAR);
        clock.raise_floor(5);
        assert!(clock.unix_time() >= FAR);
        let floor = Floor { unix_time: FAR, since: Duration::from_secs(10) };
        assert_eq!(floor.now(Duration::from_secs(70)), FAR + 60);
    }

    #[test]
    fn a_time_once_known_for_certain_survives_the_loss_of_power() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let clock = CertificateClock::default();
        clock.raise_floor(FAR);
        clock.save_floor(&state).unwrap();
        let after = CertificateClock::default();
        after.load_floor(&state);
        assert!(after.unix_time() >= FAR);
    }

    #[test]
    fn a_controllers_clock_that_ran_ahead_has_no_lasting_effect() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let clock = CertificateClock::default();
        clock.set_own_validity(FAR, FAR + 1_000);
        clock.controller_said(FAR + 800);
        assert!(clock.unix_time() >= FAR + 800, "the device has no clock of its own");
        clock.save_floor(&state).unwrap();
        // The agent restarts, and the controller's clock is corrected.
        let after = CertificateClock::default();
        after.load_floor(&state);
        after.set_own_validity(FAR, FAR + 1_000);
        assert!(after.unix_time() >= FAR + 800);
        after.controller_said(FAR + 10);
        assert!((FAR + 10..FAR + 100).contains(&after.unix_time()), "{}", after.unix_time());
        after.controller_said(FAR - 1_000);
        assert!(after.unix_time() >= FAR, "our certificate's notBefore has passed");
    }

    #[test]
    fn a_controllers_time_after_the_end_of_this_nodes_certificate_is_ignored() {
        let clock = CertificateClock::default();
        clock.set_own_validity(FAR, FAR + 1_000);
        clock.controller_said(FAR + 1_001);
        assert!(clock.unix_time() < FAR + 100, "{}", clock.unix_time());
        // The controller renews the certificate within the grace.
        clock.set_grace(500);
        clock.controller_said(FAR + 1_501);
        assert!(clock.unix_time() < FAR + 100, "{}", clock.unix_time());
        clock.controller_said(FAR + 1_400);
        assert!(clock.unix_time() >= FAR + 1_400, "{}", clock.unix_time());
    }

    #[test]
    fn the_systems_clock_is_not_kept_since_it_may_run_ahead() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let baseline = Floor { unix_time: 1_000, since: since_boot() };
        CertificateClock { known: Mutex::new(KnownTimes::from(baseline)) }.save_floor(&state).unwrap();
        let kept: ClockFile = state.read_json(CLOCK_FILE, "").unwrap().unwrap();
        assert!(kept.unix_time < 1_000_000, "{}", kept.unix_time);
    }

    #[test]
    fn the_readings_have_the_controllers_time_only_if_it_has_answered() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let clock = CertificateClock::default();
        assert_eq!(clock.readings().controller, None);
        clock.set_own_validity(FAR - 100, FAR);
        clock.controller_said(FAR + 500);
        let readings = clock.readings();
        assert!((FAR + 500..FAR + 600).contains(&readings.controller.unwrap()), "although certificates ignore it");
        assert!((FAR - 100..FAR).contains(&readings.certificates) && readings.system < FAR, "{readings:?}");
        clock.controller_said(FAR - 50);
        clock.save_floor(&state).unwrap();
        // A diagnosis while the agent does not run knows the time in the file as a lower bound.
        drop(state);
        let after = CertificateClock::default();
        after.read_floor(directory.path()).unwrap();
        assert_eq!(after.readings().controller, None);
        assert!(after.readings().certificates >= FAR - 50);
        assert!(CertificateClock::default().read_floor(&directory.path().join("none")).is_ok());
    }

    #[test]
    fn a_damaged_clock_file_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        state.write(CLOCK_FILE, b"\0\0\0\0").unwrap();
        let clock = CertificateClock::default();
        clock.load_floor(&state);
        clock.save_floor(&state).unwrap();
        assert!(clock.unix_time() >= RELEASE_TIME);
    }

    #[test]
    fn a_time_is_earlier_on_a_system_clock_that_runs_behind() {
        let clock = CertificateClock::default();
        clock.raise_floor(FAR);
        #[expect(clippy::disallowed_methods, reason = "this clock is the one that reads it")]
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let converted = clock.to_system_clock(FAR + 5);
        assert!((system..system + 10).contains(&converted), "{converted} at {system}");
        assert_eq!(CertificateClock::default().to_system_clock(5), 5);
    }

    #[test]
    fn boot_time_does_not_run_backwards() {
        let first = boot_time();
        assert!(boot_time() >= first);
    }
}
