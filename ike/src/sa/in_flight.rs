//! Our request that the peer has not answered. `channel` sends it.

use std::net::SocketAddr;

use super::retransmission_timer::RetransmissionTimer;

/// A request, while there is no response.
#[derive(Debug)]
//= RFC 7296 2.3 MUST 6: a copy of the request
pub(super) struct InFlight {
    /// The message ID.
    pub(super) id: u32,
    /// The datagrams.
    pub(super) packets: Vec<Vec<u8>>,
    pub(super) retransmission: RetransmissionTimer,
    /// The candidate address to which the request was also sent.
    pub(super) sent_to: Option<SocketAddr>,
    /// Whether the transmissions of the request started again on the former path, because there was
    /// no response on the unchecked path. This happens only once, so that the request ends
    /// eventually.
    pub(super) fell_back: bool,
    /// How often the request was sent again immediately because the peer had moved.
    pub(super) redirected: u32,
    /// The addresses between which the request was sent. `None` if there were several pairs.
    pub(super) between: Option<(SocketAddr, SocketAddr)>,
}
