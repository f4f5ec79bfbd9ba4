//! Authentication of both ends (RFC 7296 2.15, RFC 7427): what AUTH covers, how we make our AUTH,
//! and how we check the peer's.
//!
//! An [`Authenticator`] is made once from a peer's configuration. In IKE_AUTH, the [`SignedOctets`]
//! of each direction are passed to [`Authenticator::prove`] and [`Authenticator::verify`]. Each
//! failure has its own [`AuthError`], which states what was expected and what was received.

mod authenticator;
mod certificate_validator;
mod ecdsa;
mod error;
mod identity;
mod limits;
mod object_identifiers;
mod proof;
mod psk;
mod revocation;
mod rsa;
mod signature;
mod signed_octets;
mod trust_anchors;

pub use authenticator::{Authenticator, Presented, check_credentials};
pub use error::{AuthError, CredentialError};
pub use identity::{canonical_identity, certificate_is_for, same_identity};
pub use limits::{MAX_CERTIFICATE, MAX_CHAIN};
pub use proof::Proof;
pub use signed_octets::SignedOctets;

#[cfg(test)]
mod tests;
