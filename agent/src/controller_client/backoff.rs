//! Exponential backoff with jitter, so that nodes do not return all at once.

use std::time::Duration;

use edge_types::jitter::between;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(15);

/// Waits that double from [`FIRST`] to [`LONGEST`]; each is between half of that and all of it.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (self.0 * 2).min(LONGEST);
        jitter(wait)
    }

    /// Starts from the first wait again, after a success.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Between half of `wait` and all of it.
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
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits[19] <= LONGEST && waits[19] >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
