//! Announces a pod's addresses to its neighbours: gratuitous ARP (RFC 5227 2.3) and unsolicited
//! neighbour advertisements (RFC 4861 7.2.6).

#![allow(unsafe_code, reason = "sendto(2) with a link-layer address has no safe form")]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{Code, Error, Result};
use crate::mac::Mac;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPPROTO_ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// RFC 4861 4.4, flag O: override what the neighbour has cached.
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A packet socket in the pod's namespace.
#[derive(Debug)]
pub(crate) struct Announcer {
    socket: OwnedFd,
    index: u32,
    mac: Mac,
}

impl Announcer {
    /// Opens the socket in the thread's network namespace, for the link with this index and MAC
    /// address.
    pub(crate) fn open(index: u32, mac: Mac) -> Result<Self> {
        // A socket without a protocol receives nothing.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(|error| {
            Error::new(Code::Kernel, format!("cannot open a packet socket in the pod: {error}; it needs CAP_NET_RAW"))
        })?;
        Ok(Self { socket, index, mac })
    }

    /// Announces an address.
    pub(crate) fn announce(&self, address: IpAddr) -> Result<()> {
        let frames = match address {
            // As a request and as a reply, since some neighbours take only one of them.
            IpAddr::V4(address) => vec![arp(self.mac, address, 1), arp(self.mac, address, 2)],
            IpAddr::V6(address) => vec![advertisement(self.mac, address)],
        };
        frames
            .iter()
            .try_for_each(|frame| self.send(frame))
            .map_err(|error| Error::new(Code::Kernel, format!("cannot announce {address} to the neighbours: {error}")))
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: sockaddr_ll is plain data, for which zeroes are a value.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = i32::try_from(self.index).map_err(io::Error::other)?;
        // SAFETY: the socket is open, `frame` and `to` live through the call, and each is given
        // with its own length.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                mem::size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes()].concat()
}

/// An ARP packet (RFC 826) whose sender and target are the same address.
fn arp(mac: Mac, address: Ipv4Addr, operation: u8) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, 6 and 4 octets.
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(address.octets());
    // In a request the target's hardware address is unknown.
    frame.extend(if operation == 1 { [0; 6] } else { mac });
    frame.extend(address.octets());
    frame
}

/// An unsolicited neighbour advertisement (RFC 4861 4.4) to all nodes.
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    // Option 2, target link-layer address, length in units of 8 octets.
    message.extend([2, 1]);
    message.extend(mac);
    let sum = checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    // RFC 2464 7: 33:33 and the last four octets of the group.
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    // RFC 4861 7.1.2: a receiver refuses a hop limit below 255, since the packet came over a
    // router.
    frame.extend([IPPROTO_ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// RFC 4443 2.3, with the pseudo-header of RFC 8200 8.1.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let mut bytes = [from.octets(), to.octets()].concat();
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, IPPROTO_ICMPV6]);
    bytes.extend(message);
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_names_the_same_address_twice() {
        let frame = arp(MAC, Ipv4Addr::new(10, 77, 0, 2), 1);
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(frame[28..32], frame[38..42]);
    }

    #[test]
    fn an_advertisement_has_a_checksum_that_sums_to_nothing() {
        let address: Ipv6Addr = "fd77::2".parse().unwrap();
        let frame = advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[21], 255);
        assert_eq!(checksum(address, ALL_NODES, &frame[54..]), 0);
    }
}
