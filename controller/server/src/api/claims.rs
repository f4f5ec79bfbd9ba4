//! Segments that nodes say they hold.

use std::time::Instant;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::segments::{Conflict, Conflicts, Grant, Policy, Row};
use edge_controller_domain::state::{Change, State};
use edge_controller_kubernetes::events::{About, Events};
use edge_types::{IpNetwork, NodeName, Role};

use super::state::from_substates;

/// What is wrong in one report is looked at up to this number of segments beyond what a node may
/// hold.
const FEW: usize = 8;
/// What a segment carries in place of a request, when its node has brought it.
const REPORTED: &str = "reported";

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
    let (ledger, may_be_unknown) = (state.ledger(), state.takes_unknown_claims(policy, now));
    let (mut chosen, mut conflicts): (Vec<Grant>, Vec<Conflict>) = Default::default();
    // A node holds no more of either family, and of what is wrong a few are named.
    let most = 2 * policy.max_per_node as usize + FEW;
    for segment in claimed.iter().take(most) {
        match ledger.claimed(policy, node, segment, &chosen, may_be_unknown, now) {
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

/// Tells people what came of claims.
#[derive(Clone)]
pub(super) struct ClaimReporter {
    pub(super) conflicts: Conflicts,
    events: Events,
}

from_substates!(ClaimReporter { conflicts, events });

impl ClaimReporter {
    /// `taken`: segments that are the node's from now on.
    pub(super) fn tell(&self, node: &NodeName, taken: &[IpNetwork], conflicts: Vec<Conflict>) {
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
