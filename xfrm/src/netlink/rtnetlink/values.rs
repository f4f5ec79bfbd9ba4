//! Parses attribute values.

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NlaBuffer, NlasIterator};

use crate::netlink::error::{Error, Result};
use crate::netlink::message::RawMessage;

/// Parses the body of a response of type `kind`.
pub(super) fn read<T>(
    request: &'static str,
    message: &RawMessage,
    kind: u16,
    body: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
) -> Result<T> {
    let malformed = |reason| Error::Malformed { request, reason };
    if message.kind != kind {
        return Err(malformed(format!("a message of type {}, not {kind}", message.kind)));
    }
    body(&message.body).map_err(|error| malformed(format!("message of type {kind}: {error}")))
}

/// Calls `take` with the type and value of each attribute after the fixed part, which is `fixed`
/// bytes long.
pub(super) fn each_attribute(
    body: &[u8],
    fixed: usize,
    mut take: impl FnMut(u16, &[u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let attributes = body.get(fixed..).ok_or("it is shorter than its fixed part")?;
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<&[u8]> = attribute?;
        take(attribute.kind(), attribute.value())?;
    }
    Ok(())
}

/// Parses an address of four or sixteen bytes.
pub(super) fn address(value: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Ok(octets.into());
    }
    let octets = <[u8; 16]>::try_from(value).map_err(|_| "an address has neither 4 nor 16 bytes")?;
    Ok(octets.into())
}

pub(super) fn number(value: &[u8]) -> Result<u32, DecodeError> {
    Ok(value.try_into().map(u32::from_ne_bytes).map_err(|_| "a number does not have 4 bytes")?)
}

/// Parses a string up to its terminating zero byte.
pub(super) fn text(value: &[u8]) -> Result<String, DecodeError> {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(std::str::from_utf8(text).map_err(|_| "a text is not UTF-8")?.to_owned())
}

pub(super) fn octets_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns `AF_INET` or `AF_INET6`.
pub(super) fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 }
}

/// `AF_INET` (`linux/socket.h`).
pub(super) const FAMILY_IPV4: u8 = 2;
/// `AF_INET6`.
pub(super) const FAMILY_IPV6: u8 = 10;
