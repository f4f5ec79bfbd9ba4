//! Segments that nodes say they hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edge_types::{IpNetwork, NodeName, Role};

use super::Context;
use crate::clock::Seconds;
use crate::kubernetes::events::About;
use crate::segments::{Conflict, Grant, Policy, Row};
use crate::state::{Change, State};

/// So many conflicts of one node are kept for people.
const NAMED: usize = 8;
/// So seldom new conflicts of one node are told, in the log and by an Event: a node may report
/// others at every moment.
const PAUSE: Duration = Duration::from_secs(60);
/// What a segment carries in place of a request, when its node has brought it.
const REPORTED: &str = "reported";

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

    /// Notes all of one node; returns those to tell of now.
    fn note(&self, node: &NodeName, mut conflicts: Vec<Conflict>, now: Instant) -> Vec<Conflict> {
        conflicts.truncate(NAMED);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if conflicts.is_empty() && !all.contains_key(node) {
            return conflicts;
        }
        let reported = all.entry(node.clone()).or_default();
        let new = conflicts.iter().any(|conflict| !reported.conflicts.contains(conflict));
        reported.conflicts.clone_from(&conflicts);
        if !new || reported.told.is_some_and(|told| now.saturating_duration_since(told) < PAUSE) {
            return Vec::new();
        }
        reported.told = Some(now);
        conflicts
    }
}

/// What follows from what a node says it holds: changes that make it so where nobody else holds it,
/// and what stands against the rest.
pub(super) fn plan(
    state: &State,
    policy: &Policy,
    node: &NodeName,
    claimed: &[IpNetwork],
    now: Seconds,
) -> (Vec<Change>, Vec<Conflict>) {
    // Nobody else has pods of its own.
    if state.node(node).is_none_or(|record| record.role != Role::Edge) {
        return Default::default();
    }
    let ledger = state.ledger();
    let (mut chosen, mut conflicts): (Vec<Grant>, Vec<Conflict>) = Default::default();
    // A node holds no more of either family, and of what is wrong a few are named.
    let most = 2 * policy.max_per_node as usize + NAMED;
    for segment in claimed.iter().take(most) {
        match ledger.claimed(policy, node, segment, &chosen, now) {
            Ok(grant) => chosen.extend(grant),
            Err(conflict) => conflicts.push(conflict),
        }
    }
    let row = |network: &IpNetwork| match ledger.row(network) {
        Some(old) => old.granted_anew(node.clone(), REPORTED.into(), now),
        None => Row::new(*network, node.clone(), REPORTED.into(), now, None),
    };
    let dropped = chosen.iter().flat_map(|grant| &grant.replaces).map(|old| Change::DeleteSegment(*old));
    let changes = dropped.chain(chosen.iter().map(|grant| Change::ClaimSegment(row(&grant.network)))).collect();
    (changes, conflicts)
}

impl Context {
    /// Tells what came of it.
    pub(super) fn tell_of_claims(&self, node: &NodeName, taken: &[IpNetwork], conflicts: Vec<Conflict>) {
        if !taken.is_empty() {
            tracing::warn!(%node, segments = ?taken, "it uses segments that nobody was known to hold: they are its own; was an old backup restored?");
            let list: Vec<String> = taken.iter().map(ToString::to_string).collect();
            let note = format!("{}: in use, and not known to be granted; granted to it", list.join(", "));
            self.events.warning(About::EdgeNode, node.as_str(), "SegmentReported", note);
        }
        let told = self.conflicts.note(node, conflicts, Instant::now());
        if told.is_empty() {
            return;
        }
        let list: Vec<String> = told.iter().map(ToString::to_string).collect();
        let note = list.join("; ");
        tracing::error!(%node, "{note}");
        self.events.warning(About::EdgeNode, node.as_str(), "SegmentConflict", note);
    }
}

#[cfg(test)]
mod tests {
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
