//! Diffie-Hellman with ephemeral keys.

use ring::agreement::{self, EphemeralPrivateKey};
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::config::Group;
use crate::environment::Environment;
use crate::secret::Secret;
use crate::wire::KeyExchange;

/// SEC 1 2.3.3: an uncompressed point. IKE sends the coordinates without this octet (RFC 5903 7).
const UNCOMPRESSED: u8 = 4;
const P256_COORDINATES: usize = 64;

/// Why no secret was agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyExchangeError {
    /// The peer's key is of another method (answer INVALID_KE_PAYLOAD).
    #[error("key exchange data for group {found}, expected {expected}")]
    Group {
        /// The method of our key.
        expected: u16,
        /// The method of the peer's.
        found: u16,
    },
    /// The peer's key has a length that the method does not have.
    #[error("public key of {found} octets, expected {expected}")]
    Length {
        /// Octets of a public key of this method.
        expected: usize,
        /// Octets that came.
        found: usize,
    },
    /// Not a point of the curve (RFC 5903 8).
    #[error("the public key is not a point of the curve")]
    InvalidPoint,
    /// The shared secret would be zero whatever our key: the peer sent a point of small order (RFC
    /// 8031 5).
    #[error("the public key is of small order")]
    SmallOrder,
    /// The system's random source failed.
    #[error("no randomness for a key")]
    NoRandomness,
}

/// An ephemeral key pair, good for one exchange.
pub struct KeyPair {
    private: Private,
    public: Vec<u8>,
}

enum Private {
    X25519(x25519_dalek::StaticSecret),
    P256(EphemeralPrivateKey),
}

impl KeyPair {
    /// Makes a pair. X25519 takes its key from `env`; P-256 from the system, since `ring` makes
    /// ephemeral keys by itself only (no outcome but the key itself depends on it).
    ///
    /// # Errors
    /// [`KeyExchangeError::NoRandomness`].
    pub fn generate(group: Group, env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        match group {
            Group::X25519 => {
                let mut bytes = Zeroizing::new([0; 32]);
                env.fill_random(bytes.as_mut());
                Ok(Self::x25519(&bytes))
            }
            Group::P256 => Self::p256(&SystemRandom::new()),
        }
    }

    fn x25519(bytes: &[u8; 32]) -> Self {
        let private = x25519_dalek::StaticSecret::from(*bytes);
        let public = x25519_dalek::PublicKey::from(&private).to_bytes().to_vec();
        Self { private: Private::X25519(private), public }
    }

    fn p256(random: &dyn ring::rand::SecureRandom) -> Result<Self, KeyExchangeError> {
        let private =
            EphemeralPrivateKey::generate(&agreement::ECDH_P256, random).map_err(|_| KeyExchangeError::NoRandomness)?;
        let point = private.compute_public_key().map_err(|_| KeyExchangeError::NoRandomness)?;
        let public = point.as_ref().strip_prefix(&[UNCOMPRESSED]).unwrap_or_default().to_vec();
        Ok(Self { private: Private::P256(private), public })
    }

    /// Its method.
    pub fn group(&self) -> Group {
        match self.private {
            Private::X25519(_) => Group::X25519,
            Private::P256(_) => Group::P256,
        }
    }

    /// The public key as a KE payload.
    pub fn payload(&self) -> KeyExchange {
        KeyExchange { group: self.group().number(), data: self.public.clone() }
    }

    /// The shared secret g^ir.
    ///
    /// # Errors
    /// If the peer's key is not a key of this method, or a dangerous one.
    pub fn agree(self, peer: &KeyExchange) -> Result<Secret, KeyExchangeError> {
        let expected = self.group().number();
        if peer.group != expected {
            return Err(KeyExchangeError::Group { expected, found: peer.group });
        }
        match self.private {
            Private::X25519(private) => agree_x25519(&private, &peer.data),
            Private::P256(private) => agree_p256(private, &peer.data),
        }
    }
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("group", &self.group()).finish_non_exhaustive()
    }
}

fn agree_x25519(private: &x25519_dalek::StaticSecret, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
    let peer: [u8; 32] = peer.try_into().map_err(|_| KeyExchangeError::Length { expected: 32, found: peer.len() })?;
    let shared = private.diffie_hellman(&x25519_dalek::PublicKey::from(peer));
    // RFC 8031 5: abort if all octets are zero, in constant time.
    if shared.as_bytes().ct_eq(&[0; 32]).into() {
        return Err(KeyExchangeError::SmallOrder);
    }
    Ok(Secret::new(shared.as_bytes().to_vec()))
}

fn agree_p256(private: EphemeralPrivateKey, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
    if peer.len() != P256_COORDINATES {
        return Err(KeyExchangeError::Length { expected: P256_COORDINATES, found: peer.len() });
    }
    let mut point = Vec::with_capacity(P256_COORDINATES.saturating_add(1));
    point.push(UNCOMPRESSED);
    point.extend_from_slice(peer);
    let point = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point);
    // RFC 5903 9: the secret is the x coordinate, which is what ring gives. ring checks that the
    // point is on the curve.
    agreement::agree_ephemeral(private, &point, |shared| Secret::new(shared.to_vec()))
        .map_err(|_| KeyExchangeError::InvalidPoint)
}
