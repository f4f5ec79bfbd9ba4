//! Checks whether nodes reach each other exactly where their views permit it.
//!
//! - `plan`: chooses the paths that are checked.
//! - `measurers`: sends requests to the nodes that can measure, and waits for their reports.
//! - `judgement`: compares what was measured with what is permitted.

mod judgement;
mod measurers;
mod plan;

pub use judgement::{judge, unknown};
pub use measurers::{MeasureError, Measurer, Measurers};
pub use plan::{Path, Plan, UnknownName};
