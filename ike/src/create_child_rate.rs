//! Limits the rate of the CREATE_CHILD_SA requests of one peer that we carry out. Each costs a key
//! exchange, SPIs and changes of kernel SAs, and an authenticated peer can send as many as it
//! likes.

use std::time::Duration;

use crate::time::Instant;

/// Maximum number of requests in a burst. An honest peer with 64 CHILD_SAs rekeys all of them and
/// the IKE SA at the same time, and may repeat some of these rekeys after a collision.
pub(crate) const MAX_BURST: u32 = 160;
/// Average time between two requests after a burst. At the limit, requests are refused with
/// TEMPORARY_FAILURE, after which an honest peer waits and repeats them (RFC 7296 2.25).
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// The requests of one peer, under all of its IKE SAs, old and new.
#[derive(Debug, Default)]
pub(crate) struct CreateChildRate {
    /// The time at which a whole burst is available again. Each request moves it by [`INTERVAL`].
    full_at: Instant,
    /// Number of refused requests.
    refused: u32,
    /// Whether the limit was reported since a whole burst was available last.
    reported: bool,
}

/// The limit is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateExceeded {
    /// Whether to report it. It is reported again only after the peer has been quiet for so long
    /// that a whole burst is available.
    pub(crate) report: bool,
}

impl CreateChildRate {
    /// Counts a request. Returns an error if it must be refused.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), RateExceeded> {
        let burst = INTERVAL.saturating_mul(MAX_BURST);
        // A clock that was set back makes a peer wait no longer than after a whole burst.
        self.full_at = self.full_at.min(now + burst);
        let used = self.full_at.saturating_since(now);
        if used.is_zero() {
            self.reported = false;
        }
        let used = used.saturating_add(INTERVAL);
        if used > burst && !mutation!("peer_without_rate") {
            self.refused = self.refused.saturating_add(1);
            return Err(RateExceeded { report: !std::mem::replace(&mut self.reported, true) });
        }
        self.full_at = now + used;
        Ok(())
    }

    /// Returns the number of refused requests so far.
    pub(crate) fn refused(&self) -> u32 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::new(Duration::from_millis(milliseconds))
    }

    fn taken(rate: &mut CreateChildRate, now: Instant) -> u32 {
        (0..1000).map(|_| u32::from(rate.take(now).is_ok())).sum()
    }

    #[test]
    fn after_a_burst_a_request_is_carried_out_for_each_interval() {
        let mut rate = CreateChildRate::default();
        assert_eq!(taken(&mut rate, at(0)), MAX_BURST);
        assert_eq!(taken(&mut rate, at(99)), 0);
        assert_eq!(taken(&mut rate, at(100)), 1);
        assert_eq!(taken(&mut rate, at(1100)), 10);
        assert_eq!(taken(&mut rate, at(3_600_000)), MAX_BURST);
    }

    #[test]
    fn the_limit_is_reported_once_until_the_peer_has_been_quiet() {
        let mut rate = CreateChildRate::default();
        let mut reports = |now| (0..1000).filter(|_| rate.take(now) == Err(RateExceeded { report: true })).count();
        assert_eq!(reports(at(0)), 1);
        assert_eq!(reports(at(8_000)), 0);
        assert_eq!(reports(at(24_100)), 1);
        assert_eq!(rate.refused(), 3000 - MAX_BURST - 80 - MAX_BURST);
    }

    #[test]
    fn clock_steps_give_at_most_a_burst_and_take_at_most_a_burst() {
        let mut rate = CreateChildRate::default();
        let late = Instant::new(Duration::from_secs(1 << 40));
        assert_eq!(taken(&mut rate, late), MAX_BURST);
        assert_eq!(taken(&mut rate, at(0)), 0);
        let mut rate = CreateChildRate::default();
        assert_eq!(taken(&mut rate, at(1_000_000)), MAX_BURST);
        assert_eq!(taken(&mut rate, at(0)), 0);
        assert_eq!(taken(&mut rate, at(200)), 2);
    }
}
