//! Segments: cut from the cluster's ranges, never overlapping, one row per grant.
//!
//! - [`Policy`]: from which ranges, how large, how many.
//! - [`Ledger`]: who holds what; decides the next grant. Pure: time and changes come in as
//!   arguments.
//!
//! A released segment keeps its row. It is given to nobody until its quarantine is over, so that no
//! peer with an old view sends one node's packets to another; then it is preferred, lowest first,
//! to addresses that were never used.

mod claims;
mod conflicts;
mod ledger;
mod policy;
mod range;
mod restored;
mod room;

pub use claims::Conflict;
pub use conflicts::Conflicts;
pub use ledger::{Exhausted, Grant, Holding, Ledger, Row};
pub use policy::Policy;
pub use range::{contains, overlap};
pub use restored::{Restored, Withheld};
pub use room::free_segments;
