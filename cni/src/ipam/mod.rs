//! Address management: the node's segments, and the leases of their addresses.
//!
//! - [`state_dir`]: the state directory, its lock, the segments in it.
//! - [`segments_file`]: which segments a network has.
//! - [`journal`]: leases on disk. Neither a killed process nor a power cut loses a lease or leases
//!   an address twice.
//! - [`leases`]: all leases in memory.
//! - [`used_addresses`]: which addresses are in use, and the choice of the next one to lease.

mod journal;
mod leases;
mod segments_file;
mod state_dir;
mod used_addresses;

pub(crate) use leases::Lease;
pub(crate) use state_dir::{Commit, LockedLeases, StateDir};

/// Seconds for which a freed address is not leased again while another one is free. Neighbours
/// may still have its former owner's MAC address in their caches.
const COOL_DOWN_SECONDS: u64 = 60;
