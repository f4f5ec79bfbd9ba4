//! The paths to all peers that traffic flows to, and the probes that wait for an answer.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::{Instant, PeerName};

use super::check_pace::CheckPace;
use super::encapsulation::Encapsulation;
use super::search::{CHECK_INTERVAL, Search};

/// Maximum number of searches at the same time. Further paths wait with the search.
const MAX_SEARCHES: usize = 64;
/// Maximum number of probes that wait for an answer. The oldest are forgotten.
const MAX_PROBES: usize = 8192;
/// Time after which an answer no longer counts.
const PROBE_LIFETIME: Duration = Duration::from_secs(5);

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
    /// Whether a search is making the limit more exact.
    pub refining: bool,
    /// Whether the outer header is IPv4, so that routers can fragment ESP packets.
    pub over_ipv4: bool,
}

/// A change of what is known about the path to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The peer.
    pub peer: PeerName,
    /// Whether the limit is another one than after the search before.
    pub new_limit: bool,
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
    pace: CheckPace,
}

#[derive(Debug)]
struct Entry {
    path: PeerPath,
    search: Search,
    /// The SPI and the bytes of the outbound SA at its last event.
    counted: (u32, u64),
    /// What was known at the last reported change.
    reported: PathMtu,
    /// The limit after the last search.
    settled_limit: Option<u32>,
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
        let (smallest, full) = (path.encapsulation.smallest(), path.encapsulation.largest(path.pod_mtu));
        let entry = match self.peers.get_mut(peer) {
            Some(entry) => entry,
            None => {
                let entry = Entry::new(path, Search::new(smallest, full), spi);
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
        if !entry.search.wants_check(now) {
            return vec![];
        }
        let Some(interval) = self.pace.begin_check(now) else { return vec![] };
        let sizes = entry.search.check(now, interval);
        self.probes(peer, sizes, now, random)
    }

    /// Handles the answer to the probe with this number, from this address. Returns what it has
    /// changed.
    pub fn answered(&mut self, id: u64, from: SocketAddr, now: Instant) -> Option<Change> {
        let Waiting { peer, path, size, at } = self.probes.remove(&id)?;
        let entry = self.peers.get_mut(&peer)?;
        let round_trip = now.saturating_since(at);
        if from != path.remote || entry.path != path || round_trip > PROBE_LIFETIME {
            return None;
        }
        entry.search.answered(size, round_trip, now);
        if entry.search.is_resting() {
            self.active.remove(&peer);
        }
        entry.take_change(&peer)
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

    /// Handles the end of the wait for answers. Returns what has changed, and the probes to send.
    pub fn timeout(&mut self, now: Instant, mut random: impl FnMut() -> u64) -> (Vec<Change>, Vec<Probe>) {
        let (mut changed, mut probes) = (Vec::new(), Vec::new());
        let entries = |peer: &PeerName| self.peers.get(peer).map(|entry| &entry.search);
        let mut searches = self.active.iter().filter_map(entries).filter(|search| search.is_searching()).count();
        let is_due = |peer: &&PeerName| entries(peer).and_then(Search::due).is_some_and(|due| due <= now);
        let due: Vec<PeerName> = self.active.iter().filter(is_due).cloned().collect();
        for peer in due {
            let Some(entry) = self.peers.get_mut(&peer) else { continue };
            let was_searching = entry.search.is_searching();
            let sizes = if was_searching || searches < MAX_SEARCHES {
                entry.search.timeout(now)
            } else {
                entry.search.check(now, CHECK_INTERVAL)
            };
            searches += usize::from(!was_searching);
            if entry.search.is_resting() {
                self.active.remove(&peer);
            }
            changed.extend(entry.take_change(&peer));
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

    /// Forgets a peer.
    pub fn remove(&mut self, peer: &PeerName) {
        self.active.remove(peer);
        self.peers.remove(peer);
    }

    /// Returns the probes of these sizes, the largest first. Where a slow link comes before the
    /// narrow one, an answer to a small probe then means that the larger ones had their chance.
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
        for size in sizes.into_iter().rev() {
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
    fn new(path: PeerPath, search: Search, spi: u32) -> Self {
        let reported = PathMtu { limit: None, unanswered: false, refining: false, over_ipv4: path.encapsulation.ipv4 };
        Self { path, search, counted: (spi, 0), reported, settled_limit: None }
    }

    fn known(&self) -> PathMtu {
        let inner = |limit| self.path.encapsulation.inner(limit);
        PathMtu {
            limit: self.search.limit().map(inner),
            unanswered: self.search.is_unanswered(),
            refining: self.search.is_refining(),
            over_ipv4: self.path.encapsulation.ipv4,
        }
    }

    /// Returns the change since the last call.
    fn take_change(&mut self, peer: &PeerName) -> Option<Change> {
        let known = self.known();
        if std::mem::replace(&mut self.reported, known) == known {
            return None;
        }
        let new_limit = !known.refining && std::mem::replace(&mut self.settled_limit, known.limit) != known.limit;
        Some(Change { peer: peer.clone(), new_limit })
    }
}

#[cfg(test)]
mod tests;
