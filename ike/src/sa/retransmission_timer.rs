//! Decides when our request is sent again, and when it is abandoned. `channel` sends it.

use std::time::Duration;

use crate::config::Timing;
use crate::time::Instant;

/// Maximum time for which a request is repeated while ESP from the peer arrives, counted from the
/// first transmission. A congested uplink loses many packets, so a lost request does not prove that
/// such a peer is dead. However, the check must also detect that a peer's IKE daemon is gone while
/// its kernel continues to send.
const ESP_ARRIVES: Duration = Duration::from_secs(60);

/// How long the responder of an IKE SA with MOBIKE repeats a request, counted from the first
/// transmission. The initiator needs time to find another path, so RFC 4555 3.11 suggests at least
/// five minutes.
const PEER_MAY_MOVE: Duration = Duration::from_secs(300);

/// Whether a request is repeated although all its transmissions are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// No: the peer counts as dead.
    None,
    /// At the last interval for [`ESP_ARRIVES`], since ESP from the peer arrives.
    EspArrives,
    /// At intervals that go on growing, for [`PEER_MAY_MOVE`].
    PeerMayMove,
}

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

    /// Counts one more transmission, up to `limit` and as `persistence` says beyond it. Returns
    /// `None` if all transmissions are used up. The interval doubles each time, but unless `grows`
    /// the last one is only as long as the one before it, since no transmission follows it.
    pub(crate) fn advance(
        &mut self,
        timing: &Timing,
        limit: u32,
        persistence: Persistence,
        grows: bool,
        now: Instant,
    ) -> Option<()> {
        let (patient, end) = (persistence == Persistence::PeerMayMove, self.begun + PEER_MAY_MOVE);
        if self.sent < limit || (patient && now < end) {
            self.sent = self.sent.saturating_add(1);
        } else {
            //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
            Some(()).filter(|()| persistence == Persistence::EspArrives && now < self.begun + ESP_ARRIVES)?;
        }
        let sent = if mutation!("waits_do_not_grow") { 1 } else { self.sent };
        let last = if grows { u32::MAX } else { timing.transmissions.saturating_sub(1) };
        let doublings = sent.min(last).saturating_sub(1);
        //= RFC 7296 2.4 MUST 6: waits double
        self.next = now + timing.retransmit.saturating_mul(2_u32.saturating_pow(doublings));
        if patient && self.sent > limit {
            self.next = self.next.min(end);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up_after(timing: &Timing) -> (u32, Duration) {
        let mut timer = RetransmissionTimer::begin(timing, Instant::default());
        let mut transmissions = 1;
        while timer.advance(timing, timing.transmissions, Persistence::None, false, timer.next()).is_some() {
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
        while timer.advance(&timing, timing.transmissions, Persistence::EspArrives, false, timer.next()).is_some() {
            let wait = timer.next().since_start() - before;
            assert!(wait <= timing.liveness, "{wait:?}");
            before = timer.next().since_start();
        }
        assert!((60..65).contains(&before.as_secs()), "{before:?}");
    }

    #[test]
    fn a_peer_that_may_move_is_given_up_after_five_minutes_of_growing_waits() {
        //= RFC 4555 3.11 SHOULD 1: the responder waits long
        let timing = Timing::default();
        let mut timer = RetransmissionTimer::begin(&timing, Instant::default());
        let mut at = vec![timer.next()];
        while timer.advance(&timing, timing.transmissions, Persistence::PeerMayMove, true, timer.next()).is_some() {
            at.push(timer.next());
        }
        assert_eq!(at.pop(), Some(Instant::new(PEER_MAY_MOVE)));
        let seconds: Vec<f32> = at.iter().map(|at| at.since_start().as_secs_f32()).collect();
        assert_eq!(seconds, [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 127.5, 255.5]);
    }

    #[test]
    fn a_request_is_transmitted_as_often_as_configured() {
        for transmissions in 1..8 {
            let timing = Timing { transmissions, ..Timing::default() };
            assert_eq!(given_up_after(&timing).0, transmissions);
        }
    }
}
