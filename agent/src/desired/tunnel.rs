//! The desired state of one tunnel.

use std::sync::Arc;

use edge_ike::{AddressAssignment, PeerConfig};

use super::policies::PermittedTraffic;

/// A tunnel to one peer.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredTunnel {
    /// Configuration of the peer, shared with the IKE endpoint.
    pub peer: Arc<PeerConfig>,
    /// Source of the tunnel.
    pub origin: Origin,
    /// Traffic that may pass through the tunnel.
    pub permitted: PermittedTraffic,
    /// Whether the peer is a hub of the view.
    pub hub: bool,
    /// Whether the first packet sets up the tunnel.
    pub on_demand: bool,
}

impl DesiredTunnel {
    /// Returns whether the tunnel is included in the number of tunnels that should be up, which is
    /// reported to the controller.
    pub fn counts(&self) -> bool {
        self.origin == Origin::View && !self.on_demand
    }

    /// Returns whether packets to the configured networks are blocked until the tunnel was up once,
    /// if the peer is static. The configured networks of a peer that only responds are no more than
    /// the bounds of what it may ask for. An address that the peer gives this node is unknown until
    /// then.
    pub(super) fn blocks_before_up(&self) -> bool {
        (self.peer.initiate || self.on_demand) && self.peer.address_assignment == AddressAssignment::Off
    }
}

/// Source of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A peer in the controller's view.
    View,
    /// A `[[peer]]` table in the configuration.
    Configuration,
}
