//! Where rows outlive the process.
//!
//! - [`Store`]: the door. A commit is all or nothing and durable before it answers.
//! - [`embedded`]: one file, by redb; the default.

pub mod embedded;

use std::future::Future;
use std::pin::Pin;

use crate::clock::Seconds;
use crate::state::{Change, Snapshot};

/// What [`Store::commit`] gives: boxed, so that the store can be chosen when the program starts.
pub type Committed<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

/// A durable set of rows.
pub trait Store: Send + Sync {
    /// Reads everything; at start, and after a failed commit.
    fn load(&self) -> Result<Snapshot, StoreError>;

    /// Makes changes durable: all of them, or none and an error. `revision` numbers the commit and `time` is when it was made.
    fn commit(&self, changes: Vec<Change>, revision: u64, time: Seconds) -> Committed<'_>;
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's file or service failed.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The store's content is not what this release writes.
    #[error(
        "the store holds {table} {key:?}, which cannot be read ({why}); restore it from a backup or use the release that wrote it"
    )]
    Unreadable {
        /// Table.
        table: &'static str,
        /// Row.
        key: String,
        /// Why.
        why: String,
    },
    /// Another holds the segment.
    #[error("segment {0} is held by another")]
    Claimed(String),
}
