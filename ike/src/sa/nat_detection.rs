//! NAT detection (RFC 7296 2.23): each end sends hashes of both addresses as it knows them, and
//! compares them with the peer's hashes.

use std::net::{Ipv4Addr, SocketAddr};

use super::path::Path;
use crate::crypto::nat_detection_hash;
use crate::event::IkeId;
use crate::wire::{Notify, NotifyType, Payloads};

impl Path {
    /// Returns our NAT_DETECTION_*_IP. With `force`, the source hash is computed from an impossible
    /// address, so that the peer detects a NAT in front of us.
    pub(crate) fn notifies(&self, ike: IkeId, force: bool) -> [Notify; 2] {
        let source = if force { SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0) } else { self.local };
        let hash = |kind, address| Notify::with_data(kind, nat_detection_hash(ike, address).to_vec());
        [hash(NotifyType::NatDetectionSourceIp, source), hash(NotifyType::NatDetectionDestinationIp, self.remote)]
    }

    /// Evaluates the peer's NAT_DETECTION_*_IP. Returns true if the peer supports NAT traversal.
    pub(crate) fn detect(&mut self, ike: IkeId, payloads: &Payloads, forced: bool) -> bool {
        let of = |kind| payloads.notifies().filter(move |notify| notify.kind == kind);
        let is = |address: SocketAddr| move |notify: &Notify| notify.data == nat_detection_hash(ike, address);
        let supported = of(NotifyType::NatDetectionSourceIp).next().is_some()
            && of(NotifyType::NatDetectionDestinationIp).next().is_some();
        if supported {
            // There may be several source hashes, one for each address of the peer.
            //= RFC 7296 2.23 SHOULD 10: a mismatch is a NAT
            self.nat_remote = !of(NotifyType::NatDetectionSourceIp).any(is(self.remote));
            self.nat_found = !of(NotifyType::NatDetectionDestinationIp).any(is(self.local));
            self.nat_local = forced || self.nat_found;
        }
        supported
    }
}
