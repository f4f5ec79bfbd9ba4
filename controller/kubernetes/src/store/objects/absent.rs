//! Objects that are missing: their rows go on to hold until it is known why.

use std::sync::Arc;

use edge_controller_domain::state::{Change, Key};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::kinds::{Foreign, Kind, Observed, Place};
use super::{Entry, Event, Objects, Said};

/// What is known of one while its row goes on to hold.
pub(super) struct Absent {
    pub(super) uid: String,
    version: u64,
    since: Instant,
    /// What was said about it since.
    pub(super) waiting: Vec<Event>,
}

/// An object that is missing.
#[derive(Debug, Clone)]
pub(in super::super) struct Missing {
    pub(in super::super) place: Place,
    pub(in super::super) key: Key,
    pub(in super::super) since: Instant,
    /// It is there again, as another object.
    pub(in super::super) recreated: bool,
    /// Etcd was restored from a backup that is older than the object.
    pub(in super::super) restored: bool,
}

impl Objects {
    /// An object is missing. Its row goes on to hold until it is known why.
    pub(super) fn miss(&mut self, place: Place, uid: Option<String>, version: u64) {
        let Some(entry) = self.entries.get(&place) else { return drop(self.unreadable.remove(&place)) };
        if !entry.present || uid.is_some_and(|uid| uid != entry.uid) || version < entry.version {
            return;
        }
        let (uid, since) = (entry.uid.clone(), Instant::now());
        self.absent.insert(place, Absent { uid, version, since, waiting: Vec::new() });
        self.absence.notify_one();
    }

    /// Tells when something became absent.
    pub(in super::super) fn absence(&self) -> Arc<Notify> {
        self.absence.clone()
    }

    /// Objects of a kind that are missing.
    pub(in super::super) fn missing(&self, kind: Kind) -> Vec<Missing> {
        let of_kind = self.absent.iter().filter(|(place, _)| place.0 == kind);
        let missing = of_kind.filter_map(|(place, absent)| {
            let another = |event: &Event| matches!(event, Event::Put(object) if object.uid != absent.uid);
            let recreated = absent.waiting.iter().any(another);
            let key = self.entries.get(place)?.key.clone();
            let restored = self.restored_at.get(&kind) == Some(&absent.version);
            Some(Missing { place: place.clone(), key, since: absent.since, recreated, restored })
        });
        missing.collect()
    }

    /// A missing object was deleted by somebody who may do so.
    pub(in super::super) fn believe(&mut self, place: &Place) {
        let Some(absent) = self.absent.remove(place) else { return };
        self.gone(place, Some(&absent.uid), absent.version);
        absent.waiting.into_iter().for_each(|event| self.event(place.clone(), event));
    }

    /// A missing object is there again, or its row shall hold without one: what was said meanwhile
    /// is listened to.
    pub(in super::super) fn keep(&mut self, place: &Place) {
        let Some(absent) = self.absent.remove(place) else { return };
        absent.waiting.into_iter().for_each(|event| self.event(place.clone(), event));
    }

    /// From now on missing objects of this kind are not written over, for this reason; `None` ends
    /// that.
    pub(in super::super) fn freeze(&mut self, kind: Kind, why: Option<String>) {
        match why {
            Some(why) => drop(self.frozen.insert(kind, why)),
            None => drop(self.frozen.remove(&kind)),
        }
    }

    /// Begins to write an object again that is missing, whatever the registry knows; `end` must
    /// follow. `None` while another write is on its way.
    pub(in super::super) fn begin_import(&mut self, place: &Place) -> Option<Foreign> {
        if self.in_flight.contains_key(place) {
            return None;
        }
        self.in_flight.insert(place.clone(), Vec::new());
        Some(self.entries.get(place).map(|entry| entry.foreign.clone()).unwrap_or_default())
    }

    /// Ends such a write that was carried out.
    pub(in super::super) fn end_again(&mut self, place: &Place, object: Observed, change: &Change) {
        self.number = self.number.max(self.revision_of(object.version));
        let absent = self.absent.remove(place);
        let told = self.entries.get(place).map_or(0, |entry| entry.told);
        let Observed { uid, version, foreign, .. } = object;
        let entry = Entry { told, ..Entry::of(uid, version, foreign, change) };
        self.entries.insert(place.clone(), entry);
        self.say(Said::Recreated(change.key()), 0);
        // In their order: what was said before the write, then what was said during it.
        let mut events: Vec<Event> = absent.into_iter().flat_map(|absent| absent.waiting).collect();
        events.extend(self.in_flight.remove(place).unwrap_or_default());
        events.into_iter().for_each(|event| self.event(place.clone(), event));
    }
}
