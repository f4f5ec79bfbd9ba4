//! Arithmetic within a segment. The gateway has the first address after the network's address. The
//! remaining addresses are for pods.

use std::net::IpAddr;

use edge_types::IpNetwork;
use edge_types::api::Family;

/// A pod's address and its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodAddress {
    pub(crate) address: IpAddr,
    pub(crate) segment: IpNetwork,
}

impl PodAddress {
    /// Returns the bridge's address in this segment.
    pub(crate) fn gateway(&self) -> IpAddr {
        gateway(&self.segment)
    }
}

/// Returns the families that have segments, IPv4 first.
pub(crate) fn families(segments: &[IpNetwork]) -> Vec<Family> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| segments.iter().any(|segment| Family::of(segment) == *family))
        .collect()
}

/// Returns the address of the bridge in a segment, which is the first host address.
pub(crate) fn gateway(segment: &IpNetwork) -> IpAddr {
    nth(segment, 1)
}

/// Returns the first and the last address that a pod of this segment may have.
pub(crate) fn pod_range(segment: &IpNetwork) -> (IpAddr, IpAddr) {
    (nth(segment, 2), nth(segment, last_offset(segment)))
}

/// Returns the number of addresses for pods from `first` to `last`, which must have the same
/// family.
pub(crate) fn count_for_pods(segment: &IpNetwork, first: IpAddr, last: IpAddr) -> u128 {
    if first.is_ipv4() != segment.is_ipv4() {
        return 0;
    }
    let (lowest, highest) = pod_range(segment);
    let (first, last) = (number(first.max(lowest)), number(last.min(highest)));
    last.checked_sub(first).map_or(0, |difference| difference.saturating_add(1))
}

/// Returns the next address. `None` after the last address of the family.
pub(crate) fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(address.to_bits().checked_add(1)?.into())),
        IpAddr::V6(address) => Some(IpAddr::V6(address.to_bits().checked_add(1)?.into())),
    }
}

/// Returns the previous address. `None` before the first address of the family.
pub(crate) fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(address.to_bits().checked_sub(1)?.into())),
        IpAddr::V6(address) => Some(IpAddr::V6(address.to_bits().checked_sub(1)?.into())),
    }
}

/// Returns the addresses for pods, in ascending order. Their number is
/// [`edge_types::shared_files::pod_capacity`].
#[cfg(test)]
pub(crate) fn pod_addresses(segment: &IpNetwork) -> impl Iterator<Item = IpAddr> + '_ {
    (2..=last_offset(segment)).map(|offset| nth(segment, offset))
}

/// Returns whether a pod of this segment may have an address.
pub(crate) fn holds_pod(segment: &IpNetwork, address: IpAddr) -> bool {
    segment.contains(address) && (2..=last_offset(segment)).contains(&offset(segment, address))
}

/// Returns the offset of the last pod address from the network's address.
fn last_offset(segment: &IpNetwork) -> u128 {
    match segment {
        IpNetwork::V4(segment) => (1u128 << (32 - segment.prefix())).saturating_sub(2),
        IpNetwork::V6(segment) => match segment.prefix() {
            0 => u128::MAX,
            prefix => (1u128 << (128 - prefix)) - 1,
        },
    }
}

fn offset(segment: &IpNetwork, address: IpAddr) -> u128 {
    number(address).wrapping_sub(number(segment.network()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn nth(segment: &IpNetwork, offset: u128) -> IpAddr {
    match segment.network() {
        // An offset within an IPv4 segment fits into 32 bits.
        IpAddr::V4(network) => IpAddr::V4(network.to_bits().wrapping_add(offset as u32).into()),
        IpAddr::V6(network) => IpAddr::V6(network.to_bits().wrapping_add(offset).into()),
    }
}

#[cfg(test)]
mod tests {
    use edge_types::shared_files::pod_capacity;

    use super::*;

    fn segment(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn pods_get_neither_network_nor_gateway_nor_broadcast() {
        let pods: Vec<String> = pod_addresses(&segment("10.77.0.8/29")).map(|a| a.to_string()).collect();
        assert_eq!(pods, ["10.77.0.10", "10.77.0.11", "10.77.0.12", "10.77.0.13", "10.77.0.14"]);
        let pods: Vec<String> = pod_addresses(&segment("fd77::/126")).map(|a| a.to_string()).collect();
        assert_eq!(pods, ["fd77::2", "fd77::3"]);
        assert_eq!(gateway(&segment("10.77.0.8/29")).to_string(), "10.77.0.9");
        assert_eq!(gateway(&segment("fd77::100/120")).to_string(), "fd77::101");
    }

    #[test]
    fn capacity_is_the_number_of_addresses_for_pods() {
        for text in ["10.0.0.0/30", "10.0.0.0/26", "10.0.0.0/16", "fd00::/126", "fd00::/120"] {
            let segment = segment(text);
            assert_eq!(pod_capacity(&segment), pod_addresses(&segment).count() as u64, "{text}");
            assert!(pod_addresses(&segment).all(|address| holds_pod(&segment, address)));
        }
        for foreign in ["10.0.0.0", "10.0.0.1", "10.0.0.63", "10.0.0.64", "9.255.255.255"] {
            assert!(!holds_pod(&segment("10.0.0.0/26"), foreign.parse().unwrap()), "{foreign}");
        }
    }
}
