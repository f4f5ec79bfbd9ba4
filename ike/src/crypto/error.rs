//! The reasons why a message cannot be sealed or opened.

use crate::wire::InvalidMessage;

/// The reason why a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The message is larger than the maximum size of one message, or of
    /// [`MAX_FRAGMENTS`](crate::wire::MAX_FRAGMENTS) fragments. Holds its size, bytes.
    #[error("message of {0} octets is too large to be sent")]
    TooLarge(usize),
    /// 2^64 messages have been sent, so the keys of this IKE SA must no longer be used.
    #[error("the IKE SA's initialization vectors are used up")]
    Exhausted,
    /// The IKE SA has no usable key.
    #[error("the IKE SA has no usable key")]
    NoKey,
}

/// The reason why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The datagram is not an encrypted message. It is not authenticated, so drop it.
    #[error("malformed: {0}")]
    Malformed(InvalidMessage),
    /// The integrity check value is wrong. Drop the datagram.
    #[error("integrity check failed")]
    Forged,
    /// The datagram is authentic, but its contents are malformed. If it is a request, respond with
    /// [`InvalidMessage::notify`].
    #[error("authentic, but malformed: {0}")]
    Contents(InvalidMessage),
}
