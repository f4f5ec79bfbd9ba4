//! Address management: the node's segments, and the leases of their addresses.
//!
//! - [`state_dir`]: the state directory, its lock, the segments in it.
//! - [`journal`]: leases on disk. Neither a killed process nor a power cut loses a lease or leases
//!   an address twice.
//! - [`reserved`]: addresses that no pod gets.
//! - [`leases`]: leases in memory, and the choice of the next address to lease.

mod journal;
mod leases;
mod reserved;
mod state_dir;

pub(crate) use reserved::{AddressRange, Reserved};
pub(crate) use state_dir::{LockedLeases, StateDir};
