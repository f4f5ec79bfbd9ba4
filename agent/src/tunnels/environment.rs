//! Implements the functions of the system that the IKE endpoint calls.

use std::net::IpAddr;
use std::sync::Arc;

use edge_ike::{Environment, Instant, PeerName, Purpose, TcpConnectionId};
use edge_xfrm::{SaId, SpiRange, Xfrm};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;

use super::enforced_revocations::EnforcedRevocations;
use super::internal_address_obstacle;
use super::internal_address_store::InternalAddressStore;
use super::reqids::Reqids;
use crate::clock::CertificateClock;
use crate::desired::{Desired, PeerReqids};
use crate::host::HostState;
use crate::incidents::Incidents;
use crate::source_address::source_address;
use crate::tcp_encapsulation::Connections;

/// The kernel, the clock and random numbers, for the endpoint and the driver.
#[derive(Debug)]
pub(super) struct KernelEnvironment {
    pub(super) xfrm: Xfrm,
    pub(super) reqids: Reqids,
    pub(super) revocations: EnforcedRevocations,
    pub(super) internal_addresses: InternalAddressStore,
    pub(super) incidents: Incidents,
    pub(super) clock: Arc<CertificateClock>,
    pub(super) random: SystemRandom,
    /// The driver's desired state.
    pub(super) desired: Arc<Desired>,
    pub(super) host: watch::Receiver<HostState>,
    pub(super) tcp: Connections,
}

impl KernelEnvironment {
    pub(super) fn reqids_of_sas(&self, peer: &PeerName, purpose: &Purpose) -> Option<PeerReqids> {
        self.reqids.of_sas(peer, purpose)
    }

    /// Writes to disk those changes of reqids that are not on disk yet and are due at `now`.
    pub(super) fn save_reqids(&mut self, now: Instant) {
        if let Err(error) = self.reqids.save_due_changes(now) {
            self.incidents.error(format!("reqids cannot be written to disk: {error}"));
        }
    }
}

impl KernelEnvironment {
    /// Writes to disk which revocations have been enforced, and which internal addresses peers
    /// have. Must not be called before the events of the endpoint have been handled, which end the
    /// SAs.
    pub(super) fn save_peers(&mut self) {
        if let Err(error) = self.revocations.save() {
            self.incidents.error(format!("the revocations that are in force cannot be written to disk: {error}"));
        }
        if let Err(error) = self.internal_addresses.save() {
            self.incidents.error(format!("the internal addresses of peers cannot be written to disk: {error}"));
        }
    }
}

impl KernelEnvironment {
    /// Returns the addresses of ESP packets on this path: in a TCP connection, those of the
    /// connection; `None` if it has ended long ago.
    fn real(&self, local: IpAddr, remote: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let Some(id) = TcpConnectionId::of(local) else { return Some((local, remote)) };
        self.tcp.ends(id).map(|ends| (ends.local.ip(), ends.remote.ip()))
    }
}

impl Environment for KernelEnvironment {
    fn fill_random(&mut self, bytes: &mut [u8]) {
        // This panics instead of using weak randomness.
        self.random.fill(bytes).expect("the kernel's random number generator fails");
    }

    fn random_is_from_system(&self) -> bool {
        true
    }

    fn unix_time(&self) -> u64 {
        self.clock.unix_time()
    }

    fn allocate_spi(&mut self, peer: &PeerName, local: IpAddr, remote: IpAddr) -> Option<u32> {
        // Any reqid of the peer will do, since the SA that uses the reserved SPI has the reqid of
        // its purpose.
        let reqid = self.reqids.any_of(peer)?;
        let (local, remote) = self.real(local, remote)?;
        match self.xfrm.allocate_spi(remote, local, reqid, SpiRange::default()) {
            Ok(spi) => Some(spi),
            Err(error) => {
                self.incidents.error(format!("peer {peer}: {error}"));
                None
            }
        }
    }

    fn release_spi(&mut self, _peer: &PeerName, local: IpAddr, spi: u32) {
        let Some((local, _)) = self.real(local, local) else { return };
        // The reservation may have expired already.
        let _ = self.xfrm.delete_sa(SaId { destination: local, spi });
    }

    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        source_address(remote)
    }

    fn tcp_remote(&mut self, connection: TcpConnectionId) -> Option<IpAddr> {
        self.tcp.ends(connection).map(|ends| ends.remote.ip())
    }

    fn internal_address_obstacle(&mut self, peer: &PeerName, address: IpAddr) -> Option<String> {
        let host = self.host.borrow();
        if host.local_addresses.is_empty() {
            return Some("the networks of this machine are not known yet, so it may be within one of them".to_owned());
        }
        internal_address_obstacle::obstacle(peer, address, &self.desired, &host.on_link_networks)
    }
}
