//! Handles missing objects. Their rows are kept until the reason is known.

use std::sync::Arc;

use edge_controller_domain::state::Change;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::entry::{AbsentObject, Entry, MissingObject, ObjectEvent, RowEvent};
use super::versions::ObjectVersions;
use crate::resources::kinds::{ForeignMetadata, Kind, ObjectKey, StoredObject};

impl ObjectVersions {
    /// Records that an object is missing. Its row is kept until the reason is known.
    pub(super) fn mark_missing(&mut self, object_key: ObjectKey, uid: Option<String>, version: u64) {
        let Some(entry) = self.entries.get(&object_key) else { return drop(self.unreadable.remove(&object_key)) };
        if !entry.present || uid.is_some_and(|uid| uid != entry.uid) || version < entry.version {
            return;
        }
        let (uid, since) = (entry.uid.clone(), Instant::now());
        self.absent.insert(object_key, AbsentObject { uid, version, since, waiting: Vec::new() });
        self.absence.notify_one();
    }

    /// Returns the notification for objects that go missing.
    pub(in crate::store) fn absence(&self) -> Arc<Notify> {
        self.absence.clone()
    }

    /// Returns the missing objects of a kind.
    pub(in crate::store) fn missing(&self, kind: Kind) -> Vec<MissingObject> {
        let of_kind = self.absent.iter().filter(|(object_key, _)| object_key.0 == kind);
        let missing = of_kind.filter_map(|(object_key, absent)| {
            let another =
                |event: &ObjectEvent| matches!(event, ObjectEvent::Applied(object) if object.uid != absent.uid);
            let recreated = absent.waiting.iter().any(another);
            let key = self.entries.get(object_key)?.key.clone();
            let restored = self.restored_at.get(&kind) == Some(&absent.version);
            Some(MissingObject { object_key: object_key.clone(), key, since: absent.since, recreated, restored })
        });
        missing.collect()
    }

    /// Removes the row of a missing object, because somebody who may delete the object did so.
    pub(in crate::store) fn accept_deletion(&mut self, object_key: &ObjectKey) {
        let Some(absent) = self.absent.remove(object_key) else { return };
        self.delete(object_key, Some(&absent.uid), absent.version);
        absent.waiting.into_iter().for_each(|event| self.observe(object_key.clone(), event));
    }

    /// Ends the absence of an object that exists again, or whose row stays without an object. Takes
    /// the events that arrived in the meantime.
    pub(in crate::store) fn keep_row(&mut self, object_key: &ObjectKey) {
        let Some(absent) = self.absent.remove(object_key) else { return };
        absent.waiting.into_iter().for_each(|event| self.observe(object_key.clone(), event));
    }

    /// Refuses writes of missing objects of this kind from now on, for this reason. With `None`,
    /// accepts them again.
    pub(in crate::store) fn freeze(&mut self, kind: Kind, why: Option<String>) {
        match why {
            Some(why) => drop(self.frozen.insert(kind, why)),
            None => drop(self.frozen.remove(&kind)),
        }
    }

    /// Begins to create a missing object again, even if the registry does not have its latest
    /// state. [`Self::end`] or [`Self::end_recreated`] must follow. `None` while another write is
    /// in flight.
    pub(in crate::store) fn begin_recreate(&mut self, object_key: &ObjectKey) -> Option<ForeignMetadata> {
        if self.in_flight.contains_key(object_key) {
            return None;
        }
        self.in_flight.insert(object_key.clone(), Vec::new());
        Some(self.entries.get(object_key).map(|entry| entry.foreign.clone()).unwrap_or_default())
    }

    /// Ends a write that created a missing object again.
    pub(in crate::store) fn end_recreated(&mut self, object_key: &ObjectKey, object: StoredObject, change: &Change) {
        self.number = self.number.max(self.revision_of(object.version));
        let absent = self.absent.remove(object_key);
        let last_event = self.entries.get(object_key).map_or(0, |entry| entry.last_event);
        let StoredObject { uid, version, foreign, .. } = object;
        let entry = Entry { last_event, ..Entry::of(uid, version, foreign, change) };
        self.entries.insert(object_key.clone(), entry);
        self.send_event(RowEvent::Recreated(change.key()), 0);
        // The order matters: the events from before the write come first, then those that arrived
        // during the write.
        let mut events: Vec<ObjectEvent> = absent.into_iter().flat_map(|absent| absent.waiting).collect();
        events.extend(self.in_flight.remove(object_key).unwrap_or_default());
        events.into_iter().for_each(|event| self.observe(object_key.clone(), event));
    }
}
