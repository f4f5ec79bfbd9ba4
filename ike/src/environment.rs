//! What the owner of an endpoint provides, and the datagrams that the endpoint hands to the owner
//! for sending.

use std::net::{IpAddr, SocketAddr};

use crate::config::PeerName;

/// Functions that the owner provides to an endpoint. Like the time, they are passed with every
/// call.
pub trait Environment {
    /// Fills `bytes` with cryptographically secure random bytes.
    fn fill_random(&mut self, bytes: &mut [u8]);
    /// Seconds since 1970-01-01 UTC, for certificates: max(clock, build time, last time kept on
    /// disk).
    fn unix_time(&self) -> u64;
    /// Reserves an SPI for an inbound ESP SA towards `local` (XFRM_MSG_ALLOCSPI). `None`: the
    /// kernel refused, and the CHILD_SA fails.
    fn allocate_spi(&mut self, peer: &PeerName, local: IpAddr, remote: IpAddr) -> Option<u32>;
    /// The source address that the kernel would use towards `remote`, for peers without a
    /// configured local address. `None`: unknown. The peer then detects a NAT in front of us and
    /// sends ESP in UDP.
    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        let _ = remote;
        None
    }
    /// Gives back a reserved SPI that no [`ChildSa`](crate::ChildSa) event has carried.
    fn release_spi(&mut self, peer: &PeerName, local: IpAddr, spi: u32);
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Address and port to send from. The port selects the socket. On the NAT traversal port the
    /// payload already has the non-ESP marker (RFC 3948 2.2). An unspecified address lets the
    /// kernel choose.
    pub local: SocketAddr,
    /// Address and port to send to.
    pub remote: SocketAddr,
    /// UDP payload.
    pub payload: Vec<u8>,
}
