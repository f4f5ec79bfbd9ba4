//! Segments that nodes say they hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use edge_types::{IpNetwork, NodeName, Role};

use super::Context;
use crate::clock::Seconds;
use crate::kubernetes::events::About;
use crate::segments::{Conflict, Grant, Policy, Row};
use crate::state::{Change, State};

/// So many are looked at in one report; no node holds more.
const MOST: usize = 4096;
/// So many conflicts of one node are kept for people.
const NAMED: usize = 8;
/// What a segment carries in place of a request, when its node has brought it.
const REPORTED: &str = "reported";

/// What nodes say they hold and do not: for people. At most [`NAMED`] a node.
#[derive(Debug, Clone, Default)]
pub struct Conflicts(Arc<Mutex<BTreeMap<NodeName, Vec<Conflict>>>>);

impl Conflicts {
    /// Of one node.
    pub fn of(&self, node: &NodeName) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).into_iter().flatten().map(ToString::to_string).collect()
    }

    /// Forgets those of a node that is gone.
    pub fn forget(&self, node: &NodeName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// Notes all of one node; returns those that are new.
    fn note(&self, node: &NodeName, mut conflicts: Vec<Conflict>) -> Vec<Conflict> {
        conflicts.truncate(NAMED);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if conflicts.is_empty() {
            all.remove(node);
            return conflicts;
        }
        let before = all.insert(node.clone(), conflicts.clone()).unwrap_or_default();
        conflicts.retain(|conflict| !before.contains(conflict));
        conflicts
    }
}

/// What follows from what a node says it holds: changes that make it so where nobody else holds it, and what stands against the rest.
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
    for segment in claimed.iter().take(MOST) {
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
        for conflict in self.conflicts.note(node, conflicts) {
            tracing::error!(%node, "{conflict}");
            self.events.warning(About::EdgeNode, node.as_str(), "SegmentConflict", conflict.to_string());
        }
    }
}
