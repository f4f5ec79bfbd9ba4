//! The ledger, which records which node holds which segment and which nodes held it before.

use std::collections::{BTreeMap, BTreeSet};

use edge_types::api::Family;
use edge_types::{IpNetwork, NodeName};
use serde::{Deserialize, Serialize};

use super::policy::SegmentPolicy;
use super::range::{AddressKey, bounds, network_at, overlap, size};
use crate::clock::{Clock, Seconds, rfc3339};

/// Maximum number of holders that an error names when a range is exhausted.
const NAMED_HOLDERS: usize = 10;

/// The row of a segment: its latest grant. It is kept after the release, until the segment is
/// granted again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Address range of the segment, as a network.
    pub network: IpNetwork,
    /// The node that holds the segment, or held it last.
    pub node: NodeName,
    /// Id of the node's request that led to the grant.
    pub request_id: String,
    /// Time at which the segment was granted, seconds since 1970-01-01 UTC.
    pub granted_at: Seconds,
    /// Time at which the segment was released; `None` while it is held.
    #[serde(default)]
    pub released_at: Option<Seconds>,
    /// Time until which the segment is granted to no node, even after its quarantine: the node that
    /// held it may still use its addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Seconds>,
    /// Earlier grants, the latest first; at most [`SegmentRecord::KEPT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Holding>,
}

/// An earlier grant of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holding {
    /// The node that held it.
    pub node: NodeName,
    /// Time at which the segment was granted, seconds since 1970-01-01 UTC.
    pub granted_at: Seconds,
    /// Time at which the segment was released, seconds since 1970-01-01 UTC.
    pub released_at: Seconds,
}

impl SegmentRecord {
    /// Maximum number of earlier grants that are kept for one segment.
    pub const KEPT: usize = 32;

    /// Makes the row of a segment without earlier grants.
    pub fn new(
        network: IpNetwork,
        node: NodeName,
        request_id: String,
        granted_at: Seconds,
        released_at: Option<Seconds>,
    ) -> Self {
        Self { network, node, request_id, granted_at, released_at, kept_until: None, past: Vec::new() }
    }

    /// Returns when the segment may be granted to another node; `None` while it is held.
    /// `quarantine`: seconds for which a released segment is granted to no node.
    pub fn free_from(&self, quarantine: Seconds) -> Option<Seconds> {
        let quarantined = self.released_at?.saturating_add(quarantine);
        Some(self.kept_until.map_or(quarantined, |kept| kept.max(quarantined)))
    }

    /// Returns the row of the same segment after a new grant. The grant before it becomes an
    /// earlier one.
    pub fn regranted(&self, node: NodeName, request_id: String, granted_at: Seconds) -> Self {
        let last = self.released_at.map(|released_at| Holding {
            node: self.node.clone(),
            granted_at: self.granted_at,
            released_at,
        });
        let past = last.into_iter().chain(self.past.iter().cloned()).take(Self::KEPT).collect();
        Self { past, ..Self::new(self.network, node, request_id, granted_at, None) }
    }
}

/// A segment that [`Ledger::grant`] chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Address range of the segment, as a network.
    pub network: IpNetwork,
    /// Released rows of other sizes that overlap the segment. They are deleted with the grant.
    pub replaces: Vec<IpNetwork>,
}

/// No segment is left in the ranges.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {family} segment (/{prefix}) is left in {ranges}: {holders}; widen cluster_ranges or deregister nodes that are gone",
    family = match family { Family::V4 => "IPv4", Family::V6 => "IPv6" })]
pub struct Exhausted {
    /// The requested address family.
    pub family: Family,
    /// Prefix length of a segment.
    pub prefix: u8,
    /// The ranges of the family, as text.
    pub ranges: String,
    /// The nodes that hold segments, with their numbers of segments, as text.
    pub holders: String,
}

/// All rows, by address.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    rows: BTreeMap<AddressKey, SegmentRecord>,
    held: BTreeMap<NodeName, BTreeSet<AddressKey>>,
    released: BTreeSet<AddressKey>,
    /// For each range, the address below which nothing was free at the last search. The address
    /// only speeds up the search: the whole range is searched before a grant is refused.
    searched: BTreeMap<AddressKey, u128>,
    /// Releases that this process has seen, with the time by [`Clock::monotonic`]. Their
    /// quarantine, and the time for which they are kept, are measured by that clock, so no change
    /// of the machine's clock shortens them.
    seen: BTreeMap<AddressKey, Release>,
    /// The clock for the times in `seen`. Without a clock, no release is recorded in `seen`.
    clock: Option<Clock>,
}

/// A release that this process has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Release {
    granted_at: Seconds,
    released_at: Seconds,
    kept_until: Option<Seconds>,
    /// Seconds from `at` until `kept_until`; 0 without it.
    kept_for: Seconds,
    /// Monotonic time at which this process saw the release; `None` if the release is older than
    /// [`Ledger::watch_releases`].
    at: Option<Seconds>,
}

impl Release {
    /// The release of a row, as one that this process did not see.
    fn of(row: &SegmentRecord, released_at: Seconds) -> Self {
        Self { granted_at: row.granted_at, released_at, kept_until: row.kept_until, kept_for: 0, at: None }
    }

    /// Returns whether this is the release of the row.
    fn is_of(&self, row: &SegmentRecord) -> bool {
        (self.granted_at, Some(self.released_at), self.kept_until) == (row.granted_at, row.released_at, row.kept_until)
    }
}

impl Ledger {
    /// Returns all rows, held and released, in address order.
    pub fn rows(&self) -> impl Iterator<Item = &SegmentRecord> {
        self.rows.values()
    }

    /// Returns the row of a segment.
    pub fn row(&self, network: &IpNetwork) -> Option<&SegmentRecord> {
        self.rows.get(&bounds(network).0).filter(|row| row.network == *network)
    }

    /// Records the monotonic time of releases from now on. For earlier releases, the quarantine is
    /// measured by the wall clock.
    pub fn watch_releases(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    /// Returns the rows that a node holds, oldest grant first.
    pub fn held_by(&self, node: &NodeName) -> Vec<&SegmentRecord> {
        let mut rows: Vec<&SegmentRecord> =
            self.held.get(node).into_iter().flatten().filter_map(|at| self.rows.get(at)).collect();
        rows.sort_by_key(|row| row.granted_at);
        rows
    }

    /// Counts the segments of a family that a node holds.
    pub fn count_held(&self, node: &NodeName, family: Family) -> usize {
        self.held.get(node).into_iter().flatten().filter(|place| place.0 == family).count()
    }

    /// Chooses the next segment of a family. It overlaps none of `chosen`, the grants that are not
    /// recorded yet. Changes no row, only the start of the next search.
    pub fn grant(
        &mut self,
        policy: &SegmentPolicy,
        family: Family,
        chosen: &[Grant],
        now: Seconds,
    ) -> Result<Grant, Exhausted> {
        let again = self.released.iter().filter(|(of, _)| *of == family).find_map(|place| {
            let row = self.rows.get(place)?;
            let clear = !chosen.iter().any(|grant| overlap(&grant.network, &row.network));
            (clear && self.is_free(row, policy, now) && policy.allows(&row.network)).then_some(row.network)
        });
        if let Some(network) = again {
            return Ok(Grant { network, replaces: Vec::new() });
        }
        for from_start in [false, true] {
            for range in policy.ranges(family) {
                let (start, last) = bounds(range);
                let from = if from_start { start.1 } else { *self.searched.get(&start).unwrap_or(&start.1) };
                let found = self.first_free(policy, (family, from), last, chosen, now);
                let reached = found.as_ref().map_or(last, |grant| bounds(&grant.network).0.1);
                self.searched.insert(start, reached);
                if let Some(grant) = found {
                    return Ok(grant);
                }
            }
        }
        Err(self.exhausted(policy, family, now))
    }

    /// Writes the row of a segment.
    pub fn insert(&mut self, row: SegmentRecord) {
        let (place, _) = bounds(&row.network);
        self.note_release(place, &row);
        self.clear(place);
        if row.released_at.is_some() {
            self.released.insert(place);
        } else {
            self.held.entry(row.node.clone()).or_default().insert(place);
        }
        self.rows.insert(place, row);
    }

    /// Records when a release was seen. If a planned change is undone in memory, the earlier time
    /// stays recorded.
    fn note_release(&mut self, place: AddressKey, row: &SegmentRecord) {
        let Some(clock) = &self.clock else { return };
        if let Some(before) = self.rows.get(&place)
            && let Some(released_at) = before.released_at
        {
            let known = Release::of(before, released_at);
            self.seen.entry(place).or_insert(known);
        }
        let Some(released_at) = row.released_at else { return };
        let seen = Release::of(row, released_at);
        let kept_for = row.kept_until.map_or(0, |until| until.saturating_sub(clock.now()).max(0));
        let seen = Release { at: Some(clock.monotonic()), kept_for, ..seen };
        let known = self.seen.entry(place).or_insert_with(|| seen.clone());
        if !known.is_of(row) {
            *known = seen;
        }
    }

    /// Returns whether a segment can be granted: it is released, and both its quarantine and the
    /// time for which it is kept have passed by the wall clock and by the monotonic clock.
    pub(super) fn is_free(&self, row: &SegmentRecord, policy: &SegmentPolicy, now: Seconds) -> bool {
        let seen = self.seen.get(&bounds(&row.network).0);
        let seen = seen.filter(|seen| seen.is_of(row));
        let waited = match (&self.clock, seen.and_then(|seen| Some((seen.at?, seen.kept_for)))) {
            (Some(clock), Some((at, kept_for))) => clock.monotonic() - at >= policy.quarantine.max(kept_for),
            _ => true,
        };
        waited && row.free_from(policy.quarantine).is_some_and(|from| now >= from)
    }

    /// Removes the row of a segment. A row of another size at the same address stays.
    pub fn remove(&mut self, network: &IpNetwork) {
        if self.row(network).is_some() {
            self.clear(bounds(network).0);
        }
    }

    fn clear(&mut self, place: AddressKey) {
        let Some(old) = self.rows.remove(&place) else { return };
        self.released.remove(&place);
        if let Some(held) = self.held.get_mut(&old.node) {
            held.remove(&place);
            if held.is_empty() {
                self.held.remove(&old.node);
            }
        }
    }

    /// Returns the first free segment between `from` and `last`. Each row in the way is skipped in
    /// one step.
    fn first_free(
        &self,
        policy: &SegmentPolicy,
        from: AddressKey,
        last: u128,
        chosen: &[Grant],
        now: Seconds,
    ) -> Option<Grant> {
        let (family, prefix) = (from.0, policy.prefix(from.0));
        let step = size(family, prefix);
        let mut at = from.1;
        while at <= last {
            let network = network_at((family, at), prefix)?;
            let end = at + (step - 1);
            let reserved = policy.reserved.iter().chain(chosen.iter().map(|grant| &grant.network));
            let reserved = reserved.filter(|r| overlap(r, &network)).map(|r| bounds(r).1).max();
            let mut replaces = Vec::new();
            let mut taken = None;
            for row in self.overlapping(family, at, end) {
                if self.is_free(row, policy, now) {
                    replaces.push(row.network);
                } else {
                    taken = taken.max(Some(bounds(&row.network).1));
                }
            }
            match reserved.max(taken) {
                None => return Some(Grant { network, replaces }),
                // The search continues at the next multiple of the segment size after that row.
                Some(blocked_to) => at = (blocked_to.max(end) | (step - 1)).checked_add(1)?,
            }
        }
        None
    }

    /// Returns the rows that overlap `first..=last`. Rows do not overlap each other, so at most one
    /// of the returned rows begins before `first`.
    fn overlapping(&self, family: Family, first: u128, last: u128) -> impl Iterator<Item = &SegmentRecord> {
        let before = self.rows.range(..(family, first)).next_back();
        let before = before.filter(|(place, row)| place.0 == family && bounds(&row.network).1 >= first);
        before.into_iter().chain(self.rows.range((family, first)..=(family, last))).map(|(_, row)| row)
    }

    /// Returns the rows that overlap a network.
    pub fn overlapping_with(&self, network: &IpNetwork) -> impl Iterator<Item = &SegmentRecord> {
        let ((family, first), last) = bounds(network);
        self.overlapping(family, first, last)
    }

    fn exhausted(&self, policy: &SegmentPolicy, family: Family, now: Seconds) -> Exhausted {
        let mut holders: Vec<(usize, &NodeName)> = self
            .held
            .iter()
            .map(|(node, places)| (places.iter().filter(|place| place.0 == family).count(), node))
            .filter(|(count, _)| *count > 0)
            .collect();
        holders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let mut parts: Vec<String> =
            holders.iter().take(NAMED_HOLDERS).map(|(count, node)| format!("{node} holds {count}")).collect();
        if holders.len() > NAMED_HOLDERS {
            let rest: usize = holders[NAMED_HOLDERS..].iter().map(|(count, _)| count).sum();
            parts.push(format!("{} more nodes hold {rest}", holders.len() - NAMED_HOLDERS));
        }
        let ends = self.released.iter().filter(|place| place.0 == family).filter_map(|place| {
            let row = self.rows.get(place)?;
            (!self.is_free(row, policy, now)).then(|| row.free_from(policy.quarantine).unwrap_or(now))
        });
        let ends: Vec<Seconds> = ends.collect();
        if let Some(first) = ends.iter().min() {
            parts.push(format!("{} in quarantine, the first until {}", ends.len(), rfc3339(*first)));
        }
        if parts.is_empty() {
            parts.push("no node holds one: everything is reserved".into());
        }
        Exhausted {
            family,
            prefix: policy.prefix(family),
            ranges: policy.ranges(family).map(ToString::to_string).collect::<Vec<_>>().join(", "),
            holders: parts.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_types::view::SegmentPrefix;
    use proptest::prelude::*;

    fn policy() -> SegmentPolicy {
        SegmentPolicy {
            ranges: vec!["10.77.0.0/24".parse().unwrap(), "fd77::/118".parse().unwrap()],
            reserved: vec!["10.77.0.70/32".parse().unwrap()],
            prefix: SegmentPrefix { v4: 27, v6: 120 },
            max_per_node: 64,
            ..crate::segments::policy::tests::policy()
        }
    }

    fn take(
        ledger: &mut Ledger,
        policy: &SegmentPolicy,
        node: &str,
        family: Family,
        now: i64,
    ) -> Result<IpNetwork, Exhausted> {
        let grant = ledger.grant(policy, family, &[], now)?;
        for old in &grant.replaces {
            ledger.remove(old);
        }
        ledger.insert(SegmentRecord::new(grant.network, node.parse().unwrap(), String::new(), now, None));
        Ok(grant.network)
    }

    fn release(ledger: &mut Ledger, network: IpNetwork, now: i64) {
        let mut row = ledger.rows().find(|row| row.network == network).unwrap().clone();
        row.released_at = Some(now);
        ledger.insert(row);
    }

    #[test]
    fn segments_are_cut_lowest_first_around_what_is_reserved() {
        let (mut ledger, policy) = (Ledger::default(), policy());
        let got: Vec<String> =
            (0..3).map(|_| take(&mut ledger, &policy, "a", Family::V4, 0).unwrap().to_string()).collect();
        assert_eq!(got, ["10.77.0.0/27", "10.77.0.32/27", "10.77.0.96/27"]);
    }

    #[test]
    fn a_released_segment_waits_out_its_quarantine_and_then_goes_first() {
        let (mut ledger, policy) = (Ledger::default(), policy());
        let first = take(&mut ledger, &policy, "a", Family::V4, 0).unwrap();
        let second = take(&mut ledger, &policy, "b", Family::V4, 0).unwrap();
        release(&mut ledger, second, 10);
        assert_ne!(take(&mut ledger, &policy, "c", Family::V4, 109).unwrap(), second);
        assert_eq!(take(&mut ledger, &policy, "c", Family::V4, 110).unwrap(), second);
        assert_eq!(ledger.held_by(&"a".parse().unwrap())[0].network, first);
    }

    #[test]
    fn a_clock_that_is_set_ahead_does_not_shorten_the_time_for_which_a_segment_is_kept() {
        const DAY: Seconds = 24 * 3600;
        let (mut ledger, policy, clock) = (Ledger::default(), policy(), Clock::system());
        ledger.watch_releases(clock.clone());
        let kept = take(&mut ledger, &policy, "a", Family::V4, clock.now()).unwrap();
        let row = ledger.row(&kept).unwrap().clone();
        let kept_until = Some(clock.now() + 7 * DAY);
        ledger.insert(SegmentRecord { released_at: Some(clock.now()), kept_until, ..row });
        clock.step(8 * DAY);
        assert_ne!(take(&mut ledger, &policy, "b", Family::V4, clock.now()).unwrap(), kept);
        clock.advance(7 * DAY + 1);
        assert_eq!(take(&mut ledger, &policy, "b", Family::V4, clock.now()).unwrap(), kept);
    }

    #[test]
    fn exhaustion_says_who_holds_what_and_when_quarantines_end() {
        let (mut ledger, policy) = (Ledger::default(), policy());
        for node in ["a", "b", "b"] {
            take(&mut ledger, &policy, node, Family::V6, 0).unwrap();
        }
        let gone = take(&mut ledger, &policy, "c", Family::V6, 0).unwrap();
        release(&mut ledger, gone, 1_793_491_200);
        let error = take(&mut ledger, &policy, "d", Family::V6, 1_793_491_201).unwrap_err().to_string();
        assert!(error.contains("b holds 2, a holds 1"), "{error}");
        assert!(error.contains("1 in quarantine, the first until 2026-11-01T00:01:40Z"), "{error}");
    }

    #[test]
    fn after_a_change_of_the_prefix_length_grants_avoid_held_segments_and_replace_released_ones() {
        let (mut ledger, mut policy) = (Ledger::default(), policy());
        let held = take(&mut ledger, &policy, "a", Family::V4, 0).unwrap();
        let gone = take(&mut ledger, &policy, "b", Family::V4, 0).unwrap();
        policy.prefix.v4 = 28;
        release(&mut ledger, gone, 0);
        let early = take(&mut ledger, &policy, "c", Family::V4, 1).unwrap();
        assert!(!overlap(&early, &held) && !overlap(&early, &gone));
        while let Ok(next) = take(&mut ledger, &policy, "c", Family::V4, 1) {
            assert!(!overlap(&next, &gone));
        }
        assert_eq!(take(&mut ledger, &policy, "d", Family::V4, 100).unwrap().to_string(), "10.77.0.32/28");
        assert_eq!(take(&mut ledger, &policy, "d", Family::V4, 100).unwrap().to_string(), "10.77.0.48/28");
        take(&mut ledger, &policy, "d", Family::V4, 100).unwrap_err();
    }

    #[derive(Debug, Clone)]
    enum Step {
        Grant(u8, bool),
        Release(u8),
        Wait(u16),
        Resize(u8, u8),
        Reload,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..5u8, any::<bool>()).prop_map(|(node, v6)| Step::Grant(node, v6)),
            2 => any::<u8>().prop_map(Step::Release),
            1 => (0..200u16).prop_map(Step::Wait),
            1 => (25..30u8, 119..123u8).prop_map(|(v4, v6)| Step::Resize(v4, v6)),
            1 => Just(Step::Reload),
        ]
    }

    proptest! {
        /// Compares the ledger with a model that has only the list of rows. A granted segment lies
        /// in a range and overlaps nothing that is held, in quarantine or reserved. A refusal means
        /// that no segment is free.
        #[test]
        fn no_history_makes_two_segments_overlap(steps in proptest::collection::vec(step(), 1..120)) {
            let (mut ledger, mut policy, mut now) = (Ledger::default(), policy(), 0i64);
            for step in steps {
                match step {
                    Step::Grant(node, v6) => {
                        let family = if v6 { Family::V6 } else { Family::V4 };
                        let blocked: Vec<IpNetwork> = ledger.rows()
                            .filter(|row| row.released_at.is_none_or(|at| now < at + policy.quarantine))
                            .map(|row| row.network).chain(policy.reserved.iter().copied()).collect();
                        let free = |network: &IpNetwork| !blocked.iter().any(|other| overlap(network, other));
                        match take(&mut ledger, &policy, &format!("n{node}"), family, now) {
                            Ok(network) => {
                                prop_assert!(free(&network), "{network} is taken");
                                prop_assert!(policy.allows(&network));
                            }
                            Err(_) => for range in policy.ranges(family) {
                                let ((_, first), last) = bounds(range);
                                let step = size(family, policy.prefix(family));
                                let mut at = first;
                                while at <= last {
                                    let network = network_at((family, at), policy.prefix(family)).unwrap();
                                    prop_assert!(!free(&network), "{network} was free");
                                    at += step;
                                }
                            }
                        }
                    }
                    Step::Release(which) => {
                        let held: Vec<IpNetwork> = ledger.rows().filter(|r| r.released_at.is_none()).map(|r| r.network).collect();
                        if !held.is_empty() {
                            release(&mut ledger, held[usize::from(which) % held.len()], now);
                        }
                    }
                    Step::Wait(seconds) => now += i64::from(seconds),
                    Step::Resize(v4, v6) => policy.prefix = SegmentPrefix { v4, v6 },
                    Step::Reload => {
                        let rows: Vec<SegmentRecord> = ledger.rows().cloned().collect();
                        ledger = Ledger::default();
                        rows.into_iter().for_each(|row| ledger.insert(row));
                    }
                }
                let rows: Vec<&SegmentRecord> = ledger.rows().collect();
                for (index, row) in rows.iter().enumerate() {
                    prop_assert!(rows[index + 1..].iter().all(|other| !overlap(&row.network, &other.network)));
                }
            }
        }
    }
}
