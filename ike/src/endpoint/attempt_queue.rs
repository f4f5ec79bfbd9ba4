//! Peers that wait because the number of simultaneous attempts is limited, in the order in which
//! their attempts start.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::config::PeerName;

/// The attempts that hold one of a limited number of places, and the peers that wait for one. Each
/// peer waits at most once, so there are at most as many as configured peers.
#[derive(Debug, Default)]
pub(super) struct AttemptQueue {
    running: BTreeSet<PeerName>,
    waiting: BTreeMap<Rank, PeerName>,
    ranks: HashMap<PeerName, Rank>,
    /// Number of peers that have waited so far.
    tickets: u64,
}

/// The order in which waiting peers get places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    urgency: Urgency,
    ticket: u64,
}

/// How soon a waiting peer gets a place, compared to the others. Peers whose last attempt failed
/// come last, so that many unreachable peers do not delay the reachable ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Urgency {
    /// Whether the last attempt failed, and nothing has been heard from the peer's address since.
    pub(super) failed: bool,
    /// Whether no packet waits for the tunnel.
    pub(super) no_packet: bool,
}

impl AttemptQueue {
    /// Gives the attempt with a peer a place, or lets the peer wait. Returns true if it has a
    /// place. Nobody overtakes the peers that wait.
    pub(super) fn begin(&mut self, name: &PeerName, urgency: Urgency, limit: usize) -> bool {
        if self.running.contains(name) {
            return true;
        }
        if self.waiting.is_empty() && self.running.len() < limit {
            self.running.insert(name.clone());
            return true;
        }
        match self.ranks.get(name) {
            // A later reason does not cost the peer its turn.
            Some(rank) if rank.urgency <= urgency => {}
            _ => self.put(name, urgency),
        }
        false
    }

    fn put(&mut self, name: &PeerName, urgency: Urgency) {
        self.withdraw(name);
        self.tickets = self.tickets.saturating_add(1);
        let rank = Rank { urgency, ticket: self.tickets };
        self.ranks.insert(name.clone(), rank);
        self.waiting.insert(rank, name.clone());
    }

    /// Moves a waiting peer forward, if this is more urgent than before. Has no effect on a peer
    /// that does not wait.
    pub(super) fn hasten(&mut self, name: &PeerName, change: impl FnOnce(Urgency) -> Urgency) {
        if let Some(rank) = self.ranks.get(name) {
            let urgency = change(rank.urgency);
            if urgency < rank.urgency {
                self.put(name, urgency);
            }
        }
    }

    /// Lets a peer wait no longer. Returns whether it has waited.
    pub(super) fn withdraw(&mut self, name: &PeerName) -> bool {
        let rank = self.ranks.remove(name);
        rank.is_some_and(|rank| self.waiting.remove(&rank).is_some())
    }

    /// Frees the place of a peer, if it has one. Returns whether it had one.
    pub(super) fn end(&mut self, name: &PeerName) -> bool {
        self.running.remove(name)
    }

    /// Returns whether a place is free and a peer waits for it.
    pub(super) fn can_start(&self, limit: usize) -> bool {
        self.running.len() < limit && !self.waiting.is_empty()
    }

    /// Gives a place to the next waiting peer. Returns `None` if no place is free, or if no peer
    /// waits.
    pub(super) fn start_next(&mut self, limit: usize) -> Option<PeerName> {
        if self.running.len() >= limit {
            return None;
        }
        let (_, name) = self.waiting.pop_first()?;
        self.ranks.remove(&name);
        self.running.insert(name.clone());
        Some(name)
    }

    /// Returns whether a peer waits for a place.
    pub(super) fn is_waiting(&self, name: &PeerName) -> bool {
        self.ranks.contains_key(name)
    }

    /// Returns the number of attempts that hold a place.
    #[cfg(test)]
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Urgency = Urgency { failed: false, no_packet: true };
    const FAILED: Urgency = Urgency { failed: true, no_packet: true };

    fn name(number: usize) -> PeerName {
        PeerName::new(&format!("peer-{number}"))
    }

    #[test]
    fn waiting_peers_start_in_order_and_those_that_failed_come_last() {
        let mut queue = AttemptQueue::default();
        assert!(queue.begin(&name(0), FRESH, 1));
        assert!(queue.begin(&name(0), FRESH, 1), "it already has the place");
        for (number, urgency) in [(1, FAILED), (2, FRESH), (3, FAILED), (4, FRESH), (2, FRESH), (4, FAILED)] {
            assert!(!queue.begin(&name(number), urgency, 1));
        }
        queue.hasten(&name(3), |urgency| Urgency { failed: false, ..urgency });
        queue.hasten(&name(9), |urgency| Urgency { failed: false, ..urgency });
        queue.hasten(&name(4), |urgency| Urgency { no_packet: false, ..urgency });
        assert_eq!(queue.start_next(1), None, "the place is taken");
        let mut order = Vec::new();
        let mut last = name(0);
        while queue.end(&last) && queue.can_start(1) {
            assert!(!queue.begin(&last, FAILED, 1) && queue.withdraw(&last), "nobody overtakes");
            last = queue.start_next(1).unwrap();
            order.push(last.clone());
        }
        assert_eq!(order, [4, 2, 3, 1].map(name));
        assert_eq!(queue.running(), 0);
    }

    #[test]
    fn a_peer_that_is_no_longer_wanted_leaves_the_queue() {
        let mut queue = AttemptQueue::default();
        for number in 0..3 {
            queue.begin(&name(number), FRESH, 1);
        }
        assert!(queue.withdraw(&name(1)) && !queue.withdraw(&name(1)) && !queue.is_waiting(&name(1)));
        queue.end(&name(0));
        assert_eq!(queue.start_next(1), Some(name(2)));
        queue.end(&name(2));
        assert!(!queue.can_start(1) && queue.ranks.is_empty() && queue.waiting.is_empty());
    }
}
