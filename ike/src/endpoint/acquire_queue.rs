//! The peers for which packets wait, in the order in which attempts start.

use std::collections::{BTreeSet, VecDeque};

use crate::config::PeerName;

/// The peers for which packets wait while the number of simultaneous attempts is limited. It holds
/// each peer at most once.
#[derive(Debug, Default)]
pub(super) struct AcquireQueue {
    running: BTreeSet<PeerName>,
    /// Peers whose last attempt did not fail. They have priority, so that many unreachable peers do
    /// not delay the reachable ones.
    fresh: VecDeque<PeerName>,
    failed: VecDeque<PeerName>,
    queued: BTreeSet<PeerName>,
}

impl AcquireQueue {
    /// Records the attempt of a peer as running, or queues it. Returns true if it may run now.
    pub(super) fn begin(&mut self, name: &PeerName, has_failed: bool, limit: usize) -> bool {
        if self.running.len() < limit || self.running.contains(name) {
            self.running.insert(name.clone());
            return true;
        }
        if self.queued.insert(name.clone()) {
            let queue = if has_failed { &mut self.failed } else { &mut self.fresh };
            queue.push_back(name.clone());
        }
        false
    }

    /// Records that the attempt with a peer has ended. Returns true if a queued attempt may start.
    pub(super) fn end(&mut self, name: &PeerName) -> bool {
        self.running.remove(name) && !self.queued.is_empty()
    }

    /// Removes and returns the next queued peer. Returns `None` if the limit is reached, or if no
    /// peer is queued.
    pub(super) fn next(&mut self, limit: usize) -> Option<PeerName> {
        if self.running.len() >= limit {
            return None;
        }
        let name = self.fresh.pop_front().or_else(|| self.failed.pop_front())?;
        self.queued.remove(&name);
        Some(name)
    }
}
