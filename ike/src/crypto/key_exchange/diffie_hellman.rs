//! Diffie-Hellman as a key exchange method: both ends make a key pair and send the public key.

use std::marker::PhantomData;

use super::error::KeyExchangeError;
use super::method::{KeyExchangeMethod, Responded, Started};
use crate::environment::Environment;
use crate::secret::Secret;

/// An ephemeral key pair of one group.
pub(super) trait KeyPair: Send + Sync + Sized + 'static {
    /// Size of a public key in the Key Exchange payload, bytes.
    const PUBLIC_LEN: usize;

    /// Makes a key pair.
    fn generate(env: &mut dyn Environment) -> Result<Self, KeyExchangeError>;

    /// Returns the public key in the format of the Key Exchange payload.
    fn public(&self) -> &[u8];

    /// Computes the shared secret g^ir. Returns an error if the peer's public key is not in the
    /// group, or would reveal the secret. The pair stays in its box: moving it would leave a copy
    /// of the private key in memory that is not wiped.
    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError>;
}

/// Diffie-Hellman with key pairs of type `K`.
pub(super) struct DiffieHellman<K>(PhantomData<K>);

impl<K> DiffieHellman<K> {
    pub(super) const METHOD: Self = Self(PhantomData);
}

struct Initiator<K>(Box<K>);

struct Responder<K> {
    pair: Box<K>,
    initiator: Vec<u8>,
}

impl<K: KeyPair> KeyExchangeMethod for DiffieHellman<K> {
    fn start(&self, env: &mut dyn Environment) -> Result<Box<dyn Started>, KeyExchangeError> {
        Ok(Box::new(Initiator(Box::new(K::generate(env)?))))
    }

    fn respond(
        &self,
        initiator_share: &[u8],
        env: &mut dyn Environment,
    ) -> Result<Box<dyn Responded>, KeyExchangeError> {
        // RFC 7296 3.4: the length follows from the group. Refuse a share of another length now,
        // instead of keeping it until IKE_AUTH.
        check_length::<K>(initiator_share)?;
        Ok(Box::new(Responder { pair: Box::new(K::generate(env)?), initiator: initiator_share.to_vec() }))
    }
}

impl<K: KeyPair> Started for Initiator<K> {
    fn share(&self) -> &[u8] {
        self.0.public()
    }

    fn finish(self: Box<Self>, responder_share: &[u8]) -> Result<Secret, KeyExchangeError> {
        self.0.agree(responder_share)
    }
}

impl<K: KeyPair> Responded for Responder<K> {
    fn share(&self) -> &[u8] {
        self.pair.public()
    }

    fn secret(self: Box<Self>) -> Result<Secret, KeyExchangeError> {
        self.pair.agree(&self.initiator)
    }
}

fn check_length<K: KeyPair>(share: &[u8]) -> Result<(), KeyExchangeError> {
    let (expected, found) = (K::PUBLIC_LEN, share.len());
    if expected == found { Ok(()) } else { Err(KeyExchangeError::Length { expected, found }) }
}
