//! Delays of random length, so that many nodes do not act at the same moment.

use std::time::Duration;

/// Returns a random time from `shortest` up to `longest`. The numbers are predictable, so do not
/// use them for secrets.
#[must_use]
pub fn between(shortest: Duration, longest: Duration) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_differ_and_stay_within_their_limits() {
        let (shortest, longest) = (Duration::from_secs(5), Duration::from_secs(10));
        let waits: Vec<_> = (0..1000).map(|_| between(shortest, longest)).collect();
        assert!(waits.iter().all(|wait| (shortest..=longest).contains(wait)));
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*most - *least > (longest - shortest) / 2, "{least:?} to {most:?}");
        assert_eq!(between(longest, shortest), longest);
        assert_eq!(between(Duration::ZERO, Duration::ZERO), Duration::ZERO);
    }
}
