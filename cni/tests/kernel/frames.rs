//! Builds frames as an attacker would send them, and receives frames.

#![allow(unsafe_code, reason = "bind(2) of a packet socket has no safe form")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use interop_tests::netns::within;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];

/// A packet socket on an interface. It sends frames, and receives all frames that arrive.
pub(crate) struct Wire(File);

impl Wire {
    pub(crate) fn open(netns: &str, interface: &str) -> Self {
        within(netns, || {
            let kind = SocketType::RAW;
            let all = rustix::net::Protocol::from_raw(u32::from((libc::ETH_P_ALL as u16).to_be()).try_into().unwrap());
            let socket = socket_with(AddressFamily::PACKET, kind, SocketFlags::CLOEXEC, Some(all)).unwrap();
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(10))).unwrap();
            set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
            // SAFETY: sockaddr_ll is plain data, for which all-zero is a valid value.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = netdevice::name_to_index(&socket, interface).unwrap() as i32;
            let length = std::mem::size_of_val(&address) as libc::socklen_t;
            // SAFETY: the socket is open, the address outlives the call, and its correct length is
            // passed.
            let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            Self(File::from(socket))
        })
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.0.write_all(frame).unwrap();
    }

    /// Returns the frames that arrive before the frame `marker`.
    pub(crate) fn until(&mut self, marker: &[u8]) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        loop {
            let mut buffer = vec![0; 2048];
            let length = self.0.read(&mut buffer).unwrap_or_else(|error| panic!("the marker did not arrive: {error}"));
            buffer.truncate(length);
            if buffer == marker {
                return seen;
            }
            seen.push(buffer);
        }
    }
}

pub(crate) fn mac(text: &str) -> Mac {
    let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

pub(crate) fn ethernet(to: Mac, from: Mac, ethertype: u16, content: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), content].concat()
}

/// Builds an ARP packet (RFC 826). `outer` is the source address of the frame.
pub(crate) fn arp(outer: Mac, operation: u8, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut content = vec![0, 1, 8, 0, 6, 4, 0, operation];
    content.extend(sender.0);
    content.extend(sender.1.octets());
    content.extend([0; 6]);
    content.extend(target.octets());
    ethernet(BROADCAST, outer, 0x0806, &content)
}

pub(crate) fn ipv4(to: Mac, from: Mac, protocol: u8, addresses: (Ipv4Addr, Ipv4Addr), content: &[u8]) -> Vec<u8> {
    let length = 20 + content.len() as u16;
    let mut packet = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(addresses.0.octets());
    packet.extend(addresses.1.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(content);
    ethernet(to, from, 0x0800, &packet)
}

/// Turns a frame into the last fragment of an IPv4 packet, at offset 8.
pub(crate) fn last_fragment(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20..22].copy_from_slice(&[0, 1]);
    sum_header(&mut frame);
    frame
}

/// Turns a frame into the first fragment of an IPv4 packet, with all of its content up to now.
pub(crate) fn first_fragment(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20] = 0x20;
    sum_header(&mut frame);
    frame
}

/// Truncates the payload of an IPv4 packet to `length` bytes.
pub(crate) fn shortened(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    frame.truncate(34 + length);
    frame[16..18].copy_from_slice(&(20 + length as u16).to_be_bytes());
    sum_header(&mut frame);
    frame
}

/// Inserts options into an IPv4 packet. Their length must be a multiple of four.
pub(crate) fn with_options(mut frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    frame.splice(34..34, options.iter().copied());
    frame[14] += (options.len() / 4) as u8;
    let length = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    sum_header(&mut frame);
    frame
}

fn sum_header(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let end = 14 + usize::from(frame[14] & 0xf) * 4;
    let sum = checksum(&frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

pub(crate) fn udp(from: u16, to: u16, content: &[u8]) -> Vec<u8> {
    let length = 8 + content.len() as u16;
    // The datagram has no checksum, which IPv4 allows.
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], content].concat()
}

pub(crate) fn ipv6(to: Mac, from: Mac, next: u8, addresses: (Ipv6Addr, Ipv6Addr), content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((content.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(addresses.0.octets());
    packet.extend(addresses.1.octets());
    packet.extend(content);
    ethernet(to, from, 0x86dd, &packet)
}

/// Builds an ICMPv6 message with its checksum (RFC 4443 2.3).
pub(crate) fn icmpv6(addresses: (Ipv6Addr, Ipv6Addr), kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    let mut sum = [addresses.0.octets(), addresses.1.octets()].concat();
    sum.extend((message.len() as u32).to_be_bytes());
    sum.extend([0, 0, 0, 58]);
    sum.extend(&message);
    let sum = checksum(&sum);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Builds an ICMPv6 message in a frame to all nodes.
pub(crate) fn discovery(from: Mac, source: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let addresses = (source, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    ipv6([0x33, 0x33, 0, 0, 0, 1], from, 58, addresses, &icmpv6(addresses, kind, rest))
}

/// Builds the content of a neighbour solicitation or advertisement: the reserved field or the
/// flags, the target, and the option (1 or 2) with the link-layer address (RFC 4861 4.3, 4.4).
pub(crate) fn neighbour(flags: u8, target: Ipv6Addr, option: u8, link: Mac) -> Vec<u8> {
    [&[flags, 0, 0, 0][..], &target.octets(), &[option, 1], &link].concat()
}

/// Builds an ICMP error (RFC 792) about a datagram between these addresses. `error6` does the same
/// for ICMPv6.
pub(crate) fn error4(kind: u8, about: (Ipv4Addr, Ipv4Addr)) -> Vec<u8> {
    let datagram = ipv4(BROADCAST, BROADCAST, 17, about, &udp(4500, 4500, &[0; 32]));
    let mut message = [&[kind, 4, 0, 0, 0, 0, 2, 88][..], &datagram[14..]].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

pub(crate) fn error6(addresses: (Ipv6Addr, Ipv6Addr), kind: u8, about: (Ipv6Addr, Ipv6Addr)) -> Vec<u8> {
    let datagram = ipv6(BROADCAST, BROADCAST, 17, about, &udp(4500, 4500, &[0; 32]));
    icmpv6(addresses, kind, &[&[0, 0, 5, 0][..], &datagram[14..]].concat())
}

/// Builds the content of a router advertisement (RFC 4861 4.2) with a prefix for addresses.
pub(crate) fn router(lifetime: u16) -> Vec<u8> {
    let mut rest = vec![64, 0];
    rest.extend(lifetime.to_be_bytes());
    rest.extend([0; 8]);
    // Option 3: 4 units, /64, on link and autonomous, valid and preferred for an hour.
    rest.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    rest.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0).octets());
    rest
}

fn checksum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
