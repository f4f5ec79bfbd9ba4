//! Forgets deleted objects. The entry of a deleted object keeps late events about it from bringing
//! its row back. Once the watch has passed the deletion, no such event can arrive.

use std::time::Duration;

use tokio::time::Instant;

use super::versions::ObjectVersions;
use crate::resources::kinds::ObjectKey;

/// Half the time for which a deleted object is remembered. So the number of entries is limited by
/// the objects that exist and those that were deleted within twice this time.
const PERIOD: Duration = Duration::from_secs(600);

/// A deleted object whose entry is still kept.
#[derive(Debug)]
pub(super) struct DeletedObject {
    object_key: ObjectKey,
    uid: String,
    /// When the present period began.
    since: Instant,
    /// The version that the watch of the kind must have reached. It is taken a period after the
    /// deletion, from all kinds, because the version of a deletion by this replica is not known.
    beyond: Option<u64>,
}

impl ObjectVersions {
    /// Records that the entry of an object is now that of a deleted one.
    pub(super) fn note_deleted(&mut self, object_key: &ObjectKey) {
        let Some(entry) = self.entries.get(object_key) else { return };
        let (object_key, uid) = (object_key.clone(), entry.uid.clone());
        self.deleted.push_back(DeletedObject { object_key, uid, since: Instant::now(), beyond: None });
    }

    /// Forgets the objects that were deleted two periods before `now`.
    pub(super) fn forget_deleted(&mut self, now: Instant) {
        while let Some(mut deleted) = self.deleted.pop_front_if(|first| now.duration_since(first.since) >= PERIOD) {
            let Some(entry) = self.entries.get(&deleted.object_key) else { continue };
            if entry.present || entry.uid != deleted.uid {
                continue;
            }
            let settled = entry.last_event <= self.acknowledged && !self.in_flight.contains_key(&deleted.object_key);
            match deleted.beyond {
                Some(beyond) if settled && self.at(deleted.object_key.0) >= beyond => {
                    self.entries.remove(&deleted.object_key);
                }
                _ => {
                    deleted.beyond = deleted.beyond.or_else(|| self.at.iter().max().copied());
                    self.deleted.push_back(DeletedObject { since: now, ..deleted });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_controller_domain::state::{Change, NodeRecord};
    use tokio::sync::mpsc;

    use super::*;
    use crate::events::EventRecorder;
    use crate::resources::kinds::{ForeignMetadata, Kind, StoredObject};
    use crate::store::object_versions::ObjectEvent;

    #[test]
    fn a_deleted_object_is_forgotten_when_no_late_event_about_it_can_arrive() {
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut objects = ObjectVersions::new(sender, EventRecorder::default());
        let row = Ok(Change::PutNode(NodeRecord::new("a".parse().unwrap(), edge_types::Role::Edge, 0)));
        let (name, uid, foreign) = ("a".to_owned(), "u".to_owned(), ForeignMetadata::default());
        let object = StoredObject { name, uid, version: 5, row, foreign, deleting: false };
        objects.load(Kind::Node, vec![object.clone()], 7);
        let object_key = (Kind::Node, "a".to_owned());
        objects.observe(object_key.clone(), ObjectEvent::Deleted { uid: None, version: 9, by_replica: true });
        let (number, _) = events.try_recv().unwrap();
        let mut now = Instant::now();
        let mut forgotten = |objects: &mut ObjectVersions| {
            now += PERIOD;
            objects.forget_deleted(now);
            objects.entries.is_empty()
        };
        objects.reached(Kind::Segment, 50);
        assert!(!forgotten(&mut objects), "the first period");
        assert!(!forgotten(&mut objects), "the watch of its kind is behind");
        objects.observe(object_key.clone(), ObjectEvent::Applied(StoredObject { version: 8, ..object }));
        assert!(events.try_recv().is_err(), "a late event brings nothing back");
        objects.reached(Kind::Node, 50);
        assert!(!forgotten(&mut objects), "the registry has not processed the deletion");
        objects.acknowledged(number);
        assert!(forgotten(&mut objects));
        assert!(objects.deleted.is_empty());
    }
}
