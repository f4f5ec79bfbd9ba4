//! The unencrypted part of an encrypted message: the octets before the ciphertext (RFC 7296 3.14,
//! RFC 7383 2.5).

use super::header::{CheckedHeader, HEADER_LEN, Header, set_length};
use super::message::{GenericHeader, MAX_PAYLOADS};
use super::numbers::PayloadType;
use super::reader::{InvalidMessage, Reader};

/// The unencrypted fields of an encrypted payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncryptedPrefix {
    /// SK, which holds a whole message.
    Whole {
        /// Type of the first payload inside.
        first: PayloadType,
    },
    /// SKF, which holds a fragment.
    Fragment {
        /// Type of the first payload of the message. Only fragment 1 contains it.
        first: PayloadType,
        /// Fragment number, from 1.
        number: u16,
        /// Total number of fragments.
        total: u16,
    },
}

impl EncryptedPrefix {
    const WHOLE_LEN: usize = HEADER_LEN + GenericHeader::LEN;
    /// Number of octets before the IV of a fragment.
    pub(crate) const FRAGMENT_LEN: usize = Self::WHOLE_LEN + 4;
    /// Maximum size of a body, bytes: IV, ciphertext and ICV.
    pub(crate) const MAX_BODY: usize = u16::MAX as usize - GenericHeader::LEN - 4;

    /// Returns the number of octets before the IV.
    pub(crate) const fn len(self) -> usize {
        match self {
            Self::Whole { .. } => Self::WHOLE_LEN,
            Self::Fragment { .. } => Self::FRAGMENT_LEN,
        }
    }

    /// Encodes the octets before the IV of a message whose body has `body` octets, at most
    /// [`Self::MAX_BODY`]. They are the associated data (RFC 5282 5.1, RFC 7383 2.5).
    pub(crate) fn encode(self, header: &Header, body: usize) -> Vec<u8> {
        let total_len = self.len().saturating_add(body);
        let mut out = Vec::with_capacity(total_len);
        let (kind, first) = match self {
            Self::Whole { first } => (PayloadType::Encrypted, first),
            Self::Fragment { first, .. } => (PayloadType::EncryptedFragment, first),
        };
        header.encode(&mut out, kind);
        let payload_len = u16::try_from(total_len.saturating_sub(HEADER_LEN)).unwrap_or(u16::MAX);
        out.extend_from_slice(&[first.into(), 0]);
        out.extend_from_slice(&payload_len.to_be_bytes());
        if let Self::Fragment { number, total, .. } = self {
            out.extend_from_slice(&number.to_be_bytes());
            out.extend_from_slice(&total.to_be_bytes());
        }
        set_length(&mut out, total_len);
        out
    }
}

/// An encrypted message split into its parts, but not yet authenticated.
#[derive(Debug)]
pub(crate) struct EncryptedMessage<'a> {
    pub(crate) front: EncryptedPrefix,
    /// The octets before the IV.
    pub(crate) associated: &'a [u8],
    /// IV, ciphertext and ICV.
    pub(crate) body: &'a [u8],
}

impl<'a> EncryptedMessage<'a> {
    pub(crate) fn read(datagram: &'a [u8]) -> Result<Self, InvalidMessage> {
        let mut reader = Reader::new("message", datagram);
        let mut kind = CheckedHeader::read(&mut reader, datagram.len())?.next_payload;
        for _ in 0..MAX_PAYLOADS {
            if kind == PayloadType::None {
                //= RFC 7296 1.4 MUST 1: no INFORMATIONAL before IKE_AUTH
                return Err(InvalidMessage::NotEncrypted);
            }
            let generic = GenericHeader::read(&mut reader)?;
            let mut contents = reader.sub("payload", generic.length, GenericHeader::LEN)?;
            let front = match kind {
                PayloadType::Encrypted => EncryptedPrefix::Whole { first: generic.next },
                PayloadType::EncryptedFragment => {
                    let (number, total) = (contents.u16()?, contents.u16()?);
                    EncryptedPrefix::Fragment { first: generic.next, number, total }
                }
                _ => {
                    kind = generic.next;
                    continue;
                }
            };
            // RFC 7296 3.14: SK is the last payload. Its "next payload" field is the type of the
            // first payload inside.
            //= RFC 7296 3.1 MUST 1: SK is the last payload
            //= RFC 7296 3.14 MUST 1: SK is the last payload
            reader.finish()?;
            let body = contents.rest();
            let associated = datagram.get(..datagram.len().saturating_sub(body.len())).unwrap_or_default();
            return Ok(Self { front, associated, body });
        }
        Err(InvalidMessage::TooMany { what: "payloads", limit: MAX_PAYLOADS })
    }
}
