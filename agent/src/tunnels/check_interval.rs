//! Computes the time of the next comparison of all policies and SAs with the kernel. This module
//! does no I/O.

use std::time::Duration;

/// Minimum time between two comparisons.
pub(super) const SHORTEST: Duration = Duration::from_secs(10);
/// The time between two comparisons, as a multiple of the CPU time of one comparison. This limits
/// comparisons to 0.1% of a core.
const COST_FACTOR: u32 = 1000;
/// The factor after an incomplete comparison. It limits comparisons to 2% of a core.
const UNDONE_COST_FACTOR: u32 = 50;

/// Returns the time until the next comparison, after one that took the CPU time `cost`. `undone`
/// says whether a difference could not be corrected, or is corrected later.
pub(super) fn until_next_check(cost: Duration, undone: bool) -> Duration {
    let factor = if undone { UNDONE_COST_FACTOR } else { COST_FACTOR };
    cost.saturating_mul(factor).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_takes_a_thousandth_of_a_core_at_any_size() {
        let after = |milliseconds, undone| until_next_check(Duration::from_millis(milliseconds), undone).as_secs();
        assert_eq!(after(1, false), 10);
        assert_eq!(after(40, false), 40);
        assert_eq!(after(900, false), 900);
        assert_eq!(after(900, true), 45);
        assert_eq!(after(0, true), 10);
    }
}
