//! Configuration payload (RFC 7296 3.15).

use std::net::IpAddr;

use super::reader::{Codec, InvalidMessage, Reader};

/// Maximum number of attributes of one payload that are stored. A client sends about ten. Further
/// attributes are checked and ignored.
pub const MAX_CONFIGURATION_ATTRIBUTES: usize = 64;

/// INTERNAL_IP4_ADDRESS.
const INTERNAL_IP4_ADDRESS: u16 = 1;
/// INTERNAL_IP6_ADDRESS.
const INTERNAL_IP6_ADDRESS: u16 = 8;
/// The bits of an attribute's type. The highest bit of the field is reserved.
const ATTRIBUTE_TYPE: u16 = 0x7fff;

/// A request for configuration, or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// CFG type: [`Self::REQUEST`], [`Self::REPLY`], or another one.
    pub kind: u8,
    /// The attributes, at most [`MAX_CONFIGURATION_ATTRIBUTES`].
    pub attributes: Vec<ConfigurationAttribute>,
}

/// One attribute of a [`Configuration`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigurationAttribute {
    /// Attribute type, 15 bits.
    pub kind: u16,
    /// The value. An empty value in a request means that any value is welcome.
    pub value: Vec<u8>,
}

impl Configuration {
    /// CFG_REQUEST.
    pub const REQUEST: u8 = 1;
    /// CFG_REPLY.
    pub const REPLY: u8 = 2;

    /// Makes a CFG_REQUEST for an address of each of these families: IPv4, IPv6. `previous` are the
    /// addresses that the client had before, and would like to have again.
    pub fn request(ipv4: bool, ipv6: bool, previous: &[IpAddr]) -> Self {
        let families = [(true, INTERNAL_IP4_ADDRESS), (false, INTERNAL_IP6_ADDRESS)];
        let wanted = families.into_iter().filter(|(is_ipv4, _)| if *is_ipv4 { ipv4 } else { ipv6 });
        let attributes = wanted.map(|(is_ipv4, kind)| {
            let before = previous.iter().find(|address| address.is_ipv4() == is_ipv4);
            before.map_or(ConfigurationAttribute { kind, value: Vec::new() }, |before| (*before).into())
        });
        //= RFC 7296 2.19 MUST 4: an address is asked for
        Self { kind: Self::REQUEST, attributes: attributes.collect() }
    }

    /// Makes a CFG_REPLY with these addresses.
    pub fn reply(addresses: &[IpAddr]) -> Self {
        Self { kind: Self::REPLY, attributes: addresses.iter().map(|address| (*address).into()).collect() }
    }

    /// Returns the first attribute for an address of this family.
    pub fn internal_address(&self, ipv4: bool) -> Option<&ConfigurationAttribute> {
        //= RFC 7296 1.7 MUST 1: attribute type 5 is ignored
        //= RFC 7296 3.15.1 MUST 5: unknown attributes are ignored
        let kind = if ipv4 { INTERNAL_IP4_ADDRESS } else { INTERNAL_IP6_ADDRESS };
        self.attributes.iter().find(|attribute| attribute.kind == kind)
    }
}

impl ConfigurationAttribute {
    /// Returns the value as an address: INTERNAL_IP4_ADDRESS, or INTERNAL_IP6_ADDRESS without its
    /// prefix length. Returns `None` for another attribute, or if the value has another length.
    pub fn address(&self) -> Option<IpAddr> {
        match (self.kind, self.value.as_slice()) {
            (INTERNAL_IP4_ADDRESS, value) => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            // Some implementations leave the prefix length out.
            (INTERNAL_IP6_ADDRESS, value) if value.len() <= 17 => value.first_chunk::<16>().copied().map(IpAddr::from),
            _ => None,
        }
    }
}

impl From<IpAddr> for ConfigurationAttribute {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self { kind: INTERNAL_IP4_ADDRESS, value: address.octets().to_vec() },
            IpAddr::V6(address) => {
                Self { kind: INTERNAL_IP6_ADDRESS, value: [address.octets().as_slice(), &[128]].concat() }
            }
        }
    }
}

impl Codec for Configuration {
    fn encode(&self, out: &mut Vec<u8>) {
        //= RFC 7296 3.15 MUST 1: RESERVED is zero
        out.extend_from_slice(&[self.kind, 0, 0, 0]);
        for attribute in self.attributes.iter().take(MAX_CONFIGURATION_ATTRIBUTES) {
            //= RFC 7296 3.15.1 MUST 1: the reserved bit is zero
            out.extend_from_slice(&(attribute.kind & ATTRIBUTE_TYPE).to_be_bytes());
            let value = attribute.value.get(..usize::from(u16::MAX)).unwrap_or(&attribute.value);
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend_from_slice(value);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let kind = reader.u8()?;
        //= RFC 7296 3.15 MUST 2: RESERVED is ignored
        reader.array::<3>()?;
        let mut attributes = Vec::new();
        while !reader.is_empty() {
            //= RFC 7296 3.15.1 MUST 2: the reserved bit is ignored
            let kind = reader.u16()? & ATTRIBUTE_TYPE;
            let length = reader.u16()?;
            let value = reader.take(usize::from(length))?;
            if attributes.len() < MAX_CONFIGURATION_ATTRIBUTES {
                attributes.push(ConfigurationAttribute { kind, value: value.to_vec() });
            }
        }
        Ok(Self { kind, attributes })
    }
}
