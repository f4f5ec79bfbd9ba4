//! Classifies and counts captured frames. Frames that must not be on a wire are [`Kind::Clear`] or
//! [`Kind::Unexpected`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipnetwork::IpNetwork;
use pcap_file::pcap::PcapReader;

/// The kind of a frame, ordered from the expected to the most suspicious.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// ESP in UDP (RFC 3948 2.1).
    Esp {
        /// Security parameters index.
        spi: u32,
    },
    /// IKE, on 500 or behind the non-ESP marker (RFC 3948 2.2). A NAT may have changed both ports.
    Ike,
    /// One octet 0xff between the NAT traversal ports (RFC 3948 2.3).
    Keepalive,
    /// TCP from or to the controller's port.
    Controller,
    /// ARP, neighbour discovery, multicast reports, ICMP errors and redirects, between addresses
    /// that do not belong to pods.
    Housekeeping,
    /// An ICMP echo between such addresses. The demo sends such an echo as a mark: once the echo is
    /// in the capture, all earlier frames are in it too.
    Mark,
    /// An unencrypted frame with an address of a pod or of the cluster.
    Clear {
        /// The frame's source address.
        from: IpAddr,
        /// The frame's destination address.
        to: IpAddr,
    },
    /// Any other frame.
    Unexpected {
        /// Source and destination, or another description.
        what: String,
    },
}

/// The addresses and ports by which frames are classified.
#[derive(Debug, Clone)]
pub(super) struct ExpectedTraffic {
    /// The ranges of pod addresses: the cluster ranges and the cloud's networks.
    pub(super) guarded: Vec<IpNetwork>,
    /// TCP ports of the controller and of a second replica.
    pub(super) controller_ports: [u16; 2],
}

/// Numbers of captured frames, by kind.
#[derive(Debug, Clone, Default)]
pub(super) struct FrameCounts {
    /// Frames of each kind.
    pub(super) counts: BTreeMap<Kind, usize>,
}

impl FrameCounts {
    /// Reads a capture file from frame number `skip` on (the first is 0). Leaves out a last record
    /// that tcpdump has not finished.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a capture of Ethernet frames.
    pub(super) fn read(file: &Path, skip: usize, known: &ExpectedTraffic) -> Result<Self> {
        let open = || File::open(file).with_context(|| format!("opening {}", file.display()));
        let mut seen = Self::default();
        if open()?.metadata()?.len() == 0 {
            return Ok(seen);
        }
        let mut reader = PcapReader::new(open()?).with_context(|| format!("{} is no capture", file.display()))?;
        let mut number = 0;
        while let Some(Ok(packet)) = reader.next_packet() {
            if number >= skip {
                *seen.counts.entry(classify(&packet.data, known)).or_default() += 1;
            }
            number += 1;
        }
        Ok(seen)
    }

    /// Returns the number of all frames.
    #[must_use]
    pub(super) fn frames(&self) -> usize {
        self.count(|_| true)
    }

    /// Adds the frames of another capture.
    pub(super) fn join(&mut self, other: FrameCounts) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
    }

    /// Returns the SPIs in ESP frames.
    #[must_use]
    pub(super) fn spis(&self) -> BTreeSet<u32> {
        self.counts.keys().filter_map(|kind| if let Kind::Esp { spi } = kind { Some(*spi) } else { None }).collect()
    }

    /// Returns the number of unencrypted frames with a pod's address.
    #[must_use]
    pub(super) fn clear(&self) -> usize {
        self.count(|kind| matches!(kind, Kind::Clear { .. }))
    }

    /// Returns the number of unexpected frames.
    #[must_use]
    pub(super) fn unexpected(&self) -> usize {
        self.count(|kind| matches!(kind, Kind::Unexpected { .. }))
    }

    /// Returns the number of frames of the wanted kinds.
    pub(super) fn count(&self, wanted: impl Fn(&Kind) -> bool) -> usize {
        self.counts.iter().filter(|(kind, _)| wanted(kind)).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for FrameCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let esp = self.count(|kind| matches!(kind, Kind::Esp { .. }));
        let ike = self.count(|kind| matches!(kind, Kind::Ike | Kind::Keepalive));
        let tls = self.count(|kind| *kind == Kind::Controller);
        let keep = self.count(|kind| *kind == Kind::Housekeeping);
        write!(f, "{esp} ESP in UDP under {} SPIs, {ike} IKE, {tls} TLS, {keep} housekeeping", self.spis().len())?;
        for (kind, count) in &self.counts {
            match kind {
                Kind::Clear { from, to } => write!(f, ", {count} CLEAR {from} > {to}")?,
                Kind::Unexpected { what } => write!(f, ", {count} of {what}")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn classify(frame: &[u8], known: &ExpectedTraffic) -> Kind {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return Kind::Unexpected { what: format!("an unreadable frame of {} bytes", frame.len()) };
    };
    let (from, to) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Arp(arp)) => {
            let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
            let pair = address(arp.sender_protocol_addr()).zip(address(arp.target_protocol_addr()));
            return match pair {
                Some((from, to)) if known.is_guarded(from) || known.is_guarded(to) => Kind::Clear { from, to },
                _ => Kind::Housekeeping,
            };
        }
        None => return Kind::Unexpected { what: "a frame that is neither ARP nor IP".to_owned() },
    };
    if known.is_guarded(from) || known.is_guarded(to) {
        return Kind::Clear { from, to };
    }
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            let ports = [udp.source_port(), udp.destination_port()];
            let payload = udp.payload();
            match payload {
                _ if ports.contains(&500) => Kind::Ike,
                [0xff] => Kind::Keepalive,
                [0, 0, 0, 0, _, ..] if ports.contains(&4500) => Kind::Ike,
                [a, b, c, d, ..] if ports.contains(&4500) => Kind::Esp { spi: u32::from_be_bytes([*a, *b, *c, *d]) },
                [0, 0, 0, 0, message @ ..] if is_ike_message(message) => Kind::Ike,
                _ => unexpected(from, to, "UDP"),
            }
        }
        Some(TransportSlice::Tcp(tcp))
            if [tcp.source_port(), tcp.destination_port()].iter().any(|port| known.controller_ports.contains(port)) =>
        {
            Kind::Controller
        }
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.type_u8() {
            // Errors, group membership, neighbour discovery (RFC 4443, 3810, 4861).
            1..=4 | 130..=137 | 143 => Kind::Housekeeping,
            128 | 129 => Kind::Mark,
            _ => unexpected(from, to, "ICMPv6"),
        },
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.type_u8() {
            3 | 5 | 11 | 12 => Kind::Housekeeping,
            0 | 8 => Kind::Mark,
            _ => unexpected(from, to, "ICMP"),
        },
        Some(TransportSlice::Igmp(_)) => Kind::Housekeeping,
        Some(TransportSlice::Tcp(_)) => unexpected(from, to, "TCP"),
        // Multicast listener reports come after a hop-by-hop option. Only the first fragment of a
        // packet has ports.
        None if to.is_multicast() => Kind::Housekeeping,
        None => unexpected(from, to, "neither UDP, TCP nor ICMP, or a fragment"),
    }
}

/// Returns whether the bytes are a whole IKE message of major version 2, or of version 3 as in the
/// probe of `edge-agent diagnose`. The length in the header (RFC 7296 3.1) must be the number of
/// bytes.
fn is_ike_message(bytes: &[u8]) -> bool {
    let length = bytes.get(24..28).and_then(|field| <[u8; 4]>::try_from(field).ok()).map(u32::from_be_bytes);
    bytes.get(17).is_some_and(|version| matches!(version >> 4, 2 | 3))
        && length.and_then(|length| usize::try_from(length).ok()) == Some(bytes.len())
}

fn unexpected(from: IpAddr, to: IpAddr, protocol: &str) -> Kind {
    Kind::Unexpected { what: format!("{from} > {to} ({protocol})") }
}

impl ExpectedTraffic {
    fn is_guarded(&self, address: IpAddr) -> bool {
        self.guarded.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn known() -> ExpectedTraffic {
        ExpectedTraffic {
            guarded: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()],
            controller_ports: [8443, 8444],
        }
    }

    fn udp(from: [u8; 4], to: [u8; 4], port: u16, payload: &[u8]) -> Kind {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from, to, 64).udp(port, port);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        classify(&frame, &known())
    }

    #[test]
    fn esp_ike_and_keepalives_on_the_nat_port_are_told_apart() {
        let (a, b) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        assert_eq!(udp(a, b, 4500, &[0, 0, 0x10, 1, 0, 0, 0, 1]), Kind::Esp { spi: 0x1001 });
        assert_eq!(udp(a, b, 4500, &[0, 0, 0, 0, 7, 7, 7, 7]), Kind::Ike);
        assert_eq!(udp(a, b, 500, &[7; 28]), Kind::Ike);
        assert_eq!(udp(a, b, 4500, &[0xff]), Kind::Keepalive);
    }

    #[test]
    fn a_pod_address_is_clear_whatever_carries_it() {
        let kind = udp([10, 77, 0, 9], [192, 0, 2, 2], 4500, &[0, 0, 0x10, 1]);
        assert!(matches!(kind, Kind::Clear { .. }), "{kind:?}");
        let kind = udp([192, 0, 2, 2], [10, 77, 3, 9], 53, b"query");
        assert!(matches!(kind, Kind::Clear { .. }), "{kind:?}");
    }

    #[test]
    fn an_ike_message_between_two_mapped_ports_is_ike_and_nothing_else_there_is() {
        let (a, b) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let mut message = vec![0; 4 + 28];
        message[4 + 17] = 0x30;
        message[4 + 27] = 28;
        assert_eq!(udp(a, b, 18861, &message), Kind::Ike);
        let longer = [message.as_slice(), b"and more"].concat();
        for other in [&message[..31], &longer, &[0; 32], &message[4..]] {
            assert!(matches!(udp(a, b, 18861, other), Kind::Unexpected { .. }), "{other:?}");
        }
    }

    #[test]
    fn other_frames_are_unexpected() {
        let kind = udp([192, 0, 2, 1], [192, 0, 2, 2], 9999, b"hello");
        assert!(matches!(kind, Kind::Unexpected { .. }), "{kind:?}");
        assert!(matches!(classify(&[1, 2, 3], &known()), Kind::Unexpected { .. }));
    }
}
