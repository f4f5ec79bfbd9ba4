//! 256-bit and 384-bit random ECP groups (RFC 5903).

use std::marker::PhantomData;

use ring::agreement::{self, Algorithm, EphemeralPrivateKey};
use ring::rand::SystemRandom;

use super::diffie_hellman::KeyPair;
use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// First octet of an uncompressed point (SEC 1 2.3.3). IKE sends the coordinates without it (RFC
/// 5903 7).
pub(super) const UNCOMPRESSED: u8 = 4;

/// A curve that `ring` supports.
pub(super) trait Curve: Send + Sync + 'static {
    const ALGORITHM: &'static Algorithm;
    /// Size of both coordinates, bytes.
    const COORDINATES_LEN: usize;
}

/// P-256.
pub(super) struct P256;

impl Curve for P256 {
    const ALGORITHM: &'static Algorithm = &agreement::ECDH_P256;
    const COORDINATES_LEN: usize = 64;
}

/// P-384.
pub(super) struct P384;

impl Curve for P384 {
    const ALGORITHM: &'static Algorithm = &agreement::ECDH_P384;
    const COORDINATES_LEN: usize = 96;
}

/// A key pair on the curve `C`. The private key comes from the system's random source, since `ring`
/// takes no other source for ephemeral keys. No other value depends on this source.
pub(super) struct Ecp<C> {
    private: EphemeralPrivateKey,
    public: Vec<u8>,
    curve: PhantomData<C>,
}

impl<C: Curve> KeyPair for Ecp<C> {
    const PUBLIC_LEN: usize = C::COORDINATES_LEN;

    fn generate(_: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        let private = EphemeralPrivateKey::generate(C::ALGORITHM, &SystemRandom::new())
            .map_err(|_| KeyExchangeError::NoRandomness)?;
        let point = private.compute_public_key().map_err(|_| KeyExchangeError::NoRandomness)?;
        let public = point.as_ref().strip_prefix(&[UNCOMPRESSED]).unwrap_or_default().to_vec();
        Ok(Self { private, public, curve: PhantomData })
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
        if peer.len() != C::COORDINATES_LEN {
            return Err(KeyExchangeError::Length { expected: C::COORDINATES_LEN, found: peer.len() });
        }
        let point = agreement::UnparsedPublicKey::new(C::ALGORITHM, [&[UNCOMPRESSED], peer].concat());
        // RFC 5903 9: the secret is the x coordinate, which is what `ring` returns. `ring` checks
        // that the point is on the curve.
        agreement::agree_ephemeral(self.private, &point, |shared| Secret::new(shared.to_vec()))
            .map_err(|_| KeyExchangeError::InvalidPoint)
    }
}
