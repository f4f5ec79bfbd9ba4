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

/// Number of transmissions of a request to a peer for which we have patience. RFC 7296 2.4 suggests
/// at least a dozen over at least several minutes.
const PATIENT_TRANSMISSIONS: u32 = 12;
/// Factor by which each delay between them is longer than the one before it. If they doubled, a
/// dozen would take half an hour. With the default of half a second for the first one, the last
/// transmission is two and a half minutes after the first, and the peer is given up one and a half
/// minutes later.
const PATIENT_GROWTH: (u32, u32) = (8, 5);

/// Whether a request is repeated although all its transmissions are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// No: the peer counts as dead.
    None,
    /// Up to [`PATIENT_TRANSMISSIONS`], at intervals that grow by [`PATIENT_GROWTH`].
    Patient,
    /// For [`ESP_ARRIVES`], since ESP from the peer arrives: at the last interval, or at intervals
    /// that grow by [`PATIENT_GROWTH`] if another reason may follow.
    EspArrives,
    /// At intervals that go on growing, for [`PEER_MAY_MOVE`].
    PeerMayMove,
}

/// The times at which a request is sent again and is abandoned (RFC 7296 2.4).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetransmissionTimer {
    begun: Instant,
    sent: u32,
    /// The delay before `next`. It never becomes shorter, although the reasons to go on may change
    /// while a request is repeated.
    wait: Duration,
    next: Instant,
}

impl RetransmissionTimer {
    /// Starts the timer at the first transmission of a request.
    pub(crate) fn begin(timing: &Timing, now: Instant) -> Self {
        Self { begun: now, sent: 1, wait: timing.retransmit, next: now + timing.retransmit }
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
    /// the last one is only as long as the one before it, since no transmission follows it. `grows`
    /// states that another reason to go on may follow, whatever the present one is.
    pub(crate) fn advance(
        &mut self,
        timing: &Timing,
        limit: u32,
        persistence: Persistence,
        grows: bool,
        now: Instant,
    ) -> Option<()> {
        let moves = persistence == Persistence::PeerMayMove;
        let patient = persistence == Persistence::Patient;
        let limit = if patient { limit.max(PATIENT_TRANSMISSIONS) } else { limit };
        let last = if grows { u32::MAX } else { timing.transmissions.saturating_sub(1) };
        if self.sent < limit || (moves && now < self.begun + PEER_MAY_MOVE) {
            self.sent = self.sent.saturating_add(1);
            let (times, by) = if patient { PATIENT_GROWTH } else { (2, 1) };
            //= RFC 7296 2.4 MUST 6: waits double
            if self.sent <= last && !mutation!("waits_do_not_grow") {
                self.wait = self.wait.saturating_mul(times) / by;
            }
        } else {
            //= RFC 7296 2.4 MUST 4: a failure is silence or INITIAL_CONTACT
            Some(()).filter(|()| persistence == Persistence::EspArrives && now < self.begun + ESP_ARRIVES)?;
            if grows {
                self.wait = self.wait.saturating_mul(PATIENT_GROWTH.0) / PATIENT_GROWTH.1;
            }
        }
        self.next = now + self.wait;
        if moves && self.sent > limit {
            self.next = self.next.min(self.begun + PEER_MAY_MOVE);
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
    fn a_peer_for_which_we_have_patience_is_asked_a_dozen_times_over_minutes() {
        let timing = Timing::default();
        let mut timer = RetransmissionTimer::begin(&timing, Instant::default());
        let mut at = vec![timer.next().since_start()];
        while timer.advance(&timing, timing.transmissions, Persistence::Patient, true, timer.next()).is_some() {
            at.push(timer.next().since_start());
        }
        assert!(at.windows(3).all(|at| at[2] - at[1] > at[1] - at[0]), "{at:?}");
        assert!((180..300).contains(&at[11].as_secs()), "{at:?}");
        assert_eq!(timer.sent(), PATIENT_TRANSMISSIONS);
    }

    #[test]
    fn waits_grow_whatever_reasons_for_patience_come_and_go() {
        //= RFC 7296 2.4 MUST 6: waits double
        let reasons = [Persistence::None, Persistence::Patient, Persistence::EspArrives, Persistence::PeerMayMove];
        for pattern in 0..reasons.len().pow(8) {
            let timing = Timing::default();
            let mut timer = RetransmissionTimer::begin(&timing, Instant::default());
            let (mut last, mut before) = (Duration::ZERO, Duration::ZERO);
            for step in 0..8 {
                let wait = timer.next().since_start() - before;
                assert!(wait > last, "{pattern}: {wait:?} after {last:?}");
                (last, before) = (wait, timer.next().since_start());
                let reason = reasons[pattern / reasons.len().pow(step) % reasons.len()];
                if timer.advance(&timing, timing.transmissions, reason, true, timer.next()).is_none() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_request_is_transmitted_as_often_as_configured() {
        for transmissions in 1..8 {
            let timing = Timing { transmissions, ..Timing::default() };
            assert_eq!(given_up_after(&timing).0, transmissions);
        }
    }
}
