use std::sync::atomic::AtomicBool;

use redb::backends::FileBackend;

use super::*;
use crate::state::{CommunityRecord, NodeRecord};
use edge_types::Role;

fn row(node: &str, released_at: Option<i64>) -> SegmentRecord {
    let network = "10.77.0.0/26".parse().unwrap();
    SegmentRecord::new(network, node.parse().unwrap(), "r".into(), 1, released_at)
}

async fn commit(store: &Embedded, changes: Vec<Change>, now: Seconds) -> Result<(), StoreError> {
    store.commit(vec![changes], now).await.results.remove(0)
}

async fn load(store: &Embedded) -> Snapshot {
    store.load(mpsc::channel(1).0).await.unwrap()
}

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    let node = NodeRecord::new("a".parse().unwrap(), Role::Edge, 5);
    let community = CommunityRecord::new("alpha".parse().unwrap(), [node.name.clone()].into());
    let store = Embedded::open(directory.path()).unwrap();
    let changes = vec![
        Change::PutNode(node.clone()),
        Change::GrantSegment(row("a", None)),
        Change::PutCommunity(community.clone()),
    ];
    commit(&store, changes, 1_800_000_000).await.unwrap();
    drop(store);
    let snapshot = load(&Embedded::open(directory.path()).unwrap()).await;
    assert_eq!((snapshot.nodes, snapshot.segments), (vec![node], vec![row("a", None)]));
    assert_eq!((snapshot.revision, snapshot.time, snapshot.communities), (1, 1_800_000_000, vec![community]));
}

#[tokio::test]
async fn a_segment_that_is_held_is_granted_to_no_other_node_and_nothing_of_that_commit_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    commit(&store, vec![Change::GrantSegment(row("a", None))], 0).await.unwrap();
    let other = NodeRecord::new("b".parse().unwrap(), Role::Edge, 5);
    let changes = vec![Change::PutNode(other), Change::GrantSegment(row("b", None))];
    match commit(&store, changes, 0).await {
        Err(StoreError::Conflict { current, .. }) => assert_eq!(current, [Change::PutSegment(row("a", None))]),
        other => panic!("{other:?}"),
    }
    let snapshot = load(&store).await;
    assert!(snapshot.nodes.is_empty());
    assert_eq!((snapshot.segments, snapshot.revision), (vec![row("a", None)], 1));
    commit(&store, vec![Change::PutSegment(row("a", Some(9)))], 0).await.unwrap();
    commit(&store, vec![Change::GrantSegment(row("b", None))], 0).await.unwrap();
}

/// Fills and closes a store with enough rows for several pages.
async fn filled(directory: &Path) -> Snapshot {
    let store = Embedded::open(directory).unwrap();
    let nodes = (0..200).map(|n| NodeRecord::new(format!("node-{n}").parse().unwrap(), Role::Edge, n));
    commit(&store, nodes.map(Change::PutNode).collect(), 1).await.unwrap();
    commit(&store, vec![Change::GrantSegment(row("node-1", None))], 2).await.unwrap();
    load(&store).await
}

#[test]
fn a_file_that_is_no_store_is_refused_with_its_path_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(FILE), vec![0x5a; 8192]).unwrap();
    let error = Embedded::open(directory.path()).err().unwrap().to_string();
    assert!(error.contains(FILE) && error.contains("damaged") && error.contains("restore"), "{error}");
    assert_eq!(std::fs::read(directory.path().join(FILE)).unwrap(), vec![0x5a; 8192], "and left as it is");
}

#[tokio::test]
async fn a_file_in_use_is_not_called_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Embedded::open(directory.path()).unwrap();
    let error = Embedded::open(directory.path()).err().unwrap().to_string();
    assert!(error.contains("another edge-controller uses it") && !error.contains("damaged"), "{error}");
}

#[tokio::test]
async fn a_file_of_a_newer_release_is_refused_and_left_as_it_is_whether_it_was_closed_or_not() {
    for closed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path()).unwrap();
        let newer = store.writing(|write| {
            write.open_table(META).unwrap().insert(SCHEMA, OURS + 1).unwrap();
            write.open_table(TableDefinition::<&str, &str>::new("wonders")).unwrap().insert("a", "b").unwrap();
            Ok(())
        });
        newer.unwrap();
        let copy = tempfile::tempdir().unwrap();
        if closed {
            drop(store);
            std::fs::copy(directory.path().join(FILE), copy.path().join(FILE)).unwrap();
        } else {
            // The copy is in the state in which a power cut leaves the file.
            std::fs::copy(directory.path().join(FILE), copy.path().join(FILE)).unwrap();
            drop(store);
        }
        let before = std::fs::read(copy.path().join(FILE)).unwrap();
        let error = Embedded::open(copy.path()).err().unwrap();
        assert!(matches!(error, StoreError::Newer { found: 2, ours: 1, .. }), "{error}");
        assert!(error.to_string().contains("newer release"), "{error}");
        assert!(std::fs::read(copy.path().join(FILE)).unwrap() == before);
        let database = Database::open(copy.path().join(FILE)).unwrap();
        let read = database.begin_read().unwrap();
        assert_eq!(read.open_table(META).unwrap().get(SCHEMA).unwrap().unwrap().value(), OURS + 1);
        assert!(read.open_table(TableDefinition::<&str, &str>::new("wonders")).is_ok());
    }
}

/// A file on a disk that is full while the flag is set.
#[derive(Debug)]
struct FullDisk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl FullDisk {
    fn check(&self) -> std::io::Result<()> {
        match self.full.load(Ordering::Relaxed) {
            true => Err(std::io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }
}

#[tokio::test]
async fn after_a_disk_was_full_the_next_commit_works() {
    let directory = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let path = directory.path().join(FILE);
    let open = {
        let full = full.clone();
        move || {
            let file =
                std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            let file = FileBackend::new(file)?;
            // Opening the file needs no space, so the simulated disk is not full meanwhile.
            let full_now = full.swap(false, Ordering::Relaxed);
            let opened = redb::Builder::new().create_with_backend(FullDisk { file, full: full.clone() });
            full.store(full_now, Ordering::Relaxed);
            opened
        }
    };
    let store = Embedded::prepare(open().unwrap(), Arc::new(open)).unwrap();
    let (events, mut received) = mpsc::channel(8);
    store.load(events).await.unwrap();
    commit(&store, vec![Change::GrantSegment(row("a", None))], 0).await.unwrap();
    full.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let node = NodeRecord::new("b".parse().unwrap(), Role::Edge, 5);
        assert!(commit(&store, vec![Change::PutNode(node)], 0).await.is_err());
        let Some(StoreEvent::Snapshot(snapshot)) = received.recv().await else { panic!("no snapshot") };
        assert_eq!((snapshot.nodes.len(), snapshot.segments), (0, vec![row("a", None)]));
    }
    full.store(false, Ordering::Relaxed);
    let node = NodeRecord::new("c".parse().unwrap(), Role::Edge, 5);
    commit(&store, vec![Change::PutNode(node.clone())], 0).await.unwrap();
    drop(store);
    let snapshot = load(&Embedded::open(directory.path()).unwrap()).await;
    assert_eq!((snapshot.nodes, snapshot.segments), (vec![node], vec![row("a", None)]));
}

/// Flips each bit and cuts the file at each length. The result is an error, all rows, or the rows
/// of the previous commit.
#[tokio::test]
async fn damage_anywhere_is_refused_or_harmless_and_never_other_rows() {
    let directory = tempfile::tempdir().unwrap();
    let whole = filled(directory.path()).await;
    let bytes = std::fs::read(directory.path().join(FILE)).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..200 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let place = usize::try_from(seed).unwrap_or(usize::MAX) % bytes.len();
        let mut damaged = bytes.clone();
        if round % 4 == 0 {
            damaged.truncate(place)
        } else {
            damaged[place] ^= 1 << (round % 8)
        }
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), &damaged).unwrap();
        match Embedded::open(directory.path()).and_then(|store| store.read()) {
            Err(_) => {
                assert!(
                    std::fs::read(directory.path().join(FILE)).unwrap() == damaged,
                    "a refused file is left as it is"
                );
                refused += 1;
            }
            Ok(found) if found.revision == whole.revision => {
                assert!(found.nodes == whole.nodes && found.segments == whole.segments, "round {round}, byte {place}");
                harmless += 1;
            }
            // A file of length zero is a new store. A file with one lost header page holds the
            // previous commit.
            Ok(found) if found.nodes.is_empty() => assert_eq!(place, 0),
            Ok(found) => assert_eq!((found.revision, found.nodes.len()), (whole.revision - 1, 200), "{place}"),
        }
    }
    assert!(refused > 25 && harmless > 0, "refused {refused}, harmless {harmless}");
}
