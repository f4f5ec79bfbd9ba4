//! Provides randomness, clock and SPIs to the peers' endpoints.

use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use edge_ike::{Environment, PeerName};
use ring::rand::{SecureRandom as _, SystemRandom};

/// The first SPI. Smaller ones are reserved (RFC 4303 2.1).
const FIRST_SPI: u32 = 0x1000;

/// Randomness, clock and SPIs of all peers.
pub(super) struct System {
    random: SystemRandom,
    next_spi: u32,
}

impl System {
    pub(super) fn new() -> Self {
        Self { random: SystemRandom::new(), next_spi: FIRST_SPI }
    }
}

impl Environment for System {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        self.random.fill(bytes).expect("the system has randomness");
    }

    fn random_is_from_system(&self) -> bool {
        true
    }

    fn unix_time(&self) -> u64 {
        UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs())
    }

    fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
        let spi = self.next_spi;
        self.next_spi = spi.checked_add(1)?;
        Some(spi)
    }

    fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
}
