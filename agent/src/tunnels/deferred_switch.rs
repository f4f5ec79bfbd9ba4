//! The switch to a new outbound SA, which is deferred until the peer is ready.

use edge_ike::{Instant, PeerName, Purpose};

/// An outbound SA that is not installed yet.
#[derive(Debug)]
pub(super) struct DeferredSwitch {
    pub(super) peer: PeerName,
    pub(super) purpose: Purpose,
    pub(super) until: Instant,
}
