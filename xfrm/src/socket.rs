//! Options of the UDP and TCP sockets for IKE, and the filter of a netlink socket. This is the only
//! module with `unsafe`: neither the standard library nor rustix supports these options.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::Emitable;
use netlink_packet_xfrm as nl;

use crate::error::{Error, Result};
use crate::policy::Direction;

/// `UDP_ENCAP` and its value for RFC 3948 (`linux/udp.h`).
const UDP_ENCAP: libc::c_int = 100;
const UDP_ENCAP_ESPINUDP: libc::c_int = 2;
/// `IP_XFRM_POLICY`, `IPV6_XFRM_POLICY` (`linux/in.h`, `linux/in6.h`).
const IP_XFRM_POLICY: libc::c_int = 17;
const IPV6_XFRM_POLICY: libc::c_int = 35;

/// Offset of `nlmsg_pid`, the port, in `struct nlmsghdr` (`linux/netlink.h`).
const NETLINK_PORT_OFFSET: u32 = 12;

/// Lets this socket send and receive in clear regardless of policies, so that IKE messages are
/// neither blocked nor sent through the tunnel that they establish. The kernel applies this to
/// packets of the socket's own family. Use one socket for each family, and set `IPV6_V6ONLY` on the
/// IPv6 socket. Needs `CAP_NET_ADMIN`.
pub fn bypass(socket: &impl AsFd, ipv6: bool) -> Result<()> {
    for direction in [Direction::In, Direction::Out] {
        if ipv6 {
            let policy = bypass_policy(direction, nl::AF_INET6);
            set(socket, libc::IPPROTO_IPV6, IPV6_XFRM_POLICY, "IPV6_XFRM_POLICY", &policy)?;
        } else {
            let policy = bypass_policy(direction, nl::AF_INET);
            set(socket, libc::IPPROTO_IP, IP_XFRM_POLICY, "IP_XFRM_POLICY", &policy)?;
        }
    }
    Ok(())
}

/// Sets whether the kernel decapsulates ESP in UDP that arrives on this socket (RFC 3948 2.1), IPv4
/// or IPv6. The setting applies as long as any process has the socket open. While it is on, IKE
/// messages on the socket begin with four zero bytes.
pub fn decapsulate_esp(socket: &impl AsFd, on: bool) -> Result<()> {
    let kind = if on { UDP_ENCAP_ESPINUDP } else { 0 };
    set(socket, libc::IPPROTO_UDP, UDP_ENCAP, "UDP_ENCAP", &kind.to_ne_bytes())
}

/// Makes the kernel prefer a lasting source address to a temporary one (RFC 8981) for this IPv6
/// socket, whatever `use_tempaddr` says (RFC 5014, `IPV6_PREFER_SRC_PUBLIC`).
pub fn prefer_lasting_source(socket: &impl AsFd) -> Result<()> {
    let public = libc::IPV6_PREFER_SRC_PUBLIC.to_ne_bytes();
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_ADDR_PREFERENCES, "IPV6_ADDR_PREFERENCES", &public)
}

/// Makes the kernel carry IKE messages and ESP in this TCP connection (RFC 9329). From then on, one
/// call sends or receives one IKE message, with the non-ESP marker and without the length. The
/// kernel itself decrypts the ESP that arrives, sends the ESP of SAs that have the connection's
/// addresses and ports, and drops NAT keepalives. A message shorter than its length field, or
/// larger than the receive buffer, ends the connection; so does a message of which only a part
/// arrives within the socket's receive timeout. The stream prefix `IKETCP` must have been sent, or
/// received, before. Needs a kernel with `CONFIG_INET_ESPINTCP` (5.6 and later) and
/// `CAP_NET_ADMIN`.
///
/// # Errors
/// `ENOENT` says that the kernel has no TCP encapsulation.
pub fn encapsulate_in_tcp(socket: &impl AsFd) -> Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_ULP, "TCP_ULP", b"espintcp")
}

/// Makes the socket accept only datagrams with this byte at this offset.
pub(crate) fn accept_byte(socket: &impl AsFd, offset: u32, byte: u8) -> Result<()> {
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, offset),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, u32::from(byte)),
        instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0),
    ];
    filter(socket, &mut program)
}

/// Makes the socket drop datagrams whose netlink header has this port. Replaces an earlier filter.
pub(crate) fn refuse_netlink_port(socket: &impl AsFd, port: u32) -> Result<()> {
    // The kernel loads words in network byte order, and writes the port in host byte order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NETLINK_PORT_OFFSET),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, port),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
    ];
    filter(socket, &mut program)
}

fn instruction(code: u32, jump_false: u8, operand: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: jump_false, k: operand }
}

/// Sets the filter of a socket (`SO_ATTACH_FILTER`, `socket(7)`).
fn filter(socket: &impl AsFd, program: &mut [libc::sock_filter]) -> Result<()> {
    let filter = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call. The value is one live `sock_fprog` of this
    // length. The program that it points to outlives the call, which copies the program.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(Error::SocketOption { option: "SO_ATTACH_FILTER", error: io::Error::last_os_error() })
    }
}

/// Makes the `struct xfrm_userpolicy_info` of an allow policy without template.
fn bypass_policy(direction: Direction, family: u16) -> Vec<u8> {
    let info = nl::UserPolicyInfo {
        selector: nl::Selector { family, ..nl::Selector::default() },
        direction: direction as u8,
        action: nl::XFRM_POLICY_ALLOW,
        share: nl::XFRM_SHARE_ANY,
        ..nl::UserPolicyInfo::default()
    };
    let mut bytes = vec![0; info.buffer_len()];
    info.emit(&mut bytes);
    bytes
}

fn set(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, option: &'static str, value: &[u8]) -> Result<()> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call. Pointer and length are those of one live
    // slice, which the call only reads.
    let outcome = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(Error::SocketOption { option, error: io::Error::last_os_error() }) }
}
