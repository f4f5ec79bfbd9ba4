//! The table of half-open IKE SAs, which anybody can make: bounded in number, by source and in
//! memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::child_sas::Spi;

/// Most octets of all half-open IKE SAs, without fragments of IKE_AUTH.
const MAX_OCTETS: usize = 6 << 20;
/// Most octets of fragments of IKE_AUTH. They have a limit of their own, so that the fragments of
/// some initiators do not keep others from beginning.
const MAX_FRAGMENT_OCTETS: usize = 2 << 20;
/// Most half-open IKE SAs of one source while cookies are asked for. Without cookies the source may
/// be forged. An honest initiator takes a place for a round trip; many of them may be behind one
/// NAT.
const MAX_PER_SOURCE: usize = 64;

/// Half-open IKE SAs by what a retransmission of their IKE_SA_INIT request has in common.
#[derive(Debug, Default)]
pub(super) struct HalfOpenTable {
    entries: HashMap<(SocketAddr, u64), Entry>,
    by_source: HashMap<IpAddr, usize>,
    octets: usize,
    fragment_octets: usize,
}

#[derive(Debug)]
struct Entry {
    spi: Spi,
    octets: usize,
    fragment_octets: usize,
}

impl HalfOpenTable {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The half-open IKE SA of an initiator.
    pub(super) fn get(&self, remote: SocketAddr, initiator_spi: u64) -> Option<Spi> {
        self.entries.get(&(remote, initiator_spi)).map(|entry| entry.spi)
    }

    /// Whether one more, made by a request of this size, finds room.
    pub(super) fn has_room(&self, request: usize) -> bool {
        self.octets.saturating_add(request) <= MAX_OCTETS
    }

    /// Whether this source has as many as it may have while cookies are asked for.
    pub(super) fn is_full_for(&self, remote: SocketAddr) -> bool {
        self.by_source.get(&source(remote.ip())).is_some_and(|count| *count >= MAX_PER_SOURCE)
    }

    /// Adds one.
    pub(super) fn insert(&mut self, remote: SocketAddr, initiator_spi: u64, spi: Spi, octets: usize) {
        self.remove(remote, initiator_spi);
        self.entries.insert((remote, initiator_spi), Entry { spi, octets, fragment_octets: 0 });
        self.octets = self.octets.saturating_add(octets);
        let count = self.by_source.entry(source(remote.ip())).or_default();
        *count = count.saturating_add(1);
    }

    /// One keeps this many octets of fragments now. False: that is too much, and it must go.
    pub(super) fn set_fragment_octets(&mut self, remote: SocketAddr, initiator_spi: u64, octets: usize) -> bool {
        let Some(entry) = self.entries.get_mut(&(remote, initiator_spi)) else {
            return false;
        };
        let before = std::mem::replace(&mut entry.fragment_octets, octets);
        self.fragment_octets = self.fragment_octets.saturating_sub(before).saturating_add(octets);
        octets <= before || self.fragment_octets <= MAX_FRAGMENT_OCTETS
    }

    /// Removes one.
    pub(super) fn remove(&mut self, remote: SocketAddr, initiator_spi: u64) {
        let Some(entry) = self.entries.remove(&(remote, initiator_spi)) else {
            return;
        };
        self.octets = self.octets.saturating_sub(entry.octets);
        self.fragment_octets = self.fragment_octets.saturating_sub(entry.fragment_octets);
        let source = source(remote.ip());
        if let Some(count) = self.by_source.get_mut(&source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 network of 64 bits, of which one host may
/// have all addresses.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}
