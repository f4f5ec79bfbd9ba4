//! The cryptography of IKE: key exchange, derivation of keys, and the protection of messages.
//! Primitives come from `ring`, `x25519-dalek`, `aes` and `cbc`; this module combines them as RFC
//! 7296 specifies.
//!
//! - [`InitiatorKeyExchange`], [`ResponderKeyExchange`]: key exchange methods (RFC 8031, RFC 5903).
//! - [`IkeKeys`], [`ChildKeys`]: SKEYSEED, SK_*, KEYMAT (RFC 7296 2.14, 2.17, 2.18).
//! - [`IkeCipher`], in `encrypted_payload`: the Encrypted payload and its fragments (RFC 7296 3.14,
//!   RFC 5282, RFC 7634, RFC 7383).
//! - [`Cookies`], [`nat_detection_hash()`]: hashes of addresses in IKE_SA_INIT.
//!
//! Keys are stored in [`Secret`](crate::Secret) or in `ring`'s own key types. No code in this
//! module prints them.

mod cbc_hmac;
mod cookie;
mod direction_key;
mod encrypted_payload;
mod error;
mod key_exchange;
mod keys;
mod nat_detection_hash;
mod prf;

pub use cookie::{COOKIE_LIFETIME, Cookies};
pub use encrypted_payload::{IkeCipher, IkeRole, Opened};
pub use error::{OpenError, SealError};
pub use key_exchange::{InitiatorKeyExchange, KeyExchangeError, ResponderKeyExchange};
pub(crate) use keys::IkeKey;
pub use keys::{ChildKeys, IkeKeys, Nonces};
pub use nat_detection_hash::nat_detection_hash;

pub use crate::suite::IkeSuite;

#[cfg(test)]
mod tests;
