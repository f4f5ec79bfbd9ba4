//! The source addresses that the kernel chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use edge_ike::TcpConnectionId;

/// Returns the source address that the kernel chooses for packets to `remote`. It is the local
/// address of a connected socket, which sends nothing. If `remote` stands for the end of a TCP
/// connection, it is the address that stands for the other end. A temporary IPv6 address is chosen
/// only if there is no lasting one of its scope.
pub(crate) fn source_address(remote: IpAddr) -> Option<IpAddr> {
    if let Some(id) = TcpConnectionId::of(remote) {
        return Some(id.local());
    }
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    if any.is_ipv6() {
        edge_xfrm::socket::prefer_lasting_source(&socket).ok()?;
    }
    socket.connect(SocketAddr::new(remote, 4500)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
}

/// Returns whether an address belongs to any interface of this network namespace.
pub(crate) fn is_local(address: IpAddr) -> bool {
    source_address(address) == Some(address)
}
