//! Checks segments that a node claims to hold. After the restore of an old backup, the claimed
//! segments may include some for which the ledger has no grant to the node. Such a segment stays
//! with its node and is granted to no other node.

use edge_types::{IpNetwork, NodeName};

use super::ledger::{Grant, Ledger, SegmentRecord};
use super::policy::SegmentPolicy;
use super::range::overlap;
use crate::clock::Seconds;

/// The reason why the controller does not accept that a node holds a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimConflict {
    /// Another node holds a segment that overlaps the claimed one.
    #[error(
        "it uses {segment}, and {network} is node {node}'s: pods with these addresses reach nothing; deregister one of the two nodes, and let it join again"
    )]
    Taken {
        /// The segment that the node claims.
        segment: IpNetwork,
        /// The segment in the ledger that overlaps it.
        network: IpNetwork,
        /// The node that holds the overlapping segment according to the ledger.
        node: NodeName,
    },
    /// No node can hold the network: it is not a segment under the configuration.
    #[error(
        "it uses {segment}, which is no segment by cluster_ranges, reserved, v4_prefix and v6_prefix: pods with these addresses reach nothing"
    )]
    Foreign {
        /// The segment that the node claims.
        segment: IpNetwork,
    },
    /// The node already holds the maximum number of segments.
    #[error("it uses {segment} but already holds {held} other segments, the maximum for a node")]
    TooMany {
        /// The segment that the node claims.
        segment: IpNetwork,
        /// Number of segments of the family that the node holds.
        held: usize,
    },
    /// The ledger has no grant of this segment to the node.
    #[error(
        "it uses {segment}, which is not known to be granted to it: pods with these addresses reach nothing; deregister it, and let it join again. If the \
         store was copied back from an old backup without edge-controller restore or import, run edge-controller restored"
    )]
    Unknown {
        /// The segment that the node claims.
        segment: IpNetwork,
    },
}

impl Ledger {
    /// Checks a segment that a node claims. Returns `None` if the ledger already has the segment as
    /// the node's own, and otherwise the grant that records it. `chosen` are the grants to this
    /// node that are not recorded yet. `may_be_unknown` allows a segment that was never granted to
    /// the node, as after a restore.
    pub fn check_claim(
        &self,
        policy: &SegmentPolicy,
        node: &NodeName,
        segment: &IpNetwork,
        chosen: &[Grant],
        may_be_unknown: bool,
        now: Seconds,
    ) -> Result<Option<Grant>, ClaimConflict> {
        let is_its_own = |row: &SegmentRecord| row.node == *node;
        if self.row(segment).is_some_and(|row| row.released_at.is_none() && is_its_own(row)) {
            return Ok(None);
        }
        if !policy.allows(segment) || segment.ip() != segment.network() {
            return Err(ClaimConflict::Foreign { segment: *segment });
        }
        let family = edge_types::api::Family::of(segment);
        let held = self.count_held(node, family)
            + chosen.iter().filter(|grant| edge_types::api::Family::of(&grant.network) == family).count();
        if held >= policy.max_per_node as usize {
            return Err(ClaimConflict::TooMany { segment: *segment, held });
        }
        if let Some(own) = chosen.iter().find(|grant| overlap(&grant.network, segment)) {
            return Err(ClaimConflict::Taken { segment: *segment, network: own.network, node: node.clone() });
        }
        let (mut replaces, mut was_its_own) = (Vec::new(), false);
        for row in self.overlapping_with(segment) {
            let may_have = row.released_at.is_some() && (is_its_own(row) || self.is_free(row, policy, now));
            if !may_have {
                return Err(ClaimConflict::Taken { segment: *segment, network: row.network, node: row.node.clone() });
            }
            if row.network != *segment {
                replaces.push(row.network);
            }
            was_its_own |= row.network == *segment && is_its_own(row);
        }
        if !was_its_own && !may_be_unknown {
            return Err(ClaimConflict::Unknown { segment: *segment });
        }
        Ok(Some(Grant { network: *segment, replaces }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::view::SegmentPrefix;

    fn policy() -> SegmentPolicy {
        SegmentPolicy {
            ranges: vec!["10.77.0.0/24".parse().unwrap(), "fd77::/112".parse().unwrap()],
            reserved: vec!["10.77.0.240/28".parse().unwrap()],
            prefix: SegmentPrefix { v4: 28, v6: 124 },
            max_per_node: 2,
            ..crate::segments::policy::tests::policy()
        }
    }

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn ledger(rows: &[(&str, &str, Option<Seconds>)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (segment, node, released_at) in rows {
            ledger.insert(SegmentRecord::new(network(segment), node.parse().unwrap(), String::new(), 0, *released_at));
        }
        ledger
    }

    #[test]
    fn a_segment_that_no_node_is_known_to_hold_is_its_users() {
        let a = "a".parse().unwrap();
        let known = [("10.77.0.0/28", "a", None), ("10.77.0.16/28", "a", Some(950)), ("10.77.0.32/28", "b", Some(800))];
        let ledger = ledger(&known);
        let claimed = |segment: &str| ledger.check_claim(&policy(), &a, &network(segment), &[], true, 1000);
        assert_eq!(claimed("10.77.0.0/28"), Ok(None));
        for segment in ["10.77.0.16/28", "10.77.0.32/28", "10.77.0.48/28", "fd77::/124"] {
            assert_eq!(
                claimed(segment),
                Ok(Some(Grant { network: network(segment), replaces: Vec::new() })),
                "{segment}"
            );
        }
    }

    #[test]
    fn a_segment_that_was_never_granted_to_a_node_is_claimed_after_a_restore_only() {
        let a = "a".parse().unwrap();
        let known = [("10.77.0.0/28", "a", None), ("10.77.0.16/28", "a", Some(950)), ("10.77.0.32/28", "b", Some(800))];
        let ledger = ledger(&known);
        let claimed = |segment: &str| ledger.check_claim(&policy(), &a, &network(segment), &[], false, 1000);
        assert_eq!(claimed("10.77.0.0/28"), Ok(None));
        assert!(matches!(claimed("10.77.0.16/28"), Ok(Some(_))), "it held this one last");
        for segment in ["10.77.0.32/28", "10.77.0.48/28", "fd77::/124"] {
            let refused = claimed(segment).unwrap_err();
            assert!(matches!(refused, ClaimConflict::Unknown { .. }), "{refused}");
            assert!(
                refused.to_string().contains(segment) && refused.to_string().contains("deregister it"),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_another_s_or_no_segment_is_named_and_not_given() {
        let a = "a".parse().unwrap();
        let known = [("10.77.0.0/28", "b", None), ("10.77.0.16/28", "b", Some(950)), ("10.77.0.32/27", "c", None)];
        let ledger = ledger(&known);
        let claimed = |segment: &str| {
            ledger.check_claim(&policy(), &a, &network(segment), &[], true, 1000).unwrap_err().to_string()
        };
        assert!(claimed("10.77.0.0/28").contains("node b's"));
        assert!(claimed("10.77.0.16/28").contains("node b's"), "its quarantine is not over");
        assert!(claimed("10.77.0.48/28").contains("10.77.0.32/27 is node c's"));
        for segment in ["10.77.0.0/24", "10.78.0.0/28", "10.77.0.240/28", "0.0.0.0/0", "10.77.0.65/28"] {
            assert!(claimed(segment).contains("no segment"), "{segment}");
        }
    }

    #[test]
    fn nobody_claims_more_than_he_might_be_granted_nor_the_same_twice() {
        let a = "a".parse().unwrap();
        let ledger = ledger(&[("10.77.0.0/28", "a", None)]);
        let chosen = [Grant { network: network("10.77.0.16/28"), replaces: Vec::new() }];
        let refused = ledger.check_claim(&policy(), &a, &network("10.77.0.32/28"), &chosen, true, 0).unwrap_err();
        assert!(matches!(refused, ClaimConflict::TooMany { held: 2, .. }), "{refused}");
        let chosen = [Grant { network: network("fd77::/124"), replaces: Vec::new() }];
        let twice = ledger.check_claim(&policy(), &a, &network("fd77::/124"), &chosen, true, 0).unwrap_err();
        assert!(matches!(twice, ClaimConflict::Taken { .. }));
    }
}
