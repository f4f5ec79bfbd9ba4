//! 256-bit random ECP group (RFC 5903).

use ring::agreement::{self, EphemeralPrivateKey};
use ring::rand::SystemRandom;

use super::diffie_hellman::KeyPair;
use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// First octet of an uncompressed point (SEC 1 2.3.3). IKE sends the coordinates without it (RFC
/// 5903 7).
const UNCOMPRESSED: u8 = 4;
/// Octets of both coordinates.
const COORDINATES_LEN: usize = 64;

/// A P-256 key pair. The private key comes from the system: `ring` makes ephemeral keys only by
/// itself. Nothing but the key depends on this randomness.
pub(super) struct P256 {
    private: EphemeralPrivateKey,
    public: Vec<u8>,
}

impl KeyPair for P256 {
    const PUBLIC_LEN: usize = COORDINATES_LEN;

    fn generate(_: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        let private = EphemeralPrivateKey::generate(&agreement::ECDH_P256, &SystemRandom::new())
            .map_err(|_| KeyExchangeError::NoRandomness)?;
        let point = private.compute_public_key().map_err(|_| KeyExchangeError::NoRandomness)?;
        let public = point.as_ref().strip_prefix(&[UNCOMPRESSED]).unwrap_or_default().to_vec();
        Ok(Self { private, public })
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
        if peer.len() != COORDINATES_LEN {
            return Err(KeyExchangeError::Length { expected: COORDINATES_LEN, found: peer.len() });
        }
        let mut point = Vec::with_capacity(COORDINATES_LEN.saturating_add(1));
        point.push(UNCOMPRESSED);
        point.extend_from_slice(peer);
        let point = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point);
        // RFC 5903 9: the secret is the x coordinate, which is what ring gives. ring checks that
        // the point is on the curve.
        agreement::agree_ephemeral(self.private, &point, |shared| Secret::new(shared.to_vec()))
            .map_err(|_| KeyExchangeError::InvalidPoint)
    }
}
