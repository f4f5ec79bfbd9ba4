//! Address management: the node's segments, and the leases of their addresses.
//!
//! - [`state_dir`]: the state directory, its lock, the segments in it.
//! - [`segments_file`]: which segments a network has.
//! - [`journal`]: leases on disk. Neither a killed process nor a power cut loses a lease or leases
//!   an address twice.
//! - [`leases`]: leases in memory, the choice of the next address to lease, and addresses that no
//!   pod gets.

mod journal;
mod leases;
mod segments_file;
mod state_dir;

pub(crate) use leases::Lease;
pub(crate) use state_dir::{Commit, LockedLeases, StateDir};
