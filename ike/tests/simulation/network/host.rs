//! The environment of a node's endpoint.

use std::collections::BTreeMap;
use std::net::IpAddr;

use edge_ike::{Environment, PeerName, TcpConnectionId};

use super::links::Random;
use crate::kernel::Kernel;

/// A host: addresses, kernel, clock and randomness.
#[derive(Debug)]
pub struct Host {
    pub kernel: Kernel,
    pub address: IpAddr,
    /// Further addresses at which the host is reachable.
    pub more_addresses: Vec<IpAddr>,
    /// The host's TCP connections, with the hosts at their other ends.
    pub tcp: BTreeMap<TcpConnectionId, IpAddr>,
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
        let of_tcp = |id: TcpConnectionId| self.tcp.contains_key(&id) && address == id.local();
        self.address == address
            || self.more_addresses.contains(&address)
            || TcpConnectionId::of(address).is_some_and(of_tcp)
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

    fn tcp_remote(&mut self, connection: TcpConnectionId) -> Option<IpAddr> {
        self.tcp.get(&connection).copied()
    }

    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        let mut addresses = std::iter::once(&self.address).chain(&self.more_addresses);
        addresses.find(|address| address.is_ipv4() == remote.is_ipv4()).copied()
    }
}
