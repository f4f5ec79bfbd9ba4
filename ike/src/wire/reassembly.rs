//! Reassembles a message from its fragments (RFC 7383 2.6).

use super::message::Payloads;
use super::numbers::PayloadType;
use super::reader::InvalidMessage;

/// Maximum number of fragments of one message.
pub const MAX_FRAGMENTS: u16 = 128;
/// Maximum size of a reassembled message, bytes. After a key exchange, any host can make us store
/// this much (RFC 7383 2.6). Certificate chains are far smaller.
pub const MAX_REASSEMBLED: usize = 32_768;

/// An authentic fragment: the contents of SKF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Fragment number, from 1.
    pub number: u16,
    /// Total number of fragments.
    pub total: u16,
    /// Type of the message's first payload, in fragment 1.
    pub first: PayloadType,
    /// The fragment's part of the payloads.
    pub data: Vec<u8>,
}

/// The received fragments of one message. All added fragments must be authentic, and have the same
/// message ID and direction.
#[derive(Debug, Default)]
pub struct Reassembly {
    first: Option<PayloadType>,
    parts: Vec<Option<Vec<u8>>>,
    octets: usize,
}

impl Reassembly {
    /// Creates an empty reassembly.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the size of the memory for the fragments, bytes.
    pub(crate) fn octets(&self) -> usize {
        self.octets.saturating_add(self.parts.len().saturating_mul(size_of::<Option<Vec<u8>>>()))
    }

    /// Adds a fragment. If it was the last missing one, returns the payloads and becomes empty
    /// again.
    ///
    /// # Errors
    /// Returns an error if the whole message is malformed, or exceeds [`MAX_FRAGMENTS`] or
    /// [`MAX_REASSEMBLED`]. Duplicates, and fragments of an older split into larger fragments, are
    /// ignored without an error.
    pub fn add(&mut self, fragment: Fragment) -> Result<Option<Payloads>, InvalidMessage> {
        let Fragment { number, total, first, data } = fragment;
        let index = match number.checked_sub(1) {
            Some(index) if number <= total => usize::from(index),
            _ => return Err(InvalidMessage::FragmentNumber { number, total }),
        };
        if total > MAX_FRAGMENTS {
            return Err(InvalidMessage::TooMany { what: "fragments", limit: MAX_FRAGMENTS.into() });
        }
        // RFC 7383 2.6: a larger total means that the peer started again with smaller fragments. A
        // smaller total belongs to an older split.
        let count = usize::from(total);
        if count > self.parts.len() {
            *self = Self { first: None, parts: vec![None; count], octets: 0 };
        } else if count < self.parts.len() {
            return Ok(None);
        }
        let Some(part @ None) = self.parts.get_mut(index) else {
            return Ok(None);
        };
        self.octets = self.octets.saturating_add(data.len());
        if self.octets > MAX_REASSEMBLED {
            *self = Self::default();
            return Err(InvalidMessage::TooMany { what: "octets in fragments", limit: MAX_REASSEMBLED });
        }
        *part = Some(data);
        if number == 1 {
            self.first = Some(first);
        }
        if self.parts.iter().any(Option::is_none) {
            return Ok(None);
        }
        let Self { first, parts, .. } = std::mem::take(self);
        let whole: Vec<u8> = parts.into_iter().flatten().flatten().collect();
        Payloads::decode(first.unwrap_or(PayloadType::None), &whole).map(Some)
    }
}
