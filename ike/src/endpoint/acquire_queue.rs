//! The peers to which packets wait, in the order of their attempts.

use std::collections::{BTreeSet, VecDeque};

use crate::config::PeerName;

/// The peers to which packets wait, while the attempts that run at once are limited. It holds each
/// peer once.
#[derive(Debug, Default)]
pub(super) struct AcquireQueue {
    running: BTreeSet<PeerName>,
    /// Peers whose last attempt did not fail. They come first, so that many dead peers do not delay
    /// the others.
    fresh: VecDeque<PeerName>,
    failed: VecDeque<PeerName>,
    queued: BTreeSet<PeerName>,
}

impl AcquireQueue {
    /// Takes a peer in. True: its attempt may run now.
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

    /// The attempt with a peer is over. True: another peer may have its turn.
    pub(super) fn end(&mut self, name: &PeerName) -> bool {
        self.running.remove(name) && !self.queued.is_empty()
    }

    /// Takes the peer whose turn it is.
    pub(super) fn next(&mut self, limit: usize) -> Option<PeerName> {
        if self.running.len() >= limit {
            return None;
        }
        let name = self.fresh.pop_front().or_else(|| self.failed.pop_front())?;
        self.queued.remove(&name);
        Some(name)
    }
}
