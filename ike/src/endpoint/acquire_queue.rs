//! The peers for which packets wait, in the order of their attempts.

use std::collections::{BTreeSet, VecDeque};

use crate::config::PeerName;

/// The peers for which packets wait while the number of simultaneous attempts is limited. It holds
/// each peer once.
#[derive(Debug, Default)]
pub(super) struct AcquireQueue {
    running: BTreeSet<PeerName>,
    /// Peers whose last attempt did not fail. They have priority, so that many dead peers do not
    /// delay the remaining ones.
    fresh: VecDeque<PeerName>,
    failed: VecDeque<PeerName>,
    queued: BTreeSet<PeerName>,
}

impl AcquireQueue {
    /// Adds a peer. Returns true if its attempt may run now.
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

    /// Records that the attempt with a peer has ended. Returns true if another peer may have its
    /// turn.
    pub(super) fn end(&mut self, name: &PeerName) -> bool {
        self.running.remove(name) && !self.queued.is_empty()
    }

    /// Removes and returns the peer whose turn it is. `None` if no more attempts may run, or if no
    /// peer waits.
    pub(super) fn next(&mut self, limit: usize) -> Option<PeerName> {
        if self.running.len() >= limit {
            return None;
        }
        let name = self.fresh.pop_front().or_else(|| self.failed.pop_front())?;
        self.queued.remove(&name);
        Some(name)
    }
}
