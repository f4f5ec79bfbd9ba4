//! Reads datagrams from the sockets, and notifications from the kernel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge_ike::is_reserved_for_tcp;
use edge_xfrm::events::{EspEvent, EspEventSocket, EventSocket};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::datagram_socket::{self, Socket};

/// Maximum size of a datagram, in bytes.
const MAX_DATAGRAM: usize = 65_535;
/// Maximum number of ESP events that are handled at once, before other events.
const ESP_EVENTS: usize = 256;

pub(super) use crate::tcp_encapsulation::Received;

/// Sends the datagrams of a socket to a channel. Datagrams are dropped while the channel is full,
/// as in a congested network.
pub(super) async fn read(socket: Arc<Socket>, to: mpsc::Sender<Received>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        match socket.receive(&mut buffer).await {
            Ok((length, local, remote)) => {
                if is_forged(local, remote) {
                    tracing::debug!(%local, %remote, "dropped a datagram with a forged address");
                    continue;
                }
                let Some(datagram) = buffer.get(..length) else { continue };
                if let Err(error) = to.try_send((datagram.to_vec(), local, remote))
                    && !matches!(error, mpsc::error::TrySendError::Full(_))
                {
                    return;
                }
            }
            // The error may be an ICMP error in response to an earlier datagram.
            Err(error) => {
                tracing::debug!(%error, "not received");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Returns whether a datagram has an address that stands for a TCP connection.
fn is_forged(local: SocketAddr, remote: SocketAddr) -> bool {
    [local, remote].iter().any(|address| is_reserved_for_tcp(address.ip().to_canonical()))
}

/// Opens the socket for ESP events. If the kernel does not report ESP traffic, the endpoint checks
/// the liveness of every peer without recent messages.
pub(super) fn open_esp_events(liveness: Duration) -> Option<AsyncFd<EspEventSocket>> {
    let opened = EspEventSocket::open().map_err(anyhow::Error::from);
    match opened.and_then(|events| Ok(datagram_socket::watch_esp(events)?)) {
        Ok(events) => Some(events),
        Err(error) => {
            tracing::warn!(
                "the kernel does not report ESP packets, so each peer is checked after {liveness:?} without IKE messages, and tunnels on demand stay although they are idle: {error:#}"
            );
            None
        }
    }
}

/// Waits for ESP events and returns them, at most [`ESP_EVENTS`].
pub(super) async fn esp_events(socket: Option<&mut AsyncFd<EspEventSocket>>) -> anyhow::Result<Vec<EspEvent>> {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut ready = socket.readable_mut().await.context("XFRM's events of ESP")?;
    let mut events = Vec::new();
    while events.len() < ESP_EVENTS {
        match ready.get_inner_mut().next()? {
            Some(event) => events.push(event),
            None => {
                ready.clear_ready();
                break;
            }
        }
    }
    Ok(events)
}

pub(super) fn read_events(socket: &mut EventSocket) -> anyhow::Result<Vec<edge_xfrm::events::Event>> {
    let mut events = Vec::new();
    while let Some(event) = socket.next().context("XFRM's notifications")? {
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use edge_ike::TcpConnectionId;

    use super::*;

    #[test]
    fn a_datagram_with_the_address_of_a_tcp_connection_is_dropped() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let honest = at("[2001:db8::1]:4500");
        let id = TcpConnectionId::new(7);
        for forged in [SocketAddr::new(id.remote(), 4500), SocketAddr::new(id.local(), 500), at("[100::9]:4500")] {
            assert!(is_forged(honest, forged) && is_forged(forged, honest), "{forged}");
        }
        assert!(!is_forged(honest, at("192.0.2.1:4500")));
    }
}
