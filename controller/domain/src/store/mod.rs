//! Where rows outlive the process, and where replicas of the controller meet.
//!
//! - [`Store`]: the door.
//! - [`embedded`]: one file, by redb; the default. It has one user.
//!
//! `edge_controller_kubernetes` has the other one: objects at the API server, which any number of
//! replicas share.

pub mod embedded;

use std::future::Future;
use std::pin::Pin;

use tokio::sync::{mpsc, oneshot};

use crate::clock::Seconds;
use crate::state::{Change, Key, Snapshot};

/// What the methods of [`Store`] give: boxed, so that the store can be chosen when the program
/// starts.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A durable set of rows.
///
/// Revisions only rise, also across restarts and between the replicas that share a store: whoever
/// has seen revision n has seen all that was committed up to n.
pub trait Store: Send + Sync {
    /// Reads everything, at start. What others change from then on comes by `followed`.
    fn load(&self, followed: mpsc::Sender<Followed>) -> Answer<'_, Result<Snapshot, StoreError>>;

    /// Reads everything for one who takes no part, and changes nothing. With a store that has one
    /// user that is no different.
    fn read(&self) -> Answer<'_, Result<Snapshot, StoreError>> {
        self.load(mpsc::channel(1).0)
    }

    /// Makes changes durable. Each element of `batch` is all or nothing, and durable when this
    /// answers; elements that change the same rows are carried out in order. `now` is the time,
    /// which is kept.
    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> Answer<'_, Committed>;

    /// Makes every later revision greater than this one: rows come from another store, and nodes
    /// have seen its revisions.
    fn raise(&self, revision: u64) -> Answer<'_, Result<(), StoreError>> {
        let refused = StoreError::Failed(format!("this store cannot begin above revision {revision}"));
        Box::pin(std::future::ready(Err(refused)))
    }

    /// What was noted beside the rows, if anything.
    fn note(&self, note: Note) -> Answer<'_, Result<Option<String>, StoreError>> {
        let _ = note;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Notes something beside the rows.
    fn set_note(&self, note: Note, text: String) -> Answer<'_, Result<(), StoreError>> {
        let refused = StoreError::Failed(format!("this store cannot note the {} {text}", note.key()));
        Box::pin(std::future::ready(Err(refused)))
    }

    /// The rows that are written next come from a backup: that the former ones were lost is known.
    fn begin_again(&self) -> Answer<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes sure that all that was committed up to a revision has been followed and taken in. For
    /// a store with one user that is always so.
    fn catch_up(&self, revision: u64) -> Answer<'_, Result<(), StoreError>> {
        let _ = revision;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes sure that every segment that anyone has claimed before this is called has been
    /// followed and taken in: also by one who did not hear what became of it. For a store with one
    /// user that is always so.
    fn read_segments_anew(&self) -> Answer<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The news with this revision are in the state: plans that are committed from now on were made
    /// on them.
    fn taken_in(&self, revision: u64);
}

/// What is noted beside the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The cluster by which nodes are registered: the UID of its namespace kube-system.
    Cluster,
    /// Ranges and networks that were in force last: see [`crate::reach`].
    Reach,
    /// That the rows were restored: see [`crate::segments::Restored`].
    Restored,
}

impl Note {
    /// Names it where it is kept.
    pub fn key(self) -> &'static str {
        match self {
            Note::Cluster => "cluster",
            Note::Reach => "reach",
            Note::Restored => "restored",
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Committed {
    /// Revision of the store with all of it.
    pub revision: u64,
    /// For each element, whether it holds.
    pub results: Vec<Result<(), StoreError>>,
}

/// News of rows that somebody else changed.
#[derive(Debug)]
pub enum Followed {
    /// Some rows changed.
    Changes {
        /// How.
        changes: Vec<Change>,
        /// Rows of which the store had to write the object again, as it was: what was shown on it
        /// is gone.
        recreated: Vec<Key>,
        /// Revision with them, higher than of the news before. What other replicas wrote earlier
        /// may still come later: see [`Store::catch_up`].
        revision: u64,
    },
    /// Everything was read anew, since it was not certain what holds.
    Snapshot(Snapshot),
    /// The store asks for all rows as they are known: its own may be lost.
    Rows(oneshot::Sender<Snapshot>),
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The controller stops, and makes no more changes.
    #[error("the controller is stopping")]
    Stopping,
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
    /// A newer release wrote the store.
    #[error(
        "{path} is of layout {found}, which a newer release wrote; this one knows layouts up to {ours}: use the newer release, or \
         restore a backup that this one made (edge-controller restore). The file is left as it is"
    )]
    Newer {
        /// The file.
        path: std::path::PathBuf,
        /// Its layout.
        found: u64,
        /// The latest that is known here.
        ours: u64,
    },
    /// Another was quicker: what this was planned on does not hold any more. Planned anew on
    /// `current`, it may succeed.
    #[error("{key} was changed by another at the same moment")]
    Conflict {
        /// The row.
        key: Key,
        /// How the rows concerned stand now.
        current: Vec<Change>,
    },
}
