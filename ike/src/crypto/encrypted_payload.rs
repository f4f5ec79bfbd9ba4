//! The Encrypted payload (RFC 7296 3.14) with AEADs (RFC 5282, RFC 7634) or with AES-CBC and HMAC,
//! whole or in fragments (RFC 7383).

use zeroize::Zeroize;

use super::direction_key::DirectionKey;
use super::error::{OpenError, SealError};
use super::keys::{IkeKey, IkeKeys};
use crate::wire::{
    EncryptedMessage, EncryptedPrefix, Fragment, Header, InvalidMessage, MAX_FRAGMENTS, PayloadType, Payloads,
};

/// Minimum size of the part of a message in a fragment, bytes. It applies even if the requested
/// limit is smaller.
const MIN_FRAGMENT_PART: usize = 64;

/// Our role in an IKE SA: its original initiator (not the initiator of the exchange), or its
/// responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IkeRole {
    /// This end sent the IKE_SA_INIT or CREATE_CHILD_SA request that created the IKE SA.
    Initiator,
    /// This end responded to that request.
    Responder,
}

/// The contents of an authentic datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// The payloads of a message that came in one datagram.
    Message(Payloads),
    /// A fragment of a message, for [`Reassembly`](crate::wire::Reassembly).
    Fragment(Fragment),
}

/// Protects the messages of one IKE SA in both directions. Initialization vectors come from a
/// counter, so no vector is used twice with one key.
pub struct IkeCipher {
    keys: IkeKeys,
    role: IkeRole,
    sealed: u64,
}

impl IkeCipher {
    /// Makes the cipher of an IKE SA with these keys, for this end.
    pub fn new(keys: IkeKeys, role: IkeRole) -> Self {
        Self { keys, role, sealed: 0 }
    }

    /// Returns the keys of the IKE SA.
    pub fn keys(&self) -> &IkeKeys {
        &self.keys
    }

    /// Forgets the keys that have no use after IKE_AUTH.
    //= RFC 7296 2.12 MUST 1: keys are forgotten
    pub(crate) fn forget_auth_keys(&mut self) {
        self.keys = self.keys.without_auth_keys();
    }

    /// Expands the key of the messages that one end sends.
    fn key_of(&self, sender: IkeRole) -> DirectionKey<'_> {
        //= RFC 7296 2.14 REQUIRED 4: a key for each direction
        let (encryption, integrity) = match sender {
            IkeRole::Initiator => (IkeKey::Ei, IkeKey::Ai),
            IkeRole::Responder => (IkeKey::Er, IkeKey::Ar),
        };
        DirectionKey::new(self.keys.suite.cipher, self.keys.key(encryption), self.keys.key(integrity))
    }

    fn peer(&self) -> IkeRole {
        match self.role {
            IkeRole::Initiator => IkeRole::Responder,
            IkeRole::Responder => IkeRole::Initiator,
        }
    }

    /// Returns the datagrams (without the non-ESP marker) that carry a message: one datagram, or
    /// several if the message is larger than `limit` octets. Without a limit (if the peer did not
    /// send IKEV2_FRAGMENTATION_SUPPORTED) there is always one datagram. To retransmit, send the
    /// same octets again.
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
        //= RFC 7296 2.12 MUST 1: keys are forgotten
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
        let cipher = self.keys.suite.cipher;
        let sealed_len = cipher.sealed_len(inner.len());
        if limit.is_none_or(|limit| whole.len().saturating_add(sealed_len) <= limit) {
            if sealed_len > EncryptedPrefix::MAX_BODY {
                return Err(too_large);
            }
            return Ok(vec![self.seal_one(header, whole, inner)?]);
        }
        let room = limit.unwrap_or(0).saturating_sub(EncryptedPrefix::FRAGMENT_LEN);
        let part_len = cipher.contents_len(room).max(MIN_FRAGMENT_PART);
        let parts = inner.chunks(part_len);
        let total = u16::try_from(parts.len()).ok().filter(|&total| total <= MAX_FRAGMENTS).ok_or(too_large)?;
        // RFC 7383 2.5: the first fragment states the type of the first payload, and the other
        // fragments state no type.
        let firsts = std::iter::once(first).chain(std::iter::repeat(PayloadType::None));
        (1..=total)
            .zip(parts)
            .zip(firsts)
            .map(|((number, part), first)| {
                self.seal_one(header, EncryptedPrefix::Fragment { first, number, total }, part)
            })
            .collect()
    }

    /// Seals a fragment with the given fragment number and total.
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

    fn seal_one(&mut self, header: &Header, front: EncryptedPrefix, inner: &[u8]) -> Result<Vec<u8>, SealError> {
        let number = if mutation!("nonce_repeated") { 0 } else { self.sealed };
        self.sealed = self.sealed.checked_add(1).ok_or(SealError::Exhausted)?;
        let message = front.encode(header, self.keys.suite.cipher.sealed_len(inner.len()));
        self.key_of(self.role).seal(message, number, inner)
    }

    /// Opens a datagram (without the non-ESP marker). Payloads in clear before the Encrypted
    /// payload are authenticated but not returned, since our exchanges do not use them.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, datagram: &[u8]) -> Result<Opened, OpenError> {
        let protected = EncryptedMessage::read(datagram).map_err(OpenError::Malformed)?;
        let plain = self.key_of(self.peer()).open(protected.associated, protected.body)?;
        decode_plaintext(protected.front, &plain).map_err(OpenError::Contents)
    }
}

/// Parses the decrypted octets: payloads, padding and pad length (RFC 7296 3.14).
fn decode_plaintext(front: EncryptedPrefix, plain: &[u8]) -> Result<Opened, InvalidMessage> {
    let Some((&padding, rest)) = plain.split_last() else {
        return Err(InvalidMessage::Truncated { what: "encrypted payload", needed: 1, left: 0 });
    };
    //= RFC 7296 3.14 MUST 7: any padding is taken
    let len = rest.len().checked_sub(padding.into()).ok_or(InvalidMessage::Padding(padding))?;
    let inner = rest.get(..len).unwrap_or_default();
    match front {
        EncryptedPrefix::Whole { first } => Payloads::decode(first, inner).map(Opened::Message),
        EncryptedPrefix::Fragment { first, number, total } => {
            Ok(Opened::Fragment(Fragment { number, total, first, data: inner.to_vec() }))
        }
    }
}

impl std::fmt::Debug for IkeCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IkeCipher").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}
