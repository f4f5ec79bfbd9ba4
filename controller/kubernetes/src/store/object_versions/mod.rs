//! The version of every object, and whether the registry knows it.
//!
//! A change may be written only over the version on which it was planned. The registry plans on the
//! events that it has processed and on its own writes. It did not know events that were sent and
//! not processed yet. So every event has a number, and the registry reports the last one that it
//! has processed ([`ObjectVersions::acknowledged`]). An object with a later event is not
//! overwritten: that is a conflict, as if the API server had refused the write.
//!
//! While a write of this replica is in flight, the watch's events of that object wait. They may be
//! the echo of the write, or earlier or later changes. When the API server has answered, the
//! versions tell which.
//!
//! A missing object was not necessarily deleted on purpose: its definition (CRD) may have been
//! deleted. So its row stays until the reason is known (see `missing_objects`), unless a replica
//! has marked the object for its own deletion.

mod missing;
mod writes;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use edge_controller_domain::state::{Change, RowKey};
use tokio::sync::{Notify, mpsc};

use super::kinds::{ForeignMetadata, Kind, ObjectKey, StoredObject, blocked};
use crate::events::{About, Events};

use missing::Absent;
pub(super) use missing::Missing;
pub(super) use writes::{NotWritable, WriteBase};

/// Number of revisions for one resourceVersion. Events that come late, from the slower of two
/// watches, get revisions of their own.
const LATE: u64 = 1000;

/// An event for the registry with its number, which is also the revision after it. Without an
/// event, only the revision rises.
pub(super) type NumberedEvent = (u64, Option<RowEvent>);

/// An event for the registry.
#[derive(Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(super) enum RowEvent {
    /// A row changed.
    Changed(Change),
    /// The object of this row was deleted and created again with the same row.
    Recreated(RowKey),
}

/// The versions of all objects of all kinds.
pub(super) struct ObjectVersions {
    entries: HashMap<ObjectKey, Entry>,
    /// The resourceVersion up to which everything of each kind is known.
    at: [u64; 4],
    /// Added to revisions that come from resourceVersions. Rows from another store brought
    /// revisions of their own.
    offset: u64,
    /// Highest number of an event or a write.
    number: u64,
    /// Number of the last event.
    last_event: u64,
    /// The registry has processed the events up to this number.
    acknowledged: u64,
    sender: mpsc::UnboundedSender<NumberedEvent>,
    events: Events,
    /// Objects that cannot be read, and why. Each reason is reported once and not with every list.
    unreadable: HashMap<ObjectKey, String>,
    /// Objects that this replica is writing, with the watch's events since the write began.
    in_flight: HashMap<ObjectKey, Vec<ObjectEvent>>,
    /// Missing objects for which the reason is not known yet. There is at most one for each entry;
    /// the events that wait there are as many as people make changes.
    absent: HashMap<ObjectKey, Absent>,
    /// Kinds with a definition that is missing or was created again, with the reason why deletions
    /// of this kind do not count.
    frozen: HashMap<Kind, String>,
    /// Notified when an object goes missing.
    absence: Arc<Notify>,
    /// Version of the list that showed that etcd was restored from a backup. Nobody deleted the
    /// objects that this list lacks.
    restored_at: HashMap<Kind, u64>,
}

struct Entry {
    key: RowKey,
    uid: String,
    version: u64,
    /// The object exists. Otherwise it was deleted, and `version` is the version of the deletion or
    /// of the deleted object.
    present: bool,
    /// Number of the last event about it; 0 if the registry knew it at once.
    last_event: u64,
    /// Digest of the row, to recognise events that change nothing.
    digest: u64,
    /// It is a segment that a node holds.
    held: bool,
    foreign: ForeignMetadata,
}

/// An event about one object.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most are the large one")]
pub(super) enum ObjectEvent {
    Applied(StoredObject),
    /// `by_replica`: a replica deleted it.
    Deleted {
        uid: Option<String>,
        version: u64,
        by_replica: bool,
    },
}

impl ObjectVersions {
    pub(super) fn new(sender: mpsc::UnboundedSender<NumberedEvent>, events: Events) -> Self {
        Self {
            entries: HashMap::new(),
            at: [0; 4],
            offset: 0,
            number: 0,
            last_event: 0,
            acknowledged: 0,
            sender,
            events,
            unreadable: HashMap::new(),
            in_flight: HashMap::new(),
            absent: HashMap::new(),
            frozen: HashMap::new(),
            absence: Arc::default(),
            restored_at: HashMap::new(),
        }
    }

    /// Makes all revisions higher than this one. Called before anything is loaded.
    pub(super) fn begin_above(&mut self, offset: u64) {
        self.offset = offset;
        self.number = self.number.max(offset);
    }

    fn revision_of(&self, version: u64) -> u64 {
        self.offset.saturating_add(version.saturating_mul(LATE))
    }

    /// The resourceVersion up to which everything is known at this revision.
    pub(super) fn version_of(&self, revision: u64) -> u64 {
        revision.saturating_sub(self.offset) / LATE
    }

    /// Takes the objects that exist at the start. Returns their rows, which the registry gets all
    /// at once.
    pub(super) fn load(&mut self, kind: Kind, objects: Vec<StoredObject>, at: u64) -> Vec<Change> {
        let mut rows = Vec::new();
        self.entries.reserve(objects.len());
        for object in objects {
            let object_key = (kind, object.name.clone());
            let Some((entry, change)) = self.read(&object_key, object) else { continue };
            self.entries.insert(object_key, entry);
            rows.push(change);
        }
        self.reached(kind, at);
        rows
    }

    /// Takes a complete list of a kind at version `at`. An object that is known and not in the list
    /// is gone, unless it is newer than the list. `before` is the version up to which the kind was
    /// known when the list was requested.
    pub(super) fn listed(&mut self, kind: Kind, objects: Vec<StoredObject>, at: u64, before: u64) {
        let restored = at < before;
        if restored {
            tracing::error!(
                what = kind.what(),
                before,
                at,
                "versions went back: etcd was restored from a backup; what it holds now is what holds, and what it lacks is written again"
            );
            self.restored_at.insert(kind, at);
            // Versions from before the restore cannot be compared with later ones.
            self.entries
                .iter_mut()
                .filter(|(object_key, _)| object_key.0 == kind)
                .for_each(|(_, entry)| entry.version = 0);
            self.at[kind as usize] = 0;
        }
        let mut missing: HashMap<String, String> = self
            .entries
            .iter()
            .filter(|(object_key, entry)| object_key.0 == kind && entry.present && entry.version <= at)
            .map(|(object_key, entry)| (object_key.1.clone(), entry.uid.clone()))
            .collect();
        for object in objects {
            missing.remove(&object.name);
            self.observe((kind, object.name.clone()), ObjectEvent::Applied(object));
        }
        for (name, uid) in missing {
            self.observe((kind, name), ObjectEvent::Deleted { uid: Some(uid), version: at, by_replica: false });
        }
        self.reached(kind, at);
    }

    /// Takes an event about one object.
    pub(super) fn observe(&mut self, object_key: ObjectKey, event: ObjectEvent) {
        if let Some(waiting) = self.in_flight.get_mut(&object_key) {
            waiting.push(event);
            return;
        }
        if let Some(absent) = self.absent.get_mut(&object_key) {
            match event {
                ObjectEvent::Deleted { uid, by_replica: true, .. }
                    if uid.as_ref().is_none_or(|uid| *uid == absent.uid) =>
                {
                    self.accept_deletion(&object_key);
                }
                event => {
                    absent.waiting.push(event);
                    self.absence.notify_one();
                }
            }
            return;
        }
        match event {
            ObjectEvent::Applied(object) => self.apply(object_key, object),
            ObjectEvent::Deleted { uid, version, by_replica } if by_replica || object_key.0 == Kind::Token => {
                self.delete(&object_key, uid.as_deref(), version);
            }
            ObjectEvent::Deleted { uid, version, .. } => self.mark_missing(object_key, uid, version),
        }
    }

    /// Notes that everything of a kind is known up to this version.
    pub(super) fn reached(&mut self, kind: Kind, version: u64) {
        let at = &mut self.at[kind as usize];
        *at = version.max(*at);
        self.number = self.number.max(self.revision_of(version));
    }

    /// The version up to which everything of this kind is known.
    pub(super) fn at(&self, kind: Kind) -> u64 {
        self.at[kind as usize]
    }

    /// Kinds that are not known up to this version.
    pub(super) fn behind(&self, version: u64) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.at[*kind as usize] < version).collect()
    }

    fn apply(&mut self, object_key: ObjectKey, object: StoredObject) {
        let before = self.entries.get_mut(&object_key);
        if let Some(entry) = before {
            // The echo of a write, or older than what is known; this also holds for an object that
            // is gone.
            if object.version <= entry.version {
                return;
            }
            if object.uid == entry.uid && !entry.present {
                return;
            }
            if let Err(why) = &object.row {
                entry.version = object.version;
                entry.foreign = object.foreign.clone();
                if entry.uid == object.uid {
                    let why = why.clone();
                    return self.cannot_read(&object_key, &why, "its last readable state goes on to hold");
                }
            }
        }
        let Some((mut entry, change)) = self.read(&object_key, object) else { return };
        if let Some(before) = self.entries.get(&object_key) {
            entry.last_event = before.last_event;
            if before.present && before.digest == entry.digest {
                let recreated = (before.uid != entry.uid).then(|| RowEvent::Recreated(entry.key.clone()));
                self.entries.insert(object_key, entry);
                if let Some(event) = recreated {
                    self.send_event(event, 0);
                }
                return;
            }
            // The change has another key and would leave the old row.
            if before.present && before.key != entry.key {
                let delete = deletion(&before.key);
                self.send_change(Some(delete), 0);
            }
        }
        entry.last_event = self.send_change(Some(change), entry.version);
        self.entries.insert(object_key, entry);
    }

    fn delete(&mut self, object_key: &ObjectKey, uid: Option<&str>, version: u64) {
        self.unreadable.remove(object_key);
        let Some(entry) = self.entries.get_mut(object_key) else { return };
        if !entry.present || uid.is_some_and(|uid| uid != entry.uid) || version < entry.version {
            return;
        }
        entry.present = false;
        entry.version = version;
        let delete = deletion(&entry.key);
        let last_event = self.send_change(Some(delete), version);
        if let Some(entry) = self.entries.get_mut(object_key) {
            entry.last_event = last_event;
        }
    }

    /// Reads an object into an entry and its row. An unreadable segment blocks its addresses; any
    /// other unreadable object counts as absent.
    fn read(&mut self, object_key: &ObjectKey, object: StoredObject) -> Option<(Entry, Change)> {
        let StoredObject { uid, version, row, foreign, .. } = object;
        let change = match row {
            Ok(change) => {
                self.unreadable.remove(object_key);
                change
            }
            Err(why) if object_key.0 == Kind::Segment => {
                self.cannot_read(object_key, &why, "its addresses are given to nobody");
                blocked(&object_key.1)?
            }
            Err(why) => {
                self.cannot_read(object_key, &why, "it counts as absent");
                return None;
            }
        };
        Some((Entry::of(uid, version, foreign, &change), change))
    }

    fn cannot_read(&mut self, object_key: &ObjectKey, why: &str, so: &str) {
        if self.unreadable.get(object_key).is_some_and(|event| event == why) {
            return;
        }
        self.unreadable.insert(object_key.clone(), why.to_owned());
        let ((kind, name), what) = (object_key, object_key.0.what());
        tracing::error!(what, name, "the object cannot be read: {why}; {so}; correct it or delete it");
        let about = match kind {
            Kind::Node => About::EdgeNode,
            Kind::Segment => About::Segment,
            Kind::Community => About::Community,
            Kind::Token => return,
        };
        self.events.warning(about, name, "Unreadable", format!("{why}; {so}"));
    }

    /// Sends a change under the next number. Before the registry has started and after it has
    /// ended, nothing receives it.
    fn send_change(&mut self, change: Option<Change>, version: u64) -> u64 {
        self.send_numbered(change.map(RowEvent::Changed), version)
    }

    fn send_event(&mut self, event: RowEvent, version: u64) -> u64 {
        self.send_numbered(Some(event), version)
    }

    fn send_numbered(&mut self, event: Option<RowEvent>, version: u64) -> u64 {
        self.number = (self.number + 1).max(self.revision_of(version));
        let _ = self.sender.send((self.number, event));
        self.last_event = self.number;
        self.number
    }

    /// Raises the registry's revision above one that another replica has given out.
    pub(super) fn rise_above(&mut self, revision: u64) {
        self.number = self.number.max(revision);
        self.send_change(None, 0);
    }

    /// Notes the version of a write of this replica that changed no row.
    pub(super) fn raise_number(&mut self, version: u64) {
        self.number = self.number.max(self.revision_of(version));
    }

    /// Sends the registry a write of this replica that it does not know of.
    pub(super) fn publish_write(&mut self, change: Change) {
        let object_key = Kind::object_key(&change.key());
        let last_event = self.send_change(Some(change), 0);
        if let Some(entry) = self.entries.get_mut(&object_key) {
            entry.last_event = last_event;
        }
    }

    /// Lets the next write of this object count as planned on its latest state, whatever the
    /// registry knows.
    pub(super) fn plan_knows(&mut self, object_key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(object_key) {
            entry.last_event = 0;
        }
    }

    /// The revision that includes all that is known.
    pub(super) fn revision(&self) -> u64 {
        self.number
    }

    /// The registry has processed the events up to this number.
    pub(super) fn acknowledged(&mut self, number: u64) {
        self.acknowledged = self.acknowledged.max(number);
    }

    /// Number of the last event.
    pub(super) fn last_event(&self) -> u64 {
        self.last_event
    }
}

impl Entry {
    fn of(uid: String, version: u64, foreign: ForeignMetadata, change: &Change) -> Self {
        let key = change.key();
        let held = match change {
            Change::GrantSegment(row) | Change::PutSegment(row) => row.released_at.is_none(),
            _ => false,
        };
        Self { key, uid, version, present: true, last_event: 0, digest: digest(change), held, foreign }
    }
}

/// The change that deletes a row.
pub(super) fn deletion(key: &RowKey) -> Change {
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

#[cfg(test)]
mod tests;
