//! Records the evidence that the peer is alive, and decides when to check its liveness (RFC 7296
//! 2.4).

use std::time::Duration;

use crate::config::Timing;
use crate::time::{Instant, on_whole_second};

/// Delay after which we check whether the peer still has an IKE SA that a newer one has superseded.
/// Normally the peer has deleted the old IKE SA by then. A peer that has restarted no longer has
/// it.
const SUPERSEDED_CHECK: Duration = Duration::from_millis(500);
/// Maximum number of transmissions of a request on a superseded IKE SA before that IKE SA is
/// abandoned. Few are enough, since the newer IKE SA shows that the peer is reachable and responds.
/// With the default timing, the old IKE SA is abandoned after four seconds.
const SUPERSEDED_TRANSMISSIONS: u32 = 3;

/// Maximum time from the arrival of ESP to the owner's report.
const REPORT_DELAY: Duration = Duration::from_secs(1);

/// Time for which ESP is expected in response to ours, after ESP has arrived.
const ESP_IS_EXPECTED: Duration = Duration::from_secs(30);

/// When the peer was last known to be alive, and whether ESP was sent to it since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignsOfLife {
    /// When the last authentic IKE message arrived.
    ike: Instant,
    /// When the last ESP arrived, if the owner reports ESP.
    esp: Option<Instant>,
    /// When ESP was first sent after the last evidence that the peer is alive.
    unanswered: Option<Instant>,
    /// Time without an IKE message after which the peer is checked. `None` if the owner does not
    /// report ESP.
    idle: Option<Duration>,
    /// When another IKE SA superseded this one, for which the peer authenticated again.
    superseded: Option<Instant>,
}

impl SignsOfLife {
    /// Creates the record for a peer that has just sent an authentic message.
    pub(crate) fn new(now: Instant) -> Self {
        Self { ike: now, esp: None, unanswered: None, idle: None, superseded: None }
    }

    /// Records that another IKE SA, for which the peer authenticated again, has superseded this
    /// one. The peer may have restarted and lost this one.
    pub(crate) fn superseded(&mut self, now: Instant) {
        self.superseded = Some(now).filter(|_| !mutation!("superseded_ike_sa_not_asked"));
    }

    /// Records that the IKE SA that superseded this one has ended.
    pub(crate) fn reinstated(&mut self) {
        self.superseded = None;
    }

    /// Records an authentic IKE message. `idle` is the time without another message after which the
    /// peer is checked, or `None` if the owner does not report ESP.
    pub(crate) fn ike_received(&mut self, now: Instant, idle: Option<Duration>) {
        self.ike = now;
        self.idle = idle;
        self.unanswered = None;
    }

    /// Shortens the time without an IKE message after which the peer is checked to this limit.
    pub(crate) fn limit_idle(&mut self, limit: Duration) {
        self.idle = self.idle.map(|idle| idle.min(limit));
    }

    /// Records authentic ESP from the peer.
    pub(crate) fn esp_received(&mut self, now: Instant) {
        self.esp = Some(now);
        self.unanswered = None;
    }

    /// Records ESP sent to the peer.
    pub(crate) fn esp_sent(&mut self, now: Instant) {
        if !mutation!("esp_sent_needs_no_answer") {
            self.unanswered.get_or_insert(now);
        }
    }

    /// Returns the time of the last evidence that the peer is alive.
    pub(crate) fn last(&self) -> Instant {
        self.esp.map_or(self.ike, |esp| esp.max(self.ike))
    }

    /// Returns whether ESP has arrived.
    pub(crate) fn has_esp_arrived(&self) -> bool {
        self.esp.is_some()
    }

    /// Returns whether all evidence may be from before `at`. A report of ESP soon after `at` may be
    /// about packets that arrived before.
    pub(crate) fn are_before(&self, at: Instant) -> bool {
        self.ike <= at && self.esp.is_none_or(|esp| esp <= at + REPORT_DELAY)
    }

    /// Returns whether ESP arrived within the liveness interval before now. On a superseded IKE SA,
    /// ESP is no evidence: a restarted IKE daemon leaves the kernel's SAs in place, so its kernel
    /// continues to send.
    pub(crate) fn esp_arrives(&self, timing: &Timing, now: Instant) -> bool {
        self.superseded.is_none() && self.esp.is_some_and(|esp| now < esp + timing.liveness)
    }

    /// Returns whether ESP has arrived, and ESP that was sent soon afterwards had no answer.
    pub(crate) fn esp_has_stopped(&self) -> bool {
        self.esp.zip(self.unanswered).is_some_and(|(came, sent)| sent < came + ESP_IS_EXPECTED)
    }

    /// Records that something is done about ESP that has stopped.
    pub(crate) fn esp_stop_is_handled(&mut self) {
        self.esp = None;
    }

    /// Returns the maximum number of transmissions of a request before the IKE SA is abandoned.
    pub(crate) fn transmissions(&self, timing: &Timing) -> u32 {
        let limit = if self.superseded.is_some() { SUPERSEDED_TRANSMISSIONS } else { u32::MAX };
        timing.transmissions.min(limit)
    }

    /// Returns the time at which to check the peer. If the owner reports ESP, ESP that was sent
    /// must be answered by ESP within half of the liveness interval. The owner's reports are up to
    /// a second late in each direction, and the other half covers these delays. ESP does not
    /// replace the check of an idle peer: the kernel of a peer continues to send after its IKE
    /// daemon has lost its state.
    ///
    /// The check of an idle peer is due on a whole second, so that an owner with many peers wakes
    /// up once a second for all of them, not once for each.
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
    fn a_report_of_esp_soon_after_a_moment_does_not_show_that_the_peer_was_heard_since() {
        let mut signs = heard(100);
        assert!(signs.are_before(at(100)));
        signs.esp_received(at(101));
        assert!(signs.are_before(at(100)) && !signs.are_before(at(99)));
        signs.esp_received(at(102));
        assert!(!signs.are_before(at(100)));
        signs.ike_received(at(103), None);
        assert!(!signs.are_before(at(102)), "an IKE message is handled when it arrives");
    }

    #[test]
    fn an_idle_peer_is_seldom_asked() {
        assert_eq!(heard(100).check_at(&Timing::default()), at(220));
    }

    #[test]
    fn a_peer_that_was_to_be_asked_late_is_asked_sooner_behind_a_nat() {
        let mut signs = SignsOfLife::new(at(100));
        signs.ike_received(at(100), Some(Duration::from_secs(1800)));
        signs.limit_idle(Duration::from_secs(120));
        assert_eq!(signs.check_at(&Timing::default()), at(220));
        signs.ike_received(at(101), None);
        signs.limit_idle(Duration::from_secs(120));
        assert_eq!(signs.check_at(&Timing::default()), at(105), "ESP is not reported");
    }

    #[test]
    fn ten_thousand_idle_peers_are_asked_at_no_more_moments_than_there_are_seconds() {
        let timing = Timing::default();
        let mut moments = std::collections::BTreeSet::new();
        for peer in 0..10_000_u64 {
            let mut signs = SignsOfLife::new(at(0));
            // Each peer's message and check have different times.
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
    fn esp_has_stopped_if_it_came_and_later_packets_have_no_answer() {
        let mut signs = heard(100);
        signs.esp_sent(at(101));
        assert!(!signs.esp_has_stopped(), "none has come");
        signs.esp_received(at(102));
        assert!(!signs.esp_has_stopped());
        signs.esp_sent(at(131));
        assert!(signs.esp_has_stopped());
        signs.esp_stop_is_handled();
        assert!(!signs.esp_has_stopped(), "until it comes again");
        signs.esp_received(at(140));
        signs.esp_sent(at(170));
        assert!(!signs.esp_has_stopped(), "no answer was expected any more");
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
