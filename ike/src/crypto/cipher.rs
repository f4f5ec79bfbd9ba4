//! The Encrypted payload (RFC 7296 3.14) with AEADs (RFC 5282, RFC 7634), whole or in fragments
//! (RFC 7383).

use ring::aead::{self, LessSafeKey, UnboundKey};
use zeroize::Zeroize;

use super::keys::IkeKeys;
use crate::config::Aead;
use crate::secret::Secret;
use crate::wire::{
    EncryptedMessage, EncryptedPrefix, Fragment, Header, InvalidMessage, MAX_FRAGMENTS, PayloadType, Payloads,
};

const SALT_LEN: usize = 4;
const IV_LEN: usize = 8;
const ICV_LEN: usize = 16;
/// Smallest part of a message in a fragment, whatever limit is asked for.
const MIN_FRAGMENT_PART: usize = 64;

/// Which end of an IKE SA we are: its original initiator (of the SA, not of the exchange) or its
/// responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IkeRole {
    /// It sent the IKE_SA_INIT or CREATE_CHILD_SA request that made the IKE SA.
    Initiator,
    /// It answered that request.
    Responder,
}

/// Why a message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The message is larger than one message or [`MAX_FRAGMENTS`] fragments can be. Holds its
    /// octets.
    #[error("message of {0} octets is too large to be sent")]
    TooLarge(usize),
    /// 2^64 messages have been sent: this IKE SA's key is used up.
    #[error("the IKE SA's initialization vectors are used up")]
    Exhausted,
    /// The IKE SA has no usable key.
    #[error("the IKE SA has no usable key")]
    NoKey,
}

/// Why a datagram was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not an encrypted message. Nothing authenticates it: drop it.
    #[error("malformed: {0}")]
    Malformed(InvalidMessage),
    /// The integrity check value is wrong. Drop it.
    #[error("integrity check failed")]
    Forged,
    /// The datagram is authentic, but its contents are malformed. Answer a request with
    /// [`InvalidMessage::notify`].
    #[error("authentic, but malformed: {0}")]
    Contents(InvalidMessage),
}

/// What was in an authentic datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The payloads of a message that came in one datagram.
    Message(Payloads),
    /// A fragment of a message, for [`Reassembly`](crate::wire::Reassembly).
    Fragment(Fragment),
}

/// Protects the messages of one IKE SA in both directions. Initialization vectors are a counter, so
/// none is used twice with one key.
pub struct IkeCipher {
    seal: DirectionKey,
    open: DirectionKey,
    sealed: u64,
}

struct DirectionKey {
    /// `None` if the cipher does not take keying material of this length, which [`IkeKeys`] never
    /// makes. Then nothing is sealed or opened.
    key: Option<LessSafeKey>,
    salt: [u8; SALT_LEN],
}

impl IkeCipher {
    /// The cipher of an IKE SA with these keys, at this end.
    pub fn new(keys: &IkeKeys, role: IkeRole) -> Self {
        let (seal, open) = match role {
            IkeRole::Initiator => (&keys.ei, &keys.er),
            IkeRole::Responder => (&keys.er, &keys.ei),
        };
        let aead = keys.suite.aead;
        Self { seal: DirectionKey::new(aead, seal), open: DirectionKey::new(aead, open), sealed: 0 }
    }

    /// Datagrams (without non-ESP marker) that carry a message: one, or several if the message is
    /// larger than `limit` octets. Without a limit (the peer did not send
    /// IKEV2_FRAGMENTATION_SUPPORTED) it is always one. To retransmit, send the same octets again.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn seal(
        &mut self,
        header: &Header,
        payloads: &Payloads,
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u8>>, SealError> {
        let mut inner = payloads.encode();
        let result = self.seal_encoded(header, payloads.first_kind(), &inner, limit);
        inner.zeroize();
        result
    }

    fn seal_encoded(
        &mut self,
        header: &Header,
        first: PayloadType,
        inner: &[u8],
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u8>>, SealError> {
        let too_large = SealError::TooLarge(inner.len());
        let whole = EncryptedPrefix::Whole { first };
        if limit.is_none_or(|limit| whole.len().saturating_add(Self::sealed_len(inner.len())) <= limit) {
            if Self::sealed_len(inner.len()) > EncryptedPrefix::MAX_BODY {
                return Err(too_large);
            }
            return Ok(vec![self.seal_one(header, whole, inner)?]);
        }
        let overhead = EncryptedPrefix::FRAGMENT_LEN.saturating_add(Self::sealed_len(0));
        let part_len = limit.unwrap_or(0).saturating_sub(overhead).max(MIN_FRAGMENT_PART);
        let parts = inner.chunks(part_len);
        let total = u16::try_from(parts.len()).ok().filter(|&total| total <= MAX_FRAGMENTS).ok_or(too_large)?;
        // RFC 7383 2.5: the first fragment names the first payload, the others name none.
        let firsts = std::iter::once(first).chain(std::iter::repeat(PayloadType::None));
        (1..=total)
            .zip(parts)
            .zip(firsts)
            .map(|((number, part), first)| {
                self.seal_one(header, EncryptedPrefix::Fragment { first, number, total }, part)
            })
            .collect()
    }

    /// A fragment with any numbers.
    #[cfg(test)]
    pub(crate) fn seal_fragment(
        &mut self,
        header: &Header,
        first: PayloadType,
        number: u16,
        total: u16,
        part: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        self.seal_one(header, EncryptedPrefix::Fragment { first, number, total }, part)
    }

    /// Octets of a payload's body that carries `len` octets: IV, contents, pad length (no padding),
    /// ICV.
    fn sealed_len(len: usize) -> usize {
        len.saturating_add(IV_LEN).saturating_add(1).saturating_add(ICV_LEN)
    }

    fn seal_one(&mut self, header: &Header, front: EncryptedPrefix, inner: &[u8]) -> Result<Vec<u8>, SealError> {
        let iv = if mutation!("nonce_repeated") { 0 } else { self.sealed }.to_be_bytes();
        self.sealed = self.sealed.checked_add(1).ok_or(SealError::Exhausted)?;
        let body_len = Self::sealed_len(inner.len());
        let mut message = front.encode(header, body_len);
        let associated = aead::Aad::from(message.clone());
        // RFC 5282 4: padding is not needed; the pad length octet is.
        let mut contents = Vec::with_capacity(body_len);
        contents.extend_from_slice(inner);
        contents.push(0);
        let key = self.seal.key.as_ref().ok_or(SealError::NoKey)?;
        if key.seal_in_place_append_tag(self.seal.nonce(iv), associated, &mut contents).is_err() {
            contents.zeroize();
            return Err(SealError::TooLarge(inner.len()));
        }
        message.extend_from_slice(&iv);
        message.extend_from_slice(&contents);
        Ok(message)
    }

    /// Opens a datagram (without non-ESP marker). Payloads in clear before the encrypted one are
    /// authenticated but not returned: our exchanges have none.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, datagram: &[u8]) -> Result<Opened, OpenError> {
        let protected = EncryptedMessage::read(datagram).map_err(OpenError::Malformed)?;
        let Some((&iv, sealed)) = protected.body.split_first_chunk() else {
            let left = protected.body.len();
            let what = "encrypted payload";
            return Err(OpenError::Malformed(InvalidMessage::Truncated { what, needed: IV_LEN, left }));
        };
        let mut contents = sealed.to_vec();
        let associated = aead::Aad::from(protected.associated);
        let key = self.open.key.as_ref().ok_or(OpenError::Forged)?;
        let opened = match key.open_in_place(self.open.nonce(iv), associated, &mut contents) {
            Ok(plain) => decode_plaintext(protected.front, plain).map_err(OpenError::Contents),
            Err(_) => Err(OpenError::Forged),
        };
        contents.zeroize();
        opened
    }
}

/// Reads the decrypted octets: payloads, padding, pad length (RFC 7296 3.14).
fn decode_plaintext(front: EncryptedPrefix, plain: &[u8]) -> Result<Opened, InvalidMessage> {
    let Some((&padding, rest)) = plain.split_last() else {
        return Err(InvalidMessage::Truncated { what: "encrypted payload", needed: 1, left: 0 });
    };
    let len = rest.len().checked_sub(padding.into()).ok_or(InvalidMessage::Padding(padding))?;
    let inner = rest.get(..len).unwrap_or_default();
    match front {
        EncryptedPrefix::Whole { first } => Payloads::decode(first, inner).map(Opened::Message),
        EncryptedPrefix::Fragment { first, number, total } => {
            Ok(Opened::Fragment(Fragment { number, total, first, data: inner.to_vec() }))
        }
    }
}

impl DirectionKey {
    fn new(aead: Aead, keymat: &Secret) -> Self {
        let algorithm = match aead {
            Aead::Aes128Gcm16 => &aead::AES_128_GCM,
            Aead::Aes256Gcm16 => &aead::AES_256_GCM,
            Aead::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let (key, salt) = keymat.expose().split_last_chunk().unwrap_or((&[], &[0; SALT_LEN]));
        Self { key: UnboundKey::new(algorithm, key).ok().map(LessSafeKey::new), salt: *salt }
    }

    /// Salt and explicit IV (RFC 5282 4, RFC 7634 2).
    fn nonce(&self, iv: [u8; IV_LEN]) -> aead::Nonce {
        let mut nonce = [0; aead::NONCE_LEN];
        for (octet, value) in nonce.iter_mut().zip(self.salt.iter().chain(&iv)) {
            *octet = *value;
        }
        aead::Nonce::assume_unique_for_key(nonce)
    }
}

impl std::fmt::Debug for IkeCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IkeCipher").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}
