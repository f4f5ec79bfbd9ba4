use edge_controller_domain::state::{Change, NodeRecord};
use tokio::sync::mpsc;

use super::versions::REVISIONS_PER_VERSION;
use super::*;
use crate::events::EventRecorder;
use crate::resources::kinds::{ForeignMetadata, Kind, ObjectKey, StoredObject};

fn object_key() -> ObjectKey {
    (Kind::Node, "a".into())
}

fn node(version: u64, port: u16) -> StoredObject {
    let mut record = NodeRecord::new("a".parse().unwrap(), edge_types::Role::Edge, 0);
    record.port = port;
    let row = Ok(Change::PutNode(record));
    StoredObject {
        name: "a".into(),
        uid: "u".into(),
        version,
        row,
        foreign: ForeignMetadata::default(),
        deleting: false,
    }
}

fn objects() -> (ObjectVersions, mpsc::UnboundedReceiver<NumberedEvent>) {
    let (sender, events) = mpsc::unbounded_channel();
    let mut objects = ObjectVersions::new(sender, EventRecorder::default());
    objects.load(Kind::Node, vec![node(5, 1)], 7);
    (objects, events)
}

/// Value in the result of [`ports`] for an object that was created again with the same row.
const RECREATED: u16 = u16::MAX;

/// Returns the ports of the nodes in the events, 0 for a deletion.
fn ports(events: &mut mpsc::UnboundedReceiver<NumberedEvent>) -> Vec<u16> {
    let mut ports = Vec::new();
    while let Ok((_, change)) = events.try_recv() {
        ports.extend(change.map(|change| match change {
            RowEvent::Changed(Change::PutNode(record)) => record.port,
            RowEvent::Changed(_) => 0,
            RowEvent::Recreated(_) => RECREATED,
        }));
    }
    ports
}

#[test]
fn an_older_or_equal_object_gives_no_event() {
    let (mut objects, mut events) = objects();
    for version in [3, 5] {
        objects.observe(object_key(), ObjectEvent::Applied(node(version, 2)));
    }
    objects.observe(object_key(), ObjectEvent::Applied(node(8, 1)));
    assert!(ports(&mut events).is_empty(), "another version of the same row, such as one with another status");
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("u".into()), version: 6, by_replica: true });
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("other".into()), version: 9, by_replica: true });
    objects.observe(object_key(), ObjectEvent::Applied(node(9, 2)));
    assert_eq!(ports(&mut events), [2]);
}

#[test]
fn a_row_is_not_overwritten_by_a_plan_that_did_not_know_its_latest_state() {
    let (mut objects, mut events) = objects();
    objects.observe(object_key(), ObjectEvent::Applied(node(8, 2)));
    assert_eq!(objects.begin(&object_key()).unwrap_err(), NotWritable::Stale);
    let (number, _) = events.try_recv().unwrap();
    objects.acknowledged(number);
    assert!(matches!(objects.begin(&object_key()), Ok(WriteBase::Object { version: 8, .. })));
    assert_eq!(objects.begin(&object_key()).unwrap_err(), NotWritable::Busy);
    objects.end(&object_key());
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("u".into()), version: 9, by_replica: true });
    assert_eq!(
        objects.begin(&object_key()).unwrap_err(),
        NotWritable::Stale,
        "a late plan does not create a deleted object again"
    );
}

#[test]
fn events_during_a_write_wait_for_its_outcome() {
    let (mut objects, mut events) = objects();
    objects.begin(&object_key()).unwrap();
    for (version, port) in [(8, 2), (9, 3), (10, 4)] {
        objects.observe(object_key(), ObjectEvent::Applied(node(version, port)));
    }
    assert!(ports(&mut events).is_empty());
    let by_replica = node(9, 3);
    let change = by_replica.row.clone().unwrap();
    objects.end_written(object_key(), by_replica, &change);
    assert_eq!(ports(&mut events), [4]);
    assert!(objects.revision() >= 10 * REVISIONS_PER_VERSION);
}

#[test]
fn our_own_deletion_is_not_undone_by_earlier_events() {
    let (mut objects, mut events) = objects();
    objects.begin(&object_key()).unwrap();
    objects.observe(object_key(), ObjectEvent::Applied(node(8, 2)));
    objects.end_deleted(&object_key());
    objects.observe(object_key(), ObjectEvent::Applied(node(9, 2)));
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("u".into()), version: 10, by_replica: true });
    assert!(ports(&mut events).is_empty());
    let again = StoredObject { uid: "v".into(), ..node(12, 5) };
    objects.observe(object_key(), ObjectEvent::Applied(again));
    assert_eq!(ports(&mut events), [5]);
}

#[test]
fn a_complete_list_shows_what_is_gone_and_keeps_what_is_newer() {
    let (mut objects, mut events) = objects();
    let (b, c) = (StoredObject { name: "b".into(), ..node(6, 1) }, StoredObject { name: "c".into(), ..node(20, 1) });
    objects.observe((Kind::Node, "b".into()), ObjectEvent::Applied(b));
    objects.observe((Kind::Node, "c".into()), ObjectEvent::Applied(c));
    ports(&mut events);
    objects.listed(Kind::Node, vec![node(5, 1)], 15, 7);
    assert!(ports(&mut events).is_empty(), "why it is missing is not known yet");
    objects.accept_deletion(&(Kind::Node, "b".into()));
    assert_eq!(ports(&mut events), [0]);
    assert!(objects.behind(15).iter().all(|kind| *kind != Kind::Node));
    objects.listed(Kind::Node, vec![node(3, 7)], 14, 12);
    assert!(ports(&mut events).is_empty(), "a list that was overtaken by another says nothing of what came after it");
    objects.listed(Kind::Node, vec![node(3, 7)], 4, 15);
    assert_eq!(ports(&mut events), [7], "versions went back: what the list says holds");
    let missing = objects.missing(Kind::Node);
    assert_eq!(missing.iter().map(|missing| missing.object_key.1.as_str()).collect::<Vec<_>>(), ["c"]);
    assert!(missing[0].restored, "nobody has deleted what a backup lacks");
}

#[test]
fn an_unreadable_segment_blocks_its_addresses_and_another_keeps_its_last_row() {
    let (mut objects, mut events) = objects();
    let odd = |kind, name: &str, uid: &str, version| {
        let row = Err("spec.node: no".into());
        let object = StoredObject {
            name: name.into(),
            uid: uid.into(),
            version,
            row,
            foreign: ForeignMetadata::default(),
            deleting: false,
        };
        ((kind, name.to_owned()), ObjectEvent::Applied(object))
    };
    let (at, event) = odd(Kind::Segment, "10.77.0.0-26", "s", 8);
    objects.observe(at, event);
    let (_, change) = events.try_recv().unwrap();
    assert!(
        matches!(change, Some(RowEvent::Changed(Change::PutSegment(row))) if crate::resources::kinds::is_blocked(&row))
    );
    let (at, event) = odd(Kind::Node, "a", "u", 9);
    objects.observe(at, event);
    let (at, event) = odd(Kind::Node, "new", "n", 10);
    objects.observe(at, event);
    assert!(events.try_recv().is_err());
    assert!(matches!(objects.begin(&object_key()), Ok(WriteBase::Object { version: 9, .. })), "it can be written over");
}

#[test]
fn numbers_only_rise_also_for_late_news_and_after_another_replicas_revision() {
    let (mut objects, mut events) = objects();
    objects.reached(Kind::Segment, 50);
    objects.observe(object_key(), ObjectEvent::Applied(node(30, 2)));
    let (late, _) = events.try_recv().unwrap();
    assert!(late > 50 * REVISIONS_PER_VERSION && late < 51 * REVISIONS_PER_VERSION);
    objects.rise_above(60 * REVISIONS_PER_VERSION + 3);
    assert_eq!(events.try_recv().unwrap(), (60 * REVISIONS_PER_VERSION + 4, None));
    objects.begin_above(1 << 40);
    objects.reached(Kind::Segment, 70);
    assert_eq!(objects.revision(), (1 << 40) + 70 * REVISIONS_PER_VERSION);
    assert_eq!(objects.version_of(objects.revision() + 1), 70);
}

#[test]
fn a_missing_object_keeps_its_row_until_it_is_known_who_deleted_it() {
    let (mut objects, mut events) = objects();
    let gone = |version, by_replica| ObjectEvent::Deleted { uid: Some("u".into()), version, by_replica };
    objects.observe(object_key(), gone(9, false));
    assert!(ports(&mut events).is_empty());
    assert_eq!(
        objects.begin(&object_key()).unwrap_err(),
        NotWritable::Stale,
        "it is not made again by who does not know of it"
    );
    objects.freeze(Kind::Node, Some("the definition is missing".into()));
    assert_eq!(objects.begin(&object_key()).unwrap_err(), NotWritable::Frozen("the definition is missing".into()));
    objects.freeze(Kind::Node, None);
    let missing = objects.missing(Kind::Node);
    assert!(missing.len() == 1 && !missing[0].recreated);
    objects.accept_deletion(&object_key());
    assert_eq!(ports(&mut events), [0]);
    assert!(objects.missing(Kind::Node).is_empty());
    // A replica's mark explains the deletion at once, even if it comes later.
    objects.observe(object_key(), ObjectEvent::Applied(StoredObject { uid: "v".into(), ..node(10, 2) }));
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("v".into()), version: 11, by_replica: false });
    assert_eq!(ports(&mut events), [2]);
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("v".into()), version: 11, by_replica: true });
    assert_eq!(ports(&mut events), [0]);
}

#[test]
fn an_object_that_is_created_again_was_never_gone() {
    let (mut objects, mut events) = objects();
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("u".into()), version: 9, by_replica: false });
    let again = StoredObject { uid: "v".into(), ..node(12, 1) };
    let change = again.row.clone().unwrap();
    assert!(objects.begin_recreate(&object_key()).is_some());
    assert!(objects.begin_recreate(&object_key()).is_none(), "by one at a time");
    objects.observe(object_key(), ObjectEvent::Applied(again.clone()));
    objects.end_recreated(&object_key(), again, &change);
    assert_eq!(ports(&mut events), [RECREATED]);
    assert!(matches!(objects.begin(&object_key()), Ok(WriteBase::Object { uid, version: 12, .. }) if uid == "v"));
    objects.end(&object_key());
    // The object was created by another replica, and has changed since.
    objects.observe(object_key(), ObjectEvent::Deleted { uid: Some("v".into()), version: 13, by_replica: false });
    objects.observe(object_key(), ObjectEvent::Applied(StoredObject { uid: "w".into(), ..node(14, 3) }));
    assert!(objects.missing(Kind::Node)[0].recreated && ports(&mut events).is_empty());
    objects.keep_row(&object_key());
    assert_eq!(ports(&mut events), [3]);
}
