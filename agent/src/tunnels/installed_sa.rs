//! One of the agent's SAs in the kernel.

use std::net::IpAddr;

use edge_xfrm::reconcile::ExpectedSa;
use edge_xfrm::{Encap, Mode, Reqid, SaDirection, SaId, SaParams};

/// One of the agent's SAs in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InstalledSa {
    /// Whether the SA decrypts (`In`) or encrypts (`Out`).
    pub(super) direction: SaDirection,
    /// Source address of the ESP packets.
    pub(super) source: IpAddr,
    /// Destination address of the ESP packets, and SPI.
    pub(super) id: SaId,
    /// Reqid, which is also in the templates of the peer's policies.
    pub(super) reqid: Reqid,
    /// Tunnel or transport mode.
    pub(super) mode: Mode,
    /// UDP ports, if ESP is encapsulated in UDP.
    pub(super) encap: Option<Encap>,
}

impl InstalledSa {
    pub(super) fn of(params: &SaParams) -> Self {
        Self {
            direction: params.direction,
            source: params.source,
            id: params.id(),
            reqid: params.reqid,
            mode: params.mode,
            encap: params.encap,
        }
    }

    /// Returns the values that are compared with the SA in the kernel.
    pub(super) fn expected(&self) -> ExpectedSa {
        ExpectedSa { id: self.id, reqid: self.reqid.raw(), encap: self.encap }
    }
}
