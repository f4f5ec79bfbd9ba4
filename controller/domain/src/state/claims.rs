//! What follows from the segments that a node says it holds.

use edge_types::{IpNetwork, NodeName, Role};

use super::{Change, State};
use crate::clock::Seconds;
use crate::segments::{ClaimConflict, Grant, Policy, Row};

/// What is wrong in one report is looked at up to this number of segments beyond what a node may
/// hold.
const FEW: usize = 8;
/// What a segment carries in place of a request, when its node has brought it.
const REPORTED: &str = "reported";

impl State {
    /// What follows from what a node says it holds: changes that make it so where nobody else holds it,
    /// and what stands against the rest.
    pub fn claims(
        &self,
        policy: &Policy,
        node: &NodeName,
        claimed: &[IpNetwork],
        now: Seconds,
    ) -> (Vec<Change>, Vec<ClaimConflict>) {
        // Nobody else has pods of its own.
        if self.node(node).is_none_or(|record| record.role != Role::Edge) {
            return Default::default();
        }
        let (ledger, may_be_unknown) = (&self.ledger, self.takes_unknown_claims(policy, now));
        let (mut chosen, mut conflicts): (Vec<Grant>, Vec<ClaimConflict>) = Default::default();
        // A node holds no more of either family, and of what is wrong a few are named.
        let most = 2 * policy.max_per_node as usize + FEW;
        for segment in claimed.iter().take(most) {
            match ledger.check_claim(policy, node, segment, &chosen, may_be_unknown, now) {
                Ok(grant) => chosen.extend(grant),
                Err(conflict) => conflicts.push(conflict),
            }
        }
        let row = |network: &IpNetwork| match ledger.row(network) {
            Some(old) => old.regranted(node.clone(), REPORTED.into(), now),
            None => Row::new(*network, node.clone(), REPORTED.into(), now, None),
        };
        let dropped = chosen.iter().flat_map(|grant| &grant.replaces).map(|old| Change::DeleteSegment(*old));
        let changes = dropped.chain(chosen.iter().map(|grant| Change::ClaimSegment(row(&grant.network)))).collect();
        (changes, conflicts)
    }
}
