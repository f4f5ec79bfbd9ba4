//! What is known of every object: its version, and whether the registry knows it as well.
//!
//! A change may be written only over the version that it was planned on. The registry plans on what
//! it was told, and on what it wrote itself; news that were told and not yet taken in were not
//! known to the plan. So every piece of news has a number, the registry says up to which it has
//! come ([`Objects::taken_in`]), and an object whose last news has a higher one is not written
//! over: that is a conflict, as if the API server had said so.
//!
//! While a write of ours is on its way, what the watch says of that object waits: it may be the
//! echo, or what came before or after. When the answer is there, versions tell which.
//!
//! An object that is missing was not necessarily deleted by somebody who meant it: its definition
//! (CRD) may have been deleted. So its row stays until the reason is known (see `absences`), unless
//! a replica has marked the object for its own deletion.

mod absent;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use edge_controller_domain::state::{Change, Key};
use tokio::sync::{Notify, mpsc};

use super::kinds::{Foreign, Kind, Observed, Place, blocked};
use crate::events::{About, Events};

use absent::Absent;
pub(super) use absent::Missing;

/// Revisions that are kept for one resourceVersion: news that come late, from the slower one of two
/// watches, get a revision of their own.
const LATE: u64 = 1000;

/// What happened, for the registry: its number, which is also the revision with it, and what it is,
/// if anything.
pub(super) type Told = (u64, Option<Said>);

/// News for the registry.
#[derive(Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(super) enum Said {
    /// A row changed.
    Change(Change),
    /// The object of this row was deleted and made again with the same row.
    Recreated(Key),
}

/// All objects of all kinds.
pub(super) struct Objects {
    entries: HashMap<Place, Entry>,
    /// Up to which resourceVersion each kind is known.
    at: [u64; 4],
    /// Added to what resourceVersions give: rows that came from another store brought revisions of
    /// their own.
    offset: u64,
    /// Highest number that was given to news or to a write.
    number: u64,
    /// Number of the last news.
    last_told: u64,
    /// The registry has taken in the news up to this number.
    taken_in: u64,
    told: mpsc::UnboundedSender<Told>,
    events: Events,
    /// Objects that cannot be read, and why: said once, and not with every list.
    unreadable: HashMap<Place, String>,
    /// Objects that a write of ours is about, and what the watch said of them meanwhile.
    in_flight: HashMap<Place, Vec<Event>>,
    /// Objects that are missing, and nobody knows why yet. At most one an entry; what is said of
    /// one meanwhile is as much as people change.
    absent: HashMap<Place, Absent>,
    /// Kinds with a definition that is missing or was made again, and why nothing of them is
    /// believed.
    frozen: HashMap<Kind, String>,
    /// Something became absent.
    absence: Arc<Notify>,
    /// Version of the list by which etcd was seen to be restored from a backup: what that lacks,
    /// nobody has deleted.
    restored_at: HashMap<Kind, u64>,
}

struct Entry {
    key: Key,
    uid: String,
    version: u64,
    /// The object is there; otherwise it was deleted, and `version` is that of its deletion or of
    /// what was deleted.
    present: bool,
    /// Number of the last news about it; 0 where the registry knew at once.
    told: u64,
    /// Of the row, to tell news that say nothing new.
    digest: u64,
    /// A segment that somebody holds.
    held: bool,
    foreign: Foreign,
}

/// What a watch said.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most are the large one")]
pub(super) enum Event {
    Put(Observed),
    /// `ours`: a replica deleted it.
    Gone {
        uid: Option<String>,
        version: u64,
        ours: bool,
    },
}

/// What a write is made upon.
#[derive(Debug, Clone)]
pub(super) enum Base {
    /// There is no such object.
    Nothing,
    /// This one. `held`: a segment that somebody holds.
    Object { uid: String, version: u64, held: bool, foreign: Foreign },
}

/// Why a write cannot be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unready {
    /// The plan did not know the latest of it.
    Stale,
    /// An earlier write has not come to its end.
    Busy,
    /// The object is missing, and why.
    Frozen(String),
}

impl Objects {
    pub(super) fn new(told: mpsc::UnboundedSender<Told>, events: Events) -> Self {
        Self {
            entries: HashMap::new(),
            at: [0; 4],
            offset: 0,
            number: 0,
            last_told: 0,
            taken_in: 0,
            told,
            events,
            unreadable: HashMap::new(),
            in_flight: HashMap::new(),
            absent: HashMap::new(),
            frozen: HashMap::new(),
            absence: Arc::default(),
            restored_at: HashMap::new(),
        }
    }

    /// All revisions are to be above this one; before anything is loaded.
    pub(super) fn begin_above(&mut self, offset: u64) {
        self.offset = offset;
        self.number = self.number.max(offset);
    }

    fn revision_of(&self, version: u64) -> u64 {
        self.offset.saturating_add(version.saturating_mul(LATE))
    }

    /// The resourceVersion up to which everything is known at a revision.
    pub(super) fn version_of(&self, revision: u64) -> u64 {
        revision.saturating_sub(self.offset) / LATE
    }

    /// Takes what is there at start, which the registry gets all at once.
    pub(super) fn load(&mut self, kind: Kind, objects: Vec<Observed>, at: u64) -> Vec<Change> {
        let mut rows = Vec::new();
        self.entries.reserve(objects.len());
        for object in objects {
            let place = (kind, object.name.clone());
            let Some((entry, change)) = self.read(&place, object) else { continue };
            self.entries.insert(place, entry);
            rows.push(change);
        }
        self.reached(kind, at);
        rows
    }

    /// All of a kind that there was at a version. What is known and not among them is gone, unless
    /// it came later. `before` is up to which the kind was known when the list was asked for.
    pub(super) fn all(&mut self, kind: Kind, objects: Vec<Observed>, at: u64, before: u64) {
        let restored = at < before;
        if restored {
            tracing::error!(
                what = kind.what(),
                before,
                at,
                "versions went back: etcd was restored from a backup; what it holds now is what holds, and what it lacks is written again"
            );
            self.restored_at.insert(kind, at);
            // Whatever version something had before does not compare with those to come.
            self.entries.iter_mut().filter(|(place, _)| place.0 == kind).for_each(|(_, entry)| entry.version = 0);
            self.at[kind as usize] = 0;
        }
        let mut missing: HashMap<String, String> = self
            .entries
            .iter()
            .filter(|(place, entry)| place.0 == kind && entry.present && entry.version <= at)
            .map(|(place, entry)| (place.1.clone(), entry.uid.clone()))
            .collect();
        for object in objects {
            missing.remove(&object.name);
            self.event((kind, object.name.clone()), Event::Put(object));
        }
        for (name, uid) in missing {
            self.event((kind, name), Event::Gone { uid: Some(uid), version: at, ours: false });
        }
        self.reached(kind, at);
    }

    /// Something was said about one object.
    pub(super) fn event(&mut self, place: Place, event: Event) {
        if let Some(waiting) = self.in_flight.get_mut(&place) {
            waiting.push(event);
            return;
        }
        if let Some(absent) = self.absent.get_mut(&place) {
            match event {
                Event::Gone { uid, ours: true, .. } if uid.as_ref().is_none_or(|uid| *uid == absent.uid) => {
                    self.believe(&place);
                }
                event => {
                    absent.waiting.push(event);
                    self.absence.notify_one();
                }
            }
            return;
        }
        match event {
            Event::Put(object) => self.put(place, object),
            Event::Gone { uid, version, ours } if ours || place.0 == Kind::Token => {
                self.gone(&place, uid.as_deref(), version);
            }
            Event::Gone { uid, version, .. } => self.miss(place, uid, version),
        }
    }

    /// Everything of a kind is known up to a version.
    pub(super) fn reached(&mut self, kind: Kind, version: u64) {
        let at = &mut self.at[kind as usize];
        *at = version.max(*at);
        self.number = self.number.max(self.revision_of(version));
    }

    /// Up to which version everything of a kind is known.
    pub(super) fn at(&self, kind: Kind) -> u64 {
        self.at[kind as usize]
    }

    /// Kinds of which not everything is known up to a version.
    pub(super) fn behind(&self, version: u64) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.at[*kind as usize] < version).collect()
    }

    fn put(&mut self, place: Place, object: Observed) {
        let before = self.entries.get_mut(&place);
        if let Some(entry) = before {
            // An echo, or older than what is known; also of an object that is gone.
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
                    return self.cannot_read(&place, &why, "its last readable state goes on to hold");
                }
            }
        }
        let Some((mut entry, change)) = self.read(&place, object) else { return };
        if let Some(before) = self.entries.get(&place) {
            entry.told = before.told;
            if before.present && before.digest == entry.digest {
                let recreated = (before.uid != entry.uid).then(|| Said::Recreated(entry.key.clone()));
                self.entries.insert(place, entry);
                if let Some(said) = recreated {
                    self.say(said, 0);
                }
                return;
            }
            // Under another key, the old row would stay.
            if before.present && before.key != entry.key {
                let delete = deletion(&before.key);
                self.tell(Some(delete), 0);
            }
        }
        entry.told = self.tell(Some(change), entry.version);
        self.entries.insert(place, entry);
    }

    fn gone(&mut self, place: &Place, uid: Option<&str>, version: u64) {
        self.unreadable.remove(place);
        let Some(entry) = self.entries.get_mut(place) else { return };
        if !entry.present || uid.is_some_and(|uid| uid != entry.uid) || version < entry.version {
            return;
        }
        entry.present = false;
        entry.version = version;
        let delete = deletion(&entry.key);
        let told = self.tell(Some(delete), version);
        if let Some(entry) = self.entries.get_mut(place) {
            entry.told = told;
        }
    }

    /// An object, and its row. An unreadable segment blocks its addresses; of another object
    /// nothing is known.
    fn read(&mut self, place: &Place, object: Observed) -> Option<(Entry, Change)> {
        let Observed { uid, version, row, foreign, .. } = object;
        let change = match row {
            Ok(change) => {
                self.unreadable.remove(place);
                change
            }
            Err(why) if place.0 == Kind::Segment => {
                self.cannot_read(place, &why, "its addresses are given to nobody");
                blocked(&place.1)?
            }
            Err(why) => {
                self.cannot_read(place, &why, "it counts as absent");
                return None;
            }
        };
        Some((Entry::of(uid, version, foreign, &change), change))
    }

    fn cannot_read(&mut self, place: &Place, why: &str, so: &str) {
        if self.unreadable.get(place).is_some_and(|said| said == why) {
            return;
        }
        self.unreadable.insert(place.clone(), why.to_owned());
        let ((kind, name), what) = (place, place.0.what());
        tracing::error!(what, name, "the object cannot be read: {why}; {so}; correct it or delete it");
        let about = match kind {
            Kind::Node => About::EdgeNode,
            Kind::Segment => About::Segment,
            Kind::Community => About::Community,
            Kind::Token => return,
        };
        self.events.warning(about, name, "Unreadable", format!("{why}; {so}"));
    }

    /// Gives the next number. Nobody listens before the registry has started, and after it has
    /// ended.
    fn tell(&mut self, change: Option<Change>, version: u64) -> u64 {
        self.send(change.map(Said::Change), version)
    }

    fn say(&mut self, said: Said, version: u64) -> u64 {
        self.send(Some(said), version)
    }

    fn send(&mut self, said: Option<Said>, version: u64) -> u64 {
        self.number = (self.number + 1).max(self.revision_of(version));
        let _ = self.told.send((self.number, said));
        self.last_told = self.number;
        self.number
    }

    /// Makes the registry's revision rise above one that another replica has given.
    pub(super) fn rise_above(&mut self, revision: u64) {
        self.number = self.number.max(revision);
        self.tell(None, 0);
    }

    /// A write of ours, of something that is no row, got this version.
    pub(super) fn noted(&mut self, version: u64) {
        self.number = self.number.max(self.revision_of(version));
    }

    /// Tells the registry of a write of ours that it does not know of.
    pub(super) fn tell_of(&mut self, change: Change) {
        let place = Kind::place(&change.key());
        let told = self.tell(Some(change), 0);
        if let Some(entry) = self.entries.get_mut(&place) {
            entry.told = told;
        }
    }

    /// The write that follows is planned on the latest of this object, whatever the registry knows.
    pub(super) fn plan_knows(&mut self, place: &Place) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.told = 0;
        }
    }

    /// The revision with all that is known.
    pub(super) fn revision(&self) -> u64 {
        self.number
    }

    /// The registry has taken in the news up to this number.
    pub(super) fn taken_in(&mut self, number: u64) {
        self.taken_in = self.taken_in.max(number);
    }

    /// Number of the last news.
    pub(super) fn last_told(&self) -> u64 {
        self.last_told
    }

    /// Begins a write; `end` must follow.
    pub(super) fn begin(&mut self, place: &Place) -> Result<Base, Unready> {
        if self.in_flight.contains_key(place) {
            return Err(Unready::Busy);
        }
        if self.absent.contains_key(place) {
            return Err(self.frozen.get(&place.0).map_or(Unready::Stale, |why| Unready::Frozen(why.clone())));
        }
        let base = match self.entries.get(place) {
            Some(entry) if entry.told > self.taken_in => return Err(Unready::Stale),
            Some(entry) if entry.present => Base::Object {
                uid: entry.uid.clone(),
                version: entry.version,
                held: entry.held,
                foreign: entry.foreign.clone(),
            },
            _ => Base::Nothing,
        };
        self.in_flight.insert(place.clone(), Vec::new());
        Ok(base)
    }

    /// Ends a write that is known to have been carried out.
    pub(super) fn end_written(&mut self, place: Place, object: Observed, change: &Change) {
        self.number = self.number.max(self.revision_of(object.version));
        let Observed { uid, version, foreign, .. } = object;
        let entry = Entry::of(uid, version, foreign, change);
        self.entries.insert(place.clone(), entry);
        self.end(&place);
    }

    /// Ends a deletion that is known to have been carried out.
    pub(super) fn end_deleted(&mut self, place: &Place) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.present = false;
            entry.told = 0;
        }
        self.end(place);
    }

    /// Ends a claim that was taken back: nobody was told of its object, and what is said of that
    /// from now on is late. The news that it came and went would cover the row of whoever got the
    /// place.
    pub(super) fn end_taken_back(&mut self, place: Place, object: Observed, change: &Change) {
        let Observed { uid, version, foreign, .. } = object;
        let entry = Entry { present: false, ..Entry::of(uid, version, foreign, change) };
        self.entries.insert(place.clone(), entry);
        self.end(&place);
    }

    /// Ends a write: what was said about the object meanwhile is listened to.
    pub(super) fn end(&mut self, place: &Place) {
        for event in self.in_flight.remove(place).unwrap_or_default() {
            self.event(place.clone(), event);
        }
    }
}

impl Entry {
    fn of(uid: String, version: u64, foreign: Foreign, change: &Change) -> Self {
        let key = change.key();
        let held = match change {
            Change::ClaimSegment(row) | Change::PutSegment(row) => row.released_at.is_none(),
            _ => false,
        };
        Self { key, uid, version, present: true, told: 0, digest: digest(change), held, foreign }
    }
}

/// The change that deletes a row.
pub(super) fn deletion(key: &Key) -> Change {
    match key.clone() {
        Key::Node(name) => Change::DeleteNode(name),
        Key::Token(id) => Change::DeleteToken(id),
        Key::Segment(network) => Change::DeleteSegment(network),
        Key::Community(name) => Change::DeleteCommunity(name),
    }
}

fn digest(change: &Change) -> u64 {
    let mut hasher = DefaultHasher::new();
    match change {
        // The same row, whichever way it was written.
        Change::ClaimSegment(row) | Change::PutSegment(row) => row.hash(&mut hasher),
        other => other.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;
