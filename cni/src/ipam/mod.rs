//! Address management: the node's segments, and the leases of their addresses.
//!
//! - [`state_dir`]: the state directory, its lock, the segments in it.
//! - [`segments_file`]: which segments a network has.
//! - [`journal`]: leases on disk. Neither a killed process nor a power cut loses a lease or leases
//!   an address twice.
//! - [`leases`]: all leases in memory.
//! - `line`: where a line of the journal is.
//! - [`used_addresses`]: which addresses are in use, and the choice of the next one to lease.

mod journal;
mod leases;
mod line;
mod segments_file;
mod state_dir;
mod used_addresses;

pub(crate) use leases::Lease;
pub(crate) use state_dir::{Commit, LockedLeases, StateDir};
