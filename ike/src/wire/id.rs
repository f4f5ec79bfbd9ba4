//! Identification payloads (RFC 7296 3.5).

use std::net::IpAddr;

use super::numbers::IdType;
use super::reader::{Codec, InvalidMessage, Reader};
use crate::config::Identity;

/// An identification, exactly as it was received: AUTH is computed over its octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id {
    /// ID type.
    pub kind: IdType,
    /// The reserved octets, which AUTH also covers.
    pub reserved: [u8; 3],
    /// Identification data.
    pub data: Vec<u8>,
}

impl Id {
    /// Returns the octets between the generic header and the data. AUTH covers them and the data
    /// (RFC 7296 2.15, RestOfInitIDPayload).
    pub(crate) fn head(&self) -> [u8; 4] {
        let [first, second, third] = self.reserved;
        [self.kind.into(), first, second, third]
    }

    /// Returns the identity, or `None` if the type is unknown or the data does not match the type.
    pub fn identity(&self) -> Option<Identity> {
        let data = self.data.as_slice();
        let text = || std::str::from_utf8(data).ok().filter(|text| !text.is_empty()).map(str::to_owned);
        match self.kind {
            IdType::Ipv4Address => <[u8; 4]>::try_from(data).ok().map(|octets| Identity::Address(IpAddr::from(octets))),
            //= RFC 7296 3.5 MUST 8: IPv6 addresses
            IdType::Ipv6Address => {
                <[u8; 16]>::try_from(data).ok().map(|octets| Identity::Address(IpAddr::from(octets)))
            }
            //= RFC 7296 3.5 MUST 6: four types to accept
            IdType::Fqdn => text().map(Identity::Fqdn),
            IdType::Rfc822Address => text().map(Identity::Email),
            IdType::DerAsn1Dn => Some(Identity::DistinguishedName(data.to_vec())),
            IdType::KeyId => Some(Identity::KeyId(data.to_vec())),
            IdType::DerAsn1Gn | IdType::Null | IdType::Unknown(_) => None,
        }
    }
}

//= RFC 7296 3.5 SHOULD 7: all types
impl From<&Identity> for Id {
    fn from(identity: &Identity) -> Self {
        let (kind, data) = match identity {
            Identity::Address(IpAddr::V4(address)) => (IdType::Ipv4Address, address.octets().to_vec()),
            Identity::Address(IpAddr::V6(address)) => (IdType::Ipv6Address, address.octets().to_vec()),
            //= RFC 7296 3.5 MUST 5: one type to send
            Identity::Fqdn(name) => (IdType::Fqdn, name.clone().into_bytes()),
            Identity::Email(address) => (IdType::Rfc822Address, address.clone().into_bytes()),
            Identity::DistinguishedName(der) => (IdType::DerAsn1Dn, der.clone()),
            Identity::KeyId(id) => (IdType::KeyId, id.clone()),
        };
        //= RFC 7296 3.5 MUST 1: RESERVED is zero
        Self { kind, reserved: [0; 3], data }
    }
}

impl Codec for Id {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head());
        out.extend_from_slice(&self.data);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        //= RFC 7296 3.5 MUST 2: RESERVED is ignored
        Ok(Self { kind: reader.u8()?.into(), reserved: reader.array()?, data: reader.rest().to_vec() })
    }
}
