//! The state that the parts of the store share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use edge_controller_domain::state::{Change, Snapshot};
use edge_controller_domain::store::{StoreError, StoreEvent};
use tokio::sync::{mpsc, oneshot, watch};

use super::definitions::Definitions;
use super::fields;
use super::object_versions::{ObjectEvent, ObjectVersions};
use super::shared_config::SharedConfig;
use super::source::RowSource;
use crate::client::{ApiFailures, REQUEST};
use crate::events::EventRecorder;
use crate::list_watch::{ListWatchEvent, list};
use crate::resources::kinds::{Apis, Kind, StoredObject};

/// The state that the parts of the store share.
pub(super) struct StoreCore {
    pub(super) apis: Apis,
    pub(super) objects: Mutex<ObjectVersions>,
    pub(super) shared_config: SharedConfig,
    pub(super) definitions: Definitions,
    pub(super) api_failures: ApiFailures,
    pub(super) events: EventRecorder,
    /// Whether many deletions at once are undone until the operator confirms them.
    pub(super) confirm: AtomicBool,
    /// The channel for events to the registry.
    pub(super) registry_events: OnceLock<mpsc::Sender<StoreEvent>>,
    /// Number of the last event that the registry has processed.
    pub(super) acknowledged: watch::Sender<u64>,
    /// Batches of grants that are neither confirmed nor rolled back yet.
    pub(super) unsettled: AtomicUsize,
}

impl StoreCore {
    pub(super) fn confirm(&self) -> bool {
        self.confirm.load(Ordering::Relaxed)
    }

    pub(super) fn objects(&self) -> MutexGuard<'_, ObjectVersions> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks whether the definition of a kind drops fields that are written, and reports such
    /// fields.
    pub(super) async fn look_at_fields(&self, kind: Kind) -> Result<(), StoreError> {
        let what = format!("fields of {}", kind.what());
        match fields::warning(kind, &self.definitions.look_at_fields(kind).await?) {
            Some(why) => self.api_failures.record_minor(&what, why),
            None => self.api_failures.clear(&what),
        }
        Ok(())
    }

    /// Refuses a change if the served definition of its kind drops a field that must not be lost.
    pub(super) fn check_fields(&self, change: &Change) -> Result<(), String> {
        fields::check(change, &self.definitions.dropped(Kind::object_key(&change.key()).0))
    }

    pub(super) fn source(&self, kind: Kind) -> RowSource {
        RowSource { kind, api: self.apis.of(kind).clone() }
    }

    pub(super) async fn list(&self, kind: Kind) -> Result<(Kind, Vec<StoredObject>, u64), StoreError> {
        let (objects, at) = list(&self.source(kind)).await.map_err(StoreError::Failed)?;
        Ok((kind, objects, at))
    }

    /// Waits until the registry has processed all events so far.
    pub(super) async fn until_acknowledged(&self) -> Result<(), StoreError> {
        let last = self.objects().last_event();
        let mut acknowledged = self.acknowledged.subscribe();
        let waited = tokio::time::timeout(REQUEST, acknowledged.wait_for(|number| *number >= last)).await;
        let late =
            || StoreError::Failed(format!("the registry did not process all events within {} s", REQUEST.as_secs()));
        waited.map_err(|_| late())?.map(drop).map_err(|_| late())
    }

    /// Returns all rows in the registry's state.
    ///
    /// # Errors
    /// Returns an error if the store is not loaded, or the registry does not answer in time.
    pub(super) async fn known_rows(&self) -> Result<Snapshot, String> {
        let registry = self.registry_events.get().ok_or("the store is not loaded yet")?;
        let (rows, received) = oneshot::channel();
        let asked = async {
            registry.send(StoreEvent::Rows(rows)).await.ok()?;
            received.await.ok()
        };
        let late = || format!("the registry did not send its rows within {} s", REQUEST.as_secs());
        let rows = tokio::time::timeout(REQUEST, asked).await.map_err(|_| late())?;
        rows.ok_or_else(|| "the registry has stopped".to_owned())
    }

    pub(super) fn apply(&self, kind: Kind, before: &mut u64, event: ListWatchEvent<StoredObject>) {
        match event {
            ListWatchEvent::ListStarted => *before = self.objects().at(kind),
            ListWatchEvent::Listed(all, at) => self.objects().listed(kind, all, at, *before),
            ListWatchEvent::Bookmark(version) => self.objects().reached(kind, version),
            ListWatchEvent::Applied(object) => {
                let (object_key, version) = ((kind, object.name.clone()), object.version);
                let mut objects = self.objects();
                objects.observe(object_key, ObjectEvent::Applied(object));
                objects.reached(kind, version);
            }
            ListWatchEvent::Deleted(object) => {
                let StoredObject { name, uid, version, deleting, .. } = object;
                let mut objects = self.objects();
                objects.observe((kind, name), ObjectEvent::Deleted { uid: Some(uid), version, by_replica: deleting });
                objects.reached(kind, version);
            }
        }
    }
}
