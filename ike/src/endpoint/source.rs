//! The hosts from which unauthenticated messages come, as far as limits distinguish them.

use std::net::{IpAddr, Ipv6Addr};

use crate::environment::Environment;
use crate::tcp_connection::{TcpConnectionId, is_reserved_for_tcp};

/// Hosts that share a limit: a configured peer's address, another IPv4 address, or another IPv6
/// network with a 64-bit prefix, since one host may have all addresses of such a network.
///
/// All TCP connections of a host count together, but apart from its datagrams: whoever forges the
/// source of datagrams must not use up what the host may do in a connection. So a host has at most
/// two sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Source {
    /// Whether a peer is configured with this address.
    known: bool,
    tcp: bool,
    address: IpAddr,
}

impl Source {
    /// Returns the source of a datagram with this address. `known`: a peer is configured with it.
    pub(super) fn new(address: IpAddr, known: bool) -> Self {
        let address = address.to_canonical();
        let address = match address {
            IpAddr::V6(v6) if !known => {
                let [a, b, c, d, ..] = v6.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address => address,
        };
        Self { known, tcp: false, address }
    }

    /// Returns the source of a message from this address, which may stand for a TCP connection.
    /// All connections whose host the owner does not know count as one source. `is_known` returns
    /// whether a peer is configured with an address.
    pub(super) fn of_message(remote: IpAddr, is_known: impl Fn(IpAddr) -> bool, env: &mut dyn Environment) -> Self {
        if !is_reserved_for_tcp(remote) {
            return Self::new(remote, is_known(remote));
        }
        let host = TcpConnectionId::of(remote).and_then(|connection| env.tcp_remote(connection));
        let source = match host.map(|host| host.to_canonical()) {
            Some(host) => Self::new(host, is_known(host)),
            None => Self::new(Ipv6Addr::UNSPECIFIED.into(), false),
        };
        Self { tcp: true, ..source }
    }

    /// Returns whether a peer is configured with this address.
    pub(super) fn is_known(self) -> bool {
        self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PeerName;

    /// An owner that knows the hosts of the first connections.
    struct Owner(Vec<&'static str>);

    impl Environment for Owner {
        fn fill_random(&mut self, _: &mut [u8]) {}
        fn unix_time(&self) -> u64 {
            0
        }
        fn allocate_spi(&mut self, _: &PeerName, _: IpAddr, _: IpAddr) -> Option<u32> {
            None
        }
        fn release_spi(&mut self, _: &PeerName, _: IpAddr, _: u32) {}
        fn tcp_remote(&mut self, connection: TcpConnectionId) -> Option<IpAddr> {
            let index = (0..self.0.len()).find(|index| TcpConnectionId::new(*index as u32) == connection)?;
            self.0[index].parse().ok()
        }
    }

    fn source_of(address: &str, hosts: &[&'static str]) -> Source {
        let is_known = |address: IpAddr| address.to_string().ends_with("::aa") || address.to_string() == "192.0.2.99";
        Source::of_message(address.parse().unwrap(), is_known, &mut Owner(hosts.to_vec()))
    }

    #[test]
    fn connections_count_by_the_host_at_their_other_end() {
        let hosts = ["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"];
        let of = |number: u32| source_of(&TcpConnectionId::new(number).remote().to_string(), &hosts);
        assert_eq!(of(0), of(1));
        assert_ne!(of(0), of(2));
        assert_eq!(of(3), of(4));
        assert_ne!(of(3), of(5));
        // Nobody knows the hosts of these.
        assert_eq!(of(6), of(u32::MAX));
        assert_ne!(of(6), of(0));
    }

    #[test]
    fn a_hosts_datagrams_count_apart_from_its_connections() {
        let in_tcp = source_of(&TcpConnectionId::new(0).remote().to_string(), &["192.0.2.1"]);
        assert_ne!(in_tcp, source_of("192.0.2.1", &[]));
    }

    #[test]
    fn a_configured_address_is_known_in_tcp_too_and_is_no_network() {
        for host in ["192.0.2.99", "2001:db8::aa", "::ffff:192.0.2.99"] {
            assert!(source_of(&TcpConnectionId::new(0).remote().to_string(), &[host]).is_known(), "{host}");
        }
        assert!(!source_of(&TcpConnectionId::new(0).remote().to_string(), &["2001:db8::ab"]).is_known());
        assert_ne!(source_of("2001:db8::aa", &[]), source_of("2001:db8::ab", &[]));
    }
}
