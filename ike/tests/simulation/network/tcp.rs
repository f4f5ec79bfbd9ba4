//! TCP connections between hosts (RFC 9329), as far as endpoints notice them.

use std::net::{IpAddr, SocketAddr};

use edge_ike::TcpConnectionId;

use super::{Network, Packet};

/// The port of the addresses that stand for both ends of a connection.
const PORT: u16 = 4500;

impl Network {
    /// Connects two nodes. Returns the number that the connection has at each of them. The second
    /// one sees it come from `host`: the address of the first one, or of the NAT before it.
    pub fn connect_tcp(&mut self, from: usize, host: IpAddr, to: usize) -> (TcpConnectionId, TcpConnectionId) {
        let ours = self.free_connection();
        let other = self.nodes[to].host.address;
        self.nodes[from].host.tcp.insert(ours, other);
        let theirs = self.connect_tcp_from(host, to);
        self.tcp.extend([(ours, theirs), (theirs, ours)]);
        (ours, theirs)
    }

    /// Connects a host that is no node. What is sent to it arrives in [`Network::outside`].
    pub fn connect_tcp_from(&mut self, host: IpAddr, to: usize) -> TcpConnectionId {
        let theirs = self.free_connection();
        self.nodes[to].host.tcp.insert(theirs, host);
        theirs
    }

    fn free_connection(&self) -> TcpConnectionId {
        let number: usize = self.nodes.iter().map(|node| node.host.tcp.len()).sum();
        TcpConnectionId::new(number.try_into().unwrap())
    }

    /// Returns the address of the peer's end of a connection, and that of the node's own end.
    pub fn ends_of_tcp(connection: TcpConnectionId) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(connection.remote(), PORT), SocketAddr::new(connection.local(), PORT))
    }

    /// Gives a message in a connection between nodes the addresses that it has at the other end.
    pub(super) fn in_tcp(&self, packet: Packet) -> Packet {
        match TcpConnectionId::of(packet.to.ip()).and_then(|connection| self.tcp.get(&connection)) {
            Some(other) if packet.to.port() == PORT && !self.is_own_end(packet.to) => {
                let (from, to) = Self::ends_of_tcp(*other);
                Packet { from, to, ..packet }
            }
            _ => packet,
        }
    }

    fn is_own_end(&self, address: SocketAddr) -> bool {
        self.nodes.iter().any(|node| node.host.has(address.ip()))
    }
}
