//! Shared Key Message Integrity Code (RFC 7296 2.15).

use super::error::AuthError;
use super::signed_octets::SignedOctets;
use crate::secret::Secret;
use crate::wire::{AuthMethod, Authentication};

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// Computes AUTH = prf(prf(Shared Secret, "Key Pad for IKEv2"), SignedOctets).
pub(super) fn shared_key_mic(octets: &SignedOctets, psk: &Secret) -> Secret {
    let pad: &[u8] = if mutation!("no_key_pad") { &[] } else { KEY_PAD };
    //= RFC 7296 2.15 REQUIRED 3: the key pad
    let key = octets.prf().compute(psk.expose(), &[pad]);
    octets.prf().compute(key.expose(), &[octets.as_slice()])
}

pub(super) fn verify(octets: &SignedOctets, psk: &Secret, auth: &Authentication) -> Result<(), AuthError> {
    if auth.method != AuthMethod::SharedKey {
        return Err(AuthError::Method { expected: "a pre-shared key", found: auth.method });
    }
    // `Secret` compares in constant time.
    if shared_key_mic(octets, psk) != Secret::new(auth.data.clone()) && !mutation!("auth_not_verified") {
        return Err(AuthError::SharedKey);
    }
    Ok(())
}
