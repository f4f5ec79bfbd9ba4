//! Tunnels on demand. A packet that waits for a tunnel causes an attempt. The number of
//! simultaneous attempts is limited, and one attempt serves all packets for a peer.

use super::state::{DeadlineOwner, Endpoint, peer_span};
use crate::config::PeerName;
use crate::environment::Environment;
use crate::time::Instant;

impl Endpoint {
    /// Reports that a packet waits for a tunnel to this peer until `until` (the kernel's ACQUIRE).
    /// Starts an attempt, and repeats it after each failure until that time, even if `initiate` is
    /// not set. The delay after a failure is not shortened, so many packets still cause few
    /// attempts. If [`crate::EndpointConfig::acquire_limit`] such attempts are running, the attempt
    /// is queued. If the peer has an IKE SA without a CHILD_SA, a CHILD_SA is created on that IKE
    /// SA. Returns false if there is no such peer.
    pub fn acquire(&mut self, name: &PeerName, until: Instant, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        peer.terminated = false;
        if !peer.sas.is_empty() {
            self.want_children(name, now, env);
            self.schedule_peer(name);
            return true;
        }
        peer.acquired_until = peer.acquired_until.max(Some(until));
        if peer.attempt.is_none() && peer.retry_at.is_none() {
            peer.forget_old_failure(now);
            self.start_or_queue_attempt(name, now, env);
        } else if peer.config().initiate {
            peer.shorten_wait(now);
        }
        self.schedule_peer(name);
        true
    }

    /// Starts an attempt, or queues it if only packets need it and too many such attempts are
    /// running.
    pub(super) fn start_or_queue_attempt(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get(name) else {
            return;
        };
        let limit = self.config.acquire_limit.max(1);
        let limited = !peer.config().initiate && !peer.reauthenticate;
        if limited && !self.acquire_queue.begin(name, peer.has_failed(), limit) {
            return;
        }
        self.start_attempt(name, now, env);
        if self.peers.get(name).is_none_or(|peer| peer.attempt.is_none()) {
            self.acquire_attempt_over(name, now);
        }
    }

    /// Records that the attempt with a peer has ended, so that a queued attempt may start.
    pub(super) fn acquire_attempt_over(&mut self, name: &PeerName, now: Instant) {
        if self.acquire_queue.end(name) {
            self.deadlines.set(DeadlineOwner::AcquireQueue, Some(now));
        }
    }

    /// Starts queued attempts, as far as the limit allows. Skips peers that no longer need an
    /// attempt, for example because no packet waits any more.
    pub(super) fn start_queued_attempts(&mut self, now: Instant, env: &mut dyn Environment) {
        while let Some(name) = self.acquire_queue.next(self.config.acquire_limit.max(1)) {
            let idle = |peer: &&super::peer::Peer| {
                peer.should_initiate(now)
                    && peer.sas.is_empty()
                    && peer.attempt.is_none()
                    && peer.retry_at.is_none_or(|at| at <= now)
            };
            if self.peers.get(&name).filter(idle).is_some() {
                let _span = peer_span(&name).entered();
                self.start_or_queue_attempt(&name, now, env);
            }
        }
    }

    /// Returns whether we initiated the present IKE SA with the peer by IKE_SA_INIT. A rekey does
    /// not change the result. Returns `None` if there is no IKE SA.
    pub fn is_initiator(&self, name: &PeerName) -> Option<bool> {
        let spi = self.peers.get(name)?.sas.last()?;
        match self.sas.get(spi)? {
            super::state::SaState::Established(_, sa) => Some(sa.initiation().by_us()),
            _ => None,
        }
    }
}
