//! Address management: the node's segments, and the leases of their addresses.
//!
//! - [`state_dir`]: the state directory, its lock, and the segments in it.
//! - [`segments_file`]: the files with the segments of each network.
//! - [`journal`]: leases on disk. Neither a killed process nor a power cut causes a lost lease or
//!   an address that is leased twice.
//! - [`leases`]: all leases in memory.
//! - `line`: the position of a line in the journal.
//! - [`used_addresses`]: which addresses are in use, and the choice of the next one to lease.

mod journal;
mod leases;
mod line;
mod segments_file;
mod state_dir;
mod used_addresses;

pub(crate) use leases::Lease;
pub(crate) use state_dir::{Commit, LockedLeases, StateDir};
