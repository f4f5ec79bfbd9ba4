//! Limits how often IKE_SA_INIT requests are answered with a notification alone (COOKIE,
//! INVALID_KE_PAYLOAD, NO_PROPOSAL_CHOSEN). Their source may be forged, so the answers may go to
//! somebody who has asked for nothing.

use std::collections::HashMap;
use std::time::Duration;

use super::source::Source;
use crate::time::Instant;

/// Maximum number of answers to one source in each [`PERIOD`]. An honest initiator needs one, and
/// many may be behind one NAT, for example after a power cut. Further requests are not answered,
/// and an honest initiator sends its request again.
const MAX_ANSWERS: u32 = 256;
/// Maximum number of sources without a configured peer that are counted separately in a period.
/// Further sources together get at most [`MAX_OTHER_ANSWERS`]. The number of other sources is at
/// most twice the number of configured peers' addresses (datagrams, and TCP connections).
const MAX_SOURCES: usize = 4096;
const MAX_OTHER_ANSWERS: u32 = 4096;
const PERIOD: Duration = Duration::from_secs(1);

/// The answers of the period that ends at `ends`.
#[derive(Debug, Default)]
pub(super) struct AnswerLimit {
    ends: Instant,
    answers: HashMap<Source, u32>,
    /// Number of entries of `answers` without a configured peer.
    strangers: usize,
    /// Answers to sources that are not counted separately.
    other_answers: u32,
}

impl AnswerLimit {
    /// Returns whether a request from this source may be answered with a notification now. Each
    /// `true` counts.
    //= RFC 7296 2.21.4 REQUIRED 11: rate of answers
    pub(super) fn may_answer(&mut self, source: Source, now: Instant) -> bool {
        if self.ends <= now {
            self.ends = now + PERIOD;
            self.answers.clear();
            (self.strangers, self.other_answers) = (0, 0);
        }
        let counted = self.answers.contains_key(&source);
        let (answers, limit) = if counted || source.is_known() || self.strangers < MAX_SOURCES {
            if !counted && !source.is_known() {
                self.strangers = self.strangers.saturating_add(1);
            }
            (self.answers.entry(source).or_default(), MAX_ANSWERS)
        } else {
            (&mut self.other_answers, MAX_OTHER_ANSWERS)
        };
        let may = *answers < limit;
        *answers = answers.saturating_add(1).min(limit);
        may
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::new(Duration::from_millis(milliseconds))
    }

    fn source(number: u32, known: bool) -> Source {
        Source::new(IpAddr::V4(Ipv4Addr::from(number)), known)
    }

    #[test]
    fn each_source_has_its_own_limit_in_each_period() {
        let mut limit = AnswerLimit::default();
        let answered = |limit: &mut AnswerLimit, number, now| {
            (0..10_000).filter(|_| limit.may_answer(source(number, false), now)).count()
        };
        assert_eq!(answered(&mut limit, 1, at(5000)), 256);
        assert_eq!(answered(&mut limit, 2, at(5100)), 256);
        assert_eq!(answered(&mut limit, 1, at(5999)), 0);
        assert_eq!(answered(&mut limit, 1, at(6000)), 256);
    }

    #[test]
    fn one_host_with_a_whole_ipv6_network_is_one_source() {
        let mut limit = AnswerLimit::default();
        let answered = (0..10_000_u128).filter(|host| {
            let address = IpAddr::V6((0x2001_0db8_u128 << 96 | host).into());
            limit.may_answer(Source::new(address, false), at(5000))
        });
        assert_eq!(answered.count(), 256);
    }

    #[test]
    fn with_any_number_of_forged_sources_memory_and_answers_are_bounded_and_a_peers_address_is_served() {
        let mut limit = AnswerLimit::default();
        let answered = (0..100_000).filter(|number| limit.may_answer(source(*number, false), at(5000))).count();
        assert_eq!(answered, MAX_SOURCES + MAX_OTHER_ANSWERS as usize);
        assert_eq!(limit.answers.len(), MAX_SOURCES);
        assert!(limit.may_answer(source(200_000, true), at(5000)));
        assert!(limit.may_answer(source(0, false), at(5000)), "it was there before");
        assert!(!limit.may_answer(source(200_001, false), at(5000)));
        assert!(limit.may_answer(source(200_001, false), at(6000)));
        assert_eq!(limit.answers.len(), 1);
    }
}
