//! Plans the changes that follow from the segments that a node reports as its own.

use edge_types::{IpNetwork, NodeName, Role};

use super::{Change, State};
use crate::clock::Seconds;
use crate::segments::{ClaimConflict, Grant, SegmentPolicy, SegmentRecord};

/// Number of claims that are checked in one report in addition to the number of segments that a
/// node may hold.
const FEW: usize = 8;
/// Request id recorded for a segment that a node reported but did not request.
const REPORTED: &str = "reported";

impl State {
    /// Plans changes that grant the node those claimed segments that no other node holds. Also
    /// returns a conflict for each other claimed segment.
    pub fn claims(
        &self,
        policy: &SegmentPolicy,
        node: &NodeName,
        claimed: &[IpNetwork],
        now: Seconds,
    ) -> (Vec<Change>, Vec<ClaimConflict>) {
        // Only edges have segments.
        if self.node(node).is_none_or(|record| record.role != Role::Edge) {
            return Default::default();
        }
        let (ledger, may_be_unknown) = (&self.ledger, self.takes_unknown_claims(policy, now));
        let (mut chosen, mut conflicts): (Vec<Grant>, Vec<ClaimConflict>) = Default::default();
        // A node may hold at most this many segments in both families together. A few more claims
        // are checked, so that conflicts name those segments.
        let most = 2 * policy.max_per_node as usize + FEW;
        for segment in claimed.iter().take(most) {
            match ledger.check_claim(policy, node, segment, &chosen, may_be_unknown, now) {
                Ok(grant) => chosen.extend(grant),
                Err(conflict) => conflicts.push(conflict),
            }
        }
        let row = |network: &IpNetwork| match ledger.row(network) {
            Some(old) => old.regranted(node.clone(), REPORTED.into(), now),
            None => SegmentRecord::new(*network, node.clone(), REPORTED.into(), now, None),
        };
        let dropped = chosen.iter().flat_map(|grant| &grant.replaces).map(|old| Change::DeleteSegment(*old));
        let changes = dropped.chain(chosen.iter().map(|grant| Change::GrantSegment(row(&grant.network)))).collect();
        (changes, conflicts)
    }
}
