use std::sync::atomic::{AtomicBool, Ordering};

use edge_types::Role;
use futures_util::future::BoxFuture;

use super::each_node::NODES_AT_ONCE;
use super::*;
use crate::clock::Seconds;
use crate::state::{CommunityRecord, NodeRecord, Snapshot};
use crate::store::Committed;
use crate::store::embedded::Embedded;

/// A time longer than any test in this file takes.
const HANG: Duration = Duration::from_secs(3600);

/// The embedded store on a disk that fills up when the test requests it.
struct FullDisk {
    store: Embedded,
    full: Arc<AtomicBool>,
}

impl Store for FullDisk {
    fn load(&self, events: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.store.load(events)
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        if self.full.load(Ordering::Relaxed) {
            let results = batch.iter().map(|_| Err(StoreError::Failed("no space left on device".into()))).collect();
            return Box::pin(async { Committed { revision: 0, results } });
        }
        self.store.commit(batch, now)
    }

    fn acknowledge(&self, revision: u64) {
        self.store.acknowledge(revision);
    }
}

/// A store that another replica shares. Before each commit of this replica, the other replica
/// commits the last element of `quicker`, until `quicker` is empty.
struct Shared {
    store: Embedded,
    quicker: tokio::sync::Mutex<Vec<Vec<Change>>>,
}

impl Store for Shared {
    fn load(&self, events: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.store.load(events)
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        Box::pin(async move {
            if !batch.iter().all(Vec::is_empty)
                && let Some(changes) = self.quicker.lock().await.pop()
            {
                self.store.commit(vec![changes], now).await;
            }
            self.store.commit(batch, now).await
        })
    }

    fn acknowledge(&self, revision: u64) {
        self.store.acknowledge(revision);
    }
}

/// A store whose watch is behind: every commit conflicts until a given time.
struct Behind {
    store: Embedded,
    until: tokio::time::Instant,
}

impl Store for Behind {
    fn load(&self, events: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.store.load(events)
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        if tokio::time::Instant::now() < self.until {
            let conflict = |element: &Vec<Change>| match element.first() {
                Some(change) => Err(StoreError::Conflict { key: change.key(), current: Vec::new() }),
                None => Ok(()),
            };
            let results = batch.iter().map(conflict).collect();
            return Box::pin(async { Committed { revision: 0, results } });
        }
        self.store.commit(batch, now)
    }

    fn acknowledge(&self, revision: u64) {
        self.store.acknowledge(revision);
    }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

async fn put(registry: &Registry, node: &str) -> Result<(), StoreError> {
    let record = NodeRecord::new(name(node), Role::Edge, 0);
    registry.change(move |_| Ok(((), vec![Change::PutNode(record.clone())]))).await
}

#[tokio::test]
async fn a_row_that_is_deleted_and_written_again_counts_as_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start(Arc::new(Embedded::open(directory.path()).unwrap()), Clock::system(), true).await;
    let registry = registry.unwrap();
    let community = CommunityRecord::new("alpha".parse().unwrap(), [].into());
    let keys = [RowKey::Node(name("a")), RowKey::Community(community.name.clone())];
    let puts = vec![Change::PutNode(NodeRecord::new(name("a"), Role::Edge, 0)), Change::PutCommunity(community)];
    let deletions = vec![Change::DeleteNode(name("a")), Change::DeleteCommunity("alpha".parse().unwrap())];
    let mut before = registry.read().await.revision();
    // The last round deletes and creates in one commit, so that no reader sees the state without
    // the row.
    for changes in [puts.clone(), puts.clone(), [deletions, puts].concat()].into_iter().enumerate() {
        let (round, changes) = changes;
        registry.change(move |_| Ok::<_, StoreError>(((), changes.clone()))).await.unwrap();
        let state = registry.read().await;
        for key in &keys {
            let created_at = state.created_at_revision(key);
            assert_eq!(created_at > before, round != 1, "{key:?} in round {round}");
            assert!(created_at <= state.revision(), "{key:?}: {created_at} is not known yet");
        }
        before = state.revision();
    }
}

#[tokio::test]
async fn a_commit_that_fails_is_reported_and_changes_nothing_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let store = FullDisk { store: Embedded::open(directory.path()).unwrap(), full: full.clone() };
    let registry = Registry::start(Arc::new(store), Clock::system(), true).await.unwrap();
    put(&registry, "a").await.unwrap();
    let revision = registry.read().await.revision();
    full.store(true, Ordering::Relaxed);
    let (b, c) = tokio::join!(put(&registry, "b"), put(&registry, "c"));
    for refused in [b, c] {
        assert!(refused.unwrap_err().to_string().contains("no space left on device"));
    }
    {
        let state = registry.read().await;
        assert_eq!(state.nodes().len(), 1);
        assert_eq!(state.revision(), revision);
        assert!(state.watch(&name("b")).is_none());
    }
    full.store(false, Ordering::Relaxed);
    put(&registry, "b").await.unwrap();
    assert!(registry.read().await.revision() > revision);
    assert!(registry.read().await.watch(&name("b")).is_some());
}

#[tokio::test]
async fn no_answer_rests_on_a_plan_of_the_same_batch_that_was_not_committed() {
    let directory = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let store = FullDisk { store: Embedded::open(directory.path()).unwrap(), full: full.clone() };
    let registry = Registry::start(Arc::new(store), Clock::system(), true).await.unwrap();
    // A repeated request finds the row that the first one planned. A different request is refused
    // because of that row.
    let granted = || {
        registry.change(|state| {
            let record = NodeRecord::new(name("b"), Role::Edge, 0);
            let there = state.node(&record.name).is_some();
            Ok::<_, StoreError>(((), if there { vec![] } else { vec![Change::PutNode(record)] }))
        })
    };
    let refused = || {
        registry.change(|state| {
            let record = NodeRecord::new(name("b"), Role::Edge, 7);
            match state.node(&record.name) {
                Some(_) => Err(StoreError::Failed("taken".into())),
                None => Ok(((), vec![Change::PutNode(record)])),
            }
        })
    };
    full.store(true, Ordering::Relaxed);
    let (first, repeated, other) = tokio::join!(granted(), granted(), refused());
    for outcome in [first, repeated, other] {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("no space left on device"), "{error}");
    }
    full.store(false, Ordering::Relaxed);
    let (first, repeated, other) = tokio::join!(granted(), granted(), refused());
    assert!(first.is_ok() && repeated.is_ok());
    assert!(other.unwrap_err().to_string().contains("taken"));
}

#[tokio::test]
async fn a_plan_waits_for_a_watch_that_is_seconds_behind_but_not_for_ever() {
    for (behind, retry_time) in [(Duration::from_secs(3), RETRY_TIME), (HANG, Duration::from_millis(100))] {
        let directory = tempfile::tempdir().unwrap();
        let until = tokio::time::Instant::now() + behind;
        let store = Behind { store: Embedded::open(directory.path()).unwrap(), until };
        let registry = Registry::start(Arc::new(store), Clock::system(), true).await.unwrap();
        let record = NodeRecord::new(name("a"), Role::Edge, 0);
        let put = move |_: &mut State| Ok::<_, StoreError>(((), vec![Change::PutNode(record.clone())]));
        let result = registry.change_within(retry_time, put).await;
        assert_eq!(result.is_ok(), behind < retry_time, "{result:?} with a watch {behind:?} behind");
    }
}

#[tokio::test]
async fn a_plan_is_made_again_if_another_replica_changed_its_rows_first() {
    let directory = tempfile::tempdir().unwrap();
    let row = |network: &str, node: &str| {
        crate::segments::SegmentRecord::new(network.parse().unwrap(), name(node), "r".into(), 1, None)
    };
    let quicker = vec![
        vec![Change::GrantSegment(row("10.77.0.64/26", "y"))],
        vec![Change::GrantSegment(row("10.77.0.0/26", "x"))],
    ];
    let store = Shared { store: Embedded::open(directory.path()).unwrap(), quicker: quicker.into() };
    let registry = Registry::start(Arc::new(store), Clock::system(), true).await.unwrap();
    let granted = registry
        .change(move |state| -> Result<_, StoreError> {
            let free = |network: &&str| state.ledger().row(&network.parse().unwrap()).is_none();
            let network = ["10.77.0.0/26", "10.77.0.64/26", "10.77.0.128/26"].into_iter().find(free).unwrap();
            Ok((network, vec![Change::GrantSegment(row(network, "me"))]))
        })
        .await
        .unwrap();
    assert_eq!(granted, "10.77.0.128/26");
    let state = registry.read().await;
    let holders: Vec<&str> = state.ledger().rows().map(|row| row.node.as_str()).collect();
    assert_eq!(holders, ["x", "y", "me"]);
}

#[tokio::test]
async fn a_refresh_gives_every_view_a_new_version_and_no_memory_of_older_ones() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let registry = Registry::start(store, Clock::system(), true).await.unwrap();
    put(&registry, "a").await.unwrap();
    let mut watch = registry.read().await.watch(&name("a")).unwrap();
    let before = *watch.borrow_and_update();
    registry.refresh().await;
    assert!(watch.has_changed().unwrap() && *watch.borrow() > before);
    let state = registry.read().await;
    assert_eq!(state.changed_since(&name("a"), before), None);
    assert_eq!(state.changed_since(&name("a"), state.revision()), Some(ChangedParts::default()));
}

#[tokio::test]
async fn a_refresh_reaches_every_view_although_the_store_failed() {
    let directory = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let store = FullDisk { store: Embedded::open(directory.path()).unwrap(), full: full.clone() };
    let registry = Registry::start(Arc::new(store), Clock::system(), true).await.unwrap();
    put(&registry, "a").await.unwrap();
    let mut watch = registry.read().await.watch(&name("a")).unwrap();
    let mut before = *watch.borrow_and_update();
    for failing in [true, true, false] {
        full.store(failing, Ordering::Relaxed);
        registry.refresh().await;
        let now = *watch.borrow_and_update();
        assert!(now > before, "{now} after {before}, failing: {failing}");
        let state = registry.read().await;
        assert_eq!((state.changed_since(&name("a"), before), state.revision()), (None, now));
        before = now;
    }
    put(&registry, "b").await.unwrap();
    assert!(registry.read().await.revision() > before, "later changes get later versions");
}

#[tokio::test]
async fn plans_of_one_batch_are_made_on_top_of_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let registry = Registry::start(store, Clock::system(), true).await.unwrap();
    let count = |registry: Registry| async move {
        registry
            .change(|state| -> Result<_, StoreError> {
                let next = state.nodes().len();
                Ok((next, vec![Change::PutNode(NodeRecord::new(name(&format!("n{next}")), Role::Edge, 0))]))
            })
            .await
            .unwrap()
    };
    let mut numbers = futures_util::future::join_all((0..50).map(|_| count(registry.clone()))).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    assert_eq!(registry.read().await.nodes().len(), 50);
}

#[tokio::test]
async fn whoever_looks_at_all_nodes_lets_a_change_in_after_a_few_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let registry = Registry::start(store, Clock::system(), true).await.unwrap();
    let all = 2 * NODES_AT_ONCE + 7;
    let nodes = (0..all).map(|n| Change::PutNode(NodeRecord::new(name(&format!("n{n:05}")), Role::Edge, 0)));
    let nodes: Vec<Change> = nodes.collect();
    registry.change(move |_| Ok::<_, StoreError>(((), nodes.clone()))).await.unwrap();
    let seen = std::cell::RefCell::new(Vec::new());
    let look = registry.each_node(|_, record| seen.borrow_mut().push(record.name.clone()));
    let change = async {
        let mut shared = registry.shared.write().await;
        shared.state.apply(Change::DeleteNode(name("n00000")));
        shared.state.apply(Change::DeleteNode(name("n00300")));
        seen.borrow().len()
    };
    let ((), before) = tokio::join!(look, change);
    assert_eq!(before, NODES_AT_ONCE);
    let mut expected: Vec<NodeName> = (0..all).map(|n| name(&format!("n{n:05}"))).collect();
    expected.remove(300);
    assert_eq!(*seen.borrow(), expected, "each node once, and none that was gone when its turn came");
    seen.borrow_mut().clear();
    registry.each_node(|_, record| seen.borrow_mut().push(record.name.clone())).await;
    assert_eq!(seen.borrow().len(), all - 2);
}
