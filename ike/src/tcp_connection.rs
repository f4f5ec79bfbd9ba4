//! The addresses that stand for TCP connections (RFC 9329). The endpoint knows only datagrams and
//! addresses. An owner that also carries messages in TCP connections gives each connection a
//! number, and with it a pair of addresses within 100::/64, which no host has (RFC 6666). To the
//! endpoint, the connection is a path between these two addresses. The owner translates them.

use std::net::{IpAddr, Ipv6Addr};

/// The number of a TCP connection, unique while the owner runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpConnectionId(u32);

/// The end of a connection for which an address stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum End {
    Local = 1,
    Remote = 2,
}

impl TcpConnectionId {
    /// The connection with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The address that stands for our end.
    pub const fn local(self) -> IpAddr {
        self.address(End::Local)
    }

    /// The address that stands for the peer's end.
    pub const fn remote(self) -> IpAddr {
        self.address(End::Remote)
    }

    const fn address(self, end: End) -> IpAddr {
        let [high, low] = [(self.0 >> 16) as u16, self.0 as u16];
        IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, end as u16, 0, high, low))
    }

    /// The connection for an end of which this address stands.
    pub fn of(address: IpAddr) -> Option<Self> {
        let IpAddr::V6(v6) = address else { return None };
        let [.., high, low] = v6.segments();
        let id = Self(u32::from(high) << 16 | u32::from(low));
        (address == id.local() || address == id.remote()).then_some(id)
    }
}

/// Returns whether no host can have this address, since it may stand for a TCP connection: it is
/// in 100::/64. A datagram from or to such an address is forged, and must not be given to
/// [`Endpoint::handle`](crate::Endpoint::handle).
pub fn is_reserved_for_tcp(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.segments()[..4] == [0x100, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_has_two_addresses_of_its_own_that_no_host_has() {
        for number in [0, 1, 0xffff, 0x1_0000, u32::MAX] {
            let id = TcpConnectionId::new(number);
            assert_ne!(id.local(), id.remote());
            for address in [id.local(), id.remote()] {
                assert_eq!(TcpConnectionId::of(address), Some(id));
                assert!(is_reserved_for_tcp(address));
            }
        }
        for other in ["100::3:0:0:1", "100::", "100::1:1:0:1", "100:0:0:1:1::1", "2001:db8::1", "192.0.2.1"] {
            assert_eq!(TcpConnectionId::of(other.parse().unwrap()), None, "{other}");
        }
        assert!(!is_reserved_for_tcp("100:0:0:1::1".parse().unwrap()));
    }
}
