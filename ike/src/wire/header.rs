//! The IKE header (RFC 7296 3.1).

use super::numbers::{ExchangeType, PayloadType};
use super::reader::{InvalidMessage, Reader};

/// Size of the header, bytes.
pub const HEADER_LEN: usize = 28;

const FLAG_INITIATOR: u8 = 0x08;
const FLAG_RESPONSE: u8 = 0x20;
//= RFC 7296 3.1 MUST 5: major version 2
//= RFC 7296 3.1 MUST 8: minor version 0
const VERSION: u8 = 0x20;

/// The IKE header, without the fields that depend on the contents (next payload, length).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// IKE SA initiator's SPI, never 0.
    pub initiator_spi: u64,
    /// IKE SA responder's SPI, 0 in the first message.
    pub responder_spi: u64,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Whether the sender is the original initiator of the IKE SA.
    pub from_initiator: bool,
    /// Whether this is a response, not a request.
    pub response: bool,
    /// Message ID.
    pub message_id: u32,
}

/// A header with checked version and length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckedHeader {
    pub(crate) header: Header,
    pub(crate) next_payload: PayloadType,
}

impl Header {
    /// Parses the header of a datagram (without the non-ESP marker). Checks the version, and
    /// compares the length field with the size of the datagram.
    ///
    /// # Errors
    /// Returns [`InvalidMessage::MajorVersion`] for another major version. In that case use
    /// [`Header::peek`] to make a response. Drop the datagram on any other error.
    pub fn decode(datagram: &[u8]) -> Result<Self, InvalidMessage> {
        CheckedHeader::read(&mut Reader::new("IKE header", datagram), datagram.len()).map(|front| front.header)
    }

    /// Parses the header of a datagram of any version and length. Returns `None` if the datagram is
    /// shorter than a header. Use this to respond with INVALID_MAJOR_VERSION (RFC 7296 2.5) and for
    /// logs.
    pub fn peek(datagram: &[u8]) -> Option<Self> {
        let mut reader = Reader::new("IKE header", datagram);
        RawHeader::read(&mut reader).ok().map(|raw| raw.header)
    }

    /// Writes the header with length 0. [`set_length`] sets the length later.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, next_payload: PayloadType) {
        out.extend_from_slice(&self.initiator_spi.to_be_bytes());
        out.extend_from_slice(&self.responder_spi.to_be_bytes());
        //= RFC 7296 3.1 MUST 10: unknown flags are clear
        //= RFC 7296 3.1 MUST 15: the Version flag is clear
        let mut flags = 0;
        if self.from_initiator {
            //= RFC 7296 3.1 MUST 17: the Initiator flag of the initiator
            flags |= FLAG_INITIATOR;
        }
        //= RFC 7296 3.1 MUST 12: requests have no Response flag
        if self.response {
            //= RFC 7296 3.1 MUST 13: responses have the Response flag
            flags |= FLAG_RESPONSE;
        }
        //= RFC 7296 2.5 MUST 5: answers have the request's version
        out.extend_from_slice(&[next_payload.into(), VERSION, self.exchange.into(), flags]);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
    }
}

/// Sets the length of a message that starts with a header.
pub(crate) fn set_length(message: &mut [u8], length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    if let Some(field) = message.get_mut(24..).and_then(<[u8]>::first_chunk_mut) {
        *field = length.to_be_bytes();
    }
}

impl CheckedHeader {
    pub(crate) fn read(reader: &mut Reader<'_>, actual: usize) -> Result<Self, InvalidMessage> {
        let raw = RawHeader::read(reader)?;
        // Check the version first, since a later version may have another layout.
        //= RFC 7296 2.5 MUST 1: minor versions are ignored
        //= RFC 7296 3.1 MUST 9: the peer's minor version is ignored
        if raw.version >> 4 != VERSION >> 4 {
            //= RFC 7296 2.5 MUST 2: later major versions are dropped
            //= RFC 7296 3.1 MUST 7: later versions are refused
            return Err(InvalidMessage::MajorVersion(raw.version >> 4));
        }
        if usize::try_from(raw.length) != Ok(actual) {
            return Err(InvalidMessage::LengthMismatch { stated: raw.length, actual });
        }
        if raw.header.initiator_spi == 0 {
            //= RFC 7296 3.1 MUST NOT 3: the initiator's SPI is not zero
            return Err(InvalidMessage::ZeroInitiatorSpi);
        }
        Ok(Self { header: raw.header, next_payload: raw.next_payload })
    }
}

struct RawHeader {
    header: Header,
    next_payload: PayloadType,
    version: u8,
    length: u32,
}

impl RawHeader {
    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let initiator_spi = reader.u64()?;
        let responder_spi = reader.u64()?;
        let next_payload = reader.u8()?.into();
        let version = reader.u8()?;
        let exchange = reader.u8()?.into();
        // The other bits, including the Version flag, are ignored on receipt (RFC 7296 3.1).
        //= RFC 7296 3.1 MUST 11: unknown flags are ignored
        //= RFC 7296 3.1 MUST 16: the Version flag is ignored
        let flags = reader.u8()?;
        let message_id = reader.u32()?;
        let length = reader.u32()?;
        let from_initiator = flags & FLAG_INITIATOR != 0;
        let response = flags & FLAG_RESPONSE != 0;
        let header = Header { initiator_spi, responder_spi, exchange, from_initiator, response, message_id };
        Ok(Self { header, next_payload, version, length })
    }
}
