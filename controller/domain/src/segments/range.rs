//! Arithmetic on address ranges of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use edge_types::IpNetwork;
use edge_types::api::Family;
pub use edge_types::network::{contains, overlap};

/// The first address of a network, as the address family and a number.
pub(super) type AddressKey = (Family, u128);

/// Returns the first and last address of a network.
pub(super) fn bounds(network: &IpNetwork) -> (AddressKey, u128) {
    let (first, bits) = match network.network() {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32 - u32::from(network.prefix())),
        IpAddr::V6(ip) => (u128::from(ip), 128 - u32::from(network.prefix())),
    };
    // The size of ::/0, 2^128, does not fit, so the shift is checked.
    let last = first | 1u128.checked_shl(bits).map_or(u128::MAX, |size| size - 1);
    ((Family::of(network), first), last)
}

/// Returns the network of this prefix length at an address; `None` if no such network begins there.
pub(super) fn network_at((family, first): AddressKey, prefix: u8) -> Option<IpNetwork> {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(first).ok()?).into(),
        Family::V6 => Ipv6Addr::from(first).into(),
    };
    let network = IpNetwork::new(ip, prefix).ok()?;
    (network.network() == ip).then_some(network)
}

/// Returns the number of addresses in a network of this prefix length.
pub(super) fn size(family: Family, prefix: u8) -> u128 {
    let bits = match family {
        Family::V4 => 32u32,
        Family::V6 => 128,
    }
    .saturating_sub(prefix.into());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_at_both_ends_of_both_families() {
        let network = |text: &str| text.parse::<IpNetwork>().unwrap();
        assert_eq!(bounds(&network("0.0.0.0/0")), ((Family::V4, 0), u128::from(u32::MAX)));
        assert_eq!(bounds(&network("::/0")), ((Family::V6, 0), u128::MAX));
        assert_eq!(bounds(&network("10.0.0.64/26")).1 & 0xff, 127);
        assert_eq!(network_at((Family::V4, 10 << 24), 26), Some(network("10.0.0.0/26")));
        assert_eq!(network_at((Family::V4, (10 << 24) + 1), 26), None);
        assert_eq!(network_at((Family::V4, 1 << 32), 26), None);
    }
}
