//! Why a message is not sealed or not opened.

use crate::wire::InvalidMessage;

/// Why a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The message is larger than one message or [`MAX_FRAGMENTS`](crate::wire::MAX_FRAGMENTS)
    /// fragments can be. Holds its octets.
    #[error("message of {0} octets is too large to be sent")]
    TooLarge(usize),
    /// 2^64 messages have been sent: this IKE SA's key is used up.
    #[error("the IKE SA's initialization vectors are used up")]
    Exhausted,
    /// The IKE SA has no usable key.
    #[error("the IKE SA has no usable key")]
    NoKey,
}

/// Why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not an encrypted message. Nothing authenticates it: drop it.
    #[error("malformed: {0}")]
    Malformed(InvalidMessage),
    /// The integrity check value is wrong. Drop it.
    #[error("integrity check failed")]
    Forged,
    /// The datagram is authentic, but its contents are malformed. Answer a request with
    /// [`InvalidMessage::notify`].
    #[error("authentic, but malformed: {0}")]
    Contents(InvalidMessage),
}
