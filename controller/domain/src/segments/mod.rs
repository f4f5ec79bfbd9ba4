//! Segments: networks in the cluster ranges that are granted to nodes and never overlap.
//!
//! - [`SegmentPolicy`]: the operator's rules for ranges, segment sizes, and how many segments a
//!   node may hold.
//! - [`Ledger`]: keeps the row of every segment and chooses the next grant. Time and changes are
//!   arguments.
//! - `claim_check`: decides whether a node may hold a segment that it claims, or returns a
//!   [`ClaimConflict`]. [`ClaimConflicts`]: keeps the conflicts of all nodes.
//! - [`Restored`], [`GrantsPaused`]: delay grants after a restore.
//! - `capacity`: counts free segments and determines the state of a segment.
//!
//! A released segment keeps its row. It is granted to no node until its quarantine has passed, so
//! that no peer with an old view sends packets to the wrong node. After the quarantine, released
//! segments are granted before addresses that were never used, the lowest address first.

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
