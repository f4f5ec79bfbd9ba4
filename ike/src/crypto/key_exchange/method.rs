//! The interface of a key exchange method: two steps at the initiator, one at the responder. Both
//! Diffie-Hellman and a key encapsulation mechanism (KEM) have this shape:
//!
//! | | initiator's share | responder's share | secret |
//! |---|---|---|---|
//! | Diffie-Hellman | its public key | its public key | g^ir |
//! | KEM | its encapsulation key | a ciphertext, made with that key | the encapsulated key |

use super::error::KeyExchangeError;
use crate::environment::Environment;
use crate::secret::Secret;

/// A key exchange method: one transform of type KE (RFC 7296 3.3.2).
pub(super) trait KeyExchangeMethod: Sync {
    /// The initiator's first step: makes its share.
    fn start(&self, env: &mut dyn Environment) -> Result<Box<dyn Started>, KeyExchangeError>;

    /// The responder's step: makes its share from the initiator's share.
    fn respond(
        &self,
        initiator_share: &[u8],
        env: &mut dyn Environment,
    ) -> Result<Box<dyn Responded>, KeyExchangeError>;
}

/// The state of an initiator that has made its share and waits for the responder's.
pub(super) trait Started: Send + Sync {
    /// Key exchange data for the responder.
    fn share(&self) -> &[u8];

    /// The initiator's second step: computes the shared secret.
    fn finish(self: Box<Self>, responder_share: &[u8]) -> Result<Secret, KeyExchangeError>;
}

/// The state of a responder that has made its share.
pub(super) trait Responded: Send + Sync {
    /// Key exchange data for the initiator.
    fn share(&self) -> &[u8];

    /// Computes the shared secret. A method may do its expensive part in this call: a responder
    /// calls it only when IKE_AUTH comes, so that a flood of IKE_SA_INIT costs less.
    fn secret(self: Box<Self>) -> Result<Secret, KeyExchangeError>;
}
