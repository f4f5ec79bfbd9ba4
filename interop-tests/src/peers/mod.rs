//! Other people's programs, started on hosts of the lab, and what they need.

pub mod charon;
mod pki;
mod vici;

pub use charon::Charon;
pub use pki::{Authority, Credentials, KeyKind};
