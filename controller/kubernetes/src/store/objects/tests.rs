use edge_controller_domain::state::NodeRecord;

use super::*;

fn place() -> Place {
    (Kind::Node, "a".into())
}

fn node(version: u64, port: u16) -> Observed {
    let mut record = NodeRecord::new("a".parse().unwrap(), edge_types::Role::Edge, 0);
    record.port = port;
    let row = Ok(Change::PutNode(record));
    Observed { name: "a".into(), uid: "u".into(), version, row, foreign: Foreign::default(), deleting: false }
}

fn objects() -> (Objects, mpsc::UnboundedReceiver<Told>) {
    let (told, news) = mpsc::unbounded_channel();
    let mut objects = Objects::new(told, Events::default());
    objects.load(Kind::Node, vec![node(5, 1)], 7);
    (objects, news)
}

/// Stands for an object that was written again as it was.
const RECREATED: u16 = u16::MAX;

/// Ports of the nodes that were told, 0 for a deletion.
fn ports(news: &mut mpsc::UnboundedReceiver<Told>) -> Vec<u16> {
    let mut ports = Vec::new();
    while let Ok((_, change)) = news.try_recv() {
        ports.extend(change.map(|change| match change {
            Said::Change(Change::PutNode(record)) => record.port,
            Said::Change(_) => 0,
            Said::Recreated(_) => RECREATED,
        }));
    }
    ports
}

#[test]
fn what_is_older_or_the_same_is_no_news() {
    let (mut objects, mut news) = objects();
    for version in [3, 5] {
        objects.event(place(), Event::Put(node(version, 2)));
    }
    objects.event(place(), Event::Put(node(8, 1)));
    assert!(ports(&mut news).is_empty(), "another version of the same row, such as one with another status");
    objects.event(place(), Event::Gone { uid: Some("u".into()), version: 6, ours: true });
    objects.event(place(), Event::Gone { uid: Some("other".into()), version: 9, ours: true });
    objects.event(place(), Event::Put(node(9, 2)));
    assert_eq!(ports(&mut news), [2]);
}

#[test]
fn a_row_is_not_written_over_before_the_plan_knew_the_latest_of_it() {
    let (mut objects, mut news) = objects();
    objects.event(place(), Event::Put(node(8, 2)));
    assert_eq!(objects.begin(&place()).unwrap_err(), Unready::Stale);
    let (number, _) = news.try_recv().unwrap();
    objects.taken_in(number);
    assert!(matches!(objects.begin(&place()), Ok(Base::Object { version: 8, .. })));
    assert_eq!(objects.begin(&place()).unwrap_err(), Unready::Busy);
    objects.end(&place());
    objects.event(place(), Event::Gone { uid: Some("u".into()), version: 9, ours: true });
    assert_eq!(objects.begin(&place()).unwrap_err(), Unready::Stale, "what is gone is not made anew by a late plan");
}

#[test]
fn what_the_watch_says_during_a_write_is_judged_when_its_outcome_is_known() {
    let (mut objects, mut news) = objects();
    objects.begin(&place()).unwrap();
    for (version, port) in [(8, 2), (9, 3), (10, 4)] {
        objects.event(place(), Event::Put(node(version, port)));
    }
    assert!(ports(&mut news).is_empty());
    let ours = node(9, 3);
    let change = ours.row.clone().unwrap();
    objects.end_written(place(), ours, &change);
    assert_eq!(ports(&mut news), [4]);
    assert!(objects.revision() >= 10 * LATE);
}

#[test]
fn our_own_deletion_is_not_undone_by_what_was_said_before_it() {
    let (mut objects, mut news) = objects();
    objects.begin(&place()).unwrap();
    objects.event(place(), Event::Put(node(8, 2)));
    objects.end_deleted(&place());
    objects.event(place(), Event::Put(node(9, 2)));
    objects.event(place(), Event::Gone { uid: Some("u".into()), version: 10, ours: true });
    assert!(ports(&mut news).is_empty());
    let again = Observed { uid: "v".into(), ..node(12, 5) };
    objects.event(place(), Event::Put(again));
    assert_eq!(ports(&mut news), [5]);
}

#[test]
fn a_complete_list_tells_what_is_gone_and_not_what_came_after_it() {
    let (mut objects, mut news) = objects();
    let (b, c) = (Observed { name: "b".into(), ..node(6, 1) }, Observed { name: "c".into(), ..node(20, 1) });
    objects.event((Kind::Node, "b".into()), Event::Put(b));
    objects.event((Kind::Node, "c".into()), Event::Put(c));
    ports(&mut news);
    objects.all(Kind::Node, vec![node(5, 1)], 15, 7);
    assert!(ports(&mut news).is_empty(), "why it is missing is not known yet");
    objects.believe(&(Kind::Node, "b".into()));
    assert_eq!(ports(&mut news), [0]);
    assert!(objects.behind(15).iter().all(|kind| *kind != Kind::Node));
    objects.all(Kind::Node, vec![node(3, 7)], 14, 12);
    assert!(ports(&mut news).is_empty(), "a list that was overtaken by another says nothing of what came after it");
    objects.all(Kind::Node, vec![node(3, 7)], 4, 15);
    assert_eq!(ports(&mut news), [7], "versions went back: what the list says holds");
    let missing = objects.missing(Kind::Node);
    assert_eq!(missing.iter().map(|missing| missing.place.1.as_str()).collect::<Vec<_>>(), ["c"]);
    assert!(missing[0].restored, "nobody has deleted what a backup lacks");
}

#[test]
fn an_unreadable_segment_blocks_its_addresses_and_another_keeps_its_last_row() {
    let (mut objects, mut news) = objects();
    let odd = |kind, name: &str, uid: &str, version| {
        let row = Err("spec.node: no".into());
        let object =
            Observed { name: name.into(), uid: uid.into(), version, row, foreign: Foreign::default(), deleting: false };
        ((kind, name.to_owned()), Event::Put(object))
    };
    let (at, event) = odd(Kind::Segment, "10.77.0.0-26", "s", 8);
    objects.event(at, event);
    let (_, change) = news.try_recv().unwrap();
    assert!(matches!(change, Some(Said::Change(Change::PutSegment(row))) if super::super::kinds::is_blocked(&row)));
    let (at, event) = odd(Kind::Node, "a", "u", 9);
    objects.event(at, event);
    let (at, event) = odd(Kind::Node, "new", "n", 10);
    objects.event(at, event);
    assert!(news.try_recv().is_err());
    assert!(matches!(objects.begin(&place()), Ok(Base::Object { version: 9, .. })), "it can be written over");
}

#[test]
fn numbers_only_rise_also_for_late_news_and_after_another_replicas_revision() {
    let (mut objects, mut news) = objects();
    objects.reached(Kind::Segment, 50);
    objects.event(place(), Event::Put(node(30, 2)));
    let (late, _) = news.try_recv().unwrap();
    assert!(late > 50 * LATE && late < 51 * LATE);
    objects.rise_above(60 * LATE + 3);
    assert_eq!(news.try_recv().unwrap(), (60 * LATE + 4, None));
    objects.begin_above(1 << 40);
    objects.reached(Kind::Segment, 70);
    assert_eq!(objects.revision(), (1 << 40) + 70 * LATE);
    assert_eq!(objects.version_of(objects.revision() + 1), 70);
}

#[test]
fn a_missing_object_keeps_its_row_until_it_is_known_who_deleted_it() {
    let (mut objects, mut news) = objects();
    let gone = |version, ours| Event::Gone { uid: Some("u".into()), version, ours };
    objects.event(place(), gone(9, false));
    assert!(ports(&mut news).is_empty());
    assert_eq!(objects.begin(&place()).unwrap_err(), Unready::Stale, "it is not made again by who does not know of it");
    objects.freeze(Kind::Node, Some("the definition is missing".into()));
    assert_eq!(objects.begin(&place()).unwrap_err(), Unready::Frozen("the definition is missing".into()));
    objects.freeze(Kind::Node, None);
    let missing = objects.missing(Kind::Node);
    assert!(missing.len() == 1 && !missing[0].recreated);
    objects.believe(&place());
    assert_eq!(ports(&mut news), [0]);
    assert!(objects.missing(Kind::Node).is_empty());
    // The mark of a replica explains it at once, also later.
    objects.event(place(), Event::Put(Observed { uid: "v".into(), ..node(10, 2) }));
    objects.event(place(), Event::Gone { uid: Some("v".into()), version: 11, ours: false });
    assert_eq!(ports(&mut news), [2]);
    objects.event(place(), Event::Gone { uid: Some("v".into()), version: 11, ours: true });
    assert_eq!(ports(&mut news), [0]);
}

#[test]
fn an_object_that_is_written_again_was_never_gone() {
    let (mut objects, mut news) = objects();
    objects.event(place(), Event::Gone { uid: Some("u".into()), version: 9, ours: false });
    let again = Observed { uid: "v".into(), ..node(12, 1) };
    let change = again.row.clone().unwrap();
    assert!(objects.begin_import(&place()).is_some());
    assert!(objects.begin_import(&place()).is_none(), "by one at a time");
    objects.event(place(), Event::Put(again.clone()));
    objects.end_again(&place(), again, &change);
    assert_eq!(ports(&mut news), [RECREATED]);
    assert!(matches!(objects.begin(&place()), Ok(Base::Object { uid, version: 12, .. }) if uid == "v"));
    objects.end(&place());
    // By another replica, and changed since.
    objects.event(place(), Event::Gone { uid: Some("v".into()), version: 13, ours: false });
    objects.event(place(), Event::Put(Observed { uid: "w".into(), ..node(14, 3) }));
    assert!(objects.missing(Kind::Node)[0].recreated && ports(&mut news).is_empty());
    objects.keep(&place());
    assert_eq!(ports(&mut news), [3]);
}
