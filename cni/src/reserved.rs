//! Addresses that are not given to pods: the key `reserved`, and the addresses that `rangeStart`
//! and `rangeEnd` of a segment exclude.

use std::net::IpAddr;
use std::str::FromStr;

use edge_types::IpNetwork;
use edge_types::shared_files::pod_capacity;

use crate::segment;
use crate::sort::sort_by;

/// A range of addresses of one family, including both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// Creates a range. `None` if the last address is less than the first one, or if their families
    /// differ.
    pub(crate) fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.first <= address && address <= self.last && self.first.is_ipv4() == address.is_ipv4()
    }

    pub(crate) const fn first(&self) -> IpAddr {
        self.first
    }

    pub(crate) const fn last(&self) -> IpAddr {
        self.last
    }
}

impl FromStr for AddressRange {
    type Err = String;

    /// Parses an address, a network, or two addresses that are separated by a hyphen.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}; expected an address, a network, or two addresses with '-' between them");
        if let Some((first, last)) = text.split_once('-') {
            let address = |text: &str| text.trim().parse().map_err(|_| wrong());
            return Self::new(address(first)?, address(last)?).ok_or_else(wrong);
        }
        let network: IpNetwork = text.parse().map_err(|_| wrong())?;
        Self::new(network.network(), network.broadcast()).ok_or_else(wrong)
    }
}

/// The reserved addresses, as sorted ranges that do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reserved(Vec<AddressRange>);

impl Reserved {
    pub(crate) fn new(mut ranges: Vec<AddressRange>) -> Self {
        sort_by(&mut ranges, |one, other| one < other);
        let mut merged: Vec<AddressRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(before) if before.contains(range.first) => before.last = before.last.max(range.last),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// Returns all ranges, in order.
    pub(crate) fn ranges(&self) -> &[AddressRange] {
        &self.0
    }

    /// Returns the range that contains the address, if there is one.
    pub(crate) fn range_of(&self, address: IpAddr) -> Option<&AddressRange> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Returns the number of addresses for pods in a segment, at most `u64::MAX`.
    pub(crate) fn capacity(&self, segment: &IpNetwork) -> u64 {
        let reserved = self.0.iter().map(|range| segment::count_for_pods(segment, range.first, range.last));
        let (first, last) = segment::pod_range(segment);
        let left = segment::count_for_pods(segment, first, last).saturating_sub(reserved.fold(0, u128::saturating_add));
        u64::try_from(left).unwrap_or(u64::MAX).min(pod_capacity(segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved(texts: &[&str]) -> Reserved {
        Reserved::new(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn reserved_addresses_are_counted_once_and_only_where_a_pod_could_have_them() {
        let segment = "10.0.0.0/28".parse().unwrap();
        for (texts, capacity) in [
            (&[][..], 13),
            (&["10.0.0.0/30"], 11),
            (&["10.0.0.4-10.0.0.6", "10.0.0.6", "10.0.0.5-10.0.0.8"], 8),
            (&["10.0.0.12/30", "192.0.2.0/24", "::/0"], 10),
            (&["0.0.0.0/0"], 0),
        ] {
            assert_eq!(reserved(texts).capacity(&segment), capacity, "{texts:?}");
        }
        // A part of a segment is reserved. The segment has more addresses than can be counted.
        let large = "fd00::/32".parse().unwrap();
        assert_eq!(reserved(&["fd00::/64"]).capacity(&large), pod_capacity(&large));
        assert_eq!(reserved(&["fd00::/32"]).capacity(&large), 0);
    }

    #[test]
    fn ranges_are_read_and_nonsense_is_named() {
        assert!(reserved(&["10.0.0.4 - 10.0.0.6"]).range_of("10.0.0.5".parse().unwrap()).is_some());
        for wrong in ["", "10.0.0.300", "10.0.0.6-10.0.0.4", "10.0.0.4-fd00::1", "a-b"] {
            let error = wrong.parse::<AddressRange>().unwrap_err();
            assert!(error.contains(&format!("{wrong:?}")), "{error}");
        }
    }
}
