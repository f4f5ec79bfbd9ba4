//! Traffic selectors as `swanctl.conf(5)` writes them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The networks of a selector: a network, an address, a range of addresses, or `dynamic`, the
/// address of that end.
pub(super) fn networks(text: &str, dynamic: Option<IpAddr>) -> Result<Vec<IpNetwork>, String> {
    let (addresses, narrowed) = match text.split_once('[') {
        Some((addresses, rest)) => {
            (addresses.trim(), !matches!(rest.trim_end_matches(']').trim(), "" | "any" | "any/any" | "/"))
        }
        None => (text, false),
    };
    if narrowed {
        return Err("not supported: selectors of one protocol or port".into());
    }
    if addresses == "dynamic" {
        let address = dynamic.ok_or("dynamic stands for an address that is not known here: write the network")?;
        return Ok(vec![IpNetwork::from(address)]);
    }
    if let Some((first, last)) = addresses.split_once('-') {
        return range(first.trim(), last.trim());
    }
    let network: IpNetwork = addresses.parse().map_err(|_| "neither a network nor an address".to_owned())?;
    IpNetwork::new(network.network(), network.prefix()).map(|network| vec![network]).map_err(|error| error.to_string())
}

/// The fewest networks that make up a range, at most 2 times the bits of an address.
fn range(first: &str, last: &str) -> Result<Vec<IpNetwork>, String> {
    let malformed = "neither a network nor a range of addresses";
    let (first, last): (IpAddr, IpAddr) = (first.parse().map_err(|_| malformed)?, last.parse().map_err(|_| malformed)?);
    let (bits, mut next, last) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (32, u128::from(first.to_bits()), u128::from(last.to_bits())),
        (IpAddr::V6(first), IpAddr::V6(last)) => (128, first.to_bits(), last.to_bits()),
        _ => return Err("the ends of the range are of two families".into()),
    };
    if next > last {
        return Err("the range ends before it begins".into());
    }
    let address = |number: u128| -> IpAddr {
        if bits == 32 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
    };
    let mut networks = Vec::new();
    loop {
        // The largest network that begins here and does not go beyond the end.
        let mut size = next.trailing_zeros().min(bits);
        while size > 0
            && (size == 128 && (next != 0 || last != u128::MAX) || size < 128 && next + ((1u128 << size) - 1) > last)
        {
            size -= 1;
        }
        let prefix = u8::try_from(bits - size).map_err(|_| malformed)?;
        networks.push(IpNetwork::new(address(next), prefix).map_err(|error| error.to_string())?);
        let end = if size == 128 { u128::MAX } else { next + ((1u128 << size) - 1) };
        if end >= last {
            return Ok(networks);
        }
        next = end + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, dynamic: Option<&str>) -> Result<Vec<String>, String> {
        let networks = networks(text, dynamic.map(|address| address.parse().unwrap()))?;
        Ok(networks.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn networks_addresses_ranges_and_dynamic_are_read() {
        assert_eq!(texts("10.1.0.0/16", None).unwrap(), ["10.1.0.0/16"]);
        assert_eq!(texts("10.1.2.3/16[any]", None).unwrap(), ["10.1.0.0/16"]);
        assert_eq!(texts("fd02::1", None).unwrap(), ["fd02::1/128"]);
        assert_eq!(texts("dynamic", Some("192.0.2.1")).unwrap(), ["192.0.2.1/32"]);
        assert_eq!(texts("10.0.0.0-10.0.0.255", None).unwrap(), ["10.0.0.0/24"]);
        assert_eq!(texts("10.0.0.1-10.0.0.4", None).unwrap(), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]);
        assert_eq!(texts("0.0.0.0-255.255.255.255", None).unwrap(), ["0.0.0.0/0"]);
        assert_eq!(texts("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None).unwrap(), ["::/0"]);
        assert_eq!(texts("::1-::2", None).unwrap(), ["::1/128", "::2/128"]);
    }

    #[test]
    fn what_would_be_another_tunnel_is_refused() {
        for (text, why) in [
            ("10.1.0.0/16[tcp/80]", "protocol or port"),
            ("10.1.0.0/16[/53]", "protocol or port"),
            ("dynamic", "not known"),
            ("10.1.0.0/33", "neither"),
            ("10.0.0.2-10.0.0.1", "before it begins"),
            ("10.0.0.2-fd02::1", "two families"),
            ("moon.example", "neither"),
        ] {
            let error = texts(text, None).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
