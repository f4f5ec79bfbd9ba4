//! What the endpoint asks of its owner.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use edge_ike::{Environment, PeerName};
use edge_xfrm::{Reqid, SaId, SpiRange, Xfrm};
use ring::rand::{SecureRandom, SystemRandom};

use super::reqids::Reqids;
use crate::clock::CertificateClock;
use crate::incidents::Journal;

/// The kernel, the clock and the random numbers of this machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) xfrm: Xfrm,
    pub(super) reqids: Reqids,
    pub(super) journal: Journal,
    pub(super) clock: Arc<CertificateClock>,
    pub(super) random: SystemRandom,
}

impl Machine {
    pub(super) fn reqid(&self, peer: &PeerName) -> Option<Reqid> {
        self.reqids.of(peer)
    }
}

impl Environment for Machine {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        // Never weak randomness instead: without it the agent cannot do its work.
        self.random.fill(bytes).expect("the kernel's random number generator fails");
    }

    fn unix_time(&self) -> u64 {
        self.clock.unix_time()
    }

    fn allocate_spi(&mut self, peer: &PeerName, local: IpAddr, remote: IpAddr) -> Option<u32> {
        let reqid = self.reqid(peer)?;
        match self.xfrm.allocate_spi(remote, local, reqid, SpiRange::default()) {
            Ok(spi) => Some(spi),
            Err(error) => {
                self.journal.error(format!("peer {peer}: {error}"));
                None
            }
        }
    }

    fn release_spi(&mut self, _peer: &PeerName, local: IpAddr, spi: u32) {
        // It may have run out already.
        let _ = self.xfrm.delete_sa(SaId { destination: local, spi });
    }

    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        source_address(remote)
    }
}

/// The address from which the kernel speaks to `remote`: that of a connected socket. Nothing is
/// sent.
pub(super) fn source_address(remote: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(remote, 4500)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
}
