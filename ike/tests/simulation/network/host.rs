//! The environment of a node's endpoint.

use std::net::IpAddr;

use edge_ike::{Environment, PeerName};

use super::links::Random;
use crate::kernel::Kernel;

/// A host: addresses, kernel, clock and randomness.
#[derive(Debug)]
pub struct Host {
    pub kernel: Kernel,
    pub address: IpAddr,
    /// Further addresses at which the host is reachable.
    pub more_addresses: Vec<IpAddr>,
    /// Former addresses of the host. Its kernel drops packets that are sent from them.
    pub(super) former_addresses: Vec<IpAddr>,
    pub unix_time: u64,
    pub(super) random: Random,
    /// Percentage of SPI requests that the kernel refuses.
    pub refuse_percent: u64,
    /// The random octets drawn since the last step: private keys, nonces, secrets.
    pub(super) drawn: Vec<Vec<u8>>,
}

impl Host {
    /// Returns whether the host has this address.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.address == address || self.more_addresses.contains(&address)
    }
}

impl Environment for Host {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        for byte in bytes.iter_mut() {
            *byte = self.random.next().to_be_bytes()[0];
        }
        self.drawn.push(bytes.to_vec());
    }

    fn unix_time(&self) -> u64 {
        self.unix_time
    }

    fn allocate_spi(&mut self, _peer: &PeerName, local: IpAddr, _remote: IpAddr) -> Option<u32> {
        assert!(!local.is_unspecified());
        (!self.random.chance(self.refuse_percent)).then(|| self.kernel.reserve())
    }

    fn release_spi(&mut self, _peer: &PeerName, _local: IpAddr, spi: u32) {
        self.kernel.release(spi);
    }

    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        let mut addresses = std::iter::once(&self.address).chain(&self.more_addresses);
        addresses.find(|address| address.is_ipv4() == remote.is_ipv4()).copied()
    }
}
