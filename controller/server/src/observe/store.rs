//! Wraps a store to measure its commits and to signal when it is closed.

use std::sync::Arc;
use std::time::Instant;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::state::{Change, Snapshot};
use edge_controller_domain::store::{Committed, Note, Store, StoreError, StoreEvent};
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::metrics::Metrics;

/// A store whose commits are counted and timed.
pub struct MeasuredStore {
    store: Arc<dyn Store>,
    metrics: Metrics,
    // This field is declared after `store`, so that `store` is dropped first.
    closed: DropGuard,
}

impl MeasuredStore {
    /// Wraps a store, so that its commits are counted and timed in these metrics.
    pub fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
        Self { store, metrics, closed: CancellationToken::new().drop_guard() }
    }

    /// Returns a token that is cancelled when the store is closed because nothing uses it any more.
    pub fn closed(&self) -> CancellationToken {
        self.closed.token().clone()
    }
}

impl Store for MeasuredStore {
    fn load(&self, followed: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.store.load(followed)
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        Box::pin(async move {
            let begun = Instant::now();
            let committed = self.store.commit(batch, now).await;
            let conflict = |result: &&Result<(), StoreError>| matches!(result, Err(StoreError::Conflict { .. }));
            let conflicts = committed.results.iter().filter(conflict).count();
            let failed = committed.results.iter().filter(|result| result.is_err()).count() > conflicts;
            self.metrics.commit(committed.results.len(), begun.elapsed(), failed, conflicts);
            committed
        })
    }

    fn raise_revision(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.raise_revision(revision)
    }

    fn replace_time(&self, now: Seconds) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.replace_time(now)
    }

    fn note(&self, note: Note) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        self.store.note(note)
    }

    fn set_note(&self, note: Note, text: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.set_note(note, text)
    }

    fn begin_import(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.begin_import()
    }

    fn catch_up(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.catch_up(revision)
    }

    fn read(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.store.read()
    }

    fn reload_segments(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.reload_segments()
    }

    fn acknowledge(&self, revision: u64) {
        self.store.acknowledge(revision);
    }
}
