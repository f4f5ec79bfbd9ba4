//! Limits of certificate chains.

/// Maximum number of certificates in a chain, ours or the peer's. Further certificates from a peer
/// are ignored.
//= RFC 7296 3.6 MUST 2: four certificates
pub const MAX_CHAIN: usize = 8;

/// Maximum size of one of our certificates, bytes.
pub const MAX_CERTIFICATE: usize = 16_384;
