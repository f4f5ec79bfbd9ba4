//! Tunnels on demand. A packet that waits for a tunnel causes an attempt. One attempt serves all
//! packets for a peer.

use super::state::{Endpoint, peer_span};
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
        let queued = self.is_queued(name);
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
            // While the peer waits for its turn, a failure is not forgotten: nothing was tried
            // since.
            if !queued {
                peer.forget_old_failure(now);
            }
            self.start_or_queue_attempt(name, now, env);
        } else if peer.config().initiate {
            peer.shorten_wait(now);
        }
        self.schedule_peer(name);
        true
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
