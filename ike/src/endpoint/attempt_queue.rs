//! Peers that wait because the number of simultaneous attempts is limited, in the order in which
//! their attempts start.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::config::PeerName;

/// Of this many places in a row, one goes to the peer that has waited longest, however urgent the
/// others are. So a peer starts at the latest with this many places times the number of peers that
/// waited when it came, itself included.
const OLDEST_TURN: u64 = 4;

/// The attempts that hold one of a limited number of places, and the peers that wait for one. Each
/// peer waits at most once, so there are at most as many as configured peers.
#[derive(Debug, Default)]
pub(super) struct AttemptQueue {
    running: BTreeSet<PeerName>,
    /// The peers that wait, by their tickets: the one that has waited longest comes first.
    waiting: BTreeMap<u64, PeerName>,
    /// The same peers, the most urgent ones first.
    order: BTreeSet<Rank>,
    ranks: HashMap<PeerName, Rank>,
    /// Number of peers that have waited so far.
    tickets: u64,
    /// Number of places that waiting peers have got so far.
    turns: u64,
}

/// The order in which waiting peers get places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    urgency: Urgency,
    ticket: u64,
}

/// How soon a waiting peer gets a place, compared to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Urgency {
    pub(super) standing: Standing,
    /// Whether no packet waits for the tunnel.
    pub(super) no_packet: bool,
}

/// What is known about whether a peer answers. The likeliest one comes first, so that many
/// unreachable peers do not delay the reachable ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It has or had an IKE SA, and no attempt has failed since.
    Answered,
    /// Nothing is known, or something was heard from its address since the last attempt failed.
    Unknown,
    /// The last attempt failed.
    Failed,
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
        if self.ranks.contains_key(name) {
            // A later reason does not cost the peer its turn. Its standing is the one with which
            // it came, since a failure that becomes old while the peer waits proves nothing.
            self.hasten(name, |old| Urgency { no_packet: old.no_packet && urgency.no_packet, ..old });
        } else {
            self.tickets = self.tickets.saturating_add(1);
            let rank = Rank { urgency, ticket: self.tickets };
            self.ranks.insert(name.clone(), rank);
            self.waiting.insert(rank.ticket, name.clone());
            self.order.insert(rank);
        }
        false
    }

    /// Moves a waiting peer forward, if this is more urgent than before. Has no effect on a peer
    /// that does not wait.
    pub(super) fn hasten(&mut self, name: &PeerName, change: impl FnOnce(Urgency) -> Urgency) {
        if let Some(rank) = self.ranks.get_mut(name) {
            let urgency = change(rank.urgency);
            if urgency < rank.urgency {
                self.order.remove(rank);
                rank.urgency = urgency;
                self.order.insert(*rank);
            }
        }
    }

    /// Lets a peer wait no longer. Returns whether it has waited.
    pub(super) fn withdraw(&mut self, name: &PeerName) -> bool {
        let Some(rank) = self.ranks.remove(name) else {
            return false;
        };
        self.order.remove(&rank);
        self.waiting.remove(&rank.ticket).is_some()
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
        self.turns = self.turns.wrapping_add(1);
        let oldest = self.waiting.first_key_value().map(|(ticket, _)| *ticket)?;
        let ticket = match self.order.first() {
            Some(rank) if !self.turns.is_multiple_of(OLDEST_TURN) => rank.ticket,
            _ => oldest,
        };
        let name = self.waiting.get(&ticket)?.clone();
        self.withdraw(&name);
        self.running.insert(name.clone());
        Some(name)
    }

    /// Returns whether a peer waits for a place.
    pub(super) fn is_waiting(&self, name: &PeerName) -> bool {
        self.ranks.contains_key(name)
    }

    /// Returns the peers whose attempts hold a place.
    #[cfg(test)]
    pub(super) fn running(&self) -> &BTreeSet<PeerName> {
        &self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Urgency = Urgency { standing: Standing::Unknown, no_packet: true };
    const FAILED: Urgency = Urgency { standing: Standing::Failed, no_packet: true };
    const ANSWERED: Urgency = Urgency { standing: Standing::Answered, no_packet: true };
    const PACKET: Urgency = Urgency { no_packet: false, ..FRESH };

    fn name(number: usize) -> PeerName {
        PeerName::new(&format!("peer-{number}"))
    }

    /// Frees the only place for the next peer, again and again, and returns who got it.
    fn places(queue: &mut AttemptQueue, count: usize) -> Vec<PeerName> {
        let mut order = Vec::new();
        for _ in 0..count {
            queue.running.clear();
            order.extend(queue.start_next(1));
        }
        order
    }

    #[test]
    fn waiting_peers_start_in_order_and_those_that_failed_come_last() {
        let mut queue = AttemptQueue::default();
        assert!(queue.begin(&name(0), FRESH, 1));
        assert!(queue.begin(&name(0), FRESH, 1), "it already has the place");
        for (number, urgency) in [(1, FAILED), (2, FRESH), (3, FAILED), (4, FRESH), (5, ANSWERED), (6, PACKET)] {
            assert!(!queue.begin(&name(number), urgency, 1));
        }
        assert_eq!(queue.start_next(1), None, "the place is taken");
        queue.hasten(&name(3), |urgency| Urgency { standing: Standing::Unknown, ..urgency });
        queue.hasten(&name(9), |urgency| Urgency { standing: Standing::Unknown, ..urgency });
        queue.end(&name(0));
        assert!(queue.can_start(1));
        assert!(!queue.begin(&name(0), ANSWERED, 1) && queue.withdraw(&name(0)), "nobody overtakes");
        // The fourth place goes to the one that has waited longest.
        assert_eq!(places(&mut queue, 7), [5, 6, 2, 1, 3, 4].map(name));
        assert!(queue.ranks.is_empty() && queue.waiting.is_empty() && queue.order.is_empty());
    }

    #[test]
    fn a_later_reason_moves_a_waiting_peer_forward_only_if_it_is_a_packet() {
        let mut queue = AttemptQueue::default();
        for (number, urgency) in
            [(0, FRESH), (1, FRESH), (2, FAILED), (3, FAILED), (2, FRESH), (3, PACKET), (3, FAILED)]
        {
            queue.begin(&name(number), urgency, 1);
        }
        assert_eq!(places(&mut queue, 3), [1, 3, 2].map(name));
    }

    #[test]
    fn no_waiting_peer_starves_whatever_comes_after_it() {
        let mut queue = AttemptQueue::default();
        let limit = 3;
        // Peers that failed wait, and more urgent ones come without end, faster than places become
        // free. Some of them are given up, and some become more urgent.
        let failed = 50;
        for number in 0..limit {
            assert!(queue.begin(&name(1000 + number), ANSWERED, limit));
        }
        for number in 0..failed {
            assert!(!queue.begin(&name(number), FAILED, limit));
        }
        let bound = failed * usize::try_from(OLDEST_TURN).unwrap();
        let (mut started, mut next) = (0, 2000);
        for turn in 1..=bound {
            for urgency in [ANSWERED, PACKET, FRESH, FAILED] {
                queue.begin(&name(next), urgency, limit);
                next += 1;
            }
            queue.hasten(&name(next - 1), |_| ANSWERED);
            if turn % 7 == 0 {
                queue.withdraw(&name(next - 2));
            }
            let first = queue.running.first().unwrap().clone();
            queue.end(&first);
            let begun = queue.start_next(limit).unwrap();
            if let Some(number) = (0..failed).find(|number| name(*number) == begun) {
                assert_eq!(number, started, "the ones that failed keep their order");
                started += 1;
                assert!(turn <= started * usize::try_from(OLDEST_TURN).unwrap(), "{started} only at {turn}");
            }
        }
        assert_eq!(started, failed);
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
        assert!(!queue.can_start(1) && queue.ranks.is_empty() && queue.waiting.is_empty() && queue.order.is_empty());
    }
}
