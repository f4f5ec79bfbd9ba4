//! Limits how many nodes may disappear before the operator must confirm.
//!
//! Nodes are removed when the operator deregisters them or when their objects are deleted at the
//! API server. One or two deleted objects are probably intended. Many at once are more likely
//! caused by a mistake, another cluster or a lost disk. In that case the nodes stay registered
//! until the operator confirms.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Time within which deletions are evaluated together as one group.
pub const SETTLE_TIME: Duration = Duration::from_secs(2);
/// Time within which deletions are added up, so that several small groups of deletions also reach
/// the limit.
const WINDOW: Duration = Duration::from_secs(3600);
/// Number of deletions that are always accepted.
const FEW: usize = 2;

/// The times of the deletions that were accepted within [`WINDOW`]. Their number is at most a tenth
/// of the nodes if the operator must confirm further deletions; otherwise at most all nodes.
#[derive(Debug, Default)]
pub struct RecentDeletions(VecDeque<Instant>);

impl RecentDeletions {
    /// Returns whether `missing` deletions are too many, if `registered` nodes remain. Together
    /// with the deletions accepted before, three or more are too many if they are a tenth of the
    /// nodes.
    pub fn are_too_many(&mut self, missing: usize, registered: usize, now: Instant) -> bool {
        while self.0.front().is_some_and(|at| now.saturating_duration_since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let (all, before) = (missing + self.0.len(), registered + self.0.len());
        missing > 0 && all >= before.div_ceil(10).max(FEW + 1)
    }

    /// Records that `count` deletions were accepted.
    pub fn note(&mut self, count: usize, now: Instant) {
        self.0.extend(std::iter::repeat_n(now, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_and_at_least_three_are_too_many_also_one_by_one() {
        let now = Instant::now();
        for (missing, registered, too_much) in [
            (1, 1, false),
            (2, 2, false),
            (3, 3, true),
            (3, 30, true),
            (3, 31, false),
            (9, 100, false),
            (10, 100, true),
        ] {
            assert_eq!(
                RecentDeletions::default().are_too_many(missing, registered, now),
                too_much,
                "{missing} of {registered}"
            );
        }
        let mut recent = RecentDeletions::default();
        for left in [100, 99, 98, 97, 96, 95, 94, 93, 92] {
            assert!(!recent.are_too_many(1, left, now));
            recent.note(1, now);
        }
        assert!(recent.are_too_many(1, 91, now), "the tenth of a hundred, within an hour");
        assert!(!recent.are_too_many(0, 91, now), "nothing is missing");
    }

    #[test]
    fn a_trickle_is_too_much_before_an_hour_has_passed() {
        let (mut recent, start) = (RecentDeletions::default(), Instant::now());
        let mut gone = 0;
        for minute in 0..60 {
            let now = start + Duration::from_secs(60) * minute;
            if minute % 6 == 0 && !recent.are_too_many(1, 100 - gone, now) {
                recent.note(1, now);
                gone += 1;
            }
        }
        assert_eq!(gone, 9, "the tenth of a hundred is asked about, though one goes every six minutes");
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let mut recent = RecentDeletions::default();
        let now = Instant::now();
        recent.note(2, now);
        assert!(recent.are_too_many(1, 5, now));
        assert!(!recent.are_too_many(1, 5, now + WINDOW));
    }
}
