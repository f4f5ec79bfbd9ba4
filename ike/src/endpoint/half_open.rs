//! The table of half-open IKE SAs, which any host can create. It limits their total number, their
//! number per source, and their memory. At a limit, one that is less likely to be an honest
//! initiator's makes room.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use super::source::Source;
use crate::child_sas::Spi;
use crate::config::EndpointConfig;
use crate::own_keys::OwnKeyMap;

/// Maximum total size of all half-open IKE SAs, bytes, not including fragments of IKE_AUTH.
const MAX_OCTETS: usize = 6 << 20;
/// Maximum total size of fragments of IKE_AUTH, bytes. They have a separate limit, so that
/// fragments from some initiators do not prevent other initiators from starting. Beyond it, the
/// source with the most fragments loses an IKE SA.
const MAX_FRAGMENT_OCTETS: usize = 2 << 20;
/// Size of fragments up to which a configured address loses none to strangers, bytes: four IKE_AUTH
/// of the largest size. Other hosts may be behind the same NAT.
const KNOWN_FRAGMENT_OCTETS: usize = 128 << 10;
/// Maximum number of half-open IKE SAs from one source while cookies are requested. Without cookies
/// the source may be forged. An honest initiator needs an entry for one round trip. Many honest
/// initiators may be behind one NAT. Beyond it, the oldest one of the source is removed.
const MAX_PER_SOURCE: usize = 64;

/// Half-open IKE SAs by our SPI. [`Endpoint::schedule`](super::Endpoint) removes the entry together
/// with the state, so that no entry outlives its IKE SA.
#[derive(Debug, Default)]
pub(super) struct HalfOpenTable {
    entries: OwnKeyMap<Spi, Entry>,
    /// The values that a retransmission of an IKE_SA_INIT request has in common with the original.
    by_initiator: HashMap<(SocketAddr, u64), Spi>,
    by_source: HashMap<Source, SourceEntries>,
    /// All entries. The first one is removed first.
    ranks: BTreeSet<Rank>,
    /// The sources with fragments. The last one loses an IKE SA first.
    fragments: BTreeSet<FragmentRank>,
    octets: usize,
    fragment_octets: usize,
    /// The number of entries so far.
    inserted: u64,
}

#[derive(Debug, Default)]
struct SourceEntries {
    ranks: BTreeSet<Rank>,
    fragment_octets: usize,
}

#[derive(Debug)]
struct Entry {
    remote: SocketAddr,
    initiator_spi: u64,
    source: Source,
    rank: Rank,
    octets: usize,
    fragment_octets: usize,
}

/// The order in which entries make room: strangers before configured addresses, then the oldest.
/// Whether IKE_AUTH has begun does not count: strangers that keep all places by one fragment each
/// would otherwise leave only one place for everybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    known: bool,
    number: u64,
    spi: Spi,
}

/// The order in which sources lose fragments: configured addresses with at most
/// [`KNOWN_FRAGMENT_OCTETS`] last, then by their octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FragmentRank {
    unprotected: bool,
    octets: usize,
    source: Source,
}

impl FragmentRank {
    fn new(source: Source, octets: usize) -> Self {
        Self { unprotected: !source.is_known() || octets > KNOWN_FRAGMENT_OCTETS, octets, source }
    }
}

impl HalfOpenTable {
    /// Returns the number of half-open IKE SAs.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the half-open IKE SA of an initiator, if there is one.
    pub(super) fn get(&self, remote: SocketAddr, initiator_spi: u64) -> Option<Spi> {
        self.by_initiator.get(&(remote, initiator_spi)).copied()
    }

    /// Returns the source of a half-open IKE SA.
    pub(super) fn source(&self, spi: Spi) -> Option<Source> {
        self.entries.get(&spi).map(|entry| entry.source)
    }

    /// Returns whether another entry must make room for one that a request of this size creates.
    pub(super) fn is_full(&self, request: usize, config: &EndpointConfig) -> bool {
        let full = self.entries.len() >= config.half_open_limit && !mutation!("no_half_open_limit");
        full || self.octets.saturating_add(request) > MAX_OCTETS
    }

    /// Returns whether an entry may make room for one from this source. A stranger takes no place
    /// of a configured address.
    pub(super) fn can_make_room_for(&self, source: Source) -> bool {
        self.ranks.first().is_some_and(|first| source.is_known() || !first.known)
    }

    /// Adds a half-open IKE SA. Then call [`Self::excess`].
    pub(super) fn insert(&mut self, remote: SocketAddr, initiator_spi: u64, spi: Spi, octets: usize, source: Source) {
        self.inserted = self.inserted.saturating_add(1);
        let rank = Rank { known: source.is_known(), number: self.inserted, spi };
        self.add(Entry { remote, initiator_spi, source, rank, octets, fragment_octets: 0 });
    }

    /// Records that the IKE SA with this SPI now stores this many octets of fragments, or that it
    /// is not half-open (`None`). If fragments were added, then call [`Self::excess`].
    pub(super) fn update(&mut self, spi: Spi, fragment_octets: Option<usize>) {
        let changed = self.entries.get(&spi).is_some_and(|entry| fragment_octets != Some(entry.fragment_octets));
        let Some(mut entry) = changed.then(|| self.remove(spi)).flatten() else {
            return;
        };
        if let Some(octets) = fragment_octets {
            entry.fragment_octets = octets;
            self.add(entry);
        }
    }

    /// Returns an entry that must be removed because a limit is exceeded. `newest` has just been
    /// added or has just received a fragment. It goes only if its own source has the most
    /// fragments, or if only configured addresses could make room.
    pub(super) fn excess(&self, newest: Spi, config: &EndpointConfig) -> Option<Spi> {
        if self.fragment_octets > MAX_FRAGMENT_OCTETS {
            let ranks = self.by_source.get(&self.fragments.last()?.source)?.ranks.iter();
            let entries = ranks.filter_map(|rank| self.entries.get(&rank.spi));
            return entries.max_by_key(|entry| entry.fragment_octets).map(|entry| entry.rank.spi);
        }
        let first = |ranks: &BTreeSet<Rank>| ranks.iter().copied().find(|rank| rank.spi != newest);
        let too_many = self.entries.len() > config.half_open_limit && !mutation!("no_half_open_limit");
        if too_many || self.octets > MAX_OCTETS {
            // A large request may need more room than the strangers have.
            let may = |first: &Rank| self.source(newest).is_some_and(|source| source.is_known() || !first.known);
            return first(&self.ranks).map(|first| if may(&first) { first.spi } else { newest });
        }
        if self.entries.len() <= config.cookie_threshold {
            return None;
        }
        let ranks = &self.by_source.get(&self.source(newest)?)?.ranks;
        if ranks.len() > MAX_PER_SOURCE { first(ranks).map(|rank| rank.spi) } else { None }
    }

    fn add(&mut self, entry: Entry) {
        let Entry { remote, initiator_spi, source, rank, octets, fragment_octets } = entry;
        self.by_initiator.insert((remote, initiator_spi), rank.spi);
        self.ranks.insert(rank);
        self.by_source.entry(source).or_default().ranks.insert(rank);
        self.octets = self.octets.saturating_add(octets);
        if fragment_octets > 0 {
            self.count_fragments(source, |total| total.saturating_add(fragment_octets));
        }
        self.entries.insert(rank.spi, entry);
    }

    fn remove(&mut self, spi: Spi) -> Option<Entry> {
        let entry = self.entries.remove(&spi)?;
        self.by_initiator.remove(&(entry.remote, entry.initiator_spi));
        self.ranks.remove(&entry.rank);
        self.octets = self.octets.saturating_sub(entry.octets);
        if entry.fragment_octets > 0 {
            self.count_fragments(entry.source, |total| total.saturating_sub(entry.fragment_octets));
        }
        if let Some(source) = self.by_source.get_mut(&entry.source) {
            source.ranks.remove(&entry.rank);
            if source.ranks.is_empty() {
                self.by_source.remove(&entry.source);
            }
        }
        Some(entry)
    }

    /// Changes the number of octets of fragments of a source.
    fn count_fragments(&mut self, source: Source, change: impl Fn(usize) -> usize) {
        self.fragment_octets = change(self.fragment_octets);
        if let Some(entries) = self.by_source.get_mut(&source) {
            self.fragments.remove(&FragmentRank::new(source, entries.fragment_octets));
            entries.fragment_octets = change(entries.fragment_octets);
            if entries.fragment_octets > 0 {
                self.fragments.insert(FragmentRank::new(source, entries.fragment_octets));
            }
        }
    }
}
