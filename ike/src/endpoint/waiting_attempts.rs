//! Limits the number of simultaneous attempts. A hub that starts with thousands of peers would
//! otherwise send to all of them at once, answer none of them in time, and have all of them try
//! again. There are two limits, so that neither kind of attempt waits for the other: one for
//! attempts that only packets need, and one for all others that start without a command of the
//! owner. Answers to peers that initiate are never limited by them.

use std::time::Duration;

use super::attempt_queue::{AttemptQueue, Standing, Urgency};
use super::peer::Peer;
use super::state::{DeadlineOwner, Endpoint, peer_span};
use crate::config::PeerName;
use crate::environment::Environment;
use crate::time::Instant;

/// Maximum time between the end of an attempt and the start of one that waits for its place. It is
/// random, so that hubs that start at the same time do not reach the same peers in step.
const MAX_START_DELAY: Duration = Duration::from_millis(20);

/// Time for which an attempt that waits for a place is postponed when an IKE_SA_INIT request from
/// an address of the peer arrives, since the peer's own attempt is likely to succeed. An attempt is
/// postponed only once, since any host may have sent the request.
const PEER_GOES_FIRST: Duration = Duration::from_secs(2);

/// Which limit applies to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum AttemptKind {
    /// Only packets need it ([`crate::EndpointConfig::acquire_limit`]).
    ForPackets,
    /// It starts without a packet ([`crate::EndpointConfig::attempt_limit`]).
    Wanted,
}

impl Endpoint {
    fn queue(&mut self, kind: AttemptKind) -> (&mut AttemptQueue, usize) {
        match kind {
            AttemptKind::ForPackets => (&mut self.acquire_queue, self.config.acquire_limit.max(1)),
            AttemptKind::Wanted => (&mut self.attempt_queue, self.config.attempt_limit.max(1)),
        }
    }

    /// Starts an attempt, unless one is running. It waits in a queue if too many are running.
    pub(super) fn start_or_queue_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get(name).filter(|peer| peer.attempt.is_none()) else {
            return;
        };
        let kind =
            if peer.config().initiate || peer.reauthenticate { AttemptKind::Wanted } else { AttemptKind::ForPackets };
        // Nothing is sent, so no place is needed.
        if peer.gives_addresses() || (peer.sas.is_empty() && peer.config().remotes.is_empty()) {
            return self.start_attempt(name, now, env);
        }
        let urgency =
            Urgency { standing: peer.standing(), no_packet: peer.acquired_until.is_none_or(|until| until <= now) };
        let (queue, limit) = self.queue(kind);
        if queue.begin(name, urgency, limit) {
            self.start_attempt(name, now, env);
            if self.peers.get(name).is_none_or(|peer| peer.attempt.is_none()) {
                self.free_place(name, now, env);
            }
        } else {
            self.schedule_queue(kind, now, env);
        }
    }

    /// Frees the place of the attempt with a peer, since the attempt has ended.
    pub(super) fn free_place(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        for kind in [AttemptKind::ForPackets, AttemptKind::Wanted] {
            if self.queue(kind).0.end(name) {
                self.schedule_queue(kind, now, env);
            }
        }
    }

    /// Frees the place of an attempt whose peer has not answered the first transmission of a
    /// request, so that silent peers hold no place for long. The attempt goes on. So at most
    /// [`crate::EndpointConfig::attempt_limit`] attempts start in the time of one retransmission.
    pub(super) fn free_place_of_silent_peer(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        if self.attempt_queue.end(name) {
            self.schedule_queue(AttemptKind::Wanted, now, env);
        }
    }

    /// Sets the time at which the next waiting attempt starts, if there is one and a place is free.
    fn schedule_queue(&mut self, kind: AttemptKind, now: Instant, env: &mut dyn Environment) {
        let owner = DeadlineOwner::AttemptQueue(kind);
        let (queue, limit) = self.queue(kind);
        if !queue.can_start(limit) || self.deadlines.has(&owner) {
            return;
        }
        let delay = match kind {
            AttemptKind::ForPackets => Duration::ZERO,
            AttemptKind::Wanted => {
                let mut share = [0; 2];
                env.fill_random(&mut share);
                MAX_START_DELAY.saturating_mul(u32::from(u16::from_be_bytes(share))) / u32::from(u16::MAX)
            }
        };
        self.deadlines.set(owner, Some(now + delay));
    }

    /// Starts waiting attempts, as far as the limit allows. Skips peers that no longer need an
    /// attempt, for example because no packet waits any more.
    pub(super) fn start_queued_attempts(&mut self, kind: AttemptKind, now: Instant, env: &mut dyn Environment) {
        loop {
            let (queue, limit) = self.queue(kind);
            let Some(name) = queue.start_next(limit) else { break };
            if self.peers.get(&name).is_some_and(|peer| peer.needs_attempt(now)) {
                let _span = peer_span(&name).entered();
                self.start_attempt(&name, now, env);
            }
            if self.peers.get(&name).is_none_or(|peer| peer.attempt.is_none()) {
                self.queue(kind).0.end(&name);
            }
        }
    }

    /// Removes a peer from the queues, since it needs no attempt.
    pub(super) fn leave_queues(&mut self, name: &PeerName) {
        self.acquire_queue.withdraw(name);
        self.attempt_queue.withdraw(name);
    }

    /// Returns whether an attempt with the peer that needs no packet waits for a place.
    pub(super) fn waits_for_place(&self, peer: &Peer) -> bool {
        self.attempt_queue.is_waiting(peer.name())
    }

    /// Returns whether an attempt with the peer of either kind waits for a place.
    pub(super) fn is_queued(&self, name: &PeerName) -> bool {
        self.acquire_queue.is_waiting(name) || self.attempt_queue.is_waiting(name)
    }

    /// Lets a waiting peer count as one that has not failed, since something was heard from its
    /// address.
    pub(super) fn hasten_heard_peer(&mut self, name: &PeerName) {
        for queue in [&mut self.acquire_queue, &mut self.attempt_queue] {
            queue.hasten(name, |urgency| Urgency { standing: urgency.standing.min(Standing::Unknown), ..urgency });
        }
    }

    /// Postpones the waiting attempt with a peer whose own IKE_SA_INIT request seems to have
    /// arrived.
    pub(super) fn let_peer_go_first(&mut self, name: &PeerName, now: Instant) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| !peer.went_first) else {
            return;
        };
        if self.attempt_queue.withdraw(name) {
            peer.went_first = true;
            peer.retry_at = Some(now + PEER_GOES_FIRST);
            self.schedule_peer(name);
        }
    }

    /// Panics if a place is held by a peer without an attempt, or if a peer waits for a free place
    /// that nothing will give it.
    #[cfg(test)]
    pub(super) fn check_queues(&self) {
        let kinds = [
            (AttemptKind::ForPackets, &self.acquire_queue, self.config.acquire_limit.max(1)),
            (AttemptKind::Wanted, &self.attempt_queue, self.config.attempt_limit.max(1)),
        ];
        for (kind, queue, limit) in kinds {
            for name in queue.running() {
                let holds = self.peers.get(name).is_some_and(|peer| peer.attempt.is_some());
                assert!(holds, "{name} holds a place without an attempt ({kind:?})");
            }
            assert!(queue.running().len() <= limit, "{} attempts ({kind:?})", queue.running().len());
            let scheduled = self.deadlines.has(&DeadlineOwner::AttemptQueue(kind));
            assert!(!queue.can_start(limit) || scheduled, "a free place is given to nobody ({kind:?})");
        }
    }
}
