//! Incidents: repairs, conflicts with other programs, and errors. They are logged, and `status`
//! shows the latest ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Maximum number of incidents that are kept.
const MAX_INCIDENTS: usize = 200;

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
pub struct Incidents(Arc<Mutex<VecDeque<Incident>>>);

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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn record(&self, kind: IncidentKind, what: String) {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let mut incidents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A repeated incident is counted, but not logged again.
        if let Some(same) =
            incidents.iter_mut().rev().take(8).find(|incident| incident.kind == kind && incident.what == what)
        {
            same.at = at;
            same.times = same.times.saturating_add(1);
            return;
        }
        match kind {
            IncidentKind::Repaired => tracing::warn!("repaired: {what}"),
            IncidentKind::Foreign => tracing::warn!("in the way: {what}"),
            IncidentKind::Error => tracing::error!("{what}"),
        }
        if incidents.len() == MAX_INCIDENTS {
            incidents.pop_front();
        }
        incidents.push_back(Incident { at, kind, what, times: 1 });
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
}
