//! Tracks the versions of all objects. `missing` and `writes` have the methods for their parts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use edge_controller_domain::state::Change;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::deleted::DeletedObject;
use super::entry::{AbsentObject, Entry, NumberedEvent, ObjectEvent, RowEvent, deletion};
use crate::events::{EventRecorder, Regarding};
use crate::resources::kinds::{Kind, ObjectKey, StoredObject, blocked};

/// Number of revisions for one resourceVersion. Late events, from the slower of two watches, get
/// their own revisions.
pub(super) const REVISIONS_PER_VERSION: u64 = 1000;

/// The versions of all objects of all kinds.
pub(in crate::store) struct ObjectVersions {
    pub(super) entries: HashMap<ObjectKey, Entry>,
    /// The deleted objects in `entries`, in the order in which they are looked at.
    pub(super) deleted: VecDeque<DeletedObject>,
    /// The resourceVersion up to which each kind is completely known.
    pub(super) at: [u64; 4],
    /// Offset that is added to revisions from resourceVersions. Rows that were imported from
    /// another store brought their own revisions.
    pub(super) offset: u64,
    /// Highest number of an event or a write.
    pub(super) number: u64,
    /// Number of the last event.
    pub(super) last_event: u64,
    /// Number of the last event that the registry has processed.
    pub(super) acknowledged: u64,
    pub(super) sender: mpsc::UnboundedSender<NumberedEvent>,
    pub(super) events: EventRecorder,
    /// Objects that cannot be read, with the reasons. Each reason is reported once and not at every
    /// list.
    pub(super) unreadable: HashMap<ObjectKey, String>,
    /// Objects that this replica is writing, with the watch's events since the write began.
    pub(super) in_flight: HashMap<ObjectKey, Vec<ObjectEvent>>,
    /// Missing objects whose reason is not known yet. There is at most one for each object in
    /// `entries`. The number of events that wait in it is limited by the number of changes that
    /// people make.
    pub(super) absent: HashMap<ObjectKey, AbsentObject>,
    /// Kinds whose definition is missing or was created again. The value explains why deletions of
    /// the kind's objects are ignored.
    pub(super) frozen: HashMap<Kind, String>,
    /// Notified when an object goes missing.
    pub(super) absence: Arc<Notify>,
    /// Version of the list that showed that etcd was restored from a backup. Nobody deleted the
    /// objects that this list lacks.
    pub(super) restored_at: HashMap<Kind, u64>,
}

impl ObjectVersions {
    pub(in crate::store) fn new(sender: mpsc::UnboundedSender<NumberedEvent>, events: EventRecorder) -> Self {
        Self {
            entries: HashMap::new(),
            deleted: VecDeque::new(),
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

    /// Makes all revisions higher than this one. Must be called before any object is loaded.
    pub(in crate::store) fn begin_above(&mut self, offset: u64) {
        self.offset = offset;
        self.number = self.number.max(offset);
    }

    pub(super) fn revision_of(&self, version: u64) -> u64 {
        self.offset.saturating_add(version.saturating_mul(REVISIONS_PER_VERSION))
    }

    /// Returns the resourceVersion up to which everything is known at this revision.
    pub(in crate::store) fn version_of(&self, revision: u64) -> u64 {
        revision.saturating_sub(self.offset) / REVISIONS_PER_VERSION
    }

    /// Takes the objects that exist at the start. Returns their rows, which the registry receives
    /// together.
    pub(in crate::store) fn load(&mut self, kind: Kind, objects: Vec<StoredObject>, at: u64) -> Vec<Change> {
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

    /// Takes a complete list of a kind at version `at`. A known object that the list lacks is gone,
    /// unless it is newer than the list. `before` is the version up to which the kind was known
    /// when the list was requested.
    pub(in crate::store) fn listed(&mut self, kind: Kind, objects: Vec<StoredObject>, at: u64, before: u64) {
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
    pub(in crate::store) fn observe(&mut self, object_key: ObjectKey, event: ObjectEvent) {
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

    /// Records that everything of a kind is known up to this version.
    pub(in crate::store) fn reached(&mut self, kind: Kind, version: u64) {
        let at = &mut self.at[kind as usize];
        *at = version.max(*at);
        self.number = self.number.max(self.revision_of(version));
        self.forget_deleted(Instant::now());
    }

    /// Returns the version up to which everything of this kind is known.
    pub(in crate::store) fn at(&self, kind: Kind) -> u64 {
        self.at[kind as usize]
    }

    /// Returns the kinds that are not known up to this version.
    pub(in crate::store) fn behind(&self, version: u64) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.at[*kind as usize] < version).collect()
    }

    fn apply(&mut self, object_key: ObjectKey, object: StoredObject) {
        let before = self.entries.get_mut(&object_key);
        if let Some(entry) = before {
            // The event is the echo of a write, or older than what is known. This also holds for
            // events about an object that is gone.
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

    pub(super) fn delete(&mut self, object_key: &ObjectKey, uid: Option<&str>, version: u64) {
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
        self.note_deleted(object_key);
    }

    /// Reads an object into an entry and its row. An unreadable segment blocks its addresses; any
    /// other unreadable object counts as if it did not exist, and has no row.
    pub(super) fn read(&mut self, object_key: &ObjectKey, object: StoredObject) -> Option<(Entry, Change)> {
        let StoredObject { uid, version, row, foreign, .. } = object;
        let change = match row {
            Ok(change) => {
                self.unreadable.remove(object_key);
                change
            }
            Err(why) if object_key.0 == Kind::Segment => {
                self.cannot_read(object_key, &why, "no node gets its addresses");
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
            Kind::Node => Regarding::EdgeNode,
            Kind::Segment => Regarding::Segment,
            Kind::Community => Regarding::Community,
            Kind::Token => return,
        };
        self.events.warning(about, name, "Unreadable", format!("{why}; {so}"));
    }

    /// Sends a change under the next number. No receiver exists before the registry has started and
    /// after it has ended.
    fn send_change(&mut self, change: Option<Change>, version: u64) -> u64 {
        self.send_numbered(change.map(RowEvent::Changed), version)
    }

    pub(super) fn send_event(&mut self, event: RowEvent, version: u64) -> u64 {
        self.send_numbered(Some(event), version)
    }

    fn send_numbered(&mut self, event: Option<RowEvent>, version: u64) -> u64 {
        self.number = (self.number + 1).max(self.revision_of(version));
        let _ = self.sender.send((self.number, event));
        self.last_event = self.number;
        self.number
    }

    /// Raises the registry's revision above one that another replica has given out.
    pub(in crate::store) fn rise_above(&mut self, revision: u64) {
        self.number = self.number.max(revision);
        self.send_change(None, 0);
    }

    /// Records the version of a write by this replica that changed no row.
    pub(in crate::store) fn raise_number(&mut self, version: u64) {
        self.number = self.number.max(self.revision_of(version));
    }

    /// Sends the registry a write by this replica that the registry has not received.
    pub(in crate::store) fn publish_write(&mut self, change: Change) {
        let object_key = Kind::object_key(&change.key());
        let last_event = self.send_change(Some(change), 0);
        if let Some(entry) = self.entries.get_mut(&object_key) {
            entry.last_event = last_event;
        }
    }

    /// Treats the next write of this object as planned on its latest state, even if the registry
    /// does not have that state.
    pub(in crate::store) fn plan_knows(&mut self, object_key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(object_key) {
            entry.last_event = 0;
        }
    }

    /// Returns the revision that includes everything known.
    pub(in crate::store) fn revision(&self) -> u64 {
        self.number
    }

    /// Records that the registry has processed the events up to this number.
    pub(in crate::store) fn acknowledged(&mut self, number: u64) {
        self.acknowledged = self.acknowledged.max(number);
    }

    /// Returns the number of the last event.
    pub(in crate::store) fn last_event(&self) -> u64 {
        self.last_event
    }
}
