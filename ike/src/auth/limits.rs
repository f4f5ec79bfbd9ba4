//! Limits of certificate chains.

/// Most certificates of a chain, ours or the peer's. Further certificates of a peer are ignored.
pub const MAX_CHAIN: usize = 8;

/// Most octets of one of our certificates.
pub const MAX_CERTIFICATE: usize = 16_384;
