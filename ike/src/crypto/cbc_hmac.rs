//! AES-CBC and HMAC in the Encrypted payload (RFC 7296 3.14, RFC 3602, RFC 4868): the ICV covers
//! the ciphertext, which is decrypted only after the ICV has been checked.

use aes::cipher::array::Array;
use aes::cipher::{BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, KeyInit, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use ring::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::OpenError;
use crate::config::{AesKeyLength, Integrity};
use crate::wire::InvalidMessage;

/// Size of a block and of the initialization vector, bytes.
pub(super) const BLOCK_LEN: usize = 16;

type Block = [u8; BLOCK_LEN];

/// The keys of one direction of an IKE SA.
pub(super) struct CbcHmac<'a> {
    length: AesKeyLength,
    /// SK_ei or SK_er.
    key: &'a [u8],
    /// SK_ai or SK_ar.
    integrity_key: hmac::Key,
    icv_len: usize,
}

impl<'a> CbcHmac<'a> {
    pub(super) fn new(length: AesKeyLength, integrity: Integrity, key: &'a [u8], integrity_key: &[u8]) -> Self {
        let integrity_key = hmac::Key::new(integrity.algorithm(), integrity_key);
        Self { length, key, integrity_key, icv_len: integrity.icv_len() }
    }

    /// Appends initialization vector, ciphertext and ICV to `message`, which holds all preceding
    /// octets. `number` must never be used twice with these keys. Returns `None` if the key has the
    /// wrong length.
    pub(super) fn seal(&self, mut message: Vec<u8>, number: u64, inner: &[u8]) -> Option<Vec<u8>> {
        let iv = self.initialization_vector(number)?;
        message.extend_from_slice(&iv);
        let start = message.len();
        message.extend_from_slice(inner);
        // RFC 7296 3.14: there should be no more padding than needed. The pad length follows the
        // padding.
        //= RFC 7296 3.14 MUST 5: padding to the block size
        //= RFC 7296 3.14 SHOULD 6: the least padding
        let padding = BLOCK_LEN.wrapping_sub(inner.len()).wrapping_sub(1) % BLOCK_LEN;
        message.resize(message.len().saturating_add(padding), 0);
        message.push(u8::try_from(padding).ok()?);
        self.encrypt(&iv, message.get_mut(start..)?)?;
        let (associated, authenticated) = message.split_at_checked(start.checked_sub(BLOCK_LEN)?)?;
        let icv = self.icv(associated, authenticated);
        message.extend_from_slice(icv.as_ref().get(..self.icv_len)?);
        Some(message)
    }

    /// Decrypts the octets that follow `associated` in a message: initialization vector, ciphertext
    /// and ICV.
    pub(super) fn open(&self, associated: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let least = BLOCK_LEN.saturating_add(self.icv_len);
        let short = InvalidMessage::Truncated { what: "encrypted payload", needed: least, left: body.len() };
        let parts = body.len().checked_sub(self.icv_len).and_then(|len| body.split_at_checked(len));
        let (authenticated, icv) = parts.ok_or(OpenError::Malformed(short))?;
        //= RFC 7296 3.14 MUST 4: any IV is taken
        let (iv, ciphertext) = authenticated.split_first_chunk().ok_or(OpenError::Malformed(short))?;
        //= RFC 7296 3.14 MUST 8: the checksum covers the encrypted message
        let expected = self.icv(associated, authenticated);
        let expected = expected.as_ref().get(..self.icv_len).ok_or(OpenError::Forged)?;
        if !bool::from(expected.ct_eq(icv)) {
            return Err(OpenError::Forged);
        }
        if ciphertext.is_empty() || !ciphertext.len().is_multiple_of(BLOCK_LEN) {
            return Err(OpenError::Contents(InvalidMessage::PartialBlock(ciphertext.len())));
        }
        let mut plain = Zeroizing::new(ciphertext.to_vec());
        self.decrypt(iv, &mut plain).ok_or(OpenError::Forged)?;
        Ok(plain)
    }

    /// Computes the ICV before truncation. It covers the message from the header on (RFC 7296
    /// 3.14).
    fn icv(&self, associated: &[u8], authenticated: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.integrity_key);
        if !mutation!("icv_without_header") {
            context.update(associated);
        }
        context.update(authenticated);
        context.sign()
    }

    /// Computes an initialization vector that an attacker cannot predict, as RFC 7296 3.14 and RFC
    /// 3602 3 require. The result is the encryption of a unique block under the same key: the first
    /// method of NIST SP 800-38A C. This method needs no random numbers, so it cannot fail for lack
    /// of them.
    //= RFC 7296 3.14 MUST 3: an IV that cannot be predicted
    fn initialization_vector(&self, number: u64) -> Option<Block> {
        let mut block = [0; BLOCK_LEN];
        *block.last_chunk_mut()? = number.to_be_bytes();
        let mut block = Array::from(block);
        let key = self.key;
        match self.length {
            AesKeyLength::Bits128 => Aes128::new_from_slice(key).ok()?.encrypt_block(&mut block),
            AesKeyLength::Bits192 => Aes192::new_from_slice(key).ok()?.encrypt_block(&mut block),
            AesKeyLength::Bits256 => Aes256::new_from_slice(key).ok()?.encrypt_block(&mut block),
        }
        Some(block.into())
    }

    fn encrypt(&self, iv: &Block, octets: &mut [u8]) -> Option<()> {
        let (blocks, _) = Array::slice_as_chunks_mut(octets);
        let key = self.key;
        match self.length {
            AesKeyLength::Bits128 => cbc::Encryptor::<Aes128>::new_from_slices(key, iv).ok()?.encrypt_blocks(blocks),
            AesKeyLength::Bits192 => cbc::Encryptor::<Aes192>::new_from_slices(key, iv).ok()?.encrypt_blocks(blocks),
            AesKeyLength::Bits256 => cbc::Encryptor::<Aes256>::new_from_slices(key, iv).ok()?.encrypt_blocks(blocks),
        }
        Some(())
    }

    fn decrypt(&self, iv: &Block, octets: &mut [u8]) -> Option<()> {
        let (blocks, _) = Array::slice_as_chunks_mut(octets);
        let key = self.key;
        match self.length {
            AesKeyLength::Bits128 => cbc::Decryptor::<Aes128>::new_from_slices(key, iv).ok()?.decrypt_blocks(blocks),
            AesKeyLength::Bits192 => cbc::Decryptor::<Aes192>::new_from_slices(key, iv).ok()?.decrypt_blocks(blocks),
            AesKeyLength::Bits256 => cbc::Decryptor::<Aes256>::new_from_slices(key, iv).ok()?.decrypt_blocks(blocks),
        }
        Some(())
    }
}

impl Integrity {
    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// Returns the size of a key, bytes. It equals the size of the hash's output (RFC 4868 2.1.1).
    pub(super) fn key_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// Returns the size of the ICV, bytes: half of the hash's output (RFC 4868 2.1).
    pub(super) fn icv_len(self) -> usize {
        self.key_len() / 2
    }
}
