//! Relations between two networks, which `ipnetwork` supports only for [`ipnetwork::Ipv4Network`];
//! networks with a special use on every host; names of bridges; and the limit on resolvers behind
//! tunnels.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// Returns whether every address of `inner` is in `outer`. Every network contains itself. Networks
/// of different families never contain each other.
#[must_use]
pub fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Returns whether the networks share an address. Networks of different families never share one.
#[must_use]
pub fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    contains(a, b) || contains(b, a)
}

/// Returns the networks that do not lie within a wider one of them, in the same order.
#[must_use]
pub fn outermost(networks: &[IpNetwork]) -> Vec<IpNetwork> {
    let widest = |ipv4| networks.iter().filter(|one| one.is_ipv4() == ipv4).map(IpNetwork::prefix).min();
    let (widest_v4, widest_v6) = (widest(true), widest(false));
    // Usually all networks have the same prefix length, and none has to be compared with the
    // others.
    let is_inner = |inner: &IpNetwork| {
        Some(inner.prefix()) > if inner.is_ipv4() { widest_v4 } else { widest_v6 }
            && networks.iter().any(|outer| outer.prefix() < inner.prefix() && contains(outer, inner))
    };
    networks.iter().filter(|network| !is_inner(network)).copied().collect()
}

/// Maximum number of addresses in the plugin's `resolversBehindTunnels` and the agent's
/// `resolvers_behind_tunnels`. A host usually has two or three resolvers.
pub const MAX_RESOLVERS_BEHIND_TUNNELS: usize = 16;

/// The rules of [`is_bridge_name`], for error messages.
pub const BRIDGE_NAME: &str = "expected 1 to 15 characters without '/', ':', '%' and blanks, and none of \".\", \"..\", \"all\", \"default\" and \"lo\"";

/// Returns whether a bridge may have this name. The names "all" and "default" are not allowed,
/// since the kernel uses them for the settings of all interfaces.
#[must_use]
pub fn is_bridge_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | ".." | "all" | "default" | "lo")
        && name.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%'))
}

/// A network of addresses that every host needs for itself or on its links (RFC 6890). Neither pods
/// nor Services can have these addresses. For example, IPv6 neighbour discovery needs multicast and
/// link-local addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialUse {
    /// The whole network.
    pub network: IpNetwork,
    /// The use of the addresses.
    pub what: &'static str,
}

impl fmt::Display for SpecialUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.network)
    }
}

/// Returns the first special-use network that shares an address with `network`.
#[must_use]
pub fn special_use(network: &IpNetwork) -> Option<SpecialUse> {
    let v4 = |a, b, length, what| (IpAddr::from(Ipv4Addr::new(a, b, 0, 0)), length, what);
    let v6 = |first, length, what| (IpAddr::from(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)), length, what);
    [
        v4(0, 0, 8, "addresses of \"this network\""),
        v4(127, 0, 8, "loopback addresses"),
        v4(169, 254, 16, "link-local addresses"),
        v4(224, 0, 4, "multicast addresses"),
        (Ipv4Addr::BROADCAST.into(), 32, "the broadcast address"),
        v6(0, 96, "the unspecified, the loopback and IPv4-compatible addresses"),
        (Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), 96, "IPv4-mapped addresses"),
        v6(0xfe80, 10, "link-local addresses"),
        v6(0xff00, 8, "multicast addresses"),
    ]
    .into_iter()
    .filter_map(|(address, length, what)| Some(SpecialUse { network: IpNetwork::new(address, length).ok()?, what }))
    .find(|special| overlap(&special.network, network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_networks_cover_all_of_them() {
        let outermost_of = |texts: &[&str]| {
            let networks: Vec<IpNetwork> = texts.iter().map(|text| text.parse().unwrap()).collect();
            outermost(&networks).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(outermost_of(&[]), Vec::<String>::new());
        assert_eq!(outermost_of(&["10.77.1.0/26", "10.77.2.0/26"]), ["10.77.1.0/26", "10.77.2.0/26"]);
        let nested = ["10.244.3.0/24", "10.244.0.0/16", "fd00::/64", "fd00::/48", "10.245.3.0/24", "10.244.3.128/25"];
        assert_eq!(outermost_of(&nested), ["10.244.0.0/16", "fd00::/48", "10.245.3.0/24"]);
    }

    #[test]
    fn networks_with_addresses_that_every_host_needs_are_named() {
        for (network, special) in [
            ("0.0.0.0/0", "0.0.0.0/8"),
            ("64.0.0.0/2", "127.0.0.0/8"),
            ("127.0.0.53/32", "127.0.0.0/8"),
            ("169.254.169.254/32", "169.254.0.0/16"),
            ("224.0.0.0/24", "224.0.0.0/4"),
            ("240.0.0.0/4", "255.255.255.255/32"),
            ("::/0", "::/96"),
            ("::1/128", "::/96"),
            ("::ffff:10.0.0.0/104", "::ffff:0.0.0.0/96"),
            ("fe00::/8", "fe80::/10"),
            ("febf::/64", "fe80::/10"),
            ("ff02::/16", "ff00::/8"),
        ] {
            let found = special_use(&network.parse().unwrap()).unwrap_or_else(|| panic!("{network}"));
            assert_eq!(found.network, special.parse().unwrap(), "{network}");
        }
        for network in [
            "10.0.0.0/8",
            "192.168.0.0/16",
            "240.0.0.0/5",
            "100.64.0.0/10",
            "1.0.0.0/8",
            "fd00::/8",
            "2000::/3",
            "64:ff9b::/96",
        ] {
            assert_eq!(special_use(&network.parse().unwrap()), None, "{network}");
        }
    }

    #[test]
    fn networks_overlap_where_one_contains_the_other() {
        for (outer, inner) in [
            ("10.0.0.0/8", "10.255.255.255/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "255.255.255.255/32"),
            ("::/0", "fd00::/64"),
            // Host bits are ignored.
            ("10.0.0.77/24", "10.0.0.1/25"),
        ] {
            let (outer, inner) = (outer.parse().unwrap(), inner.parse().unwrap());
            assert!(contains(&outer, &inner), "{outer} {inner}");
            assert_eq!(contains(&inner, &outer), outer.prefix() == inner.prefix(), "{outer} {inner}");
            assert!(overlap(&outer, &inner) && overlap(&inner, &outer), "{outer} {inner}");
        }
        for (a, b) in [("10.0.0.0/24", "10.0.1.0/24"), ("0.0.0.0/0", "::/0"), ("10.0.0.0/25", "10.0.0.128/25")] {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert!(!overlap(&a, &b) && !overlap(&b, &a), "{a} {b}");
            assert!(!contains(&a, &b), "{a} {b}");
        }
    }
}
