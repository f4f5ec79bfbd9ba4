//! Segments: networks of the cluster's ranges that are granted to nodes and never overlap.
//!
//! - [`SegmentPolicy`]: the operator's rules: ranges, sizes, and how many segments a node may hold.
//! - [`Ledger`]: the row of every segment. Chooses the next grant; time and changes are arguments.
//! - `claim_check`: decides whether a node may hold a segment that it claims, or returns a
//!   [`ClaimConflict`]. [`ClaimConflicts`]: the conflicts of all nodes.
//! - [`Restored`], [`GrantsPaused`]: grants wait after a restore.
//! - `capacity`: counts the free segments.
//!
//! A released segment keeps its row. It is granted to no node until its quarantine has passed, so
//! that no peer with an old view sends packets for one node to another. After the quarantine it is
//! granted before addresses that were never used, the lowest first.

mod capacity;
mod claim_check;
mod claim_conflicts;
mod ledger;
mod policy;
mod range;
mod restored;

pub use capacity::{free_segments, range_usage};
pub use claim_check::ClaimConflict;
pub use claim_conflicts::ClaimConflicts;
pub use ledger::{Exhausted, Grant, Holding, Ledger, SegmentRecord};
pub use policy::SegmentPolicy;
pub use range::{contains, overlap};
pub use restored::{GrantsPaused, Restored};
