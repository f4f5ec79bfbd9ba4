//! Counts free segments and determines the state of a segment.

use edge_types::IpNetwork;
use edge_types::api::{Family, RangeUsage, SegmentState};

use super::ledger::{Ledger, SegmentRecord};
use super::policy::SegmentPolicy;
use super::range::{bounds, contains, size};
use crate::clock::Seconds;

/// Counts the segments of a family that can be granted now, which overlap nothing that is held, in
/// quarantine or reserved.
pub fn free_segments(ledger: &Ledger, policy: &SegmentPolicy, family: Family, now: Seconds) -> u128 {
    let blocked = blocked(ledger, policy, family, now);
    policy.ranges(family).map(|range| free_in(range, &blocked, policy)).fold(0, u128::saturating_add)
}

/// Computes how much of each range is granted, in the order of the ranges. Rows outside all ranges
/// are left out.
pub fn range_usage(ledger: &Ledger, policy: &SegmentPolicy, now: Seconds) -> Vec<RangeUsage> {
    let number = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    let blocked = [Family::V4, Family::V6].map(|family| blocked(ledger, policy, family, now));
    let usage = policy.ranges.iter().map(|range| {
        let family = Family::of(range);
        let ((_, first), last) = bounds(range);
        RangeUsage {
            range: *range,
            prefix: policy.prefix(family),
            segments: number(((last - first) / size(family, policy.prefix(family))).saturating_add(1)),
            free: number(free_in(range, &blocked[family as usize], policy)),
            held: 0,
            quarantined: 0,
        }
    });
    let mut usage: Vec<RangeUsage> = usage.collect();
    for row in ledger.rows() {
        let Some(usage) = usage.iter_mut().find(|usage| contains(&usage.range, &row.network)) else { continue };
        match row.state(policy.quarantine, now) {
            SegmentState::Held => usage.held += 1,
            SegmentState::Quarantined => usage.quarantined += 1,
            SegmentState::Free => {}
        }
    }
    usage
}

/// Returns the first and last addresses of everything that cannot be granted now, in order.
fn blocked(ledger: &Ledger, policy: &SegmentPolicy, family: Family, now: Seconds) -> Vec<(u128, u128)> {
    let taken = ledger.rows().filter(|row| !ledger.is_free(row, policy, now)).map(|row| &row.network);
    let mut blocked: Vec<(u128, u128)> = taken
        .chain(&policy.reserved)
        .filter(|network| Family::of(network) == family)
        .map(|network| {
            let ((_, first), last) = bounds(network);
            (first, last)
        })
        .collect();
    blocked.sort_unstable();
    blocked
}

/// Counts the segments in a range that overlap nothing in `blocked`.
fn free_in(range: &IpNetwork, blocked: &[(u128, u128)], policy: &SegmentPolicy) -> u128 {
    let family = Family::of(range);
    let step = size(family, policy.prefix(family));
    let ((_, start), end) = bounds(range);
    let mut free = ((end - start) / step).saturating_add(1);
    // Segments below this number have been counted.
    let mut next = 0;
    for (first, last) in blocked.iter().filter(|(first, last)| *first <= end && *last >= start) {
        let from = ((*first).max(start) - start) / step;
        let to = ((*last).min(end) - start) / step;
        free -= (to + 1).saturating_sub(from.max(next));
        next = next.max(to + 1);
    }
    free
}

impl SegmentRecord {
    /// Returns the state of the segment. `quarantine`: seconds for which a released segment is
    /// granted to no node.
    pub fn state(&self, quarantine: Seconds, now: Seconds) -> SegmentState {
        match self.free_from(quarantine) {
            None => SegmentState::Held,
            Some(end) if now < end => SegmentState::Quarantined,
            Some(_) => SegmentState::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segments::Grant;
    use edge_types::view::SegmentPrefix;
    use proptest::prelude::*;

    fn policy(prefix: u8) -> SegmentPolicy {
        SegmentPolicy {
            ranges: vec!["10.77.0.0/24".parse().unwrap(), "10.78.0.0/26".parse().unwrap()],
            reserved: vec!["10.77.0.70/32".parse().unwrap(), "10.77.0.0/30".parse().unwrap()],
            prefix: SegmentPrefix { v4: prefix, v6: 120 },
            max_per_node: 64,
            ..crate::segments::policy::tests::policy()
        }
    }

    proptest! {
        /// The number of segments that can be granted equals the number of free ones, whatever was
        /// granted, released and reserved before.
        #[test]
        fn as_many_segments_are_granted_as_are_counted_as_free(
            rows in proptest::collection::vec((0..8u8, 25..30u8, proptest::option::of(0..150i64)), 0..12),
            prefix in 26..30u8,
        ) {
            let mut ledger = Ledger::default();
            for (place, size, released_at) in rows {
                let network = format!("10.77.0.{}/{size}", (place * 32) & (255u8 << (32 - size))).parse().unwrap();
                let row = SegmentRecord::new(network, "a".parse().unwrap(), String::new(), 0, released_at);
                if !ledger.rows().any(|other| crate::segments::overlap(&other.network, &network)) {
                    ledger.insert(row);
                }
            }
            let (policy, now) = (policy(prefix), 150);
            let free = free_segments(&ledger, &policy, Family::V4, now);
            let usage = range_usage(&ledger, &policy, now);
            prop_assert_eq!(free, usage.iter().map(|range| u128::from(range.free)).sum::<u128>());
            let taken = |usage: &RangeUsage| usage.held + usage.quarantined;
            let rows = ledger.rows().filter(|row| row.state(policy.quarantine, now) != SegmentState::Free).count();
            prop_assert_eq!(usage.iter().map(taken).sum::<u64>(), rows as u64);
            prop_assert_eq!(usage[1].segments, 1 << (prefix - 26));
            let mut chosen: Vec<Grant> = Vec::new();
            while let Ok(grant) = ledger.grant(&policy, Family::V4, &chosen, now) {
                chosen.push(grant);
            }
            prop_assert_eq!(free, chosen.len() as u128);
            prop_assert_eq!(free_segments(&ledger, &policy, Family::V6, now), 0);
        }
    }
}
