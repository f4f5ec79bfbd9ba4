//! Implements the functions of the system that the IKE endpoint calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use edge_ike::{Environment, Instant, PeerName, Purpose};
use edge_xfrm::{SaId, SpiRange, Xfrm};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;

use super::enforced_revocations::EnforcedRevocations;
use super::internal_address_obstacle;
use super::reqids::Reqids;
use crate::clock::CertificateClock;
use crate::desired::{Desired, PeerReqids};
use crate::host::HostState;
use crate::incidents::Incidents;

/// The kernel, the clock and random numbers, for the endpoint and the driver.
#[derive(Debug)]
pub(super) struct KernelEnvironment {
    pub(super) xfrm: Xfrm,
    pub(super) reqids: Reqids,
    pub(super) revocations: EnforcedRevocations,
    pub(super) incidents: Incidents,
    pub(super) clock: Arc<CertificateClock>,
    pub(super) random: SystemRandom,
    /// The driver's desired state.
    pub(super) desired: Arc<Desired>,
    pub(super) host: watch::Receiver<HostState>,
}

impl KernelEnvironment {
    pub(super) fn reqids_of_sas(&self, peer: &PeerName, purpose: &Purpose) -> Option<PeerReqids> {
        self.reqids.of_sas(peer, purpose)
    }

    /// Writes to disk those reqids of parts that are not on disk yet and are due at `now`.
    pub(super) fn save_reqids(&mut self, now: Instant) {
        if let Err(error) = self.reqids.save_parts(now) {
            self.incidents.error(format!("reqids cannot be written to disk: {error}"));
        }
    }
}

impl KernelEnvironment {
    /// Writes to disk which revocations have been enforced. Must not be called before the events of
    /// the endpoint have been handled, which end the SAs.
    pub(super) fn save_revocations(&mut self) {
        if let Err(error) = self.revocations.save() {
            self.incidents.error(format!("the revocations that are in force cannot be written to disk: {error}"));
        }
    }
}

impl Environment for KernelEnvironment {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        // This panics instead of using weak randomness.
        self.random.fill(bytes).expect("the kernel's random number generator fails");
    }

    fn unix_time(&self) -> u64 {
        self.clock.unix_time()
    }

    fn allocate_spi(&mut self, peer: &PeerName, local: IpAddr, remote: IpAddr) -> Option<u32> {
        // Any reqid of the peer will do, since the SA that uses the reserved SPI has the reqid of
        // its purpose.
        let reqid = self.reqids.any_of(peer)?;
        match self.xfrm.allocate_spi(remote, local, reqid, SpiRange::default()) {
            Ok(spi) => Some(spi),
            Err(error) => {
                self.incidents.error(format!("peer {peer}: {error}"));
                None
            }
        }
    }

    fn release_spi(&mut self, _peer: &PeerName, local: IpAddr, spi: u32) {
        // The reservation may have expired already.
        let _ = self.xfrm.delete_sa(SaId { destination: local, spi });
    }

    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        source_address(remote)
    }

    fn internal_address_obstacle(&mut self, peer: &PeerName, address: IpAddr) -> Option<String> {
        let host = self.host.borrow();
        if host.local_addresses.is_empty() {
            return Some("the networks of this machine are not known yet, so it may be within one of them".to_owned());
        }
        internal_address_obstacle::obstacle(peer, address, &self.desired, &host.on_link_networks)
    }
}

/// Returns the source address that the kernel chooses for packets to `remote`. It is the local
/// address of a connected socket, which sends nothing.
pub(super) fn source_address(remote: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(remote, 4500)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
}
