//! Address management: the node's segments, and the leases of their addresses.
//!
//! - [`state_dir`]: the state directory, its lock, and the segments in it.
//! - [`segments_file`]: the files with the node's segments, one for each network.
//! - [`journal`]: leases on disk, which survive a killed process and a power cut.
//! - [`leases`]: all leases in memory.
//! - `line`: the position of a line in the journal.
//! - [`used_addresses`]: bit sets of the leased and the freed addresses, and the choice of the next
//!   address to lease.

mod checksum;
mod journal;
mod leases;
mod line;
mod segments_file;
mod state_dir;
mod used_addresses;

pub(crate) use leases::Lease;
pub(crate) use state_dir::{Commit, LockedLeases, StateDir};
