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
        Some(said) if certificates < system => (
            Level::Warning,
            format!(
                "{} ahead of the controller's: certificates are judged by the controller's time, so tunnels go on, but logs and `status` \
                 show wrong times; {REMEDY}",
                words(system.saturating_sub(said))
            ),
        ),
        Some(said) => (
            Level::Warning,
            format!(
                "{} ahead of the controller's: certificates of peers and of the controller look ended by that much too early; {REMEDY}",
                words(system - said)
            ),
        ),
        None if system > certificates.saturating_add(TOLERANCE) => (
            Level::Warning,
            format!(
                "set {} ahead since this node started: certificates are judged without that, so tunnels go on; {REMEDY}",
                words(system - certificates)
            ),
        ),
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

    #[test]
    fn the_difference_from_the_controllers_clock_is_named_with_what_it_means() {
        let day = 86_400;
        let (level, warning) = (Level::Ok, Level::Warning);
        for (system, certificates, said, level, words) in [
            (NOW + 7, NOW + 7, Some(NOW), level, "7 s off the controller's"),
            (NOW - 60, NOW, Some(NOW), level, "60 s off the controller's"),
            (NOW - 61, NOW, Some(NOW), warning, "1 min 1 s behind the controller's: certificates are judged"),
            (5, NOW, Some(NOW), warning, "20833 d 7 h behind the controller's"),
            (NOW + day, NOW + day, Some(NOW), warning, "1 d 0 h ahead of the controller's: certificates of peers"),
            (NOW + 3 * day, NOW, Some(NOW), warning, "3 d 0 h ahead of the controller's: certificates are judged by"),
            (NOW - 7200, NOW, None, warning, "at least 2 h 0 min behind"),
            (NOW + 9 * day, NOW + 9 * day, None, level, "no controller has answered since"),
            (NOW + 9 * day, NOW, None, warning, "set 9 d 0 h ahead since this node started"),
            (u64::MAX, u64::MAX, Some(0), warning, "ahead of the controller's"),
        ] {
            let readings = ClockReadings { system, certificates, controller: said };
            let mut report = Report::default();
            judge(&mut report, readings, Some(&ControllerStatus::default()));
            let finding = report.iter().next().unwrap();
            assert!(finding.level == level && finding.what.contains(words), "{system} {said:?}: {}", finding.what);
        }
        let readings = ClockReadings { system: NOW, certificates: NOW, controller: None };
        let mut report = Report::default();
        judge(&mut report, readings, None);
        assert!(report.iter().next().unwrap().what.contains("no controller has told this node the time"));
    }
}
