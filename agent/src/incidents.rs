//! What had to be repaired, what of others was met, what went wrong: in the log and, the latest, in
//! `status`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How many entries are kept.
const KEPT: usize = 200;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, RFC 3339.
    pub at: String,
    /// What kind of thing.
    pub kind: Kind,
    /// What, in words.
    pub what: String,
    /// How often in a row.
    pub times: u32,
}

/// Kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something of ours was missing or changed, and was restored.
    Repaired,
    /// Something of another program stands where ours should; it was left alone.
    Foreign,
    /// Something could not be done.
    Error,
}

/// Shared by the parts of the agent.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<VecDeque<Entry>>>);

impl Journal {
    /// Notes that something was missing and has been restored.
    pub fn repaired(&self, what: impl Into<String>) {
        self.note(Kind::Repaired, what.into());
    }

    /// Notes that another program's thing is in the way.
    pub fn foreign(&self, what: impl Into<String>) {
        self.note(Kind::Foreign, what.into());
    }

    /// Notes that something could not be done.
    pub fn error(&self, what: impl Into<String>) {
        self.note(Kind::Error, what.into());
    }

    /// The latest entries, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn note(&self, kind: Kind, what: String) {
        let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is tried again and again is told once, and counted.
        if let Some(same) = entries.iter_mut().rev().take(8).find(|entry| entry.kind == kind && entry.what == what) {
            same.at = at;
            same.times = same.times.saturating_add(1);
            return;
        }
        match kind {
            Kind::Repaired => tracing::warn!("repaired: {what}"),
            Kind::Foreign => tracing::warn!("in the way: {what}"),
            Kind::Error => tracing::error!("{what}"),
        }
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(Entry { at, kind, what, times: 1 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_counted_and_the_oldest_forgotten() {
        let journal = Journal::default();
        journal.error("no uplink");
        journal.error("no uplink");
        assert_eq!(journal.entries()[0].times, 2);
        for n in 0..KEPT + 5 {
            journal.repaired(format!("route {n}"));
        }
        assert_eq!(journal.entries().len(), KEPT);
        assert!(journal.entries().iter().all(|entry| entry.kind == Kind::Repaired));
    }
}
