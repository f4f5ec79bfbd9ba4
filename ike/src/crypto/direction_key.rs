//! The keys of one direction of an IKE SA, and how they protect one message.

use ring::aead::{self, LessSafeKey, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use super::cbc_hmac::{BLOCK_LEN, CbcHmac};
use super::error::{OpenError, SealError};
use crate::config::Cipher;
use crate::wire::InvalidMessage;

/// Size of the salt that follows an AEAD's key, bytes (RFC 5282 7.1, RFC 7634 2).
pub(super) const SALT_LEN: usize = 4;
/// Size of an AEAD's initialization vector, bytes.
const AEAD_IV_LEN: usize = 8;
/// Size of an AEAD's ICV, bytes.
const AEAD_ICV_LEN: usize = 16;

/// Protects a message that one end of an IKE SA sends. It is made for each message: an expanded key
/// takes half a kilobyte, and messages of one IKE SA are rare.
pub(super) struct DirectionKey<'a>(Protection<'a>);

#[expect(clippy::large_enum_variant, reason = "it lives on the stack, for one message")]
enum Protection<'a> {
    Aead {
        key: LessSafeKey,
        salt: [u8; SALT_LEN],
    },
    CbcHmac(CbcHmac<'a>),
    /// The key has the wrong length for the cipher. [`super::IkeKeys`] never makes such a key.
    /// Sealing and opening fail.
    Unusable,
}

impl<'a> DirectionKey<'a> {
    /// Makes a key. `encryption` is SK_ei or SK_er. `integrity` is SK_ai or SK_ar, and empty for an
    /// AEAD.
    pub(super) fn new(cipher: Cipher, encryption: &'a [u8], integrity: &[u8]) -> Self {
        let algorithm = match cipher {
            Cipher::Aes128Gcm16 => &aead::AES_128_GCM,
            Cipher::Aes256Gcm16 => &aead::AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Cipher::AesCbc(length, algorithm) => {
                return Self(Protection::CbcHmac(CbcHmac::new(length, algorithm, encryption, integrity)));
            }
        };
        let (key, salt) = encryption.split_last_chunk().unwrap_or((&[], &[0; SALT_LEN]));
        Self(match UnboundKey::new(algorithm, key) {
            Ok(key) => Protection::Aead { key: LessSafeKey::new(key), salt: *salt },
            Err(_) => Protection::Unusable,
        })
    }

    /// Appends the body of the Encrypted payload to `message`, which holds the preceding octets.
    /// `number` must never be used twice.
    pub(super) fn seal(&self, message: Vec<u8>, number: u64, inner: &[u8]) -> Result<Vec<u8>, SealError> {
        match &self.0 {
            Protection::Aead { key, salt } => seal_aead(key, *salt, message, number, inner),
            Protection::CbcHmac(keys) => keys.seal(message, number, inner).ok_or(SealError::NoKey),
            Protection::Unusable => Err(SealError::NoKey),
        }
    }

    /// Decrypts the body of an Encrypted payload. Returns contents, padding and pad length.
    /// `associated` holds the preceding octets.
    pub(super) fn open(&self, associated: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        match &self.0 {
            Protection::Aead { key, salt } => open_aead(key, *salt, associated, body),
            Protection::CbcHmac(keys) => keys.open(associated, body),
            Protection::Unusable => Err(OpenError::Forged),
        }
    }
}

fn seal_aead(
    key: &LessSafeKey,
    salt: [u8; SALT_LEN],
    mut message: Vec<u8>,
    number: u64,
    inner: &[u8],
) -> Result<Vec<u8>, SealError> {
    let iv = number.to_be_bytes();
    let start = message.len();
    // The contents are encrypted where they are. With room for everything they never move, so no
    // copy of them stays in memory.
    message.reserve(AEAD_IV_LEN.saturating_add(inner.len()).saturating_add(1).saturating_add(AEAD_ICV_LEN));
    message.extend_from_slice(&iv);
    message.extend_from_slice(inner);
    // RFC 5282 4: padding is not needed, but the pad length octet is.
    //= RFC 7296 3.14 SHOULD 6: the least padding
    message.push(0);
    //= RFC 7296 3.14 MUST 8: the checksum covers the encrypted message
    let (associated, body) = message.split_at_mut(start);
    let contents = body.get_mut(iv.len()..).unwrap_or_default();
    let Ok(checksum) = key.seal_in_place_separate_tag(nonce(salt, iv), aead::Aad::from(&*associated), contents) else {
        contents.zeroize();
        return Err(SealError::TooLarge(inner.len()));
    };
    message.extend_from_slice(checksum.as_ref());
    Ok(message)
}

fn open_aead(
    key: &LessSafeKey,
    salt: [u8; SALT_LEN],
    associated: &[u8],
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let Some((&iv, sealed)) = body.split_first_chunk() else {
        let what = "encrypted payload";
        return Err(OpenError::Malformed(InvalidMessage::Truncated { what, needed: AEAD_IV_LEN, left: body.len() }));
    };
    let mut contents = Zeroizing::new(sealed.to_vec());
    //= RFC 7296 3.14 MUST 4: any IV is taken
    let opened = key.open_in_place(nonce(salt, iv), aead::Aad::from(associated), &mut contents);
    let len = opened.map_err(|_| OpenError::Forged)?.len();
    contents.truncate(len);
    Ok(contents)
}

/// Makes the nonce from the salt and the explicit IV (RFC 5282 4, RFC 7634 2).
fn nonce(salt: [u8; SALT_LEN], iv: [u8; AEAD_IV_LEN]) -> aead::Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    for (octet, value) in nonce.iter_mut().zip(salt.iter().chain(&iv)) {
        *octet = *value;
    }
    aead::Nonce::assume_unique_for_key(nonce)
}

impl Cipher {
    /// Returns the sizes of IV, block and ICV of an Encrypted payload, bytes.
    fn layout(self) -> (usize, usize, usize) {
        match self.integrity() {
            Some(integrity) => (BLOCK_LEN, BLOCK_LEN, integrity.icv_len()),
            None => (AEAD_IV_LEN, 1, AEAD_ICV_LEN),
        }
    }

    /// Returns the size of the body of a payload that carries `len` octets, bytes: IV, contents,
    /// padding, pad length, ICV (RFC 7296 3.14).
    pub(super) fn sealed_len(self, len: usize) -> usize {
        let (iv, block, icv) = self.layout();
        len.saturating_add(1).next_multiple_of(block).saturating_add(iv).saturating_add(icv)
    }

    /// Returns the maximum number of octets that fit into a body of `room` octets.
    pub(super) fn contents_len(self, room: usize) -> usize {
        let (iv, block, icv) = self.layout();
        let room = room.saturating_sub(iv).saturating_sub(icv);
        room.saturating_sub(room % block).saturating_sub(1)
    }

    /// Returns the size of SK_ei and SK_er, bytes: the key, and 4 octets of salt for an AEAD (RFC
    /// 5282 7.1, RFC 7634 2).
    pub(super) fn encryption_key_len(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 20,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 36,
            Self::AesCbc(length, _) => usize::from(length.bits() / 8),
        }
    }

    /// Returns the size of SK_ai and SK_ar, in octets. It is 0 for an AEAD (RFC 5282 7).
    pub(super) fn integrity_key_len(self) -> usize {
        self.integrity().map_or(0, crate::config::Integrity::key_len)
    }
}
