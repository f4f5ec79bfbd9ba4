//! Links and NATs: how datagrams are delayed, lost, duplicated, corrupted and translated.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// A random number generator: SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Returns true in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Delay, loss, duplication and corruption of datagrams.
#[derive(Debug, Clone, Copy)]
pub struct LinkQuality {
    pub delay_min: Duration,
    pub delay_max: Duration,
    pub loss_percent: u64,
    pub double_percent: u64,
    /// Percentage of IKE datagrams in which one octet changes.
    pub corrupt_percent: u64,
    /// All delays are multiples of this time, so that several datagrams may arrive at the same
    /// time.
    pub delay_step: Duration,
}

impl LinkQuality {
    pub const RELIABLE: Self = Self {
        delay_min: Duration::from_millis(5),
        delay_max: Duration::from_millis(5),
        loss_percent: 0,
        double_percent: 0,
        corrupt_percent: 0,
        delay_step: Duration::from_micros(1),
    };
    /// Delays reorder datagrams, but no datagram is lost.
    pub const REORDERING: Self = Self {
        delay_min: Duration::from_millis(1),
        delay_max: Duration::from_millis(120),
        loss_percent: 0,
        double_percent: 10,
        ..Self::RELIABLE
    };
    pub const LOSSY: Self = Self {
        delay_min: Duration::from_millis(1),
        delay_max: Duration::from_millis(120),
        loss_percent: 15,
        double_percent: 10,
        ..Self::RELIABLE
    };
}

/// A NAT with one host behind it. A mapping does not depend on the other end.
#[derive(Debug)]
pub struct Nat {
    pub public: IpAddr,
    next_port: u16,
    ports: BTreeMap<u16, u16>,
}

impl Nat {
    pub fn new(public: &str) -> Self {
        Self { public: public.parse().unwrap(), next_port: 20_000, ports: BTreeMap::new() }
    }

    /// Forwards the ports of IKE to the host behind the NAT.
    pub fn forwarding(mut self) -> Self {
        self.ports = [500, 4500].map(|port| (port, port)).into();
        self
    }

    /// Removes all mappings.
    pub fn rebind(&mut self) {
        self.ports.clear();
    }

    pub(super) fn outwards(&mut self, port: u16) -> SocketAddr {
        let next = &mut self.next_port;
        let port = *self.ports.entry(port).or_insert_with(|| {
            *next += 1;
            *next
        });
        SocketAddr::new(self.public, port)
    }

    pub(super) fn inwards(&self, port: u16) -> Option<u16> {
        self.ports.iter().find(|(_, outer)| **outer == port).map(|(inner, _)| *inner)
    }
}
