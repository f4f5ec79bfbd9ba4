//! Opens listening TCP sockets.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Opens all addresses of a key in the configuration. An IPv6 wildcard also serves IPv4, unless
/// IPv4 is listed separately.
pub(super) fn open(key: &str, addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let has_v4 = |port| addresses.iter().any(|other| other.is_ipv4() && other.port() == port);
    addresses
        .iter()
        .map(|address| {
            let open = || -> std::io::Result<TcpListener> {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                socket.set_reuseaddr(true)?;
                if address.is_ipv6() {
                    rustix::net::sockopt::set_ipv6_v6only(&socket, has_v4(address.port()))?;
                }
                socket.bind(*address)?;
                socket.listen(BACKLOG)
            };
            open().with_context(|| format!("cannot listen on {address} (`{key}` in the configuration)"))
        })
        .collect()
}
