//! Decides when our request is sent again, and when it is abandoned. `channel` sends it.

use std::time::Duration;

use crate::config::Timing;
use crate::time::Instant;

/// Maximum time for which a request is repeated while ESP from the peer arrives, counted from the
/// first transmission. A congested uplink loses many packets, so a lost request does not prove that
/// such a peer is dead. However, the check must also detect that a peer's IKE daemon is gone while
/// its kernel continues to send.
const ESP_ARRIVES: Duration = Duration::from_secs(60);

/// The times at which a request is sent again and is abandoned (RFC 7296 2.4).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetransmissionTimer {
    begun: Instant,
    sent: u32,
    next: Instant,
}

impl RetransmissionTimer {
    /// Starts the timer at the first transmission of a request.
    pub(crate) fn begin(timing: &Timing, now: Instant) -> Self {
        Self { begun: now, sent: 1, next: now + timing.retransmit }
    }

    /// Returns the number of transmissions. Transmissions beyond the limit, which happen while ESP
    /// arrives, do not count.
    pub(crate) fn sent(&self) -> u32 {
        self.sent
    }

    /// Returns the time at which the next transmission is due.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Counts one more transmission, up to `limit`. Returns `None` if all transmissions are used
    /// up. The interval doubles each time, but the last interval is only as long as the one before
    /// it, since no transmission follows it. While ESP from the peer arrives, transmissions
    /// continue at this interval for [`ESP_ARRIVES`].
    pub(crate) fn advance(&mut self, timing: &Timing, limit: u32, esp_arrives: bool, now: Instant) -> Option<()> {
        if self.sent >= limit {
            //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
            if !esp_arrives || now >= self.begun + ESP_ARRIVES {
                return None;
            }
        } else {
            self.sent = self.sent.saturating_add(1);
        }
        let sent = if mutation!("waits_do_not_grow") { 1 } else { self.sent };
        let doublings = sent.min(timing.transmissions.saturating_sub(1)).saturating_sub(1);
        //= RFC 7296 2.4 MUST 6: waits double
        self.next = now + timing.retransmit.saturating_mul(2_u32.saturating_pow(doublings));
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up_after(timing: &Timing) -> (u32, Duration) {
        let mut timer = RetransmissionTimer::begin(timing, Instant::default());
        let mut transmissions = 1;
        while timer.advance(timing, timing.transmissions, false, timer.next()).is_some() {
            transmissions += 1;
        }
        (transmissions, timer.next().since_start())
    }

    #[test]
    fn a_silent_peer_is_given_up_in_less_than_ten_seconds_by_default() {
        //= RFC 7296 2.4 MUST 6: waits double
        let timing = Timing::default();
        let (transmissions, after) = given_up_after(&timing);
        assert_eq!((transmissions, after), (4, Duration::from_millis(5500)));
        assert!(timing.liveness + after < Duration::from_secs(10));
    }

    #[test]
    fn a_request_is_repeated_for_a_minute_while_esp_arrives() {
        let timing = Timing::default();
        let mut timer = RetransmissionTimer::begin(&timing, Instant::default());
        let mut before = Duration::ZERO;
        while timer.advance(&timing, timing.transmissions, true, timer.next()).is_some() {
            let wait = timer.next().since_start() - before;
            assert!(wait <= timing.liveness, "{wait:?}");
            before = timer.next().since_start();
        }
        assert!((60..65).contains(&before.as_secs()), "{before:?}");
    }

    #[test]
    fn a_request_is_transmitted_as_often_as_configured() {
        for transmissions in 1..8 {
            let timing = Timing { transmissions, ..Timing::default() };
            assert_eq!(given_up_after(&timing).0, transmissions);
        }
    }
}
