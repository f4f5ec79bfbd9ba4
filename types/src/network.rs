//! Relations of two networks. `ipnetwork` has these tests for [`ipnetwork::Ipv4Network`] only.

use ipnetwork::IpNetwork;

/// Whether every address of `inner` is in `outer`; a network contains itself. Networks of different
/// families contain nothing of each other.
#[must_use]
pub fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Whether the networks share an address. Networks of different families never do.
#[must_use]
pub fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    contains(a, b) || contains(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_where_one_contains_the_other() {
        for (outer, inner) in [
            ("10.0.0.0/8", "10.255.255.255/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "255.255.255.255/32"),
            ("::/0", "fd00::/64"),
            // Host bits do not matter.
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
