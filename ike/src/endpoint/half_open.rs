//! The table of half-open IKE SAs, which any host can create. It limits their total number, their
//! number per source, and their memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::child_sas::Spi;

/// Maximum total size of all half-open IKE SAs, bytes, not including fragments of IKE_AUTH.
const MAX_OCTETS: usize = 6 << 20;
/// Maximum total size of fragments of IKE_AUTH, bytes. They have a separate limit, so that
/// fragments from some initiators do not prevent other initiators from starting.
const MAX_FRAGMENT_OCTETS: usize = 2 << 20;
/// Maximum number of half-open IKE SAs from one source while cookies are requested. Without cookies
/// the source may be forged. An honest initiator needs an entry for one round trip. Many honest
/// initiators may be behind one NAT.
const MAX_PER_SOURCE: usize = 64;

/// Half-open IKE SAs. The keys are the values that a retransmission of an IKE_SA_INIT request has
/// in common with the original.
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
    /// Returns the number of half-open IKE SAs.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the half-open IKE SA of an initiator, if there is one.
    pub(super) fn get(&self, remote: SocketAddr, initiator_spi: u64) -> Option<Spi> {
        self.entries.get(&(remote, initiator_spi)).map(|entry| entry.spi)
    }

    /// Returns whether there is room for one more entry, made by a request of this size.
    pub(super) fn has_room(&self, request: usize) -> bool {
        self.octets.saturating_add(request) <= MAX_OCTETS
    }

    /// Returns whether this source has reached the limit that applies while cookies are requested.
    pub(super) fn is_full_for(&self, remote: SocketAddr) -> bool {
        self.by_source.get(&source(remote.ip())).is_some_and(|count| *count >= MAX_PER_SOURCE)
    }

    /// Adds a half-open IKE SA.
    pub(super) fn insert(&mut self, remote: SocketAddr, initiator_spi: u64, spi: Spi, octets: usize) {
        self.remove(remote, initiator_spi);
        self.entries.insert((remote, initiator_spi), Entry { spi, octets, fragment_octets: 0 });
        self.octets = self.octets.saturating_add(octets);
        let count = self.by_source.entry(source(remote.ip())).or_default();
        *count = count.saturating_add(1);
    }

    /// Records that an entry now stores this many octets of fragments. Returns false if that
    /// exceeds the limit. In that case the caller must remove the entry.
    pub(super) fn set_fragment_octets(&mut self, remote: SocketAddr, initiator_spi: u64, octets: usize) -> bool {
        let Some(entry) = self.entries.get_mut(&(remote, initiator_spi)) else {
            return false;
        };
        let before = std::mem::replace(&mut entry.fragment_octets, octets);
        self.fragment_octets = self.fragment_octets.saturating_sub(before).saturating_add(octets);
        octets <= before || self.fragment_octets <= MAX_FRAGMENT_OCTETS
    }

    /// Removes a half-open IKE SA.
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

/// Returns the source to which an address belongs: an IPv4 address, or an IPv6 network with a
/// 64-bit prefix, since one host may have all addresses of such a network.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}
