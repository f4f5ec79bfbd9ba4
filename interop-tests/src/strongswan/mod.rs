//! Runs IKE implementations from other projects on hosts of the lab and makes their certificates.

pub mod charon;
mod pki;
mod sas;
mod vici;

pub use charon::Charon;
pub use pki::{Authority, Credentials, KeyKind, subject};
pub use sas::{ChildSa, IkeSa};
