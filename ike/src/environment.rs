//! The functions that the owner of an endpoint provides, and the datagrams that the owner must
//! send.

use std::net::{IpAddr, SocketAddr};

use crate::config::PeerName;
use crate::tcp_connection::TcpConnectionId;

/// Functions that the owner provides to an endpoint. The environment, like the time, is passed with
/// every call.
pub trait Environment {
    /// Fills `bytes` with cryptographically secure random bytes.
    fn fill_random(&mut self, bytes: &mut [u8]);
    /// Returns whether `fill_random` returns random bytes of the operating system. The endpoint may
    /// then draw a private key from the operating system without this environment, with which
    /// X25519 is faster on some processors. An environment whose random bytes are chosen or
    /// repeated returns false.
    fn random_is_from_system(&self) -> bool {
        false
    }
    /// Returns the seconds since 1970-01-01 UTC, for checking certificates: max(clock, build time,
    /// last time stored on disk).
    fn unix_time(&self) -> u64;
    /// Reserves an SPI for an inbound ESP SA towards `local` (XFRM_MSG_ALLOCSPI). Returns `None` if
    /// the kernel refuses; the CHILD_SA then fails. The SPI is unique for `local`; if the endpoint
    /// uses it with another address of this node, it reserves another one and releases this one.
    fn allocate_spi(&mut self, peer: &PeerName, local: IpAddr, remote: IpAddr) -> Option<u32>;
    /// Returns the source address that the kernel would use towards `remote`, for peers without a
    /// configured local address. Returns `None` if it is unknown. In that case the peer detects a
    /// NAT in front of us and sends ESP in UDP.
    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        let _ = remote;
        None
    }
    /// Returns the address of the host at the other end of a TCP connection. The limits on
    /// unauthenticated initiators count all connections of a host together. Returns `None` if it is
    /// unknown, for example because the connection ended long ago; all such connections together
    /// count as one host.
    fn tcp_remote(&mut self, connection: TcpConnectionId) -> Option<IpAddr> {
        let _ = connection;
        None
    }
    /// Returns why this node must not have an internal address that a peer gives it
    /// ([`AddressAssignment::Request`](crate::AddressAssignment)), for example because the address
    /// belongs to somebody else. There is then no CHILD_SA, and the peer's error has the text.
    /// The endpoint itself refuses addresses of this node and of the peer.
    fn internal_address_obstacle(&mut self, peer: &PeerName, address: IpAddr) -> Option<String> {
        let _ = (peer, address);
        None
    }
    /// Releases a reserved SPI that has not been part of a [`ChildSa`](crate::ChildSa) event.
    fn release_spi(&mut self, peer: &PeerName, local: IpAddr, spi: u32);
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Address and port to send from. The port selects the socket. On the NAT traversal port the
    /// payload already has the non-ESP marker (RFC 3948 2.2). If the address is unspecified, the
    /// kernel chooses one.
    pub local: SocketAddr,
    /// Address and port to send to.
    pub remote: SocketAddr,
    /// UDP payload.
    pub payload: Vec<u8>,
}
