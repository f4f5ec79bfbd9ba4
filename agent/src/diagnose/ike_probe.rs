//! Checks whether an IKE daemon answers at an address. The probe is an IKE header with major
//! version 3. Every IKEv2 daemon answers it with INVALID_MAJOR_VERSION, without using keys or
//! keeping state (RFC 7296 section 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use edge_ike::wire::{HEADER_LEN, Header};
use futures_util::future::join_all;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Number of probes to one address.
const ATTEMPTS: u32 = 4;
/// Timeout for the response to one probe.
const WAIT: Duration = Duration::from_millis(700);
/// The port on which IKE messages have no non-ESP marker (RFC 7296 section 2). On all other ports,
/// they have the marker (RFC 3948 section 2.2).
const IKE_PORT: u16 = 500;
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// The result of probing an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbedAddress {
    pub(super) address: SocketAddr,
    pub(super) outcome: ProbeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProbeOutcome {
    /// An IKE daemon answered. `path_mtu` is the kernel's path MTU, in bytes.
    Answered { path_mtu: Option<u32> },
    /// No response arrived.
    Silent,
    /// The host reports that no program listens on this port.
    Closed,
    /// The kernel could not send the probe, with the operating system's error.
    Unsent(String),
}

/// Probes all addresses at the same time. Takes at most [`ATTEMPTS`] times [`WAIT`].
pub(super) async fn probe(addresses: &[SocketAddr]) -> Vec<ProbedAddress> {
    join_all(addresses.iter().map(|&address| async move {
        let outcome = match ask(address).await {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => ProbeOutcome::Closed,
            Err(error) => ProbeOutcome::Unsent(error.to_string()),
        };
        ProbedAddress { address, outcome }
    }))
    .await
}

async fn ask(address: SocketAddr) -> std::io::Result<ProbeOutcome> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    let (question, spi) = question(address.port());
    let mut buffer = [0; 1500];
    for _ in 0..ATTEMPTS {
        socket.send(&question).await?;
        // Any host can send to this port, so datagrams that are not a response to the probe are
        // ignored.
        let answered = timeout(WAIT, async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                if is_response(&buffer[..length], address.port(), spi) {
                    return std::io::Result::Ok(());
                }
            }
        });
        if let Ok(outcome) = answered.await {
            outcome?;
            return Ok(ProbeOutcome::Answered { path_mtu: path_mtu(&socket, address) });
        }
    }
    Ok(ProbeOutcome::Silent)
}

/// Builds an IKE header with major version 3 and a random initiator SPI.
fn question(port: u16) -> (Vec<u8>, u64) {
    let spi = fastrand::u64(1..);
    let mut message = if port == IKE_PORT { vec![] } else { NON_ESP_MARKER.to_vec() };
    message.extend_from_slice(&spi.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    // No next payload, version 3.0, exchange type IKE_SA_INIT, flag Initiator, message ID 0.
    message.extend_from_slice(&[0, 0x30, 34, 0x08, 0, 0, 0, 0]);
    message.extend_from_slice(&(HEADER_LEN as u32).to_be_bytes());
    (message, spi)
}

fn is_response(datagram: &[u8], port: u16, spi: u64) -> bool {
    let message = if port == IKE_PORT { Some(datagram) } else { datagram.strip_prefix(&NON_ESP_MARKER) };
    message.and_then(Header::peek).is_some_and(|header| header.response && header.initiator_spi == spi)
}

/// Returns the kernel's path MTU to the connected address, if the kernel has one.
fn path_mtu(socket: &UdpSocket, address: SocketAddr) -> Option<u32> {
    if address.is_ipv4() {
        rustix::net::sockopt::ip_mtu(socket).ok()
    } else {
        rustix::net::sockopt::ipv6_mtu(socket).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_response_to_the_question_counts() {
        let (question, spi) = question(4500);
        assert!(!is_response(&question, 4500, spi), "our own question, reflected");
        let mut response = question.clone();
        response[4 + 19] |= 0x20;
        assert!(is_response(&response, 4500, spi));
        assert!(!is_response(&response, 4500, spi ^ 1), "for another question");
        assert!(!is_response(&response, 500, spi), "with a marker on port 500");
        assert!(!is_response(&response[..20], 4500, spi), "cut short");
        assert!(!is_response(b"hello", 4500, spi));
    }
}
