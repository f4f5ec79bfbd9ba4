//! The paths to all peers that traffic flows to, and the probes that wait for an answer.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Instant, PeerName};

use super::encapsulation::Encapsulation;
use super::search::Search;

/// Maximum number of checks that begin in one second. On a hub with more peers, the checks of a
/// path are further apart.
const MAX_CHECKS_PER_SECOND: u32 = 50;
/// Maximum number of searches at the same time. Further paths wait with the search.
const MAX_SEARCHES: usize = 64;
/// Maximum number of probes that wait for an answer. The oldest are forgotten.
const MAX_PROBES: usize = 8192;
/// Time after which an answer no longer counts.
const PROBE_LIFETIME: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// The path to a peer, and the size of packets that a tunnel sends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPath {
    /// This node's address and port.
    pub local: SocketAddr,
    /// The peer's address and port, or the relay's.
    pub remote: SocketAddr,
    /// How ESP packets travel.
    pub encapsulation: Encapsulation,
    /// MTU of pods, bytes.
    pub pod_mtu: u32,
}

/// A probe to send. The IP packet must have exactly this size, and must not be fragmented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The number by which the answer is recognised. It must be hard to guess.
    pub id: u64,
    /// Size of the IP packet, bytes.
    pub size: u32,
    /// The path.
    pub path: PeerPath,
}

/// What is known about the path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathMtu {
    /// The largest packet, before ESP, that the path carries, bytes. `None` if it carries all
    /// packets of the pods' MTU, as far as is known.
    pub limit: Option<u32>,
    /// Whether the peer answered none of the last probes.
    pub unanswered: bool,
}

/// The paths and probes. There is an entry for each peer to which traffic has flowed.
#[derive(Debug, Default)]
pub struct PathMtuTable {
    peers: BTreeMap<PeerName, Entry>,
    /// Peers whose probes wait for answers.
    active: BTreeSet<PeerName>,
    probes: HashMap<u64, Waiting>,
    /// The probes in the order in which they were sent.
    sent: VecDeque<(Instant, u64)>,
    checks: u32,
    second_ends: Instant,
}

#[derive(Debug)]
struct Entry {
    path: PeerPath,
    search: Search,
    /// The SPI and the bytes of the outbound SA at its last event.
    counted: (u32, u64),
}

#[derive(Debug)]
struct Waiting {
    peer: PeerName,
    path: PeerPath,
    size: u32,
    at: Instant,
}

impl PathMtuTable {
    /// Records that the outbound SA with this SPI has carried `bytes` bytes so far. Returns the
    /// probes to send. `random` returns the numbers of the probes.
    pub fn esp_sent(
        &mut self,
        peer: &PeerName,
        path: PeerPath,
        (spi, bytes): (u32, u64),
        now: Instant,
        random: impl FnMut() -> u64,
    ) -> Vec<Probe> {
        let (smallest, full) = (path.encapsulation.smallest(), path.encapsulation.outer(path.pod_mtu));
        let entry = match self.peers.get_mut(peer) {
            Some(entry) => entry,
            None => {
                let entry = Entry { path, search: Search::new(smallest, full), counted: (spi, 0) };
                self.peers.entry(peer.clone()).or_insert(entry)
            }
        };
        let before = if entry.counted.0 == spi { entry.counted.1 } else { 0 };
        entry.counted = (spi, bytes);
        entry.search.add_sent(bytes.saturating_sub(before));
        if entry.path != path {
            entry.path = path;
            entry.search.path_changed(smallest, full, now);
            self.active.remove(peer);
        }
        if !entry.search.wants_check(now) || !self.may_check(now) {
            return vec![];
        }
        let Some(entry) = self.peers.get_mut(peer) else { return vec![] };
        let sizes = entry.search.check(now);
        self.probes(peer, sizes, now, random)
    }

    /// Handles the answer to the probe with this number, from this address. Returns the peer if
    /// what is known about its path has changed.
    pub fn answered(&mut self, id: u64, from: SocketAddr, now: Instant) -> Option<PeerName> {
        let Waiting { peer, path, size, at } = self.probes.remove(&id)?;
        let entry = self.peers.get_mut(&peer)?;
        let round_trip = now.saturating_since(at);
        if from != path.remote || entry.path != path || round_trip > PROBE_LIFETIME {
            return None;
        }
        let before = entry.known();
        entry.search.answered(size, round_trip, now);
        if entry.search.is_resting() {
            self.active.remove(&peer);
        }
        (entry.known() != before).then_some(peer)
    }

    /// Returns whether a probe waits for an answer.
    #[must_use]
    pub fn expects_answers(&self) -> bool {
        !self.probes.is_empty()
    }

    /// Returns whether a probe with this number waits for an answer.
    #[must_use]
    pub fn is_probe(&self, id: u64) -> bool {
        self.probes.contains_key(&id)
    }

    /// Returns the time at which [`Self::timeout`] must be called.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.active.iter().filter_map(|peer| self.peers.get(peer)?.search.due()).min()
    }

    /// Handles the end of the wait for answers. Returns the peers about whose paths something else
    /// is known now, and the probes to send.
    pub fn timeout(&mut self, now: Instant, mut random: impl FnMut() -> u64) -> (Vec<PeerName>, Vec<Probe>) {
        let (mut changed, mut probes) = (Vec::new(), Vec::new());
        let entries = |peer: &PeerName| self.peers.get(peer).map(|entry| &entry.search);
        let mut searches = self.active.iter().filter_map(entries).filter(|search| search.is_searching()).count();
        let is_due = |peer: &&PeerName| entries(peer).and_then(Search::due).is_some_and(|due| due <= now);
        let due: Vec<PeerName> = self.active.iter().filter(is_due).cloned().collect();
        for peer in due {
            let Some(entry) = self.peers.get_mut(&peer) else { continue };
            let (before, was_searching) = (entry.known(), entry.search.is_searching());
            let sizes = if was_searching || searches < MAX_SEARCHES {
                entry.search.timeout(now)
            } else {
                entry.search.check(now)
            };
            searches += usize::from(!was_searching);
            if entry.search.is_resting() {
                self.active.remove(&peer);
            }
            if entry.known() != before {
                changed.push(peer.clone());
            }
            probes.extend(self.probes(&peer, sizes, now, &mut random));
        }
        self.forget_old(now);
        (changed, probes)
    }

    /// Returns what is known about the path to a peer; `None` if no traffic has flowed to it.
    #[must_use]
    pub fn of(&self, peer: &PeerName) -> Option<PathMtu> {
        self.peers.get(peer).map(Entry::known)
    }

    /// Returns the peers whose paths have a limit, and the limit before ESP, in bytes.
    pub fn limits(&self) -> impl Iterator<Item = (&PeerName, u32)> {
        self.peers.iter().filter_map(|(peer, entry)| Some((peer, entry.known().limit?)))
    }

    /// Forgets a peer. Returns whether its path had a limit.
    pub fn remove(&mut self, peer: &PeerName) -> bool {
        self.active.remove(peer);
        self.peers.remove(peer).is_some_and(|entry| entry.known().limit.is_some())
    }

    /// Counts a check, unless there are too many in this second.
    fn may_check(&mut self, now: Instant) -> bool {
        if self.second_ends <= now {
            (self.second_ends, self.checks) = (now + SECOND, 0);
        }
        let may = self.checks < MAX_CHECKS_PER_SECOND;
        self.checks += u32::from(may);
        may
    }

    fn probes(
        &mut self,
        peer: &PeerName,
        sizes: Vec<u32>,
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) -> Vec<Probe> {
        let Some(path) = self.peers.get(peer).map(|entry| entry.path) else { return vec![] };
        if !sizes.is_empty() {
            self.active.insert(peer.clone());
        }
        let mut probes = Vec::with_capacity(sizes.len());
        for size in sizes {
            let id = random();
            while self.sent.len() >= MAX_PROBES
                && let Some((_, oldest)) = self.sent.pop_front()
            {
                self.probes.remove(&oldest);
            }
            self.sent.push_back((now, id));
            self.probes.insert(id, Waiting { peer: peer.clone(), path, size, at: now });
            probes.push(Probe { id, size, path });
        }
        probes
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((_, id)) = self.sent.pop_front_if(|(at, _)| now.saturating_since(*at) > PROBE_LIFETIME) {
            self.probes.remove(&id);
        }
    }
}

impl Entry {
    fn known(&self) -> PathMtu {
        let inner = |limit| self.path.encapsulation.inner(limit);
        PathMtu { limit: self.search.limit().map(inner), unanswered: self.search.is_unanswered() }
    }
}

#[cfg(test)]
mod tests;
