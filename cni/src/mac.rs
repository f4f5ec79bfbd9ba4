//! MAC addresses in the format of the CNI result, and the link-local addresses that are derived
//! from them.

use std::net::Ipv6Addr;

/// A MAC address, six octets.
pub(crate) type Mac = [u8; 6];

/// Formats an address in hexadecimal, such as `02:00:00:00:00:01`.
pub(crate) fn text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// Parses six octets of two digits each, separated by `:` or `-`. `None` for any other text, and
/// for addresses that no interface may have: group addresses, and the all-zero address.
pub(crate) fn parse(text: &str) -> Option<Mac> {
    let octet = |digits: &str| {
        let good = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        good.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    let octets: Option<Vec<u8>> = text.split([':', '-']).map(octet).collect();
    let mac = Mac::try_from(octets?).ok()?;
    let [first, ..] = mac;
    (first & 1 == 0 && mac != Mac::default()).then_some(mac)
}

/// Returns the link-local address that the kernel assigns to an interface with this MAC address:
/// EUI-64 (RFC 4291 appendix A), `addr_gen_mode` 0.
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Returns the MAC address from which a link-local address is derived. `None` for other addresses.
pub(crate) fn of_link_local(address: Ipv6Addr) -> Option<Mac> {
    let [.., a, b, c, _, _, d, e, f] = address.octets();
    let mac = [a ^ 2, b, c, d, e, f];
    (link_local(mac) == address).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_leads_back_to_its_mac_address() {
        let mac = parse("02:12:34:56:78:9A").unwrap();
        assert_eq!(
            (text(mac).as_str(), link_local(mac).to_string().as_str()),
            ("02:12:34:56:78:9a", "fe80::12:34ff:fe56:789a")
        );
        assert_eq!(of_link_local(link_local(mac)), Some(mac));
        assert_eq!(of_link_local("fd77::12:34ff:fe56:789a".parse().unwrap()), None);
    }
}
