//! The reasons why a key exchange fails.

/// The reason why no shared secret could be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyExchangeError {
    /// The peer's share belongs to another method. The response is INVALID_KE_PAYLOAD.
    #[error("key exchange data for group {found}, expected {expected}")]
    Group {
        /// Transform ID of our method.
        expected: u16,
        /// Transform ID in the peer's payload.
        found: u16,
    },
    /// The peer's share has the wrong length for the method.
    #[error("public key of {found} octets, expected {expected}")]
    Length {
        /// Size of a share of this method, bytes.
        expected: usize,
        /// Size of the peer's share, bytes.
        found: usize,
    },
    /// The peer's share is not a point on the curve (RFC 5903 8).
    #[error("the public key is not a point of the curve")]
    InvalidPoint,
    /// The peer sent a point of small order. The shared secret would be zero with any private key
    /// (RFC 8031 5).
    #[error("the public key is of small order")]
    SmallOrder,
    /// The peer's share is not between 1 and p - 1, both excluded (RFC 6989 2.1). Such a share
    /// would reveal the secret.
    #[error("the public key is not between 1 and p - 1")]
    OutOfRange,
    /// The system's random source failed.
    #[error("no randomness for a key")]
    NoRandomness,
}

impl KeyExchangeError {
    /// Returns whether the failure is on this node, not at the peer.
    pub fn is_local(self) -> bool {
        self == Self::NoRandomness
    }
}
