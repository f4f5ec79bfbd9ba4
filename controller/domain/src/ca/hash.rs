//! Computes SHA-256 hashes and writes them in hexadecimal.

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

/// Writes the octets in hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}
