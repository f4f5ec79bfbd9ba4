//! Limits the work for expensive key exchanges ([`Group::expense`]) that unauthenticated initiators
//! cause, and shares it out among them.

use std::collections::HashMap;
use std::time::Duration;

use super::source::Source;
use crate::config::Group;
use crate::time::Instant;

/// Maximum work in each [`PERIOD`] for strangers, and as much for configured addresses,
/// microseconds. Beyond it, further IKE_SA_INIT requests with such a share are dropped. An honest
/// initiator sends its request again.
const MAX_WORK: u32 = 250_000;
/// Work in a period, microseconds, above which an initiator with such a share must return a cookie.
const MAX_WORK_WITHOUT_COOKIE: u32 = 25_000;
const PERIOD: Duration = Duration::from_secs(1);

/// The work in the present period, microseconds.
#[derive(Debug, Default)]
pub(super) struct KeyExchangeBudget {
    period_ends: Instant,
    strangers: Spent,
    configured: Spent,
}

/// The work of the sources that share one limit. There are at most [`MAX_WORK`] divided by the
/// smallest expense of a group of them, less than 200.
#[derive(Debug, Default)]
struct Spent {
    total: u32,
    by_source: HashMap<Source, u32>,
}

/// How to handle an IKE_SA_INIT request with an expensive share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// It may be answered.
    Free,
    /// It may be answered if the initiator returns a cookie.
    NeedsCookie,
    /// It must be dropped.
    TooMuch,
}

impl KeyExchangeBudget {
    /// Decides about a request from this source with a share of this group.
    pub(super) fn check(&mut self, group: Group, source: Source, now: Instant) -> Work {
        if group.expense() == 0 {
            return Work::Free;
        }
        self.begin_period(now);
        let spent = self.spent(source);
        let own = spent.by_source.get(&source).copied().unwrap_or_default().saturating_add(group.expense());
        // A source gets at most as much as it leaves to all others. So one source alone gets half
        // of the work, and leaves a share to the next ones.
        if own > MAX_WORK.saturating_sub(spent.total) {
            return Work::TooMuch;
        }
        let total = self.strangers.total.saturating_add(self.configured.total).saturating_add(group.expense());
        if total > MAX_WORK_WITHOUT_COOKIE { Work::NeedsCookie } else { Work::Free }
    }

    /// Counts the work for a request from this source that was answered with a key exchange of this
    /// group.
    pub(super) fn count(&mut self, group: Group, source: Source) {
        if group.expense() > 0 {
            let spent = self.spent(source);
            spent.total = spent.total.saturating_add(group.expense());
            let own = spent.by_source.entry(source).or_default();
            *own = own.saturating_add(group.expense());
        }
    }

    fn begin_period(&mut self, now: Instant) {
        // A clock that was set back does not prolong the period.
        if self.period_ends <= now || self.period_ends.saturating_since(now) > PERIOD {
            *self = Self { period_ends: now + PERIOD, ..Self::default() };
        }
    }

    fn spent(&mut self, source: Source) -> &mut Spent {
        if source.is_known() { &mut self.configured } else { &mut self.strangers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u8, known: bool) -> Source {
        Source::new([192, 0, 2, number].into(), known)
    }

    /// Returns the number of key exchanges that a source gets.
    fn served(budget: &mut KeyExchangeBudget, source: Source, seconds: u64) -> u32 {
        let now = Instant::new(Duration::from_secs(seconds));
        (0..1000)
            .map(|_| {
                let served = budget.check(Group::Modp4096, source, now) != Work::TooMuch;
                if served {
                    budget.count(Group::Modp4096, source);
                }
                u32::from(served)
            })
            .sum()
    }

    #[test]
    fn one_source_leaves_work_for_others_and_strangers_leave_all_to_configured_addresses() {
        let mut budget = KeyExchangeBudget::default();
        let strangers: Vec<u32> = (0..40).map(|number| served(&mut budget, source(number, false), 5)).collect();
        assert_eq!(strangers[..6], [17, 8, 4, 2, 1, 1]);
        assert!(strangers.iter().sum::<u32>() * Group::Modp4096.expense() <= MAX_WORK);
        assert_eq!(served(&mut budget, source(99, true), 5), 17);
        assert_eq!(served(&mut budget, source(39, false), 6), 17, "the next period");
    }

    #[test]
    fn a_clock_that_is_set_back_refuses_nobody() {
        let mut budget = KeyExchangeBudget::default();
        assert_eq!(served(&mut budget, source(1, false), 1_000_000), 17);
        assert_eq!(served(&mut budget, source(1, false), 5), 17);
    }

    #[test]
    fn cheap_key_exchanges_are_not_counted() {
        let mut budget = KeyExchangeBudget::default();
        for number in 0..200 {
            budget.count(Group::X25519, source(number, false));
            assert_eq!(budget.check(Group::X25519, source(number, false), Instant::default()), Work::Free);
        }
        assert!(budget.strangers.by_source.is_empty());
    }
}
