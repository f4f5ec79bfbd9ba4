//! Security Association payload: proposals and transforms (RFC 7296 3.3).

use super::numbers::{Protocol, TransformType};
use super::reader::{Codec, InvalidMessage, Reader, with_length};
use crate::config::{Cipher, Group, Integrity, Prf};

/// Maximum number of proposals of one payload. Honest peers send fewer than ten.
pub const MAX_PROPOSALS: usize = 32;
/// Maximum number of transforms in all proposals of one payload. Honest peers send fewer than a
/// hundred. The limit matters because any host can make us search these transforms.
pub const MAX_TRANSFORMS: usize = 512;
/// Maximum number of transforms of one proposal. The count field has one octet.
const PROPOSAL_TRANSFORMS: usize = 255;
/// Maximum number of attributes of one transform. Only one attribute is defined.
const MAX_ATTRIBUTES: usize = 8;

const ATTRIBUTE_KEY_LENGTH: u16 = 14;
const ATTRIBUTE_SHORT: u16 = 0x8000;

/// One alternative. For each transform type in it, the responder chooses one of the transforms of
/// that type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Proposal number, from 1. In a response, the number of the chosen proposal.
    pub number: u8,
    /// The protocol of the SA.
    pub protocol: Protocol,
    /// The sender's SPI. Empty in IKE_SA_INIT, 8 octets when rekeying an IKE SA, 4 octets for ESP.
    pub spi: Vec<u8>,
    /// Transforms, by type.
    pub transforms: Vec<Transform>,
}

impl Proposal {
    /// Returns the transforms of one type.
    pub fn transforms_of(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms.iter().filter(move |transform| transform.kind == kind)
    }

    /// Returns the SPI of an ESP proposal.
    pub fn child_spi(&self) -> Option<u32> {
        self.spi.as_slice().try_into().ok().map(u32::from_be_bytes)
    }

    /// Returns the SPI of a proposal that rekeys an IKE SA.
    pub fn ike_spi(&self) -> Option<u64> {
        self.spi.as_slice().try_into().ok().map(u64::from_be_bytes)
    }
}

/// An algorithm of one transform type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transform {
    /// Transform type.
    pub kind: TransformType,
    /// Transform ID.
    pub id: u16,
    /// The attributes, such as the key length (RFC 7296 3.3.5).
    pub attributes: Vec<Attribute>,
}

/// An attribute of a transform (RFC 7296 3.3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// Key length, bits.
    KeyLength(u16),
    /// Another attribute of two octets. A transform that has it must not be chosen (RFC 7296
    /// 3.3.6).
    OtherShort {
        /// Attribute type without the format bit.
        kind: u16,
        /// Attribute value.
        value: u16,
    },
    /// Another attribute with a length. A transform that has it must not be chosen.
    OtherLong {
        /// Attribute type.
        kind: u16,
        /// Attribute value.
        value: Vec<u8>,
    },
}

impl Transform {
    /// Makes a transform without attributes.
    pub fn new(kind: TransformType, id: u16) -> Self {
        Self { kind, id, attributes: Vec::new() }
    }

    /// Makes a transform of type ENCR. AES-CBC also needs a transform of type INTEG
    /// ([`Self::integrity`]).
    //= RFC 7296 3 SHOULD NOT 1: nothing unspecified
    //= RFC 7296 3.3.6 MUST 4: attributes come back unchanged
    //= RFC 7296 3.14 MUST NOT 2: only specified transforms
    pub fn encryption(cipher: Cipher) -> Self {
        let (id, key_length) = Self::id_and_key_length(cipher);
        //= RFC 7296 2.13 MUST 1: the key length is negotiated
        //= RFC 7296 3.3.5 MUST 5: the length of AES keys
        let attributes = key_length.map(Attribute::KeyLength).into_iter().collect();
        Self { kind: TransformType::Encryption, id, attributes }
    }

    /// Returns whether this is the transform of type ENCR for this cipher.
    pub(crate) fn is_encryption(&self, cipher: Cipher) -> bool {
        let (id, key_length) = Self::id_and_key_length(cipher);
        self.kind == TransformType::Encryption && self.id == id && self.key_length().is_ok_and(|own| own == key_length)
    }

    /// Returns the transform ID of a cipher, and its key length in bits if that must be stated.
    fn id_and_key_length(cipher: Cipher) -> (u16, Option<u16>) {
        // RFC 7634 4: the key length of ChaCha20-Poly1305 is fixed and must not be stated.
        match cipher {
            Cipher::AesCbc(length, _) => (12, Some(length.bits())),
            //= RFC 7296 3.3 MUST 7: a transform for each key length
            Cipher::Aes128Gcm16 => (20, Some(128)),
            Cipher::Aes256Gcm16 => (20, Some(256)),
            //= RFC 7296 3.3.5 MUST NOT 4: no length of fixed keys
            Cipher::ChaCha20Poly1305 => (28, None),
        }
    }

    /// Makes a transform of type INTEG.
    pub fn integrity(integrity: Integrity) -> Self {
        let id = match integrity {
            Integrity::HmacSha256 => 12,
            Integrity::HmacSha384 => 13,
            Integrity::HmacSha512 => 14,
        };
        Self::new(TransformType::Integrity, id)
    }

    /// Makes a transform of type PRF.
    pub fn prf(prf: Prf) -> Self {
        let id = match prf {
            Prf::HmacSha256 => 5,
            Prf::HmacSha384 => 6,
            Prf::HmacSha512 => 7,
        };
        Self::new(TransformType::Prf, id)
    }

    /// Makes a transform of type KE.
    pub fn group(group: Group) -> Self {
        Self::new(TransformType::KeyExchange, group.number())
    }

    /// Makes a transform of type ESN, for extended or for short sequence numbers.
    pub fn sequence_numbers(extended: bool) -> Self {
        Self::new(TransformType::SequenceNumbers, extended.into())
    }

    /// Returns the key length in bits, if it is the only attribute.
    fn key_length(&self) -> Result<Option<u16>, UnknownAttributes> {
        match self.attributes.as_slice() {
            [] => Ok(None),
            //= RFC 7296 3.3 MUST NOT 6: one attribute of a type
            [Attribute::KeyLength(bits)] => Ok(Some(*bits)),
            //= RFC 7296 3.3.6 MUST 9: unknown transforms and attributes
            _ => Err(UnknownAttributes),
        }
    }

    /// Returns the PRF, if this is a PRF that we support.
    pub fn as_prf(&self) -> Option<Prf> {
        match (self.kind, self.id, self.key_length().ok()?) {
            (TransformType::Prf, 5, None) => Some(Prf::HmacSha256),
            (TransformType::Prf, 6, None) => Some(Prf::HmacSha384),
            (TransformType::Prf, 7, None) => Some(Prf::HmacSha512),
            _ => None,
        }
    }

    /// Returns the key exchange method, if this is one that we support.
    pub fn as_group(&self) -> Option<Group> {
        match (self.kind, self.key_length().ok()?) {
            (TransformType::KeyExchange, None) => Group::from_number(self.id),
            _ => None,
        }
    }

    /// Returns whether sequence numbers are extended. Returns `None` if this is not a transform of
    /// type ESN that we know.
    pub fn as_sequence_numbers(&self) -> Option<bool> {
        match (self.kind, self.id, self.key_length().ok()?) {
            (TransformType::SequenceNumbers, 0, None) => Some(false),
            (TransformType::SequenceNumbers, 1, None) => Some(true),
            _ => None,
        }
    }

    /// Returns whether this is "none" of its type, which has the same meaning as no transform of
    /// the type: INTEG 0 with an AEAD, or KE 0 (RFC 7296 3.3.2, 3.3.3).
    pub fn is_none(&self) -> bool {
        let optional =
            !matches!(self.kind, TransformType::Encryption | TransformType::Prf | TransformType::SequenceNumbers);
        optional && self.id == 0 && self.attributes.is_empty()
    }
}

struct UnknownAttributes;

/// Encodes all proposals of a payload.
pub(crate) fn encode_proposals(proposals: &[Proposal], out: &mut Vec<u8>) {
    let mut left = proposals.len();
    for proposal in proposals {
        left = left.saturating_sub(1);
        with_length(out, 2, |out| {
            // RFC 7296 3.3.1: the value is 2 if another proposal follows.
            //= RFC 7296 3.3.1 MUST 1: RESERVED is zero
            out.extend_from_slice(&[if left == 0 { 0 } else { 2 }, 0, 0, 0]);
            proposal.encode(out);
        });
    }
}

/// Decodes all proposals of a payload.
pub(crate) fn read_proposals(reader: &mut Reader<'_>) -> Result<Vec<Proposal>, InvalidMessage> {
    let mut proposals = Vec::new();
    let mut transforms: usize = 0;
    while let Some(mut inner) = substructure(reader, "proposal", 2)? {
        if proposals.len() == MAX_PROPOSALS {
            return Err(InvalidMessage::TooMany { what: "proposals", limit: MAX_PROPOSALS });
        }
        let proposal = Proposal::read(&mut inner)?;
        inner.finish()?;
        transforms = transforms.saturating_add(proposal.transforms.len());
        if transforms > MAX_TRANSFORMS {
            return Err(InvalidMessage::TooMany { what: "transforms", limit: MAX_TRANSFORMS });
        }
        proposals.push(proposal);
    }
    Ok(proposals)
}

/// Reads the next proposal or transform. A list of these fills the structure that contains it, and
/// each element except the last has the marker `more`.
fn substructure<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
    more: u8,
) -> Result<Option<Reader<'a>>, InvalidMessage> {
    if reader.is_empty() {
        return Ok(None);
    }
    let found = reader.u8()?;
    reader.u8()?;
    //= RFC 7296 3.3.1 MUST 2: RESERVED is ignored
    let length = reader.u16()?;
    let inner = reader.sub(what, length, 4)?;
    let expected = if reader.is_empty() { 0 } else { more };
    if found != expected {
        //= RFC 7296 3.3 MUST 2: lengths and counts agree
        return Err(InvalidMessage::SubstructureMarker { what, found });
    }
    Ok(Some(inner))
}

impl Codec for Proposal {
    fn encode(&self, out: &mut Vec<u8>) {
        let spi = self.spi.get(..usize::from(u8::MAX)).unwrap_or(&self.spi);
        let transforms = self.transforms.get(..PROPOSAL_TRANSFORMS).unwrap_or(&self.transforms);
        let count = u8::try_from(transforms.len()).unwrap_or(u8::MAX);
        let spi_size = u8::try_from(spi.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[self.number, self.protocol.into(), spi_size, count]);
        out.extend_from_slice(spi);
        let mut left = count;
        for transform in transforms {
            left = left.saturating_sub(1);
            with_length(out, 2, |out| {
                out.extend_from_slice(&[if left == 0 { 0 } else { 3 }, 0, 0, 0]);
                transform.encode(out);
            });
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let number = reader.u8()?;
        let protocol = reader.u8()?.into();
        let spi_size = usize::from(reader.u8()?);
        let stated = reader.u8()?;
        let spi = reader.take(spi_size)?.to_vec();
        let mut transforms = Vec::new();
        while let Some(mut inner) = substructure(reader, "transform", 3)? {
            if transforms.len() == usize::from(stated) {
                let actual = transforms.len().saturating_add(1);
                return Err(InvalidMessage::TransformCount { number, stated, actual });
            }
            transforms.push(Transform::read(&mut inner)?);
            inner.finish()?;
        }
        //= RFC 7296 3.3 MUST 2: lengths and counts agree
        if transforms.len() != usize::from(stated) {
            return Err(InvalidMessage::TransformCount { number, stated, actual: transforms.len() });
        }
        Ok(Self { number, protocol, spi, transforms })
    }
}

impl Codec for Transform {
    fn encode(&self, out: &mut Vec<u8>) {
        //= RFC 7296 3.3.2 MUST 1: RESERVED is zero
        out.extend_from_slice(&[self.kind.into(), 0]);
        out.extend_from_slice(&self.id.to_be_bytes());
        for attribute in &self.attributes {
            attribute.encode(out);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let kind = reader.u8()?.into();
        reader.u8()?;
        //= RFC 7296 3.3.2 MUST 2: RESERVED is ignored
        let id = reader.u16()?;
        let mut attributes = Vec::new();
        while !reader.is_empty() {
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(InvalidMessage::TooMany { what: "transform attributes", limit: MAX_ATTRIBUTES });
            }
            attributes.push(Attribute::read(reader)?);
        }
        Ok(Self { kind, id, attributes })
    }
}

impl Codec for Attribute {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, second, value) = match self {
            //= RFC 7296 3.3.5 MUST NOT 1: fixed length is short form
            Self::KeyLength(bits) => (ATTRIBUTE_SHORT | ATTRIBUTE_KEY_LENGTH, *bits, [].as_slice()),
            Self::OtherShort { kind, value } => (ATTRIBUTE_SHORT | *kind, *value, [].as_slice()),
            Self::OtherLong { kind, value } => {
                let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
                (kind & !ATTRIBUTE_SHORT, u16::try_from(value.len()).unwrap_or(u16::MAX), value)
            }
        };
        out.extend_from_slice(&kind.to_be_bytes());
        //= RFC 7296 3.3.5 MUST 3: network byte order
        out.extend_from_slice(&second.to_be_bytes());
        out.extend_from_slice(value);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage> {
        let kind = reader.u16()?;
        let second = reader.u16()?;
        let short = kind & ATTRIBUTE_SHORT != 0;
        Ok(match (short, kind & !ATTRIBUTE_SHORT) {
            (true, ATTRIBUTE_KEY_LENGTH) => Self::KeyLength(second),
            (true, kind) => Self::OtherShort { kind, value: second },
            (false, kind) => Self::OtherLong { kind, value: reader.take(second.into())?.to_vec() },
        })
    }
}
