//! Candidate addresses: the addresses that this node reports for itself, and the addresses of a
//! peer that this node tries. This module does no I/O.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

/// Maximum number of a peer's candidates that a node tries. This limits the number of invented
/// addresses to which a malicious node can make each peer send.
pub const MAX_CANDIDATES: usize = 8;
/// Maximum number of addresses in a report. The controller adds the source address of the node's
/// connection: behind a NAT only that address works.
const MAX_REPORTED: usize = MAX_CANDIDATES - 1;
/// Minimum number of addresses of each family in a report, if the node has that many. A node cannot
/// determine in advance over which family it reaches its peers.
const MIN_OF_EACH_FAMILY: usize = 2;

/// Returns whether this can be the address of a node as other nodes see it. Addresses that are
/// local to a host or link are not candidates, nor are addresses within the cluster ranges, which
/// are reached through a tunnel.
pub fn is_candidate(address: IpAddr, cluster_ranges: &[IpNetwork]) -> bool {
    let nowhere = match address.to_canonical() {
        // 0.0.0.0/8 "this network", 240.0.0.0/4 reserved, and within it the limited broadcast (RFC
        // 6890).
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            first == 0 || first >= 240 || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
        }
        // ::/96 was "IPv4-compatible" (RFC 4291 2.5.5.1), 100::/64 is discarded (RFC 6666).
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            let compatible = segments[..6] == [0; 6];
            let discarded = segments[..4] == [0x100, 0, 0, 0];
            compatible || discarded || v6.is_unicast_link_local() || v6.is_multicast()
        }
    };
    !nowhere && !cluster_ranges.iter().any(|range| range.contains(address.to_canonical()))
}

/// Returns the candidates of a peer from the view, likeliest first, at most [`MAX_CANDIDATES`].
/// This node's own addresses are not filtered out, since they change; the IKE endpoint skips them
/// when it connects.
pub fn peer_candidates(
    addresses: impl IntoIterator<Item = SocketAddr>,
    cluster_ranges: &[IpNetwork],
) -> Vec<SocketAddr> {
    let mut usable: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if address.port() != 0 && is_candidate(address.ip(), cluster_ranges) && !usable.contains(&address) {
            usable.push(address);
        }
    }
    usable.truncate(MAX_CANDIDATES);
    usable
}

/// Returns the addresses that this node reports, and the number of usable addresses that are left
/// out. `advertised` comes from the configuration. `towards_controller` is this node's address on
/// the connection to the controller, which peers can most likely reach. `own` has the likeliest
/// addresses first.
pub fn addresses_to_report(
    advertised: &[IpAddr],
    towards_controller: IpAddr,
    own: &[IpAddr],
    cluster_ranges: &[IpNetwork],
) -> (Vec<IpAddr>, usize) {
    let likeliest = own.iter().filter(|address| **address == towards_controller);
    let mut usable: Vec<IpAddr> = Vec::new();
    for address in advertised.iter().chain(likeliest).chain(own).map(IpAddr::to_canonical) {
        if is_candidate(address, cluster_ranges) && !usable.contains(&address) {
            usable.push(address);
        }
    }
    let all = usable.len();
    let rest = usable.split_off(all.min(MAX_REPORTED));
    for ipv4 in [true, false] {
        let of_family = |address: &&IpAddr| address.is_ipv4() == ipv4;
        let missing = MIN_OF_EACH_FAMILY.saturating_sub(usable.iter().filter(of_family).count());
        let found: Vec<IpAddr> = rest.iter().filter(of_family).take(missing).copied().collect();
        usable.truncate(usable.len() - found.len());
        usable.extend(found);
    }
    let left_out = all - usable.len();
    (usable, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ranges() -> Vec<IpNetwork> {
        vec!["10.77.0.0/16".parse().unwrap(), "fd77::/48".parse().unwrap()]
    }

    #[test]
    fn addresses_at_which_no_node_can_be_are_no_candidates() {
        for nowhere in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "10.77.3.1",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.77.3.1",
            "fe80::1",
            "ff02::1",
            "100::1",
            "fd77::5",
        ] {
            assert!(!is_candidate(nowhere.parse().unwrap(), &ranges()), "{nowhere}");
        }
        for somewhere in
            ["192.168.1.10", "10.78.0.1", "100.64.0.9", "203.0.113.1", "2001:db8::1", "fd78::1", "::ffff:203.0.113.1"]
        {
            assert!(is_candidate(somewhere.parse().unwrap(), &ranges()), "{somewhere}");
        }
    }

    #[test]
    fn of_a_hundred_endpoints_in_a_view_the_likeliest_eight_are_tried() {
        let mut endpoints: Vec<SocketAddr> = vec![
            "127.0.0.1:4500".parse().unwrap(),
            "[ff02::1]:4500".parse().unwrap(),
            "203.0.113.1:0".parse().unwrap(),
        ];
        endpoints.extend((0..100).map(|n| SocketAddr::new(IpAddr::from([203, 0, 113, n]), 4500)));
        let tried = peer_candidates(endpoints, &ranges());
        assert_eq!(tried.len(), MAX_CANDIDATES);
        assert_eq!(tried[0], "203.0.113.0:4500".parse().unwrap());
    }

    #[test]
    fn of_forty_addresses_the_likeliest_seven_of_both_families_are_reported() {
        let mut own: Vec<IpAddr> = (0..40).map(|n| IpAddr::from([192, 168, 1, 100 + n])).collect();
        own.extend(addresses(&["fe80::1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "10.77.0.1", "127.0.0.1"]));
        let (reported, left_out) = addresses_to_report(&addresses(&["203.0.113.7"]), own[30], &own, &ranges());
        let expected = addresses(&[
            "203.0.113.7",
            "192.168.1.130",
            "192.168.1.100",
            "192.168.1.101",
            "192.168.1.102",
            "2001:db8::1",
            "2001:db8::2",
        ]);
        assert_eq!(reported, expected);
        assert_eq!(left_out, 44 - 7);
        assert_eq!(addresses_to_report(&[], own[0], &own[..3], &ranges()), (own[..3].to_vec(), 0));
    }
}
