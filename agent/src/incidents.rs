//! Incidents: repairs, conflicts with other programs, and errors. They are logged, and `status`
//! shows the latest ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Maximum number of incidents that are kept.
const MAX_INCIDENTS: usize = 200;
/// Minimum time since the last occurrence of an incident for its next occurrence to be logged.
const QUIET: Duration = Duration::from_secs(600);

/// Maximum number of incidents that are logged in each [`LOG_PERIOD`]. Further ones are only
/// counted, and listed by `status`: a failure of the kernel may concern each of thousands of peers.
const MAX_LINES: u32 = 30;
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// An unexpected change or a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Time of the last occurrence, RFC 3339.
    pub at: String,
    /// Whether an object was repaired, an object was left to its owner, or an operation failed.
    pub kind: IncidentKind,
    /// Description, which names the peer or the object.
    pub what: String,
    /// Number of occurrences that were merged into this incident.
    pub times: u32,
}

/// The agent's reaction to an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncidentKind {
    /// One of the agent's policies, routes or similar objects was missing or changed, and was
    /// restored.
    Repaired,
    /// Another program's policy or route is in the place of the agent's, and was left unchanged.
    Foreign,
    /// An operation failed. The agent repeats it at the next change or check.
    Error,
}

/// The latest incidents, shared by the agent's parts.
#[derive(Debug, Clone, Default)]
pub struct Incidents(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    recorded: VecDeque<Recorded>,
    lines: Lines,
}

/// The log lines of the present period.
#[derive(Debug, Default)]
struct Lines {
    begun: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl Lines {
    /// Returns whether another incident may be logged, and after a period in which some were not,
    /// their number.
    fn take(&mut self, now: Instant) -> (bool, Option<u64>) {
        let mut left_out = None;
        if self.begun.is_none_or(|begun| now.duration_since(begun) >= LOG_PERIOD) {
            left_out = Some(self.left_out).filter(|number| *number > 0);
            *self = Self { begun: Some(now), ..Self::default() };
        }
        let may = self.logged < MAX_LINES;
        if may {
            self.logged += 1;
        } else {
            self.left_out += 1;
        }
        (may, left_out)
    }
}

#[derive(Debug)]
struct Recorded {
    incident: Incident,
    last: Instant,
}

impl Incidents {
    /// Records that an object was missing or changed and is restored.
    pub fn repaired(&self, what: impl Into<String>) {
        self.record(IncidentKind::Repaired, what.into());
    }

    /// Records that another program's object is in the place of the agent's.
    pub fn foreign(&self, what: impl Into<String>) {
        self.record(IncidentKind::Foreign, what.into());
    }

    /// Records that an operation failed.
    pub fn error(&self, what: impl Into<String>) {
        self.record(IncidentKind::Error, what.into());
    }

    /// Returns the latest incidents, oldest first.
    pub fn latest(&self) -> Vec<Incident> {
        self.state().recorded.iter().map(|recorded| recorded.incident.clone()).collect()
    }

    fn record(&self, kind: IncidentKind, what: String) {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let now = Instant::now();
        let mut state = self.state();
        let State { recorded, lines } = &mut *state;
        // A repeated incident is counted and becomes the latest. It is logged again only after
        // `QUIET` without an occurrence, regardless of how many other incidents occur in between.
        let same =
            recorded.iter().rposition(|Recorded { incident, .. }| incident.kind == kind && incident.what == what);
        let former = same.and_then(|position| recorded.remove(position));
        if former.as_ref().is_none_or(|former| now.duration_since(former.last) >= QUIET) {
            let (may, left_out) = lines.take(now);
            if let Some(number) = left_out {
                tracing::warn!("{number} incidents were not logged; `edge-agent status` lists the latest");
            }
            match kind {
                _ if !may => tracing::debug!("{what}"),
                IncidentKind::Repaired => tracing::warn!("repaired: {what}"),
                IncidentKind::Foreign => tracing::warn!("in the way: {what}"),
                IncidentKind::Error => tracing::error!("{what}"),
            }
        }
        if recorded.len() == MAX_INCIDENTS {
            recorded.pop_front();
        }
        let times = former.map_or(0, |former| former.incident.times).saturating_add(1);
        recorded.push_back(Recorded { incident: Incident { at, kind, what, times }, last: now });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_counted_and_the_oldest_dropped() {
        let incidents = Incidents::default();
        incidents.error("no uplink");
        incidents.error("no uplink");
        assert_eq!(incidents.latest()[0].times, 2);
        for n in 0..MAX_INCIDENTS + 5 {
            incidents.repaired(format!("route {n}"));
        }
        assert_eq!(incidents.latest().len(), MAX_INCIDENTS);
        assert!(incidents.latest().iter().all(|incident| incident.kind == IncidentKind::Repaired));
    }

    #[test]
    fn a_bounded_number_of_incidents_is_logged_and_the_others_are_counted() {
        let (mut lines, begun) = (Lines::default(), Instant::now());
        let first: Vec<_> = (0..1000).map(|_| lines.take(begun)).collect();
        assert_eq!(first.iter().filter(|(may, _)| *may).count(), 30);
        assert!(first.iter().all(|(_, left_out)| left_out.is_none()));
        assert_eq!(lines.take(begun + LOG_PERIOD), (true, Some(970)));
        assert_eq!(lines.take(begun + LOG_PERIOD), (true, None));
    }

    #[test]
    fn many_incidents_that_recur_in_turn_are_counted_not_listed_again() {
        let incidents = Incidents::default();
        for _ in 0..10 {
            for n in 0..MAX_INCIDENTS {
                incidents.foreign(format!("policy {n}"));
            }
        }
        let latest = incidents.latest();
        assert_eq!(latest.len(), MAX_INCIDENTS);
        assert!(latest.iter().all(|incident| incident.times == 10), "{latest:?}");
    }
}
