//! Parses the kernel's structures and checks every length first. The decoders of
//! `netlink-packet-xfrm` panic on a body shorter than its fixed part, and drop the attributes of
//! some messages. This crate therefore uses only the structures of that library, not its message
//! decoders.

use std::net::IpAddr;

use netlink_packet_core::{NlaBuffer, NlasIterator};
use netlink_packet_xfrm as nl;

/// `XFRMA_SA_DIR` (`linux/xfrm.h`, since 6.10), which `netlink-packet-xfrm` does not define.
pub(crate) const XFRMA_SA_DIR: u16 = 33;

/// `XFRMA_SA_PCPU` (since 6.13), which `netlink-packet-xfrm` does not define either.
pub(crate) const XFRMA_SA_PCPU: u16 = 35;

/// Returns the address family number of an address, as it appears in XFRM's structures.
pub(crate) fn family_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => nl::AF_INET,
        IpAddr::V6(_) => nl::AF_INET6,
    }
}

/// Parses an address in XFRM's structures. It has 16 bytes, and another field holds its family.
pub(crate) fn address(raw: &nl::Address, family: u16) -> Option<IpAddr> {
    match family {
        nl::AF_INET => Some(raw.to_ipv4().into()),
        nl::AF_INET6 => Some(raw.to_ipv6().into()),
        _ => None,
    }
}

/// Splits a body into its fixed part and the remaining octets.
pub(crate) fn split(body: &[u8], fixed: usize) -> Result<(&[u8], &[u8]), String> {
    body.split_at_checked(fixed).ok_or_else(|| format!("{} bytes, at least {fixed} expected", body.len()))
}

/// Calls `take` with the type and value of each attribute. Returns an error at the first malformed
/// attribute.
pub(crate) fn attributes<'a>(
    bytes: &'a [u8],
    mut take: impl FnMut(u16, &'a [u8]) -> Result<(), String>,
) -> Result<(), String> {
    for attribute in NlasIterator::new(bytes) {
        let attribute: NlaBuffer<&'a [u8]> = attribute.map_err(|error| error.to_string())?;
        let end = usize::from(attribute.length());
        let value = attribute.into_inner().get(4..end).ok_or("attribute ends beyond its message")?;
        take(attribute.kind(), value)?;
    }
    Ok(())
}

/// Parses an attribute that contains one `u32` in host byte order.
pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// `XFRM_SA_DIR_IN`.
pub(crate) const SA_DIR_IN: u8 = 1;
/// `XFRM_SA_DIR_OUT`.
pub(crate) const SA_DIR_OUT: u8 = 2;
