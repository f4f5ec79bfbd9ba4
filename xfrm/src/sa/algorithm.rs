//! The algorithms that protect the packets of an SA, and their keys.

use std::fmt;

use netlink_packet_xfrm as nl;
use zeroize::Zeroizing;

/// Size of the salt that follows an AEAD's key, bytes (RFC 4106 8.1, RFC 7634 2).
const SALT_LEN: usize = 4;

/// The algorithm that protects the packets of an SA: an AEAD with an ICV of 128 bits, or AES-CBC
/// with an integrity algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES-128-GCM, RFC 4106: 16 bytes of key, 4 of salt.
    Aes128Gcm16,
    /// AES-256-GCM, RFC 4106: 32 bytes of key, 4 of salt.
    Aes256Gcm16,
    /// ChaCha20-Poly1305, RFC 7634: 32 bytes of key, 4 of salt.
    ChaCha20Poly1305,
    /// AES-CBC, RFC 3602, with an integrity algorithm: the key of the cipher, then the key of the
    /// integrity algorithm (RFC 7296 2.17).
    AesCbc(AesKeyLength, Integrity),
}

/// Length of an AES key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AesKeyLength {
    /// 128 bits.
    Bits128,
    /// 192 bits.
    Bits192,
    /// 256 bits.
    Bits256,
}

/// An integrity algorithm, RFC 4868. Its key has the length of its hash's output. The ICV is the
/// first half of the HMAC's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Integrity {
    /// HMAC-SHA-256-128.
    HmacSha256,
    /// HMAC-SHA-384-192.
    HmacSha384,
    /// HMAC-SHA-512-256.
    HmacSha512,
}

impl AesKeyLength {
    /// Returns the size of the key, bytes.
    pub const fn bytes(self) -> usize {
        match self {
            AesKeyLength::Bits128 => 16,
            AesKeyLength::Bits192 => 24,
            AesKeyLength::Bits256 => 32,
        }
    }
}

impl Integrity {
    /// Returns the size of the key, bytes.
    pub const fn key_length(self) -> usize {
        match self {
            Integrity::HmacSha256 => 32,
            Integrity::HmacSha384 => 48,
            Integrity::HmacSha512 => 64,
        }
    }

    const fn icv_bits(self) -> u32 {
        match self {
            Integrity::HmacSha256 => 128,
            Integrity::HmacSha384 => 192,
            Integrity::HmacSha512 => 256,
        }
    }

    const fn kernel_name(self) -> &'static str {
        match self {
            Integrity::HmacSha256 => "hmac(sha256)",
            Integrity::HmacSha384 => "hmac(sha384)",
            Integrity::HmacSha512 => "hmac(sha512)",
        }
    }
}

impl Algorithm {
    /// Returns the size of the keying material, bytes: key and salt of an AEAD, or both keys
    /// otherwise.
    pub const fn key_length(self) -> usize {
        match self {
            Algorithm::Aes128Gcm16 => 16 + SALT_LEN,
            Algorithm::Aes256Gcm16 | Algorithm::ChaCha20Poly1305 => 32 + SALT_LEN,
            Algorithm::AesCbc(key, integrity) => key.bytes() + integrity.key_length(),
        }
    }

    /// Returns the algorithm's name in the kernel.
    pub const fn kernel_name(self) -> &'static str {
        match self {
            Algorithm::Aes128Gcm16 | Algorithm::Aes256Gcm16 => "rfc4106(gcm(aes))",
            Algorithm::ChaCha20Poly1305 => "rfc7539esp(chacha20,poly1305)",
            Algorithm::AesCbc(_, Integrity::HmacSha256) => "authenc(hmac(sha256),cbc(aes))",
            Algorithm::AesCbc(_, Integrity::HmacSha384) => "authenc(hmac(sha384),cbc(aes))",
            Algorithm::AesCbc(_, Integrity::HmacSha512) => "authenc(hmac(sha512),cbc(aes))",
        }
    }
}

/// The error for keying material of the wrong length. Holds no part of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{algorithm} takes {expected} bytes of keying material, {got} were given")]
pub struct KeyLength {
    /// The kernel's name of the algorithm.
    pub algorithm: &'static str,
    /// Required size, bytes.
    pub expected: usize,
    /// Actual size, bytes.
    pub got: usize,
}

/// An algorithm with its keying material. It is wiped when dropped, and `Debug` shows only the
/// algorithm.
#[derive(Clone)]
pub struct EspKey {
    algorithm: Algorithm,
    keymat: Zeroizing<Vec<u8>>,
}

impl EspKey {
    /// Copies the keying material, which must have the layout described at [`Algorithm`]. IKE
    /// derives it in this layout.
    pub fn new(algorithm: Algorithm, keymat: &[u8]) -> Result<Self, KeyLength> {
        let (expected, got) = (algorithm.key_length(), keymat.len());
        if got != expected {
            return Err(KeyLength { algorithm: algorithm.kernel_name(), expected, got });
        }
        Ok(Self { algorithm, keymat: Zeroizing::new(keymat.to_vec()) })
    }

    /// Returns the algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the attributes of the algorithm. They hold copies of the keys.
    pub(crate) fn to_kernel(&self) -> Vec<nl::XfrmAttrs> {
        match self.algorithm {
            Algorithm::AesCbc(length, integrity) => {
                let (key, integrity_key) = self.keymat.split_at_checked(length.bytes()).unwrap_or_default();
                vec![
                    nl::XfrmAttrs::EncryptionAlg(nl::Alg {
                        alg_name: name("cbc(aes)"),
                        alg_key_len: bits(key),
                        alg_key: key.to_vec(),
                    }),
                    // Without this attribute the kernel would truncate HMAC-SHA-256 to 96 bits.
                    nl::XfrmAttrs::AuthenticationAlgTrunc(nl::AlgAuth {
                        alg_name: name(integrity.kernel_name()),
                        alg_key_len: bits(integrity_key),
                        alg_trunc_len: integrity.icv_bits(),
                        alg_key: integrity_key.to_vec(),
                    }),
                ]
            }
            Algorithm::Aes128Gcm16 | Algorithm::Aes256Gcm16 | Algorithm::ChaCha20Poly1305 => {
                vec![nl::XfrmAttrs::EncryptionAlgAead(nl::AlgAead {
                    alg_name: name(self.algorithm.kernel_name()),
                    alg_key_len: bits(&self.keymat),
                    alg_icv_len: 128,
                    alg_key: self.keymat.to_vec(),
                })]
            }
        }
    }
}

impl fmt::Debug for EspKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, key withheld", self.algorithm.kernel_name())
    }
}

/// Returns a name in the kernel's format, padded with zeros.
fn name<const LEN: usize>(text: &str) -> [u8; LEN] {
    let mut name = [0; LEN];
    for (to, from) in name.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    name
}

fn bits(key: &[u8]) -> u32 {
    u32::try_from(key.len() * 8).unwrap_or(u32::MAX)
}
