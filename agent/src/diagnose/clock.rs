//! Compares the system clock with the controller's.

use crate::check::{Level, Report};
use crate::clock::ClockReadings;
use crate::membership::ControllerStatus;

/// Difference between the system clock and the controller's, in seconds, up to which nothing is
/// wrong: the controller's time is accurate to about two seconds, and certificates begin an hour
/// before they are issued.
const TOLERANCE: u64 = 60;
const REMEDY: &str = "set the clock, for example with `timedatectl set-ntp true`";

/// Reports how the system clock differs from the controller's, or from the last time that is known
/// for certain, and what that means for certificates.
pub(super) fn judge(report: &mut Report, readings: ClockReadings, controller: Option<&ControllerStatus>) {
    let ClockReadings { system, certificates, controller: said } = readings;
    let (level, what) = match said {
        Some(said) if system.abs_diff(said) <= TOLERANCE => {
            (Level::Ok, format!("{} s off the controller's", system.abs_diff(said)))
        }
        Some(said) if system < said => (
            Level::Warning,
            format!(
                "{} behind the controller's: certificates are judged by the controller's time, so tunnels go on, but logs and `status` \
                 show wrong times; {REMEDY}",
                words(said - system)
            ),
        ),
        Some(said) => ahead(system, said, controller),
        // Certificates are judged by the latest of several times, one of which is the system clock.
        None if certificates > system.saturating_add(TOLERANCE) => (
            Level::Warning,
            format!(
                "at least {} behind: the time once known for certain is later; certificates are judged by that time; {REMEDY}",
                words(certificates - system)
            ),
        ),
        None if controller.is_some() => {
            (Level::Ok, "not compared: no controller has answered since the agent started".to_owned())
        }
        None => (Level::Ok, "not compared: no controller has told this node the time".to_owned()),
    };
    report.add(level, "clock", what);
}

/// Describes a system clock that runs ahead. No other time corrects it, because a clock that runs
/// behind must not make an expired certificate valid.
fn ahead(system: u64, said: u64, controller: Option<&ControllerStatus>) -> (Level, String) {
    let by = words(system - said);
    let ends = controller.and_then(|controller| u64::try_from(controller.certificate_not_after?).ok());
    match ends {
        Some(ends) if ends < system => (
            Level::Error,
            format!(
                "{by} ahead of the controller's: this node's certificate has ended by it, so no tunnel and no connection to the controller \
                 comes up; {REMEDY}"
            ),
        ),
        _ => (
            Level::Warning,
            format!(
                "{by} ahead of the controller's: certificates of peers and of the controller look ended by that much too early; {REMEDY}"
            ),
        ),
    }
}

/// Returns a duration, in seconds, in its two largest units.
fn words(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else {
        format!("{minutes} min {} s", seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn judged(system: u64, said: Option<u64>, certificate_ends: Option<u64>) -> (Level, String) {
        let readings = ClockReadings { system, certificates: system.max(NOW), controller: said };
        let controller = certificate_ends.map(|ends| ControllerStatus {
            certificate_not_after: Some(i64::try_from(ends).unwrap()),
            ..ControllerStatus::default()
        });
        let mut report = Report::default();
        judge(&mut report, readings, controller.as_ref());
        let finding = report.iter().next().unwrap();
        (finding.level, finding.what.clone())
    }

    #[test]
    fn the_difference_from_the_controllers_clock_is_named_with_what_it_means() {
        let day = 86_400;
        let ends = Some(NOW + 30 * day);
        for (system, said, ends, level, words) in [
            (NOW + 7, Some(NOW), ends, Level::Ok, "7 s off the controller's"),
            (NOW - 60, Some(NOW), ends, Level::Ok, "60 s off the controller's"),
            (NOW - 61, Some(NOW), ends, Level::Warning, "1 min 1 s behind the controller's: certificates are judged"),
            (5, Some(NOW), ends, Level::Warning, "20833 d 7 h behind the controller's"),
            (
                NOW + 3 * day,
                Some(NOW),
                ends,
                Level::Warning,
                "3 d 0 h ahead of the controller's: certificates of peers",
            ),
            (NOW + 3 * day, Some(NOW), None, Level::Warning, "3 d 0 h ahead"),
            (
                NOW + 31 * day,
                Some(NOW),
                ends,
                Level::Error,
                "31 d 0 h ahead of the controller's: this node's certificate",
            ),
            (NOW - 7200, None, ends, Level::Warning, "at least 2 h 0 min behind"),
            (NOW + 9 * day, None, ends, Level::Ok, "no controller has answered since"),
            (NOW, None, None, Level::Ok, "no controller has told this node the time"),
            (u64::MAX, Some(0), ends, Level::Error, "ahead of the controller's"),
        ] {
            let (found, what) = judged(system, said, ends);
            assert!(found == level && what.contains(words), "{system} {said:?}: {found:?} {what}");
        }
    }
}
