//! Tracks the on-demand tunnels that are up, and the time at which each was last used. This module
//! does no I/O.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use edge_ike::{Instant, PeerName};

/// The on-demand tunnels that are up. The size of the map is the number of these tunnels.
#[derive(Debug)]
pub(super) struct IdleTunnels {
    timeout: Duration,
    tunnels: HashMap<PeerName, TunnelUse>,
    checks: BTreeSet<(Instant, PeerName)>,
}

#[derive(Debug, Clone, Copy)]
struct TunnelUse {
    last: Instant,
    /// Time of the next check. The tunnel may have been used in the meantime.
    check: Instant,
}

impl IdleTunnels {
    /// Creates an empty set of tunnels. Each tunnel is closed after `timeout` without a packet.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, tunnels: HashMap::new(), checks: BTreeSet::new() }
    }

    /// Records that an on-demand tunnel is up, or stays up for another timeout.
    pub(super) fn watch(&mut self, peer: &PeerName, now: Instant) {
        self.forget(peer);
        self.insert(peer.clone(), now);
    }

    /// Records that a packet went through the tunnel to a peer, in either direction. Peers without
    /// an on-demand tunnel are ignored.
    pub(super) fn used(&mut self, peer: &PeerName, now: Instant) {
        if let Some(tunnel) = self.tunnels.get_mut(peer) {
            tunnel.last = now;
        }
    }

    /// Records that the tunnel to a peer is down, or is no longer an on-demand tunnel.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        if let Some(tunnel) = self.tunnels.remove(peer) {
            self.checks.remove(&(tunnel.check, peer.clone()));
        }
    }

    /// Returns the time at which [`Self::take_idle`] must be called next.
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.checks.first().map(|(at, _)| *at)
    }

    /// Removes and returns the peers whose tunnels have carried no packet for the timeout.
    pub(super) fn take_idle(&mut self, now: Instant) -> Vec<PeerName> {
        let mut idle = Vec::new();
        while let Some((_, peer)) = self.checks.first().filter(|(at, _)| *at <= now).cloned() {
            let last = self.tunnels.get(&peer).map_or(now, |tunnel| tunnel.last);
            self.forget(&peer);
            if last + self.timeout > now {
                self.insert(peer, last);
            } else {
                idle.push(peer);
            }
        }
        idle
    }

    fn insert(&mut self, peer: PeerName, last: Instant) {
        let check = last + self.timeout;
        self.checks.insert((check, peer.clone()));
        self.tunnels.insert(peer, TunnelUse { last, check });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    #[test]
    fn a_tunnel_is_idle_when_the_timeout_has_passed_since_its_last_packet() {
        let mut tunnels = IdleTunnels::new(Duration::from_secs(600));
        let [a, b, c] = ["a", "b", "c"].map(PeerName::new);
        tunnels.watch(&a, at(0));
        tunnels.watch(&b, at(10));
        tunnels.used(&a, at(300));
        tunnels.used(&c, at(300));
        assert_eq!((tunnels.next_check(), tunnels.take_idle(at(599))), (Some(at(600)), vec![]));
        assert_eq!(tunnels.take_idle(at(610)), std::slice::from_ref(&b));
        assert_eq!((tunnels.next_check(), tunnels.take_idle(at(899))), (Some(at(900)), vec![]));
        assert_eq!(tunnels.take_idle(at(900)), std::slice::from_ref(&a));
        assert_eq!(tunnels.next_check(), None);
    }

    #[test]
    fn a_tunnel_that_went_down_and_came_back_is_looked_at_for_its_new_life() {
        let mut tunnels = IdleTunnels::new(Duration::from_secs(600));
        let a = PeerName::new("a");
        tunnels.watch(&a, at(0));
        tunnels.forget(&a);
        tunnels.watch(&a, at(500));
        tunnels.watch(&a, at(600));
        assert_eq!(tunnels.take_idle(at(600)), []);
        assert_eq!(tunnels.take_idle(at(1199)), []);
        assert_eq!(tunnels.take_idle(at(1200)), std::slice::from_ref(&a));
        assert_eq!((tunnels.take_idle(at(9999)), tunnels.next_check()), (vec![], None));
    }
}
