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

const YEAR: u64 = 365 * 24 * 3600;

/// A node whose certificate ends at `FAR` + 600 and is accepted until `FAR` + 1,000. The boot
/// was at `FAR`.
fn known() -> KnownTimes {
    let baseline = Floor { unix_time: FAR, since: Duration::ZERO };
    KnownTimes { certificate_ends: Some(FAR + 600), grace: 400, ..KnownTimes::from(baseline) }
}

/// Returns the time at `system`, `boot` seconds after the boot.
fn time(known: &mut KnownTimes, system: u64, boot: u64) -> u64 {
    let boot = Duration::from_secs(boot);
    known.observe(system, false, boot);
    known.now(system, boot)
}

/// The same with a system clock that a time service has synchronised.
fn synchronised_time(known: &mut KnownTimes, system: u64, boot: u64) -> u64 {
    let boot = Duration::from_secs(boot);
    known.observe(system, true, boot);
    known.now(system, boot)
}

#[test]
fn a_clock_that_was_wrong_at_boot_is_no_witness_against_a_time_service() {
    let mut known = known();
    // Restored from disk: the node was off for a year, and its certificate has ended since.
    assert_eq!(time(&mut known, FAR + 100, 100), FAR + 100);
    assert_eq!(time(&mut known, FAR + YEAR, 110), FAR + 110, "somebody has set the clock by hand");
    assert_eq!(synchronised_time(&mut known, FAR + YEAR, 120), FAR + YEAR);
    assert_eq!(time(&mut known, FAR + YEAR, 130), FAR + YEAR, "the first clock stays refuted");
}

#[test]
fn a_time_service_that_is_certainly_wrong_refutes_nothing() {
    let mut known = known();
    assert_eq!(time(&mut known, FAR + 100, 100), FAR + 100);
    synchronised_time(&mut known, 1, 110);
    assert_eq!(time(&mut known, FAR + YEAR, 120), FAR + 120);
}

#[test]
fn a_synchronised_clock_is_a_witness_against_every_later_step() {
    let mut known = known();
    assert_eq!(synchronised_time(&mut known, FAR + 100, 100), FAR + 100);
    assert_eq!(synchronised_time(&mut known, FAR + 10 * YEAR, 110), FAR + 110);
    assert_eq!(time(&mut known, FAR + 10 * YEAR, 120), FAR + 120);
    assert_eq!(time(&mut known, FAR + 130, 130), FAR + 130);
    assert_eq!(synchronised_time(&mut known, FAR + 10 * YEAR, 140), FAR + 140, "it is still the same witness");
}

#[test]
fn a_certificate_that_the_controller_refuses_as_ended_refutes_the_system_clock_and_no_controller() {
    let mut known = known();
    time(&mut known, FAR + 100, 100);
    known.ended_by_controller();
    assert_eq!(time(&mut known, FAR + YEAR, 110), FAR + YEAR);
    let mut known = self::known();
    known.hear(FAR + 100, Duration::from_secs(100));
    known.ended_by_controller();
    assert_eq!(time(&mut known, FAR + YEAR, 110), FAR + 110);
}

#[test]
fn a_witness_has_the_same_source_after_a_restart_of_the_agent() {
    let boot = Duration::from_secs(200);
    for source in [WitnessSource::SystemClock, WitnessSource::Synchronised, WitnessSource::Controller] {
        let time = Floor { unix_time: FAR, since: Duration::from_secs(100) };
        let written = serde_json::to_vec(&WitnessRecord::new(Witness { time, source }, "boot".into())).unwrap();
        let read: WitnessRecord = serde_json::from_slice(&written).unwrap();
        assert_eq!(read.read("boot", boot).map(|witness| witness.source), Some(source));
    }
}

#[test]
fn a_system_clock_that_is_set_ten_years_ahead_and_back_changes_nothing() {
    for heard in [false, true] {
        let mut known = known();
        assert_eq!(time(&mut known, FAR + 100, 100), FAR + 100);
        if heard {
            known.hear(FAR + 105, Duration::from_secs(105));
        }
        assert_eq!(time(&mut known, FAR + 110 + 10 * YEAR, 110), FAR + 110);
        assert_eq!(time(&mut known, FAR + 120, 120), FAR + 120);
        assert_eq!(time(&mut known, 120, 130), FAR + 130, "set back to 1970");
    }
}

#[test]
fn a_system_clock_that_is_set_back_to_1970_does_not_make_newer_certificates_invalid() {
    let mut known = known();
    assert_eq!(time(&mut known, FAR + 300, 10), FAR + 300);
    assert_eq!(time(&mut known, 5, 20), FAR + 310);
}

#[test]
fn a_certificate_ends_by_the_boot_time_clock_although_the_system_clock_is_wrong() {
    let mut known = known();
    time(&mut known, FAR + 100, 100);
    assert_eq!(time(&mut known, FAR + YEAR, 1_000), FAR + 1_000);
    assert_eq!(time(&mut known, FAR + YEAR, 1_001), FAR + YEAR, "both clocks say that it has ended");
    known.hear(FAR + 1_000, Duration::from_secs(1_002));
    assert_eq!(time(&mut known, FAR + YEAR, 1_011), FAR + 1_011, "the controller's time counts in any case");
}

#[test]
fn without_a_witness_the_system_clock_is_believed() {
    let mut known = known();
    assert_eq!(time(&mut known, FAR + YEAR, 10), FAR + YEAR);
    // A device without a battery clock boots in 1970, and NTP sets its clock weeks later than
    // the last known time: it was off for that long.
    let mut known = self::known();
    assert_eq!(time(&mut known, 5, 5), FAR + 5);
    assert_eq!(time(&mut known, FAR + YEAR, 15), FAR + YEAR);
}

#[test]
fn a_system_clock_that_is_two_days_ahead_of_the_controllers_may_be_right() {
    let mut known = KnownTimes { certificate_ends: Some(FAR + YEAR), ..known() };
    known.hear(FAR, Duration::ZERO);
    assert_eq!(time(&mut known, FAR + AHEAD, 0), FAR + AHEAD);
    assert_eq!(time(&mut known, FAR + AHEAD + 1, 0), FAR, "but no further");
    // A controller that is behind the baseline is wrong, and no witness.
    let mut known = KnownTimes { witness: None, ..known };
    known.hear(FAR - TOLERANCE - 1, Duration::ZERO);
    assert_eq!(time(&mut known, FAR + YEAR / 2, 0), FAR + YEAR / 2);
}

#[test]
fn a_witness_counts_after_a_restart_of_the_agent_but_not_after_a_reboot() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::open(directory.path()).unwrap();
    let now = system_time();
    // By the system clock, the certificate ended yesterday.
    let restarted = || {
        let clock = CertificateClock::default();
        clock.load_floor(&state);
        clock.set_own_validity(RELEASE_TIME, now - AHEAD);
        clock
    };
    let clock = restarted();
    assert!(clock.unix_time() >= now && clock.readings().fault().is_none());
    assert!(clock.time_if_ahead().is_some_and(|time| time < now - AHEAD));
    clock.controller_said(now - 2 * AHEAD);
    assert!(clock.unix_time() < now - AHEAD);
    let fault = clock.readings().fault().unwrap();
    assert!(fault.starts_with("this node's clock is wrong: it says 20"), "{fault}");
    assert_eq!(clock.time_if_ahead(), None);
    clock.save_floor(&state).unwrap();
    assert!(restarted().unix_time() < now - AHEAD);
    assert_eq!(restarted().is_witnessed_by_controller(), Some(true));
    let mut kept: ClockFile = state.read_json(CLOCK_FILE, "").unwrap().unwrap();
    kept.witness.as_mut().unwrap().at.boot_id = "another boot".into();
    state.write_json(CLOCK_FILE, &kept).unwrap();
    assert!(restarted().unix_time() >= now);
    // A file of an earlier release has no witness.
    state.write(CLOCK_FILE, br#"{"unix_time": 5}"#).unwrap();
    assert!(restarted().unix_time() >= now);
}

#[test]
fn a_system_clock_that_is_behind_is_a_fault_in_words() {
    let readings = |system, certificates| ClockReadings { system, certificates, controller: None };
    let fault = readings(5, FAR).fault().unwrap();
    assert!(fault.contains("it says 1970-01-01T00:00:05Z, and it is 2096-10-02T07:06:40Z or later"), "{fault}");
    assert_eq!(readings(FAR, FAR + TOLERANCE).fault(), None);
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
    let system = system_time();
    let converted = clock.to_system_clock(FAR + 5);
    assert!((system..system + 10).contains(&converted), "{converted} at {system}");
    assert_eq!(CertificateClock::default().to_system_clock(5), 5);
}

#[test]
fn boot_time_does_not_run_backwards() {
    let first = boot_time();
    assert!(boot_time() >= first);
}
