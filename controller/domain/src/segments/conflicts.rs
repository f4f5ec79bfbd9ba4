//! Conflicts between what nodes say they hold and what they hold: kept in memory, for people.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_types::NodeName;

use super::claims::Conflict;

/// So many conflicts of one node are kept for people.
const NAMED: usize = 8;
/// So seldom new conflicts of one node are told, in the log and by an Event: a node may report
/// others at every moment.
const PAUSE: Duration = Duration::from_secs(60);

/// What nodes say they hold and do not: for people.
#[derive(Debug, Clone, Default)]
pub struct Conflicts(Arc<Mutex<BTreeMap<NodeName, Reported>>>);

/// Of one node, as of its last report.
#[derive(Debug, Default)]
struct Reported {
    /// At most [`NAMED`].
    conflicts: Vec<Conflict>,
    /// When new ones were last told. It outlives them: they may come and go with every report.
    told: Option<Instant>,
}

impl Reported {
    /// Whether one of `conflicts` is new, and at least [`PAUSE`] has passed since the last new one.
    fn are_news(&self, conflicts: &[Conflict], now: Instant) -> bool {
        let new = conflicts.iter().take(NAMED).any(|conflict| !self.conflicts.contains(conflict));
        new && self.told.is_none_or(|told| now.saturating_duration_since(told) >= PAUSE)
    }
}

impl Conflicts {
    /// Of one node.
    pub fn of(&self, node: &NodeName) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).into_iter().flat_map(|reported| &reported.conflicts).map(ToString::to_string).collect()
    }

    /// Forgets those of all but these nodes.
    pub fn retain(&self, kept: impl Fn(&NodeName) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| kept(node));
    }

    /// Whether [`Conflicts::note`] would return any of these conflicts of a node now.
    pub fn are_news(&self, node: &NodeName, conflicts: &[Conflict]) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).is_none_or(|reported| reported.are_news(conflicts, Instant::now()))
    }

    /// Notes all of one node; returns those to tell of now.
    pub fn note(&self, node: &NodeName, mut conflicts: Vec<Conflict>, now: Instant) -> Vec<Conflict> {
        conflicts.truncate(NAMED);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if conflicts.is_empty() && !all.contains_key(node) {
            return conflicts;
        }
        let reported = all.entry(node.clone()).or_default();
        let news = reported.are_news(&conflicts, now);
        reported.conflicts.clone_from(&conflicts);
        if !news {
            return Vec::new();
        }
        reported.told = Some(now);
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use edge_types::IpNetwork;

    use super::*;

    #[test]
    fn a_node_that_reports_other_conflicts_at_every_moment_is_told_of_once_a_minute() {
        let (conflicts, node) = (Conflicts::default(), "n".parse().unwrap());
        let foreign = |n: u32| Conflict::Foreign { segment: IpNetwork::from(std::net::IpAddr::V4(n.into())) };
        let start = Instant::now();
        let mut told = 0;
        for n in 0..600 {
            // Ten reports a second; every other one is in order.
            let reported = if n % 2 == 0 { vec![foreign(n)] } else { vec![] };
            told += conflicts.note(&node, reported, start + Duration::from_millis(100) * n).len();
        }
        assert_eq!(told, 1);
        let many = (0..100).map(foreign).collect();
        assert_eq!(conflicts.note(&node, many, start + PAUSE).len(), NAMED);
        assert_eq!(conflicts.of(&node).len(), NAMED, "the latest are shown");
        conflicts.retain(|_| false);
        assert!(conflicts.of(&node).is_empty());
    }
}
