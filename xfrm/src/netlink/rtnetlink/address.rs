//! Addresses: `struct ifaddrmsg` and `linux/if_addr.h`.

use std::net::IpAddr;

use netlink_packet_core::DecodeError;

use super::values::{FAMILY_IPV6, address, each_attribute, family_of, number, octets_of, read};
use crate::netlink::error::Result;
use crate::netlink::message::{Attributes, RawMessage};

/// Length of the fixed part, bytes (`struct ifaddrmsg`).
const FIXED: usize = 8;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// A request about an address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRequest {
    /// Index of the link.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Prefix length of the address, bits.
    pub prefix: u8,
}

impl AddressRequest {
    /// Returns the `RTM_NEWADDR` request. If `nodad` is set, the kernel does no duplicate address
    /// detection.
    #[must_use]
    pub fn create(&self, nodad: bool) -> RawMessage {
        let mut attributes = Attributes::default();
        attributes.bytes(IFA_LOCAL, &octets_of(self.address));
        attributes.bytes(IFA_ADDRESS, &octets_of(self.address));
        if nodad {
            attributes.number(IFA_FLAGS, IFA_F_NODAD);
        }
        self.message(RTM_NEWADDR, &attributes)
    }

    /// Returns the `RTM_DELADDR` request.
    #[must_use]
    pub fn delete(&self) -> RawMessage {
        let mut attributes = Attributes::default();
        attributes.bytes(IFA_LOCAL, &octets_of(self.address));
        self.message(RTM_DELADDR, &attributes)
    }

    fn message(&self, kind: u16, attributes: &Attributes) -> RawMessage {
        RawMessage { kind, body: body(family_of(self.address), self.prefix, self.index, attributes) }
    }
}

fn body(family: u8, prefix: u8, index: u32, attributes: &Attributes) -> Vec<u8> {
    // Zeros for the flags, for which there is also an attribute, and for the scope.
    let mut body = vec![family, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(attributes.octets());
    body
}

/// An address, as `RTM_NEWADDR` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressMessage {
    /// Index of the link.
    pub index: u32,
    /// The address: `IFA_LOCAL`, or `IFA_ADDRESS` if that is absent. IPv6 addresses have no
    /// `IFA_LOCAL` unless there is a peer.
    pub address: Option<IpAddr>,
    /// Prefix length of the address, bits.
    pub prefix: u8,
    flags: u32,
}

impl AddressMessage {
    /// Returns a request for the addresses of a link, or of all links if the index is 0.
    #[must_use]
    pub fn dump(index: u32) -> RawMessage {
        RawMessage { kind: RTM_GETADDR, body: body(0, 0, index, &Attributes::default()) }
    }

    /// Returns a request for the IPv6 addresses of a link.
    #[must_use]
    pub fn dump_ipv6(index: u32) -> RawMessage {
        RawMessage { kind: RTM_GETADDR, body: body(FAMILY_IPV6, 0, index, &Attributes::default()) }
    }

    /// Parses the kernel's response to `request`.
    ///
    /// # Errors
    /// Returns an error if the message is not an `RTM_NEWADDR`, or is malformed.
    pub fn read(request: &'static str, message: &RawMessage) -> Result<Self> {
        read(request, message, RTM_NEWADDR, Self::read_body)
    }

    /// Returns whether duplicate address detection is in progress (`IFA_F_TENTATIVE`).
    #[must_use]
    pub fn tentative(&self) -> bool {
        self.flags & IFA_F_TENTATIVE != 0
    }

    /// Returns whether another interface has the address (`IFA_F_DADFAILED`).
    #[must_use]
    pub fn duplicate(&self) -> bool {
        self.flags & IFA_F_DADFAILED != 0
    }

    fn read_body(body: &[u8]) -> Result<Self, DecodeError> {
        let [_, prefix, flags, _, i0, i1, i2, i3] =
            *body.first_chunk::<FIXED>().ok_or("it is shorter than its fixed part")?;
        let (mut of_interface, mut local, mut flags) = (None, None, u32::from(flags));
        each_attribute(body, FIXED, |kind, value| {
            match kind {
                IFA_ADDRESS => of_interface = Some(address(value)?),
                IFA_LOCAL => local = Some(address(value)?),
                IFA_FLAGS => flags = number(value)?,
                _ => {}
            }
            Ok(())
        })?;
        let index = u32::from_ne_bytes([i0, i1, i2, i3]);
        Ok(Self { index, address: local.or(of_interface), prefix, flags })
    }
}
