//! When to look for a route again, for tunnels from an address that is gone. The kernel reports no
//! event for some routes.

use std::time::Duration;

use tokio::time::Instant;

/// Delay of the first attempt after a change of the host: an address often appears before its
/// default route.
const SHORTEST: Duration = Duration::from_millis(25);
/// Maximum delay between two attempts. Each attempt asks the kernel once for each tunnel.
const LONGEST: Duration = Duration::from_millis(200);

/// The next attempt. The delay doubles from [`SHORTEST`] to [`LONGEST`].
#[derive(Debug)]
pub(super) struct RouteRetry {
    due: Option<Instant>,
    delay: Duration,
}

impl Default for RouteRetry {
    fn default() -> Self {
        Self { due: None, delay: SHORTEST }
    }
}

impl RouteRetry {
    /// Returns when the next attempt is due; `None` if no tunnel waits for a route.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Records that an attempt is made now. Returns whether one was scheduled.
    pub(super) fn take(&mut self) -> bool {
        self.due.take().is_some()
    }

    /// Schedules the next attempt, because a tunnel waits for a route.
    pub(super) fn schedule(&mut self, now: Instant) {
        self.due = Some(now + self.delay);
        self.delay = self.delay.saturating_mul(2).min(LONGEST);
    }

    /// Makes the next delay the shortest one, because the host has changed.
    pub(super) fn begin(&mut self) {
        self.delay = SHORTEST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_does_not_come_is_looked_for_ever_more_rarely_until_the_host_changes() {
        let (mut retry, now) = (RouteRetry::default(), Instant::now());
        assert!(!retry.take());
        let mut delays = Vec::new();
        for _ in 0..5 {
            retry.schedule(now);
            delays.push((retry.due().unwrap() - now).as_millis());
            assert!(retry.take() && retry.due().is_none());
        }
        assert_eq!(delays, [25, 50, 100, 200, 200]);
        retry.begin();
        retry.schedule(now);
        assert_eq!(retry.due(), Some(now + SHORTEST));
    }
}
