//! Stores the rows durably. Replicas of the controller that share a store synchronise through it.
//!
//! - [`Store`]: the trait of all stores.
//! - [`embedded`]: the embedded store, one redb file, which one process at a time uses. It is the
//!   default.
//!
//! `edge_controller_kubernetes` has the other store, which keeps rows as objects at the API server.
//! Any number of replicas share it.

pub mod embedded;

use futures_util::future::BoxFuture;

use tokio::sync::{mpsc, oneshot};

use crate::clock::{Seconds, StoredTimeAhead};
use crate::state::{Change, RowKey, Snapshot};

/// A durable set of rows.
///
/// Revisions only rise, also across restarts and between the replicas that share a store. A reader
/// that has seen revision n has seen everything that was committed up to n.
pub trait Store: Send + Sync {
    /// Reads all rows at the start. Later changes by other replicas arrive through `events`.
    fn load(&self, events: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>>;

    /// Reads all rows without following later changes, and changes nothing in the store. For a
    /// store with one user this is the same as [`Store::load`].
    fn read(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.load(mpsc::channel(1).0)
    }

    /// Makes changes durable. Each element of `batch` is committed as a whole or not at all, and is
    /// durable when this returns. Elements that change the same rows are carried out in order. The
    /// store also keeps `now`, the time of the commit.
    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed>;

    /// Makes every later revision greater than `revision`. An import needs this, because nodes have
    /// seen revisions of the store from which the rows come.
    fn raise_revision(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        let refused = StoreError::Failed(format!("this store cannot begin above revision {revision}"));
        Box::pin(std::future::ready(Err(refused)))
    }

    /// Sets the time that the store keeps, also to an earlier one. For a store in which every
    /// commit does that, there is nothing to do.
    fn replace_time(&self, now: Seconds) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = now;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Reads a note that is kept in addition to the rows; `None` if it was never written.
    fn note(&self, note: Note) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        let _ = note;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Writes a note that is kept in addition to the rows.
    fn set_note(&self, note: Note, text: String) -> BoxFuture<'_, Result<(), StoreError>> {
        let refused = StoreError::Failed(format!("this store cannot store the note {} ({text})", note.key()));
        Box::pin(std::future::ready(Err(refused)))
    }

    /// Prepares for an import: the next rows come from a backup, and the former rows are known to
    /// be lost.
    fn begin_import(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Waits until the state has all changes that were committed up to a revision. A store with one
    /// user has nothing to wait for.
    fn catch_up(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = revision;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Waits until the state has every segment that any replica granted before this call, even if
    /// the outcome is still unknown at that replica. A store with one user has nothing to wait for.
    fn reload_segments(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Reports that the state contains the event of this revision. Plans that are committed from
    /// now on were made on that state.
    fn acknowledge(&self, revision: u64);
}

/// A text that the store keeps in addition to the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// UID of the namespace kube-system of the cluster whose nodes are registered.
    Cluster,
    /// Cluster ranges and networks from the last configuration that was in use: see
    /// [`crate::reachability`].
    Reach,
    /// Time of the last restore: see [`crate::segments::Restored`].
    Restored,
}

impl Note {
    /// Returns the note's key in the store.
    pub fn key(self) -> &'static str {
        match self {
            Note::Cluster => "cluster",
            Note::Reach => "reach",
            Note::Restored => "restored",
        }
    }
}

/// The outcome of a batch.
#[derive(Debug)]
pub struct Committed {
    /// Revision of the store after the batch.
    pub revision: u64,
    /// For each element, whether it was committed.
    pub results: Vec<Result<(), StoreError>>,
}

/// An event from the store: other replicas changed rows, or the store requests all rows.
#[derive(Debug)]
pub enum StoreEvent {
    /// Other replicas, or people, changed rows.
    Changes {
        /// The changes, in order.
        changes: Vec<Change>,
        /// Rows whose objects the store wrote again, unchanged. The status on the former objects is
        /// lost.
        recreated: Vec<RowKey>,
        /// Revision with these changes, higher than that of the previous event. Earlier changes of
        /// other replicas may still arrive later: see [`Store::catch_up`].
        revision: u64,
    },
    /// The store read all rows again, since it may have missed a change.
    Snapshot(Snapshot),
    /// The store requests all rows of the state, since the stored rows may be lost.
    Rows(oneshot::Sender<Snapshot>),
}

/// The reason why a store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The controller is stopping and makes no more changes.
    #[error("the controller is stopping")]
    Stopping,
    /// The file or the service behind the store failed.
    #[error("the store failed: {0}")]
    Failed(String),
    /// A row of the store cannot be read.
    #[error(
        "the store holds {table} {key:?}, which cannot be read ({why}); restore it from a backup or use the release that wrote it"
    )]
    Unreadable {
        /// The table that holds the row.
        table: &'static str,
        /// The key of the row.
        key: String,
        /// The error in the row.
        why: String,
    },
    /// A newer release wrote the store.
    #[error(
        "{path} is of layout {found}, which a newer release wrote; this one knows layouts up to {ours}: use the newer release, or \
         restore a backup that this one made (edge-controller restore). The file is left as it is"
    )]
    Newer {
        /// Path of the store's file.
        path: std::path::PathBuf,
        /// The layout version that was found.
        found: u64,
        /// The latest layout version that this release supports.
        ours: u64,
    },
    /// The time in the store is far ahead of the machine's clock.
    #[error(transparent)]
    TimeAhead(#[from] StoredTimeAhead),
    /// Another replica changed the same rows first. A plan that is repeated with `current` may
    /// succeed.
    #[error("another replica changed {key} at the same moment")]
    Conflict {
        /// The first row that differs.
        key: RowKey,
        /// The rows concerned as they are now.
        current: Vec<Change>,
    },
}
