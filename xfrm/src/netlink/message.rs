//! A message of any netlink protocol, and the attributes in it.
//!
//! rtnetlink and nf_tables share this one type, so that the plugin, whose size limit is 1 MiB,
//! contains the code that sends and receives messages only once.

use std::convert::Infallible;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

/// `NLA_F_NESTED` (`linux/netlink.h`).
const NESTED: u16 = 1 << 15;

/// A message with its body in the kernel's layout: a fixed part, then attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The message type in the header.
    pub kind: u16,
    /// The octets that follow the header.
    pub body: Vec<u8>,
}

impl NetlinkSerializable for RawMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for RawMessage {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// Attributes (`struct nlattr`), one after another. A value has at most 65,531 bytes, since its
/// length field has 16 bits. The caller must observe this limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds an attribute with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = 4 + value.len() as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds a number in host byte order, which rtnetlink uses.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Adds a number in network byte order, which nf_tables uses.
    pub fn number_be(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds a string with a terminating zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Adds an attribute that contains other attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0);
    }

    /// Returns all attributes as encoded in a message.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}
