//! A reader with bounds checks, and the ways in which a message can be malformed.

use super::numbers::PayloadType;

/// A violation of RFC 7296 3 by a message. If the message is authentic, the response is
/// [`InvalidMessage::notify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A structure ends before its last field does.
    #[error("{what} ends early: {needed} more octets needed, {left} left")]
    Truncated {
        /// The structure, by its name in the RFC.
        what: &'static str,
        /// Number of octets that the next field needs.
        needed: usize,
        /// Number of octets that are left.
        left: usize,
    },
    /// A structure has octets after its contents.
    #[error("{octets} octets too many after {what}")]
    TrailingBytes {
        /// The structure, by its name in the RFC.
        what: &'static str,
        /// Number of octets left over.
        octets: usize,
    },
    /// A length field is smaller than the fixed part of its structure.
    #[error("{what} states a length of {stated} octets, less than its fixed fields take")]
    LengthTooSmall {
        /// The structure.
        what: &'static str,
        /// The length field.
        stated: usize,
    },
    /// The header's Length field differs from the size of the datagram (RFC 7296 3.1).
    #[error("header states {stated} octets, datagram has {actual}")]
    LengthMismatch {
        /// The Length field.
        stated: u32,
        /// The datagram's length.
        actual: usize,
    },
    /// The major version is above 2 (respond with INVALID_MAJOR_VERSION, RFC 7296 2.5) or below 2
    /// (drop the message).
    #[error("IKE major version {0}, expected 2")]
    MajorVersion(u8),
    /// The initiator's SPI of the IKE SA is zero (RFC 7296 3.1).
    #[error("the initiator's SPI is zero")]
    ZeroInitiatorSpi,
    /// There are more items than the limit allows. An honest peer does not send so many.
    #[error("more than {limit} {what}")]
    TooMany {
        /// The kind of item.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The message has an unknown payload with the critical bit (RFC 7296 2.5).
    #[error("unknown payload type {0} is marked critical")]
    UnsupportedCriticalPayload(u8),
    /// A payload type that may occur only once occurs twice.
    #[error("payload {0} occurs twice")]
    Duplicate(PayloadType),
    /// The message lacks a payload that it must have.
    #[error("payload {0} is missing")]
    Missing(PayloadType),
    /// SK or SKF occurs where only unencrypted payloads are allowed (RFC 7296 3.14: it must be the
    /// last payload, and must not be nested).
    #[error("an encrypted payload occurs where none is allowed")]
    MisplacedEncrypted,
    /// An exchange that must be encrypted was sent in clear.
    #[error("no encrypted payload, but this exchange needs one")]
    NotEncrypted,
    /// The field "Last substructure" of a proposal or transform contradicts the lengths (RFC 7296
    /// 3.3.1).
    #[error("{what}: the more-follows octet is {found}, which its place does not allow")]
    SubstructureMarker {
        /// Proposal or transform.
        what: &'static str,
        /// The octet.
        found: u8,
    },
    /// The stated number of transforms of a proposal differs from the actual number.
    #[error("proposal {number} states {stated} transforms and has {actual}")]
    TransformCount {
        /// The proposal's number.
        number: u8,
        /// The count field.
        stated: u8,
        /// The actual number.
        actual: usize,
    },
    /// A nonce does not have 16 to 256 octets (RFC 7296 3.9).
    #[error("nonce of {0} octets, expected 16 to 256")]
    NonceLength(usize),
    /// A nonce is shorter than half the key of the chosen PRF (RFC 7296 2.10).
    #[error("nonce of {found} octets, and the chosen PRF needs {least} at least")]
    ShortNonce {
        /// Actual size, bytes.
        found: usize,
        /// Minimum size, bytes.
        least: usize,
    },
    /// The SPI size of a DELETE is neither 0 for IKE nor 4 for ESP and AH (RFC 7296 3.11).
    #[error("DELETE for protocol {protocol} with {count} SPIs of {size} octets")]
    DeleteSpis {
        /// Protocol ID.
        protocol: u8,
        /// SPI size.
        size: u8,
        /// SPI count.
        count: u16,
    },
    /// The length of a traffic selector does not match its type, which is known (RFC 7296 3.13.1).
    #[error("traffic selector type {kind} with length {length}")]
    SelectorLength {
        /// TS type.
        kind: u8,
        /// The length field.
        length: u16,
    },
    /// The start of a traffic selector is above its end.
    #[error("a traffic selector ends before it starts")]
    SelectorRange,
    /// The number of selectors differs from the number in the payload's count field.
    #[error("{stated} traffic selectors stated, {actual} there")]
    SelectorCount {
        /// The count field.
        stated: u8,
        /// The actual number.
        actual: usize,
    },
    /// The fragment number is 0 or above the total, or the total is 0 (RFC 7383 2.5).
    #[error("fragment {number} of {total}")]
    FragmentNumber {
        /// Fragment number.
        number: u16,
        /// Total number of fragments.
        total: u16,
    },
    /// The padding of a decrypted payload is longer than the payload (RFC 7296 3.14).
    #[error("padding of {0} octets is longer than what was decrypted")]
    Padding(u8),
    /// The ciphertext does not consist of whole blocks (RFC 7296 3.14). Holds its size, bytes.
    #[error("ciphertext of {0} octets, expected whole blocks of 16")]
    PartialBlock(usize),
}

/// Reads octets and never reads past the end.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes`. Errors name the structure by `what`.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], InvalidMessage> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(InvalidMessage::Truncated { what: self.what, needed: len, left: self.bytes.len() });
        };
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], InvalidMessage> {
        let Some((taken, rest)) = self.bytes.split_first_chunk() else {
            return Err(InvalidMessage::Truncated { what: self.what, needed: N, left: self.bytes.len() });
        };
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, InvalidMessage> {
        self.array::<1>().map(|[octet]| octet)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, InvalidMessage> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, InvalidMessage> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, InvalidMessage> {
        self.array().map(u64::from_be_bytes)
    }

    /// Returns a reader for the contents of a structure whose length field has the value `stated`,
    /// of which `fixed` octets have been read.
    pub(crate) fn sub(&mut self, what: &'static str, stated: u16, fixed: usize) -> Result<Reader<'a>, InvalidMessage> {
        let stated = usize::from(stated);
        let left = stated.checked_sub(fixed).ok_or(InvalidMessage::LengthTooSmall { what, stated })?;
        let bytes = self.take(left)?;
        Ok(Reader { what, bytes })
    }

    /// Returns all remaining octets.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Checks that no octets are left.
    pub(crate) fn finish(self) -> Result<(), InvalidMessage> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(InvalidMessage::TrailingBytes { what: self.what, octets: self.bytes.len() })
    }
}

/// A part of a message that can be encoded, and decoded from exactly its octets.
pub(crate) trait Codec: Sized {
    fn encode(&self, out: &mut Vec<u8>);
    fn read(reader: &mut Reader<'_>) -> Result<Self, InvalidMessage>;
}

/// Writes a structure whose 16-bit length field is at `offset` from its start and covers the whole
/// structure.
pub(crate) fn with_length(out: &mut Vec<u8>, offset: usize, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write(out);
    // The contents come from bounded parsing or checked configuration, so `truncate` never removes
    // anything. Even if it did, the length field would be correct.
    out.truncate(start.saturating_add(usize::from(u16::MAX)));
    let length = u16::try_from(out.len().saturating_sub(start)).unwrap_or(u16::MAX);
    if let Some(field) = out.get_mut(start.saturating_add(offset)..).and_then(<[u8]>::first_chunk_mut) {
        *field = length.to_be_bytes();
    }
}
