//! Addresses: which segments the node has, which addresses in them are leased, and to whom.
//!
//! - [`store`]: the state directory, its lock, the segments in it.
//! - [`journal`]: leases on disk, such that neither a killed process nor a power cut loses or
//!   doubles one.
//! - [`leases`]: leases in memory, and the choice of the next address.

mod journal;
mod leases;
mod store;

pub(crate) use store::{Ledger, Store};
