//! Keeps in memory, for the operator, the conflicts between the segments that nodes claim and the
//! ledger.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_types::NodeName;

use super::claim_check::ClaimConflict;

/// Maximum number of conflicts that are kept for one node.
const MOST: usize = 8;
/// Minimum time between two announcements of new conflicts of one node, in the log and as Events. A
/// node may claim different segments in every report.
const PAUSE: Duration = Duration::from_secs(60);

/// The conflicts of each node, as of its last report. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct ClaimConflicts(Arc<Mutex<BTreeMap<NodeName, NodeConflicts>>>);

/// The conflicts of one node.
#[derive(Debug, Default)]
struct NodeConflicts {
    /// Conflicts from the node's latest report, at most [`MOST`].
    conflicts: Vec<ClaimConflict>,
    /// Time at which a new conflict was last announced. The time is kept when the conflicts are
    /// gone, since conflicts may appear and disappear with every report.
    reported_at: Option<Instant>,
}

impl NodeConflicts {
    /// Returns whether `conflicts` includes a new conflict and at least [`PAUSE`] has passed since
    /// a new conflict was last announced.
    fn has_new(&self, conflicts: &[ClaimConflict], now: Instant) -> bool {
        let new = conflicts.iter().take(MOST).any(|conflict| !self.conflicts.contains(conflict));
        new && self.reported_at.is_none_or(|at| now.saturating_duration_since(at) >= PAUSE)
    }
}

impl ClaimConflicts {
    /// Returns the conflicts of one node, as text.
    pub fn of(&self, node: &NodeName) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).into_iter().flat_map(|reported| &reported.conflicts).map(ToString::to_string).collect()
    }

    /// Removes the conflicts of all nodes for which `kept` is false.
    pub fn retain(&self, kept: impl Fn(&NodeName) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|node, _| kept(node));
    }

    /// Returns whether [`ClaimConflicts::note`] would now return any of these conflicts.
    pub fn has_new(&self, node: &NodeName, conflicts: &[ClaimConflict]) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).is_none_or(|reported| reported.has_new(conflicts, Instant::now()))
    }

    /// Replaces the conflicts of one node. Returns the conflicts that the caller must announce now.
    pub fn note(&self, node: &NodeName, mut conflicts: Vec<ClaimConflict>, now: Instant) -> Vec<ClaimConflict> {
        conflicts.truncate(MOST);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if conflicts.is_empty() && !all.contains_key(node) {
            return conflicts;
        }
        let reported = all.entry(node.clone()).or_default();
        let news = reported.has_new(&conflicts, now);
        reported.conflicts.clone_from(&conflicts);
        if !news {
            return Vec::new();
        }
        reported.reported_at = Some(now);
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use edge_types::IpNetwork;

    use super::*;

    #[test]
    fn a_node_that_reports_other_conflicts_at_every_moment_is_told_of_once_a_minute() {
        let (conflicts, node) = (ClaimConflicts::default(), "n".parse().unwrap());
        let foreign = |n: u32| ClaimConflict::Foreign { segment: IpNetwork::from(std::net::IpAddr::V4(n.into())) };
        let start = Instant::now();
        let mut reported_count = 0;
        for n in 0..600 {
            // The node sends ten reports a second. Every second one has no conflict.
            let reported = if n % 2 == 0 { vec![foreign(n)] } else { vec![] };
            reported_count += conflicts.note(&node, reported, start + Duration::from_millis(100) * n).len();
        }
        assert_eq!(reported_count, 1);
        let many = (0..100).map(foreign).collect();
        assert_eq!(conflicts.note(&node, many, start + PAUSE).len(), MOST);
        assert_eq!(conflicts.of(&node).len(), MOST, "the latest are kept");
        conflicts.retain(|_| false);
        assert!(conflicts.of(&node).is_empty());
    }
}
