//! A kernel that carries out the events of an endpoint and panics if they contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use edge_ike::{ChildId, Environment, Event, OutboundSwitch, PeerName};

/// The kernel's SAs of one endpoint, and its environment.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    seed: u64,
    generous: bool,
    next_spi: u32,
    /// Reserved SPIs that belong to no SA yet.
    pub(crate) reserved: BTreeSet<u32>,
    /// Inbound SAs.
    pub(crate) inbound: BTreeSet<u32>,
    /// The outbound SA of each peer. There is at most one.
    pub(crate) outbound: BTreeMap<PeerName, ChildId>,
}

impl Kernel {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, next_spi: 0x2000, ..Self::default() }
    }

    /// Makes a kernel that never refuses an SPI.
    pub(crate) fn generous(seed: u64) -> Self {
        Self { generous: true, ..Self::new(seed) }
    }

    /// Returns whether no SA and no reservation is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.reserved.is_empty() && self.inbound.is_empty() && self.outbound.is_empty()
    }

    /// Carries out an event.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::ChildUp { peer, child, replaces } => {
                self.install(child.inbound_spi);
                let before = self.outbound.insert(peer.clone(), child.id);
                assert_eq!(before, *replaces, "one outbound SA a peer");
            }
            Event::ChildRekeyed { peer, old, new, switch } => {
                self.install(new.inbound_spi);
                if *switch == OutboundSwitch::Now {
                    let before = self.outbound.insert(peer.clone(), new.id);
                    assert_eq!(before, Some(*old), "what is switched from is what is sent with");
                }
            }
            Event::OutboundSwitch { peer, old, new } => {
                assert!(self.inbound.contains(&new.inbound_spi), "an earlier event installed the new SA");
                let before = self.outbound.insert(peer.clone(), new.id);
                assert_eq!(before, Some(*old), "what is switched from is what is sent with");
            }
            Event::ChildDown { peer, child, .. } => {
                assert!(self.inbound.remove(&child.0), "what goes was there");
                if self.outbound.get(peer) == Some(child) {
                    self.outbound.remove(peer);
                }
            }
            _ => {}
        }
    }

    fn install(&mut self, spi: u32) {
        assert!(self.reserved.remove(&spi), "an SA has an SPI that was reserved for it");
        assert!(self.inbound.insert(spi));
    }
}

impl Environment for Kernel {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            // xorshift64, which gives the same numbers in every run with the same seed.
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            *byte = self.seed.to_be_bytes()[0];
        }
    }
    fn unix_time(&self) -> u64 {
        1_800_000_000
    }
    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        // Sometimes, the kernel refuses.
        let mut chance = [0];
        self.fill_random(&mut chance);
        if chance[0] < 12 && !self.generous {
            return None;
        }
        self.next_spi += 1;
        self.reserved.insert(self.next_spi);
        Some(self.next_spi)
    }
    fn release_spi(&mut self, _: &PeerName, _: IpAddr, spi: u32) {
        assert!(self.reserved.remove(&spi), "only what is reserved and unused is given back, and once");
    }
}
