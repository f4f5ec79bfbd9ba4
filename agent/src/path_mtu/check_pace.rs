//! Limits the number of checks, and lets all busy paths have their turn.

use std::time::Duration;

use edge_ike::Instant;

use super::search::CHECK_INTERVAL;

/// Maximum number of checks that begin in one second. On a hub with more busy peers, the checks of
/// a path are further apart.
pub(super) const MAX_CHECKS_PER_SECOND: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);

/// Counts the paths that want a check in the current second.
#[derive(Debug, Default)]
pub(super) struct CheckPace {
    /// Number of paths that wanted a check in this second. A path that got none may count again.
    wanted: u32,
    /// The same number in the second before.
    wanted_before: u32,
    second_ends: Instant,
}

impl CheckPace {
    /// Returns the time until the next check of the path if a check may begin now. If more paths
    /// want checks than may have one, the time is longer, so that those checked last leave room for
    /// the others.
    pub(super) fn begin_check(&mut self, now: Instant) -> Option<Duration> {
        if self.second_ends <= now {
            (self.second_ends, self.wanted_before, self.wanted) = (now + SECOND, self.wanted, 0);
        }
        self.wanted = self.wanted.saturating_add(1);
        let rounds = self.wanted_before.max(self.wanted).div_ceil(MAX_CHECKS_PER_SECOND).max(1);
        (self.wanted <= MAX_CHECKS_PER_SECOND).then_some(CHECK_INTERVAL * rounds)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn few_paths_are_checked_at_each_report() {
        let mut pace = CheckPace::default();
        for second in 0..100 {
            for _ in 0..MAX_CHECKS_PER_SECOND {
                let now = Instant::new(Duration::from_millis(second * 1000));
                assert_eq!(pace.begin_check(now), Some(CHECK_INTERVAL));
            }
        }
    }

    /// The reports about the paths always arrive in the same order.
    #[test]
    fn of_many_paths_each_has_its_turn() {
        for paths in [60_u64, 200, 1000, 5000] {
            let mut pace = CheckPace::default();
            let mut next: BTreeMap<u64, Instant> = BTreeMap::new();
            let mut counts = vec![0_u32; usize::try_from(paths).unwrap()];
            let seconds = paths / 50 * 8;
            for second in 0..seconds {
                let mut begun = 0;
                for path in 0..paths {
                    let now = Instant::new(Duration::from_micros(second * 1_000_000 + path * 100));
                    if next.get(&path).is_some_and(|next| *next > now) {
                        continue;
                    }
                    if let Some(interval) = pace.begin_check(now) {
                        next.insert(path, now + interval);
                        counts[usize::try_from(path).unwrap()] += 1;
                        begun += 1;
                    }
                }
                assert!(begun <= 100, "{begun} checks at {second} s of {paths} paths");
            }
            let fewest = counts.iter().min().unwrap();
            assert!(*fewest >= 2, "{paths} paths: one had {fewest} checks in {seconds} s");
        }
    }
}
