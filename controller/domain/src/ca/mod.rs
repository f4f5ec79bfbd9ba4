//! The certificate authorities. One signs the certificates of nodes and of the controller. Those
//! before it stay trusted until they are retired.
//!
//! - [`Ca`]: the authorities in use, and how they change. [`Authorities`]: all of them at one
//!   moment.
//! - [`Authority`]: one authority, and what it signs. [`OperatorCa`]: one that the operator brings.
//! - [`document`]: what is stored about them. [`storage`]: the trait of what stores it. [`Files`]:
//!   stores it in the state directory.
//! - [`request`]: a node's certificate request.
//!
//! At a rollover every authority that is still trusted signs a cross certificate for the new one:
//! the new one's name and key. Each certificate that the new authority signs comes with the cross
//! certificates. So a node that has not learned of the rollover verifies it all the same, and no
//! tunnel depends on which end learns of the rollover first.

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
