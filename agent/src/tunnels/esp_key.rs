//! Converts the algorithm and keys of a CHILD_SA from the types of `edge-ike` to those of
//! `edge-xfrm`, and tries whether the kernel has an algorithm.

use edge_ike::config::{self, Cipher};
use edge_ike::{ChildSa, Secret};
use edge_xfrm::{AesKeyLength, Algorithm, Error, EspKey, Integrity, Result, Xfrm};
use ring::rand::{SecureRandom, SystemRandom};
use tracing::debug;
use zeroize::Zeroizing;

use crate::incidents::Incidents;

/// Returns the key of one direction of a CHILD_SA.
///
/// # Errors
/// If the key does not have the length that the algorithm requires. IKE never generates such a key.
pub(super) fn esp_key(sa: &ChildSa, key: &Secret) -> Result<EspKey> {
    Ok(EspKey::new(algorithm(sa.cipher), key.expose())?)
}

/// Returns whether the kernel can do ESP with this cipher. A kernel that cannot be asked is assumed
/// to have it, and an incident says why. [`report_missing`] tells the operator what is missing.
pub(super) fn kernel_has(cipher: Cipher, xfrm: &mut Xfrm, random: &SystemRandom, incidents: &Incidents) -> bool {
    let algorithm = algorithm(cipher);
    let mut key = Zeroizing::new(vec![0; algorithm.key_length()]);
    let tried = match random.fill(&mut key) {
        Ok(()) => EspKey::new(algorithm, &key).map_err(Error::from).and_then(|key| xfrm.supports(&key)),
        Err(_) => return true,
    };
    match tried {
        Ok(true) => true,
        Ok(false) => {
            debug!(%cipher, name = %algorithm.kernel_name(), "this kernel has no such ESP");
            false
        }
        Err(error) => {
            incidents.error(format!("it is not known whether this kernel has ESP with {cipher}: {error}"));
            true
        }
    }
}

/// Reports the ciphers that [`kernel_has`] did not find for a peer, in one line: a kernel without
/// ESP lacks all of them.
pub(super) fn report_missing(ciphers: &[String], incidents: &Incidents) {
    if !ciphers.is_empty() {
        incidents.error(format!(
            "this kernel has no ESP with {}, so peers are not offered it: load the modules (esp4, esp6 and those of the ciphers) or build \
             them in, then restart the agent",
            ciphers.join(", ")
        ));
    }
}

fn algorithm(cipher: Cipher) -> Algorithm {
    match cipher {
        Cipher::Aes128Gcm16 => Algorithm::Aes128Gcm16,
        Cipher::Aes256Gcm16 => Algorithm::Aes256Gcm16,
        Cipher::ChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
        Cipher::AesCbc(length, integrity) => Algorithm::AesCbc(key_length(length), integrity_algorithm(integrity)),
    }
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
