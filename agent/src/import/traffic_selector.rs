//! Parses traffic selectors in the form of `swanctl.conf(5)`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::config::{has_ports, protocol_named};

/// The protocol and the port of a selector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct NextLayer {
    /// IP protocol; `None` for any.
    pub(super) protocol: Option<u8>,
    /// Port at that end; `None` for any.
    pub(super) port: Option<u16>,
}

/// Parses a selector: the networks, then in brackets the protocol and the port. Without brackets,
/// the selector matches every protocol and port.
pub(super) fn parse(text: &str, dynamic: Option<IpAddr>) -> Result<(Vec<IpNetwork>, NextLayer), String> {
    let Some((addresses, rest)) = text.split_once('[') else {
        return Ok((networks(text, dynamic)?, NextLayer::default()));
    };
    let inner = rest.strip_suffix(']').ok_or("a bracket is missing")?;
    Ok((networks(addresses.trim(), dynamic)?, next_layer(inner.trim())?))
}

/// Parses `PROTOCOL/PORT`, either of which may be left out or be `any`.
fn next_layer(text: &str) -> Result<NextLayer, String> {
    let (protocol, port) = text.split_once('/').unwrap_or((text, ""));
    let named = |text: &str| Some(text.trim()).filter(|text| !matches!(*text, "" | "any" | "%any")).map(str::to_owned);
    let (protocol, port) = (named(protocol), named(port));
    let protocol = match protocol {
        Some(name) => Some(name.parse().ok().filter(|number| *number != 0).map_or_else(|| protocol_named(&name), Ok)?),
        None => None,
    };
    match (protocol, port) {
        (protocol, None) => Ok(NextLayer { protocol, port: None }),
        (None, Some(_)) => Err("not supported: a port of any protocol; name the protocol".into()),
        (Some(protocol), Some(_)) if !has_ports(protocol) => {
            Err("not supported: types and codes of ICMP, and ports of protocols other than tcp, udp, dccp and sctp"
                .into())
        }
        (protocol, Some(port)) => {
            let port = port
                .parse()
                .map_err(|_| "not supported: port ranges, opaque ports and names of services; write one number")?;
            Ok(NextLayer { protocol, port: Some(port) })
        }
    }
}

/// Returns the networks of a selector: a network, an address, an address range, or `dynamic`, the
/// address of that end.
fn networks(addresses: &str, dynamic: Option<IpAddr>) -> Result<Vec<IpNetwork>, String> {
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

/// Returns the smallest set of networks that make up a range. There are at most twice as many
/// networks as an address has bits.
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
        // The largest network that begins at `next` and does not extend beyond the end of the
        // range.
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
        let (networks, _) = parse(text, dynamic.map(|address| address.parse().unwrap()))?;
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
    fn a_protocol_and_a_port_stand_in_brackets() {
        let of = |text: &str| parse(text, None).map(|(_, NextLayer { protocol, port })| (protocol, port));
        assert_eq!(of("10.1.0.0/16[tcp/80]").unwrap(), (Some(6), Some(80)));
        assert_eq!(of("10.1.0.0/16[udp]").unwrap(), (Some(17), None));
        assert_eq!(of("10.1.0.0/16[udp/%any]").unwrap(), (Some(17), None));
        assert_eq!(of("10.1.0.0/16[47/any]").unwrap(), (Some(47), None));
        for any in ["10.1.0.0/16[any/any]", "10.1.0.0/16[/]", "10.1.0.0/16[]", "10.1.0.0/16"] {
            assert_eq!(of(any).unwrap(), (None, None), "{any}");
        }
    }

    #[test]
    fn what_would_be_another_tunnel_is_refused() {
        for (text, why) in [
            ("10.1.0.0/16[tcp/80-90]", "port ranges"),
            ("10.1.0.0/16[tcp/http]", "port ranges"),
            ("10.1.0.0/16[tcp/80", "bracket"),
            ("10.1.0.0/16[icmp/8]", "types and codes"),
            ("10.1.0.0/16[quic]", "is not known"),
            ("10.1.0.0/16[/53]", "name the protocol"),
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
