//! Handles writes by this replica. While a write is in flight, the watch's events about its object
//! wait.

use edge_controller_domain::state::{Change, RowKey};

use super::entry::Entry;
use super::versions::ObjectVersions;
use crate::resources::kinds::{ForeignMetadata, ObjectKey, StoredObject};

/// The state that a write expects.
#[derive(Debug, Clone)]
pub(in crate::store) enum WriteBase {
    /// The object does not exist.
    Nothing,
    /// The object exists and is this one. `key`: the row that it holds. `held`: whether it is a
    /// segment that a node holds.
    Object { key: RowKey, uid: String, version: u64, held: bool, foreign: ForeignMetadata },
}

/// The reason why a write cannot begin.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum NotWritable {
    /// The plan was not based on the latest state of the object.
    Stale,
    /// An earlier write has not ended.
    Busy,
    /// The object is missing, for this reason.
    Frozen(String),
}

impl ObjectVersions {
    /// Begins a write. [`ObjectVersions::end`] or one of its variants must follow.
    pub(in crate::store) fn begin(&mut self, object_key: &ObjectKey) -> Result<WriteBase, NotWritable> {
        if self.in_flight.contains_key(object_key) {
            return Err(NotWritable::Busy);
        }
        if self.absent.contains_key(object_key) {
            return Err(self
                .frozen
                .get(&object_key.0)
                .map_or(NotWritable::Stale, |why| NotWritable::Frozen(why.clone())));
        }
        let base = match self.entries.get(object_key) {
            Some(entry) if entry.last_event > self.acknowledged => return Err(NotWritable::Stale),
            Some(entry) if entry.present => WriteBase::Object {
                key: entry.key.clone(),
                uid: entry.uid.clone(),
                version: entry.version,
                held: entry.held,
                foreign: entry.foreign.clone(),
            },
            _ => WriteBase::Nothing,
        };
        self.in_flight.insert(object_key.clone(), Vec::new());
        Ok(base)
    }

    /// Ends a write that the API server has confirmed.
    pub(in crate::store) fn end_written(&mut self, object_key: ObjectKey, object: StoredObject, change: &Change) {
        self.number = self.number.max(self.revision_of(object.version));
        let StoredObject { uid, version, foreign, .. } = object;
        let entry = Entry::of(uid, version, foreign, change);
        self.entries.insert(object_key.clone(), entry);
        self.end(&object_key);
    }

    /// Ends a deletion that the API server has confirmed.
    pub(in crate::store) fn end_deleted(&mut self, object_key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(object_key) {
            entry.present = false;
            entry.last_event = 0;
        }
        self.note_deleted(object_key);
        self.end(object_key);
    }

    /// Ends a grant that was rolled back. The registry never received the grant's object, so later
    /// events about that object are dropped. Otherwise they would hide the row of the node that
    /// gets the segment next.
    pub(in crate::store) fn end_rolled_back(&mut self, object_key: ObjectKey, object: StoredObject, change: &Change) {
        let StoredObject { uid, version, foreign, .. } = object;
        let entry = Entry { present: false, ..Entry::of(uid, version, foreign, change) };
        self.entries.insert(object_key.clone(), entry);
        self.note_deleted(&object_key);
        self.end(&object_key);
    }

    /// Ends a write and takes the events that arrived in the meantime.
    pub(in crate::store) fn end(&mut self, object_key: &ObjectKey) {
        for event in self.in_flight.remove(object_key).unwrap_or_default() {
            self.observe(object_key.clone(), event);
        }
    }
}
