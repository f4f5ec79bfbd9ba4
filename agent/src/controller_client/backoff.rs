//! Exponential backoff with jitter, so that nodes do not all reconnect at the same moment.

use std::time::Duration;

use edge_types::jitter::between;

const MIN_WAIT: Duration = Duration::from_millis(500);
const MAX_WAIT: Duration = Duration::from_secs(15);

/// Delays that double from [`MIN_WAIT`] to [`MAX_WAIT`], each reduced at random by up to half.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(MIN_WAIT)
    }
}

impl Backoff {
    /// Returns the next delay.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (self.0 * 2).min(MAX_WAIT);
        jitter(wait)
    }

    /// Starts from the first delay again, after a success.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Returns a random time between half of `wait` and `wait`.
pub(super) fn jitter(wait: Duration) -> Duration {
    between(wait / 2, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(waits[0] <= MIN_WAIT && waits[0] >= MIN_WAIT / 2);
        assert!(waits[19] <= MAX_WAIT && waits[19] >= MAX_WAIT / 2);
        backoff.reset();
        assert!(backoff.next() <= MIN_WAIT);
    }
}
