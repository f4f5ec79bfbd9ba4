//! Checks whether an IKE daemon answers at an address, and which size of packets the path to it
//! carries. The probe is an IKE header with major version 3. Every IKEv2 daemon answers it with
//! INVALID_MAJOR_VERSION, without using keys or keeping state (RFC 7296 section 2.5). Octets after
//! the header make the packet larger.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use edge_ike::wire::{HEADER_LEN, Header};
use futures_util::future::join_all;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Number of probes to one address.
const ATTEMPTS: u32 = 4;
/// Number of probes of one size.
const ATTEMPTS_OF_SIZE: u32 = 2;
/// Sizes of packets that are tried in this order if the path MTU of the kernel, in bytes, does not
/// pass: ESP leaves pods 1280 bytes, IPv6 works, IPv4 works (RFC 8200 section 5, RFC 791).
const SMALLER_SIZES: [u32; 3] = [1400, 1280, 576];
/// Largest size that is tried, in bytes. Larger packets come from pods only if all links on the
/// path are known to carry them.
pub(super) const MAX_SIZE: u32 = 1500;
/// Timeout for the response to one probe.
const WAIT: Duration = Duration::from_millis(700);
/// The port on which IKE messages have no non-ESP marker (RFC 7296 section 2). On all other ports,
/// they have the marker (RFC 3948 section 2.2).
const IKE_PORT: u16 = 500;
const UDP_HEADER: usize = 8;
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// The result of probing an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbedAddress {
    pub(super) address: SocketAddr,
    pub(super) outcome: ProbeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProbeOutcome {
    /// An IKE daemon answered. `path_mtu` is the kernel's path MTU, in bytes. `passed` is the size,
    /// in bytes, of the largest packet that was answered, of those that were sent without
    /// fragmentation; `None` if none was, or the size was not tried.
    Answered { path_mtu: Option<u32>, passed: Option<u32> },
    /// No response arrived.
    Silent,
    /// The host reports that no program listens on this port.
    Closed,
    /// The kernel could not send the probe, with the operating system's error.
    Unsent(String),
}

/// Probes all addresses at the same time. Takes at most [`WAIT`] for each attempt:
/// [`ATTEMPTS`] without a size, and [`ATTEMPTS_OF_SIZE`] of each size.
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
    if !is_answered(&socket, address, 0, ATTEMPTS).await? {
        return Ok(ProbeOutcome::Silent);
    }
    let path_mtu = path_mtu(&socket, address);
    // ESP takes the port of NAT traversal, so the size matters there.
    let passed = match path_mtu.filter(|_| address.port() != IKE_PORT) {
        Some(path_mtu) => largest_size(&socket, address, path_mtu.min(MAX_SIZE)).await,
        None => None,
    };
    Ok(ProbeOutcome::Answered { path_mtu, passed })
}

/// Sends a probe up to `attempts` times and returns whether it is answered. A packet of less than
/// `size` bytes is filled up to this size.
async fn is_answered(socket: &UdpSocket, address: SocketAddr, size: u32, attempts: u32) -> std::io::Result<bool> {
    let (question, spi) = question(address, size);
    let mut buffer = [0; 1500];
    for _ in 0..attempts {
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
            return outcome.map(|()| true);
        }
    }
    Ok(false)
}

/// Returns the size of the largest packet that is answered: the path MTU or one of the smaller
/// sizes.
async fn largest_size(socket: &UdpSocket, address: SocketAddr, path_mtu: u32) -> Option<u32> {
    let unfragmented = if address.is_ipv4() {
        set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)
    } else {
        set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)
    };
    unfragmented.ok()?;
    for size in [path_mtu].into_iter().chain(SMALLER_SIZES.into_iter().filter(|size| *size < path_mtu)) {
        // An error also says that the packet is too large.
        if is_answered(socket, address, size, ATTEMPTS_OF_SIZE).await.unwrap_or(false) {
            return Some(size);
        }
    }
    None
}

/// Builds an IKE header with major version 3 and a random initiator SPI. Octets after it fill the
/// packet up to `size` bytes.
fn question(address: SocketAddr, size: u32) -> (Vec<u8>, u64) {
    let spi = fastrand::u64(1..);
    let (headers, port) = (if address.is_ipv4() { 20 + UDP_HEADER } else { 40 + UDP_HEADER }, address.port());
    let mut message = if port == IKE_PORT { vec![] } else { NON_ESP_MARKER.to_vec() };
    message.extend_from_slice(&spi.to_be_bytes());
    message.extend_from_slice(&[0; 8]);
    // No next payload, version 3.0, exchange type IKE_SA_INIT, flag Initiator, message ID 0.
    message.extend_from_slice(&[0, 0x30, 34, 0x08, 0, 0, 0, 0]);
    let begin = message.len() - (HEADER_LEN - 4);
    message.resize((size as usize).saturating_sub(headers).max(begin + HEADER_LEN), 0);
    let length = (message.len() - begin) as u32;
    message[begin + HEADER_LEN - 4..begin + HEADER_LEN].copy_from_slice(&length.to_be_bytes());
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
        let (question, spi) = question("192.0.2.1:4500".parse().unwrap(), 0);
        assert!(!is_response(&question, 4500, spi), "our own question, reflected");
        let mut response = question.clone();
        response[4 + 19] |= 0x20;
        assert!(is_response(&response, 4500, spi));
        assert!(!is_response(&response, 4500, spi ^ 1), "for another question");
        assert!(!is_response(&response, 500, spi), "with a marker on port 500");
        assert!(!is_response(&response[..20], 4500, spi), "cut short");
        assert!(!is_response(b"hello", 4500, spi));
    }

    #[test]
    fn a_question_fills_the_packet_and_its_header_has_the_length() {
        for (address, size, length) in [
            ("192.0.2.1:4500", 0, 4 + HEADER_LEN),
            ("192.0.2.1:500", 0, HEADER_LEN),
            ("192.0.2.1:4500", 1500, 1472),
            ("192.0.2.1:500", 576, 548),
            ("[2001:db8::1]:4500", 1280, 1232),
        ] {
            let (question, _) = question(address.parse().unwrap(), size);
            assert_eq!(question.len(), length, "{address} {size}");
            let message = if address.ends_with(":4500") { &question[4..] } else { &question[..] };
            assert_eq!(message[24..28], (message.len() as u32).to_be_bytes(), "{address} {size}");
        }
    }
}
