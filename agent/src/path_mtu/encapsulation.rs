//! The sizes of packets before and after ESP.

use crate::init_probe::MAX_REQUEST;

/// Size of the IPv4 header without options, bytes.
const IPV4_HEADER: u32 = 20;
/// Size of the IPv6 header, bytes.
const IPV6_HEADER: u32 = 40;
/// Size of the UDP header, bytes.
const UDP_HEADER: u32 = 8;
/// Overhead of ESP with an AEAD, without trailer and padding, bytes: header 8, IV 8, ICV 16 (RFC
/// 4303, RFC 4106, RFC 7634). Our own nodes use only AEADs.
const ESP: u32 = 8 + 8 + 16;
/// Size of the ESP trailer without padding, bytes: padding length and next header.
const TRAILER: u32 = 2;
/// ESP pads a packet with its trailer to a multiple of this size, bytes.
pub const PADDING: u32 = 4;
/// Minimum MTU that IPv6 allows, bytes (RFC 8200 5).
pub const IPV6_MIN_MTU: u32 = 1280;
/// Size of packets that every IPv4 host accepts, bytes (RFC 791 3.1).
pub const IPV4_MIN_MTU: u32 = 576;

/// How ESP packets of a tunnel travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encapsulation {
    /// Whether the outer header is IPv4.
    pub ipv4: bool,
    /// Whether ESP is encapsulated in UDP (RFC 3948).
    pub udp: bool,
}

impl Encapsulation {
    /// ESP in UDP over IPv6, which has the largest overhead.
    pub const LARGEST: Self = Self { ipv4: false, udp: true };

    /// Returns the size of the largest packet that fits into an ESP packet of at most `outer`
    /// bytes.
    #[must_use]
    pub fn inner(self, outer: u32) -> u32 {
        (outer.saturating_sub(self.overhead()) / PADDING * PADDING).saturating_sub(TRAILER)
    }

    /// Returns the size of the ESP packet that carries a packet of `inner` bytes.
    #[must_use]
    pub fn outer(self, inner: u32) -> u32 {
        let padded = inner.saturating_add(TRAILER).checked_next_multiple_of(PADDING);
        padded.unwrap_or(u32::MAX).saturating_add(self.overhead())
    }

    /// Returns the size of the largest ESP packets that are tried if packets have at most `inner`
    /// bytes. Larger probes would get no answer, whatever the path carries.
    #[must_use]
    pub fn largest(self, inner: u32) -> u32 {
        self.outer(inner).min(self.ip_header() + UDP_HEADER + MAX_REQUEST)
    }

    /// Returns the size of the smallest ESP packets that are tried. Every IPv6 link carries 1280
    /// bytes.
    #[must_use]
    pub fn smallest(self) -> u32 {
        if self.ipv4 { self.outer(IPV4_MIN_MTU) } else { IPV6_MIN_MTU }
    }

    /// Returns the payload of a UDP datagram whose IP packet has `size` bytes.
    #[must_use]
    pub fn udp_payload(self, size: u32) -> usize {
        usize::try_from(size.saturating_sub(self.ip_header() + UDP_HEADER)).unwrap_or_default()
    }

    fn ip_header(self) -> u32 {
        if self.ipv4 { IPV4_HEADER } else { IPV6_HEADER }
    }

    fn overhead(self) -> u32 {
        self.ip_header() + ESP + if self.udp { UDP_HEADER } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_packet_that_fits_is_found_for_every_encapsulation() {
        for (ipv4, udp) in [(true, true), (true, false), (false, true), (false, false)] {
            let encapsulation = Encapsulation { ipv4, udp };
            for outer in 700..1600 {
                let inner = encapsulation.inner(outer);
                assert!(encapsulation.outer(inner) <= outer, "{encapsulation:?} {outer}");
                assert!(encapsulation.outer(inner + 1) > outer, "{encapsulation:?} {outer}");
            }
            assert!(encapsulation.inner(encapsulation.smallest()) >= IPV4_MIN_MTU);
        }
        assert_eq!(Encapsulation::LARGEST.inner(1500), 1418);
        assert_eq!(Encapsulation { ipv4: true, udp: true }.outer(1418), 1480);
    }

    #[test]
    fn no_size_overflows() {
        assert_eq!(Encapsulation::LARGEST.inner(0), 0);
        assert_eq!(Encapsulation::LARGEST.outer(u32::MAX), u32::MAX);
        assert_eq!(Encapsulation::LARGEST.udp_payload(3), 0);
    }
}
