//! The interface of a key exchange method: two steps at the initiator, one at the responder.
//! Diffie-Hellman and key encapsulation mechanisms (KEM) both fit this interface:
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
    /// Makes the initiator's share. This is the initiator's first step.
    fn start(&self, env: &mut dyn Environment) -> Result<Box<dyn Started>, KeyExchangeError>;

    /// Makes the responder's share from the initiator's share. This is the responder's step.
    fn respond(
        &self,
        initiator_share: &[u8],
        env: &mut dyn Environment,
    ) -> Result<Box<dyn Responded>, KeyExchangeError>;
}

/// The state of an initiator that has made its share and waits for the responder's.
pub(super) trait Started: Send + Sync {
    /// Returns the key exchange data for the responder.
    fn share(&self) -> &[u8];

    /// Computes the shared secret. This is the initiator's second step.
    fn finish(self: Box<Self>, responder_share: &[u8]) -> Result<Secret, KeyExchangeError>;
}

/// The state of a responder that has made its share.
pub(super) trait Responded: Send + Sync {
    /// Returns the key exchange data for the initiator.
    fn share(&self) -> &[u8];

    /// Computes the shared secret. A method may do its expensive part in this call. A responder
    /// calls it only when IKE_AUTH arrives, so that a flood of IKE_SA_INIT requests costs less.
    fn secret(self: Box<Self>) -> Result<Secret, KeyExchangeError>;
}
