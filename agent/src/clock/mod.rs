//! The clocks: boot time for lifetimes, and wall-clock time for certificates.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_ike::Instant;
use serde::{Deserialize, Serialize};

use crate::state_dir::{StateDir, StateDirError, read_json};

/// A lower bound of the current time, in seconds since 1970-01-01 UTC (2026-11-01). This release
/// was built later than that.
const RELEASE_TIME: u64 = 1_793_491_200;

/// Name of the file in the state directory with the baseline of [`CertificateClock`].
const CLOCK_FILE: &str = "clock.json";

/// A system clock that is further ahead of the controller's time is wrong, seconds. A smaller
/// difference may be the controller's fault, or that of one of its replicas.
const AHEAD: u64 = 2 * 24 * 3600;
/// Time by which the system clock or the controller's time may differ from another, seconds.
/// Certificates begin this much earlier than they are issued.
const TOLERANCE: u64 = 3600;

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
///
/// The system clock does not count if a witness of this boot contradicts it. The witness is the
/// controller's time, or before its first response the system clock itself at an earlier moment.
/// The boot-time clock, which nobody can set, says how much time has passed since. A system clock
/// that no time service had synchronised may have been wrong at that moment, for example restored
/// from disk on a device without a battery clock. It stops being the witness when a time service
/// synchronises the system clock, or when the controller says that this node's certificate has
/// ended. The system clock is wrong in two cases:
///
/// - It is more than [`AHEAD`] ahead of the controller's time.
/// - By it, the certificate of this node and its grace have ended, and by the witness they have
///   not. So the boot-time clock ends a certificate even if the system clock is wrong.
///
/// The file stores the witness too, for a restart of the agent in the same boot.
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
    witness: Option<Witness>,
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

    /// Returns the time without the system clock.
    fn floor(self, boot: Duration) -> u64 {
        self.baseline.now(boot).max(self.said.map_or(0, |said| said.now(boot)))
    }

    /// Returns the time by the witness if `system`, the time of the system clock, is wrong.
    fn corrected(self, system: u64, boot: Duration) -> Option<u64> {
        let witness = self.witness?;
        let now = witness.time.now(boot).max(self.floor(boot));
        let far = witness.source == WitnessSource::Controller && system > now.saturating_add(AHEAD);
        let ended = self.accepted_until().is_some_and(|end| system > end && now <= end);
        (far || ended).then_some(now)
    }

    fn now(self, system: u64, boot: Duration) -> u64 {
        if let Some(corrected) = self.corrected(system, boot) {
            return corrected;
        }
        let floor = self.floor(boot);
        // A clock that is certainly behind may have been right earlier in this boot.
        let witness = self.witness.filter(|_| system < floor).map_or(0, |witness| witness.time.now(boot));
        floor.max(system).max(witness)
    }

    /// Makes the system clock the witness, if there is no better one. A clock that is behind, as on
    /// a device without a battery clock, is none, whoever has set it: it will be set.
    fn observe(&mut self, system: u64, is_synchronised: bool, boot: Duration) {
        if system < self.floor(boot) {
            return;
        }
        let source = if is_synchronised { WitnessSource::Synchronised } else { WitnessSource::SystemClock };
        // A clock that is less certain than the witness changes nothing, and one that is more
        // certain refutes it.
        let before = self.witness.map_or(source, |witness| witness.source);
        if before > source {
            return;
        }
        self.witness.take_if(|_| before < source);
        let plausible = self.accepted_until().is_some_and(|end| system <= end);
        if plausible {
            self.witness = Some(Witness { time: Floor { unix_time: system, since: boot }, source });
        }
    }

    /// Forgets a witness that is not the controller, since the controller has refused this node's
    /// certificate as ended.
    fn ended_by_controller(&mut self) {
        self.witness.take_if(|witness| witness.source != WitnessSource::Controller);
    }

    /// Records the time in a response of the controller.
    fn hear(&mut self, unix_time: u64, boot: Duration) {
        let said = Floor { unix_time, since: boot };
        self.answered = Some(said);
        if self.accepted_until().is_some_and(|end| unix_time > end) {
            return;
        }
        self.said = Some(said);
        // A controller's clock that is behind the baseline is certainly wrong.
        if unix_time.saturating_add(TOLERANCE) >= self.baseline.now(boot) {
            self.witness = Some(Witness { time: said, source: WitnessSource::Controller });
        }
    }
}

impl From<Floor> for KnownTimes {
    fn from(baseline: Floor) -> Self {
        Self { baseline, said: None, answered: None, witness: None, certificate_ends: None, grace: 0 }
    }
}

/// The readings of the clocks at one moment, in seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReadings {
    /// The system clock.
    pub system: u64,
    /// The time by which certificates are judged. It is earlier than `system` only if the system
    /// clock is certainly ahead.
    pub certificates: u64,
    /// The controller's clock: the time in its last response, and the time that has passed since.
    /// Accurate to about two seconds. Absent if no response came since the agent started.
    pub controller: Option<u64>,
}

impl ClockReadings {
    /// Returns what is wrong with the system clock, and what follows; `None` if nothing is known to
    /// be wrong.
    pub fn fault(self) -> Option<String> {
        let Self { system, certificates, .. } = self;
        let far = system.abs_diff(certificates) > TOLERANCE;
        far.then(|| {
            format!(
                "this node's clock is wrong: it says {}, and it is {} or later; certificates are judged by that time, and tunnels go on; \
                 set the clock, for example with `timedatectl set-ntp true`",
                rfc3339(system),
                rfc3339(certificates)
            )
        })
    }
}

fn rfc3339(unix_time: u64) -> String {
    let time = i64::try_from(unix_time).ok().and_then(|time| time::OffsetDateTime::from_unix_timestamp(time).ok());
    let text = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_else(|| unix_time.to_string())
}

/// A time in this boot that does not depend on the present system clock.
#[derive(Debug, Clone, Copy)]
struct Witness {
    time: Floor,
    source: WitnessSource,
}

/// Where the time of a witness is from, the least certain first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum WitnessSource {
    /// The system clock, which no time service had synchronised.
    SystemClock,
    /// The system clock, synchronised by a time service such as NTP.
    Synchronised,
    Controller,
}

/// A time by the boot-time clock (CLOCK_BOOTTIME).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTime {
    /// The boot, from `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Seconds since that boot; negative for a time before the boot.
    pub seconds: i64,
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
    /// Absent in the files of earlier releases.
    #[serde(default)]
    witness: Option<WitnessRecord>,
}

/// A witness. It counts in its boot only.
#[derive(Serialize, Deserialize)]
struct WitnessRecord {
    /// Seconds since 1970-01-01 UTC.
    unix_time: u64,
    /// The boot-time clock at that time.
    at: BootTime,
    is_controller: bool,
    /// Whether a time service had synchronised the system clock. Absent in the files of earlier
    /// releases.
    #[serde(default)]
    is_synchronised: bool,
}

impl WitnessRecord {
    fn new(witness: Witness, boot_id: String) -> Self {
        let Witness { time: Floor { unix_time, since }, source } = witness;
        let (is_controller, is_synchronised) =
            (source == WitnessSource::Controller, source == WitnessSource::Synchronised);
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self { unix_time, at: BootTime { boot_id, seconds }, is_controller, is_synchronised }
    }

    /// Returns the witness if it is from the boot with this id, and not later than `boot`.
    fn read(self, boot_id: &str, boot: Duration) -> Option<Witness> {
        let since = Duration::from_secs(u64::try_from(self.at.seconds).ok()?);
        let same = !boot_id.is_empty() && self.at.boot_id == boot_id && since <= boot;
        let time = Floor { unix_time: self.unix_time, since };
        let source = match (self.is_controller, self.is_synchronised) {
            (true, _) => WitnessSource::Controller,
            (false, true) => WitnessSource::Synchronised,
            (false, false) => WitnessSource::SystemClock,
        };
        same.then_some(Witness { time, source })
    }
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
        let (system, boot) = (system_time(), since_boot());
        let mut known = self.known();
        known.observe(system, is_synchronised(), boot);
        known.now(system, boot)
    }

    /// Returns the time without the system clock, if the system clock says that this node's
    /// certificate and its grace have ended, and there is no witness. The system clock may be wrong
    /// then. The controller knows, so it must be reached.
    pub fn time_if_ahead(&self) -> Option<u64> {
        let (known, system, boot) = (*self.known(), system_time(), since_boot());
        let ended = known.accepted_until().is_some_and(|end| system > end);
        (ended && known.witness.is_none()).then(|| known.floor(boot))
    }

    /// Converts a time of this clock to the system clock, which the kernel's timestamps use. The
    /// result is correct as long as the system clock is not set. A system clock that is ahead is
    /// not considered: it may have been set ahead after the kernel wrote its timestamps.
    pub fn to_system_clock(&self, unix_time: u64) -> u64 {
        unix_time.saturating_sub(self.floor().saturating_sub(system_time()))
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

    /// Sets the time for which the controller and the peers accept this node's certificate after
    /// its end, in seconds.
    pub fn set_grace(&self, seconds: u64) {
        self.known().grace = seconds;
    }

    /// Records the time in a response of the authenticated controller. Ignores a time at which the
    /// controller would not have accepted this node's certificate.
    pub fn controller_said(&self, unix_time: u64) {
        self.known().hear(unix_time, since_boot());
    }

    /// Records that the authenticated controller has refused this node's certificate as ended. If
    /// only the system clock earlier in this boot said that it has not, that clock was wrong.
    pub fn controller_refused_as_ended(&self) {
        self.known().ended_by_controller();
    }

    /// Reads the clocks, for a comparison with the controller's.
    pub fn readings(&self) -> ClockReadings {
        let (system, boot) = (system_time(), since_boot());
        let known = *self.known();
        ClockReadings {
            system,
            certificates: known.now(system, boot),
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
        if let Some(ClockFile { unix_time, witness }) = kept {
            let boot = since_boot();
            let mut known = self.known();
            known.said = Some(Floor { unix_time, since: boot });
            known.witness = witness.and_then(|witness| witness.read(&boot_id(), boot));
        }
        Ok(())
    }

    /// Writes the later of the baseline and the controller's time to `clock.json`, and the witness.
    pub fn save_floor(&self, state: &StateDir) -> Result<(), StateDirError> {
        let witness = self.known().witness.map(|witness| WitnessRecord::new(witness, boot_id()));
        state.write_json(CLOCK_FILE, &ClockFile { unix_time: self.floor(), witness })
    }

    /// Returns whether the witness is the controller; `None` if there is no witness.
    pub fn is_witnessed_by_controller(&self) -> Option<bool> {
        self.known().witness.map(|witness| witness.source == WitnessSource::Controller)
    }

    fn floor(&self) -> u64 {
        self.known().floor(since_boot())
    }

    fn known(&self) -> MutexGuard<'_, KnownTimes> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the id of this boot; empty if it cannot be read.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn system_time() -> u64 {
    wall_time().as_secs()
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

/// Returns whether a time service such as NTP has synchronised the system clock (adjtimex(2)). The
/// kernel forgets it when somebody sets the clock.
#[allow(unsafe_code)]
fn is_synchronised() -> bool {
    // SAFETY: an all-zero timex is valid: it has integers only.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a local timex with no mode set, so the call only fills it. That needs no
    // privilege.
    let status = unsafe { libc::adjtimex(&raw mut state) };
    status >= 0 && status != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0
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
mod tests;
