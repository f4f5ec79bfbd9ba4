//! Holds the known state of one object and the events about it.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use edge_controller_domain::state::{Change, RowKey};
use tokio::time::Instant;

use crate::resources::kinds::{ForeignMetadata, ObjectKey, StoredObject};

/// An event for the registry with its number, which is also the revision after it. Without an
/// event, only the revision rises.
pub(in crate::store) type NumberedEvent = (u64, Option<RowEvent>);

/// An event for the registry.
#[derive(Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(in crate::store) enum RowEvent {
    /// A row changed.
    Changed(Change),
    /// The object of this row was deleted and created again with the same row.
    Recreated(RowKey),
}

/// The known state of one object.
pub(super) struct Entry {
    pub(super) key: RowKey,
    pub(super) uid: String,
    pub(super) version: u64,
    /// Whether the object exists. If it was deleted, `version` is the version of the deletion or of
    /// the deleted object.
    pub(super) present: bool,
    /// Number of the last event about the object; 0 if the registry has the object's state without
    /// an event.
    pub(super) last_event: u64,
    /// Digest of the row, used to recognise events that change nothing.
    pub(super) digest: u64,
    /// Whether the object is a segment that a node holds.
    pub(super) held: bool,
    pub(super) foreign: ForeignMetadata,
}

/// An event about one object.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most are the large one")]
pub(in crate::store) enum ObjectEvent {
    Applied(StoredObject),
    /// The object was deleted. `by_replica`: whether a replica deleted it.
    Deleted {
        uid: Option<String>,
        version: u64,
        by_replica: bool,
    },
}

/// A missing object whose row is kept.
pub(super) struct AbsentObject {
    pub(super) uid: String,
    pub(super) version: u64,
    pub(super) since: Instant,
    /// Events about the object since it went missing.
    pub(super) waiting: Vec<ObjectEvent>,
}

/// A missing object.
#[derive(Debug, Clone)]
pub(in crate::store) struct MissingObject {
    pub(in crate::store) object_key: ObjectKey,
    pub(in crate::store) key: RowKey,
    pub(in crate::store) since: Instant,
    /// Whether an object of the same name exists again.
    pub(in crate::store) recreated: bool,
    /// Whether etcd was restored from a backup that is older than this object.
    pub(in crate::store) restored: bool,
}

impl Entry {
    pub(super) fn of(uid: String, version: u64, foreign: ForeignMetadata, change: &Change) -> Self {
        let key = change.key();
        let held = match change {
            Change::GrantSegment(row) | Change::PutSegment(row) => row.released_at.is_none(),
            _ => false,
        };
        Self { key, uid, version, present: true, last_event: 0, digest: digest(change), held, foreign }
    }
}

/// Returns the change that deletes a row.
pub(in crate::store) fn deletion(key: &RowKey) -> Change {
    match key.clone() {
        RowKey::Node(name) => Change::DeleteNode(name),
        RowKey::Token(id) => Change::DeleteToken(id),
        RowKey::Segment(network) => Change::DeleteSegment(network),
        RowKey::Community(name) => Change::DeleteCommunity(name),
    }
}

fn digest(change: &Change) -> u64 {
    let mut hasher = DefaultHasher::new();
    match change {
        // A grant and a write of the same row have the same digest.
        Change::GrantSegment(row) | Change::PutSegment(row) => row.hash(&mut hasher),
        other => other.hash(&mut hasher),
    }
    hasher.finish()
}
