//! Converts the algorithm and keys of a CHILD_SA from the types of `edge-ike` to those of
//! `edge-xfrm`.

use edge_ike::config::{self, Cipher};
use edge_ike::{ChildSa, Secret};
use edge_xfrm::{AesKeyLength, Algorithm, EspKey, Integrity, Result};

/// Returns the key of one direction of a CHILD_SA.
///
/// # Errors
/// If the key does not have the length that the algorithm requires. IKE never generates such a key.
pub(super) fn esp_key(sa: &ChildSa, key: &Secret) -> Result<EspKey> {
    let algorithm = match sa.cipher {
        Cipher::Aes128Gcm16 => Algorithm::Aes128Gcm16,
        Cipher::Aes256Gcm16 => Algorithm::Aes256Gcm16,
        Cipher::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
        Cipher::AesCbc(length, integrity) => Algorithm::AesCbc(key_length(length), integrity_algorithm(integrity)),
    };
    Ok(EspKey::new(algorithm, key.expose())?)
}

fn key_length(length: config::AesKeyLength) -> AesKeyLength {
    match length {
        config::AesKeyLength::Bits128 => AesKeyLength::Bits128,
        config::AesKeyLength::Bits192 => AesKeyLength::Bits192,
        config::AesKeyLength::Bits256 => AesKeyLength::Bits256,
    }
}

fn integrity_algorithm(integrity: config::Integrity) -> Integrity {
    match integrity {
        config::Integrity::HmacSha256 => Integrity::HmacSha256,
        config::Integrity::HmacSha384 => Integrity::HmacSha384,
        config::Integrity::HmacSha512 => Integrity::HmacSha512,
    }
}
