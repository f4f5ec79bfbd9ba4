//! The ends of a relayed pair.

use std::net::{IpAddr, SocketAddr};

use edge_ike::wire::RelayToken;

/// How a node's IKE SA reaches this hub. Its datagrams for the other node travel in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEnd {
    /// By UDP.
    Udp {
        /// The hub's address.
        local: IpAddr,
        /// The node's address and port.
        remote: SocketAddr,
    },
    /// By TCP. The node opens another connection for each pair, from any address.
    Tcp,
}

impl RelayEnd {
    /// Returns whether a pair that was opened for this end can serve the other one: the port is on
    /// the same address of the hub, or both are TCP.
    pub(super) fn is_served_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Udp { local, .. }, Self::Udp { local: other, .. }) => local == other,
            (Self::Tcp, Self::Tcp) => true,
            _ => false,
        }
    }
}

/// What a node must know to reach the hub's end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayAccess {
    /// The hub's UDP port for this node and this pair.
    Port(u16),
    /// What a TCP connection for this pair begins with.
    Connection(RelayToken),
}

/// The random numbers for one end of a pair.
#[derive(Debug, Clone, Copy)]
pub struct EndRandom {
    /// Determines the first UDP port that is tried. Need not be secret, because the hub checks the
    /// source of each datagram.
    pub port: u16,
    /// The token of a connection.
    pub token: RelayToken,
}
