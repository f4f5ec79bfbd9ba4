//! Deadlines: a table of timers for each owner, and a queue of all owners' next deadlines.

use std::collections::BTreeSet;
use std::hash::Hash;

use crate::own_keys::OwnKeyMap;
use crate::time::Instant;

/// The deadlines of an IKE SA, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The time to retransmit our request.
    Retransmit,
    /// The peer has been silent for the liveness interval (RFC 7296 2.4).
    Liveness,
    /// We have been silent for the keepalive interval behind a NAT (RFC 3948 4).
    Keepalive,
    /// The time at which a new IKE SA must replace this one.
    Reauthenticate,
    /// The time at which the IKE SA's lifetime may have ended.
    Expire,
    /// The time by which the peer should have deleted an SA.
    Cleanup,
    /// The time by which the peer should have created a CHILD_SA on an IKE SA without one.
    Childless,
}

const TIMERS: [Timer; 7] = [
    Timer::Retransmit,
    Timer::Liveness,
    Timer::Keepalive,
    Timer::Reauthenticate,
    Timer::Expire,
    Timer::Cleanup,
    Timer::Childless,
];

/// A deadline for each [`Timer`] that is set.
#[derive(Debug, Default)]
pub(crate) struct Timers([Option<Instant>; TIMERS.len()]);

impl Timers {
    /// Sets the deadline of a timer. Replaces an earlier deadline.
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = Some(at);
        }
    }

    /// Stops a timer, if it is set.
    pub(crate) fn stop(&mut self, timer: Timer) {
        if let Some(slot) = self.0.get_mut(timer as usize) {
            *slot = None;
        }
    }

    /// Returns the deadline of a timer, or `None` if the timer is not set.
    pub(crate) fn get(&self, timer: Timer) -> Option<Instant> {
        self.0.get(timer as usize).copied().flatten()
    }

    /// Returns the earliest deadline of all timers.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Returns a timer whose deadline has passed and stops it. Returns `None` if there is none.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Timer> {
        let timer = TIMERS.into_iter().find(|&timer| self.get(timer).is_some_and(|at| at <= now))?;
        self.stop(timer);
        Some(timer)
    }
}

/// The next deadline of each of many owners, earliest first.
#[derive(Debug)]
pub(crate) struct Deadlines<O> {
    queue: BTreeSet<(Instant, O)>,
    by_owner: OwnKeyMap<O, Instant>,
}

impl<O: Clone + Ord + Hash> Deadlines<O> {
    /// Makes a table in which no owner has a deadline.
    pub(crate) fn new() -> Self {
        Self { queue: BTreeSet::new(), by_owner: OwnKeyMap::default() }
    }

    /// Sets the owner's next deadline. `None` removes it.
    pub(crate) fn set(&mut self, owner: O, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.by_owner.insert(owner.clone(), at),
            None => self.by_owner.remove(&owner),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&(before, owner.clone()));
        }
        if let Some(at) = at {
            self.queue.insert((at, owner));
        }
    }

    /// Returns whether the owner has a deadline.
    pub(crate) fn has(&self, owner: &O) -> bool {
        self.by_owner.contains_key(owner)
    }

    /// Returns the earliest deadline of all owners.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Removes and returns an owner whose deadline has passed.
    pub(crate) fn due(&mut self, now: Instant) -> Option<O> {
        if self.next()? > now {
            return None;
        }
        let (_, owner) = self.queue.pop_first()?;
        self.by_owner.remove(&owner);
        Some(owner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    #[test]
    fn a_timer_goes_off_once_and_not_early() {
        let mut timers = Timers::default();
        timers.set(Timer::Liveness, at(4));
        timers.set(Timer::Retransmit, at(2));
        assert_eq!(timers.next(), Some(at(2)));
        assert_eq!(timers.expired(at(1)), None);
        assert_eq!(timers.expired(at(5)), Some(Timer::Retransmit));
        assert_eq!(timers.expired(at(5)), Some(Timer::Liveness));
        assert_eq!(timers.expired(at(5)), None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn owners_come_due_in_order_and_a_moved_deadline_counts_once() {
        let mut deadlines = Deadlines::new();
        deadlines.set("a", Some(at(5)));
        deadlines.set("b", Some(at(3)));
        deadlines.set("a", Some(at(1)));
        deadlines.set("c", Some(at(2)));
        deadlines.set("c", None);
        assert_eq!(deadlines.next(), Some(at(1)));
        assert_eq!(deadlines.due(at(9)), Some("a"));
        assert_eq!(deadlines.due(at(9)), Some("b"));
        assert_eq!(deadlines.due(at(9)), None);
    }
}
