//! What nodes say they hold. After an old backup was restored that may be more than the ledger
//! knows: such a segment stays its node's, and is granted to no other.

use edge_types::{IpNetwork, NodeName};

use super::ledger::{Grant, Ledger, Row};
use super::policy::Policy;
use super::range::overlap;
use crate::clock::Seconds;

/// Why a segment that a node says it holds is not its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another has it.
    #[error(
        "it uses {segment}, and {network} is node {node}'s: its pods there reach nobody; deregister one of them, and let it join again"
    )]
    Taken {
        /// What it says.
        segment: IpNetwork,
        /// What is known.
        network: IpNetwork,
        /// Whose.
        node: NodeName,
    },
    /// No node could have it.
    #[error(
        "it uses {segment}, which is no segment by cluster_ranges, reserved, v4_prefix and v6_prefix: its pods there reach nobody"
    )]
    Foreign {
        /// What it says.
        segment: IpNetwork,
    },
    /// It has as many as a node may have.
    #[error(
        "it uses {segment} besides the {held} segments that are known to be its own, which are as many as a node may hold"
    )]
    TooMany {
        /// What it says.
        segment: IpNetwork,
        /// How many.
        held: usize,
    },
    /// Nothing says that it was ever granted to it.
    #[error(
        "it uses {segment}, which is not known to be granted to it: its pods there reach nobody; deregister it, and let it join again. If the \
         store was brought back from an old copy without edge-controller restore or import, say so with edge-controller restored"
    )]
    Unknown {
        /// What it says.
        segment: IpNetwork,
    },
}

impl Ledger {
    /// Judges a segment that a node says it holds, besides those `chosen` already: `None` where it
    /// is known to hold it, otherwise the grant that makes it so. `may_be_unknown`: whether it may
    /// have a segment of which nothing says that it ever held it, as after a restore.
    pub fn claimed(
        &self,
        policy: &Policy,
        node: &NodeName,
        segment: &IpNetwork,
        chosen: &[Grant],
        may_be_unknown: bool,
        now: Seconds,
    ) -> Result<Option<Grant>, Conflict> {
        let is_its_own = |row: &Row| row.node == *node;
        if self.row(segment).is_some_and(|row| row.released_at.is_none() && is_its_own(row)) {
            return Ok(None);
        }
        if !policy.allows(segment) || segment.ip() != segment.network() {
            return Err(Conflict::Foreign { segment: *segment });
        }
        let family = edge_types::api::Family::of(segment);
        let held = self.count_held(node, family)
            + chosen.iter().filter(|grant| edge_types::api::Family::of(&grant.network) == family).count();
        if held >= policy.max_per_node as usize {
            return Err(Conflict::TooMany { segment: *segment, held });
        }
        if let Some(own) = chosen.iter().find(|grant| overlap(&grant.network, segment)) {
            return Err(Conflict::Taken { segment: *segment, network: own.network, node: node.clone() });
        }
        let (mut replaces, mut was_its_own) = (Vec::new(), false);
        for row in self.overlapping_with(segment) {
            let may_have = row.released_at.is_some() && (is_its_own(row) || self.is_free(row, policy, now));
            if !may_have {
                return Err(Conflict::Taken { segment: *segment, network: row.network, node: row.node.clone() });
            }
            if row.network != *segment {
                replaces.push(row.network);
            }
            was_its_own |= row.network == *segment && is_its_own(row);
        }
        if !was_its_own && !may_be_unknown {
            return Err(Conflict::Unknown { segment: *segment });
        }
        Ok(Some(Grant { network: *segment, replaces }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::view::SegmentPrefix;

    fn policy() -> Policy {
        Policy {
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
            ledger.insert(Row::new(network(segment), node.parse().unwrap(), String::new(), 0, *released_at));
        }
        ledger
    }

    #[test]
    fn a_segment_that_nobody_is_known_to_hold_is_its_user_s() {
        let a = "a".parse().unwrap();
        let known = [("10.77.0.0/28", "a", None), ("10.77.0.16/28", "a", Some(950)), ("10.77.0.32/28", "b", Some(800))];
        let ledger = ledger(&known);
        let claimed = |segment: &str| ledger.claimed(&policy(), &a, &network(segment), &[], true, 1000);
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
    fn a_segment_that_was_never_its_own_is_claimed_after_a_restore_only() {
        let a = "a".parse().unwrap();
        let known = [("10.77.0.0/28", "a", None), ("10.77.0.16/28", "a", Some(950)), ("10.77.0.32/28", "b", Some(800))];
        let ledger = ledger(&known);
        let claimed = |segment: &str| ledger.claimed(&policy(), &a, &network(segment), &[], false, 1000);
        assert_eq!(claimed("10.77.0.0/28"), Ok(None));
        assert!(matches!(claimed("10.77.0.16/28"), Ok(Some(_))), "it held this one last");
        for segment in ["10.77.0.32/28", "10.77.0.48/28", "fd77::/124"] {
            let refused = claimed(segment).unwrap_err();
            assert!(matches!(refused, Conflict::Unknown { .. }), "{refused}");
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
        let claimed =
            |segment: &str| ledger.claimed(&policy(), &a, &network(segment), &[], true, 1000).unwrap_err().to_string();
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
        let refused = ledger.claimed(&policy(), &a, &network("10.77.0.32/28"), &chosen, true, 0).unwrap_err();
        assert!(matches!(refused, Conflict::TooMany { held: 2, .. }), "{refused}");
        let chosen = [Grant { network: network("fd77::/124"), replaces: Vec::new() }];
        let twice = ledger.claimed(&policy(), &a, &network("fd77::/124"), &chosen, true, 0).unwrap_err();
        assert!(matches!(twice, Conflict::Taken { .. }));
    }
}
