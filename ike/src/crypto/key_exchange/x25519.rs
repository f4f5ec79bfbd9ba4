//! Curve25519 (RFC 8031), by `ring` or by `x25519-dalek`. Both give the same values. `ring` is
//! faster on processors with ADX, but draws each private key itself from the operating system. On
//! other processors it has no assembly for this curve, and `x25519-dalek` is used.

use ring::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey};
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::diffie_hellman::KeyPair;
use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// Size of keys and of the shared secret, bytes.
const LEN: usize = 32;

/// An X25519 key pair.
pub(super) struct X25519 {
    private: Private,
    public: [u8; LEN],
}

enum Private {
    /// Drawn from the operating system. `ring` does not wipe it.
    OfSystem(EphemeralPrivateKey),
    /// Drawn from the environment, so that a test can choose it.
    OfEnvironment(StaticSecret),
}

impl KeyPair for X25519 {
    const PUBLIC_LEN: usize = LEN;

    fn generate(env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        if env.random_is_from_system() && ring_is_faster() { Self::of_system() } else { Ok(Self::of_environment(env)) }
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
        let peer: [u8; LEN] =
            peer.try_into().map_err(|_| KeyExchangeError::Length { expected: LEN, found: peer.len() })?;
        match self.private {
            // `ring` refuses a secret of zero octets, as RFC 8031 5 requires. There is no other
            // error for a key of the right length.
            Private::OfSystem(private) => {
                let peer = UnparsedPublicKey::new(&agreement::X25519, peer);
                agreement::agree_ephemeral(private, &peer, |shared| Secret::new(shared.to_vec()))
                    .map_err(|_| KeyExchangeError::SmallOrder)
            }
            Private::OfEnvironment(ref private) => {
                let shared = private.diffie_hellman(&PublicKey::from(peer));
                // RFC 8031 5: abort if all octets are zero. Their bitwise OR shows it in constant
                // time (RFC 7748 6.1).
                let any = shared.as_bytes().iter().fold(0_u8, |any, octet| any | octet);
                if any.ct_eq(&0).into() {
                    return Err(KeyExchangeError::SmallOrder);
                }
                Ok(Secret::new(shared.as_bytes().to_vec()))
            }
        }
    }
}

impl X25519 {
    fn of_system() -> Result<Self, KeyExchangeError> {
        let private = EphemeralPrivateKey::generate(&agreement::X25519, &SystemRandom::new())
            .map_err(|_| KeyExchangeError::NoRandomness)?;
        let public = private.compute_public_key().map_err(|_| KeyExchangeError::NoRandomness)?;
        let public = public.as_ref().try_into().map_err(|_| KeyExchangeError::NoRandomness)?;
        Ok(Self { private: Private::OfSystem(private), public })
    }

    fn of_environment(env: &mut dyn Environment) -> Self {
        let mut bytes = Zeroizing::new([0; LEN]);
        env.fill_random(bytes.as_mut());
        let private = StaticSecret::from(*bytes);
        let public = PublicKey::from(&private).to_bytes();
        Self { private: Private::OfEnvironment(private), public }
    }
}

/// Returns whether `ring` uses its assembly for Curve25519. It asks for the same three features.
fn ring_is_faster() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("adx")
        && std::arch::is_x86_feature_detected!("bmi1")
        && std::arch::is_x86_feature_detected!("bmi2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
