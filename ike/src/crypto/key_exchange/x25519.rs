//! Curve25519 (RFC 8031).

use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::diffie_hellman::KeyPair;
use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// Size of keys and of the shared secret, bytes.
const LEN: usize = 32;

/// An X25519 key pair. The private key comes from the environment, so that a test can choose it.
pub(super) struct X25519 {
    private: StaticSecret,
    public: [u8; LEN],
}

impl KeyPair for X25519 {
    const PUBLIC_LEN: usize = LEN;

    fn generate(env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        let mut bytes = Zeroizing::new([0; LEN]);
        env.fill_random(bytes.as_mut());
        let private = StaticSecret::from(*bytes);
        let public = PublicKey::from(&private).to_bytes();
        Ok(Self { private, public })
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
        let peer: [u8; LEN] =
            peer.try_into().map_err(|_| KeyExchangeError::Length { expected: LEN, found: peer.len() })?;
        let shared = self.private.diffie_hellman(&PublicKey::from(peer));
        // RFC 8031 5: abort if all octets are zero. Their bitwise OR shows it in constant time (RFC
        // 7748 6.1).
        let any = shared.as_bytes().iter().fold(0_u8, |any, octet| any | octet);
        if any.ct_eq(&0).into() {
            return Err(KeyExchangeError::SmallOrder);
        }
        Ok(Secret::new(shared.as_bytes().to_vec()))
    }
}
