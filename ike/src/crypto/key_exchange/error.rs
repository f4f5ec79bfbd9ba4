//! Why a key exchange fails.

/// Why no secret was agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyExchangeError {
    /// The peer's share is of another method. The answer is INVALID_KE_PAYLOAD.
    #[error("key exchange data for group {found}, expected {expected}")]
    Group {
        /// Transform ID of our method.
        expected: u16,
        /// Transform ID in the peer's payload.
        found: u16,
    },
    /// The peer's share has a length that the method does not have.
    #[error("public key of {found} octets, expected {expected}")]
    Length {
        /// Octets of a share of this method.
        expected: usize,
        /// Octets of the peer's share.
        found: usize,
    },
    /// The peer's share is not a point of the curve (RFC 5903 8).
    #[error("the public key is not a point of the curve")]
    InvalidPoint,
    /// The peer sent a point of small order: the shared secret would be zero whatever our key is
    /// (RFC 8031 5).
    #[error("the public key is of small order")]
    SmallOrder,
    /// The peer's share is not between 1 and p - 1, both excluded (RFC 6989 2.1): it would give
    /// away the secret.
    #[error("the public key is not between 1 and p - 1")]
    OutOfRange,
    /// The system's random source failed.
    #[error("no randomness for a key")]
    NoRandomness,
}

impl KeyExchangeError {
    /// Whether this node is at fault, not the peer.
    pub fn is_local(self) -> bool {
        self == Self::NoRandomness
    }
}
