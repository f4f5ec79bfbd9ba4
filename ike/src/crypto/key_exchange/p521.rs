//! 521-bit random ECP group (RFC 5903).

use p521::{PublicKey, SecretKey};
use zeroize::Zeroizing;

use super::diffie_hellman::KeyPair;
use super::ecp::UNCOMPRESSED;
use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// Size of a coordinate and of a private key, bytes.
const LEN: usize = 66;
/// Maximum number of attempts to make a private key. Random octets are almost always a valid
/// private key. They are invalid only if they are zero or not below the order of the group, which
/// begins with 260 one bits.
const ATTEMPTS: usize = 4;

/// A P-521 key pair. The private key comes from the environment, so that a test can choose it.
pub(super) struct P521 {
    private: SecretKey,
    public: Vec<u8>,
}

impl KeyPair for P521 {
    const PUBLIC_LEN: usize = 2 * LEN;

    fn generate(env: &mut dyn Environment) -> Result<Self, KeyExchangeError> {
        for _ in 0..ATTEMPTS {
            let mut octets = Zeroizing::new([0; LEN]);
            env.fill_random(octets.as_mut());
            // A private key has 521 bits: only one bit of the first octet is used.
            if let Some(first) = octets.first_mut() {
                *first &= 1;
            }
            if let Ok(private) = SecretKey::from_slice(octets.as_ref()) {
                let point = private.public_key().to_sec1_bytes();
                let public = point.strip_prefix(&[UNCOMPRESSED]).unwrap_or_default().to_vec();
                return Ok(Self { private, public });
            }
        }
        Err(KeyExchangeError::NoRandomness)
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer: &[u8]) -> Result<Secret, KeyExchangeError> {
        if peer.len() != Self::PUBLIC_LEN {
            return Err(KeyExchangeError::Length { expected: Self::PUBLIC_LEN, found: peer.len() });
        }
        // The share must be a point on the curve (RFC 5903 8), but not the point at infinity.
        let point = PublicKey::from_sec1_bytes(&[&[UNCOMPRESSED], peer].concat())
            .map_err(|_| KeyExchangeError::InvalidPoint)?;
        let shared = p521::ecdh::diffie_hellman(self.private.to_nonzero_scalar(), point.as_affine());
        Ok(Secret::new(shared.raw_secret_bytes().to_vec()))
    }
}
