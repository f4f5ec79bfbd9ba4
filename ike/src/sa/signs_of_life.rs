//! What shows that the peer is alive, and when to ask it (RFC 7296 2.4).

use std::time::Duration;

use crate::config::Timing;
use crate::time::{Instant, on_whole_second};

/// How soon the peer is asked whether it still has an IKE SA that a newer one has superseded. By
/// then the peer has normally deleted it. A peer that was restarted has forgotten it.
const SUPERSEDED_CHECK: Duration = Duration::from_millis(500);
/// Transmissions of a request on a superseded IKE SA before it is given up: the newer one shows
/// that the peer is there and answers. With the default timing it is gone after four seconds.
const SUPERSEDED_TRANSMISSIONS: u32 = 3;

/// When the peer was last heard, and what it was sent since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignsOfLife {
    /// When the last authentic IKE message came.
    ike: Instant,
    /// When ESP came last, as far as the owner reports it.
    esp: Option<Instant>,
    /// When ESP was first sent after the last sign of life.
    unanswered: Option<Instant>,
    /// After this time without an IKE message the peer is asked. `None`: the owner does not report
    /// ESP.
    idle: Option<Duration>,
    /// When another IKE SA superseded this one, for which the peer authenticated again.
    superseded: Option<Instant>,
}

impl SignsOfLife {
    /// The peer has just been heard.
    pub(crate) fn new(now: Instant) -> Self {
        Self { ike: now, esp: None, unanswered: None, idle: None, superseded: None }
    }

    /// Another IKE SA has superseded this one, for which the peer authenticated again. The peer may
    /// have been restarted and have forgotten this one.
    pub(crate) fn superseded(&mut self, now: Instant) {
        self.superseded = Some(now).filter(|_| !mutation!("superseded_ike_sa_not_asked"));
    }

    /// The IKE SA that superseded this one is gone.
    pub(crate) fn reinstated(&mut self) {
        self.superseded = None;
    }

    /// An authentic IKE message came. `idle`: after this time without another one the peer is
    /// asked; `None` if the owner does not report ESP.
    pub(crate) fn ike_received(&mut self, now: Instant, idle: Option<Duration>) {
        self.ike = now;
        self.idle = idle;
        self.unanswered = None;
    }

    /// Authentic ESP came.
    pub(crate) fn esp_received(&mut self, now: Instant) {
        self.esp = Some(now);
        self.unanswered = None;
    }

    /// ESP was sent.
    pub(crate) fn esp_sent(&mut self, now: Instant) {
        if !mutation!("esp_sent_needs_no_answer") {
            self.unanswered.get_or_insert(now);
        }
    }

    /// When the last sign of life came.
    pub(crate) fn last(&self) -> Instant {
        self.esp.map_or(self.ike, |esp| esp.max(self.ike))
    }

    /// Whether ESP came within the liveness interval before now. It is no sign of life on a
    /// superseded IKE SA: a restarted peer leaves the kernel's SAs as they are.
    pub(crate) fn esp_arrives(&self, timing: &Timing, now: Instant) -> bool {
        self.superseded.is_none() && self.esp.is_some_and(|esp| now < esp + timing.liveness)
    }

    /// How often a request is sent before the IKE SA is given up.
    pub(crate) fn transmissions(&self, timing: &Timing) -> u32 {
        let limit = if self.superseded.is_some() { SUPERSEDED_TRANSMISSIONS } else { u32::MAX };
        timing.transmissions.min(limit)
    }

    /// When to ask the peer. If the owner reports ESP, what was sent must be answered by ESP within
    /// half of the liveness interval: the owner learns of ESP up to a second late in each
    /// direction, and the other half covers that. ESP does not replace the check of an idle peer:
    /// the kernel of a peer goes on sending after its IKE daemon has forgotten us.
    ///
    /// The check of an idle peer is due on a whole second, so that an owner with many peers wakes
    /// up once a second for them, not once for each.
    pub(crate) fn check_at(&self, timing: &Timing) -> Instant {
        let check = self.check_of_active_at(timing);
        let superseded = self.superseded.filter(|at| self.ike <= *at);
        superseded.map_or(check, |at| check.min(at + SUPERSEDED_CHECK))
    }

    fn check_of_active_at(&self, timing: &Timing) -> Instant {
        let Some(idle) = self.idle else {
            return self.ike + timing.liveness;
        };
        let check = on_whole_second(self.ike, idle.max(timing.liveness));
        self.unanswered.map_or(check, |sent| check.min(sent + timing.liveness / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn heard(seconds: u64) -> SignsOfLife {
        let mut signs = SignsOfLife::new(at(seconds));
        signs.ike_received(at(seconds), Some(Duration::from_secs(120)));
        signs
    }

    #[test]
    fn an_idle_peer_is_seldom_asked() {
        assert_eq!(heard(100).check_at(&Timing::default()), at(220));
    }

    #[test]
    fn ten_thousand_idle_peers_are_asked_at_no_more_moments_than_there_are_seconds() {
        let timing = Timing::default();
        let mut moments = std::collections::BTreeSet::new();
        for peer in 0..10_000_u64 {
            let mut signs = SignsOfLife::new(at(0));
            // Each was heard, and is to be asked, at a moment of its own.
            let heard = Instant::new(Duration::from_micros(peer * 97));
            let idle = Duration::from_secs(110) + Duration::from_micros(peer * 1009);
            signs.ike_received(heard, Some(idle));
            let check = signs.check_at(&timing);
            assert!(check <= heard + idle && heard + idle < check + Duration::from_secs(1), "{peer}");
            moments.insert(check);
        }
        assert_eq!(moments.len(), 12);
    }

    #[test]
    fn a_peer_is_asked_soon_after_esp_to_which_none_came_back() {
        let mut signs = heard(100);
        signs.esp_sent(at(150));
        signs.esp_sent(at(151));
        assert_eq!(signs.check_at(&Timing::default()), at(152));
        signs.esp_received(at(151));
        assert_eq!(signs.check_at(&Timing::default()), at(220));
        signs.esp_sent(at(153));
        signs.ike_received(at(154), Some(Duration::from_secs(120)));
        assert_eq!(signs.check_at(&Timing::default()), at(274));
    }

    #[test]
    fn esp_does_not_replace_the_check_of_an_idle_peer() {
        let mut signs = heard(100);
        signs.esp_received(at(219));
        assert_eq!((signs.check_at(&Timing::default()), signs.last()), (at(220), at(219)));
    }

    #[test]
    fn a_superseded_ike_sa_is_asked_soon_and_once_and_esp_does_not_keep_it() {
        let (mut signs, timing) = (heard(100), Timing::default());
        signs.esp_received(at(110));
        assert!(signs.esp_arrives(&timing, at(111)));
        signs.superseded(at(111));
        assert_eq!(signs.check_at(&timing), at(111) + SUPERSEDED_CHECK);
        assert_eq!((signs.esp_arrives(&timing, at(111)), signs.transmissions(&timing)), (false, 3));
        let few = Timing { transmissions: 2, ..timing };
        assert_eq!(signs.transmissions(&few), 2);
        signs.ike_received(at(112), Some(Duration::from_secs(120)));
        assert_eq!(signs.check_at(&timing), at(232));
        signs.reinstated();
        assert_eq!(signs.transmissions(&timing), timing.transmissions);
    }

    #[test]
    fn every_silence_counts_where_esp_is_not_reported() {
        let mut signs = heard(100);
        signs.ike_received(at(101), None);
        assert_eq!(signs.check_at(&Timing::default()), at(105));
    }
}
