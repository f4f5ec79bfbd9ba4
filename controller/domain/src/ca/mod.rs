//! Manages the certificate authorities. One of them signs the certificates of nodes and of the
//! controller. Earlier ones stay trusted until they are retired.
//!
//! - [`Ca`]: manages the authorities in use. [`Authorities`]: all authorities at one moment.
//! - [`Authority`]: one authority and the certificates that it signs. [`OperatorCa`]: an authority
//!   that the operator provides.
//! - [`document`]: the stored form of the authorities. [`storage`]: the trait of its storage.
//!   [`Files`]: the storage in the state directory.
//! - [`request`]: a node's certificate request.
//!
//! At a rollover every authority that is still trusted signs a cross certificate for the new one,
//! which contains the new authority's name and key. Each certificate that the new authority signs
//! comes with the cross certificates. So a node that does not trust the new authority yet can
//! verify such a certificate too, and a tunnel works no matter which of its two nodes gets the new
//! authority first.

mod authorities;
mod authority;
pub mod document;
mod error;
mod files;
mod hash;
mod lifecycle;
mod operator_ca;
pub mod request;
pub mod storage;
#[cfg(test)]
mod tests;

pub use authorities::{Authorities, Issued, RetiredAuthority};
pub use authority::{Authority, BACKDATED, Term, not_after};
pub use document::CaDocument;
pub use error::CaError;
pub use files::{CERTIFICATES, DOCUMENT, FORMER_KEY, Files};
pub use hash::hex;
pub use lifecycle::Ca;
pub use operator_ca::OperatorCa;
pub use storage::{CaStorage, Revision};
