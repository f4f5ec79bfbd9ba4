//! Refuses addresses that no host has, wherever the configuration names a host.

use std::net::{IpAddr, Ipv4Addr};

/// Fails if no host can have this address, or if it cannot be used without an interface. `key` is
/// the key that has it. Loopback addresses are permitted: two agents in one network namespace may
/// use them.
pub(super) fn check_host(key: &str, address: &IpAddr) -> Result<(), String> {
    let canonical = address.to_canonical();
    let what = match canonical {
        _ if canonical.is_unspecified() => "means any address",
        _ if canonical.is_multicast() => "is a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "is the broadcast address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "is a link-local address, which means nothing without a link",
        _ => return Ok(()),
    };
    let remedy = if key == "local" {
        "leave local out, and the route selects the address"
    } else {
        "write the address at which the host is reached, such as 192.0.2.1 or 2001:db8::1"
    };
    Err(format!("{key} has {address}, which {what}; expected the address of one host: {remedy}"))
}
