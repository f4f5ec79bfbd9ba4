use std::sync::Mutex;

use edge_controller_domain::ca::Files;
use edge_controller_domain::clock::{Clock, Seconds};
use edge_controller_domain::state::{Change, NodeRecord, RowKey, Snapshot};
use edge_controller_domain::store::embedded::Embedded;
use edge_controller_domain::store::{Committed, Store, StoreEvent};
use edge_types::Role;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use super::*;

/// A store that commits when the test permits it. The next change of the row `quicker` conflicts,
/// because another replica changed the row first.
struct Gate {
    store: Embedded,
    permits: Semaphore,
    quicker: Mutex<Option<RowKey>>,
}

impl Gate {
    fn conflict(&self, changes: &[Change]) -> Option<StoreError> {
        let key = self.quicker.lock().unwrap().take_if(|key| changes.first().is_some_and(|c| c.key() == *key))?;
        Some(StoreError::Conflict { key, current: Vec::new() })
    }
}

impl Store for Gate {
    fn load(&self, events: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        self.store.load(events)
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        Box::pin(async move {
            self.permits.acquire().await.unwrap().forget();
            let conflicts: Vec<Option<StoreError>> = batch.iter().map(|changes| self.conflict(changes)).collect();
            let kept = batch.into_iter().zip(&conflicts).filter(|(_, conflict)| conflict.is_none());
            let committed = self.store.commit(kept.map(|(changes, _)| changes).collect(), now).await;
            let mut results = committed.results.into_iter();
            let results = conflicts.into_iter().map(|conflict| match conflict {
                Some(conflict) => Err(conflict),
                None => results.next().unwrap(),
            });
            Committed { revision: committed.revision, results: results.collect() }
        })
    }

    fn acknowledge(&self, revision: u64) {
        self.store.acknowledge(revision);
    }
}

/// A registry on a store behind a gate, and a configuration that becomes `new` when it is read
/// again.
struct Site {
    registry: Registry,
    store: Arc<Gate>,
    live: Arc<LiveConfig>,
    _directory: tempfile::TempDir,
}

impl Site {
    async fn start(old: &str, new: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let ca = Ca::open(Box::new(Files::new(directory.path(), clock.now())), None, clock.now()).await.unwrap();
        let store = Embedded::open(directory.path()).unwrap();
        let store = Arc::new(Gate { store, permits: Semaphore::new(100), quicker: Mutex::new(None) });
        let registry = Registry::start(store.clone(), clock, true).await.unwrap();
        let [old, new] = [old, new].map(|ranges| config(directory.path(), ranges));
        let live = Arc::new(LiveConfig::new(old, Arc::new(ca), Some(Box::new(move || Ok(new.clone())))));
        Self { registry, store, live, _directory: directory }
    }

    /// Reads the configuration again in one batch with a change that is planned before it and
    /// conflicts once. Returns both results.
    async fn reload_beside(&self, change: Change) -> (Result<(), StoreError>, Result<ReloadResponse, ReloadError>) {
        self.store.permits.forget_permits(100);
        *self.store.quicker.lock().unwrap() = Some(change.key());
        // The registry waits for this commit, and so takes the next two plans together.
        let waiting = tokio::spawn(put(self.registry.clone(), vec![node("waiting")]));
        let conflicting = tokio::spawn(put(self.registry.clone(), vec![change]));
        let (live, registry) = (self.live.clone(), self.registry.clone());
        let reload = tokio::spawn(async move { live.reload(&registry).await });
        // There is no event that tells that the plans are in the queue.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.store.permits.add_permits(100);
        waiting.await.unwrap().unwrap();
        let results = (conflicting.await.unwrap(), reload.await.unwrap());
        assert!(self.store.quicker.lock().unwrap().is_none(), "the change did conflict");
        results
    }
}

fn config(directory: &std::path::Path, ranges: &str) -> Config {
    let path = directory.join("controller.toml");
    let text = format!("server_names = [\"192.0.2.1\"]\n[segments]\ncluster_ranges = [{ranges}]\n");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

fn node(name: &str) -> Change {
    Change::PutNode(NodeRecord::new(name.parse().unwrap(), Role::Edge, 0))
}

/// Commits changes; gives up if another replica is quicker.
async fn put(registry: Registry, changes: Vec<Change>) -> Result<(), StoreError> {
    let planned = AtomicBool::new(false);
    let plan = move |_: &mut State| match planned.swap(true, Ordering::Relaxed) {
        false => Ok(((), changes.clone())),
        true => Err(StoreError::Failed("another replica was quicker".into())),
    };
    registry.change(plan).await
}

#[tokio::test]
async fn a_reload_beside_a_change_that_failed_is_told_to_the_nodes() {
    let site = Site::start("\"10.77.0.0/16\"", "\"10.77.0.0/16\", \"10.78.0.0/16\"").await;
    put(site.registry.clone(), vec![node("a")]).await.unwrap();
    let mut watch = site.registry.read().await.watch(&"a".parse().unwrap()).unwrap();
    let (failed, reloaded) = site.reload_beside(node("b")).await;
    assert!(failed.is_err());
    assert_eq!(reloaded.unwrap().changed, ["segments.cluster_ranges"]);
    assert_eq!(site.live.now().networks.ranges.len(), 2);
    let version = *watch.borrow_and_update();
    let state = site.registry.read().await;
    assert_eq!(state.changed_since(&"a".parse().unwrap(), version - 1), None, "it gets the whole view");
}

#[tokio::test]
async fn a_reload_that_was_right_only_beside_a_change_that_failed_is_taken_back() {
    let site = Site::start("\"10.77.0.0/16\", \"10.78.0.0/16\"", "\"10.77.0.0/16\"").await;
    let segment = |released_at| {
        let network = "10.78.0.0/26".parse().unwrap();
        Change::PutSegment(SegmentRecord::new(network, "a".parse().unwrap(), "r".into(), 0, released_at))
    };
    put(site.registry.clone(), vec![node("a"), segment(None)]).await.unwrap();
    let mut watch = site.registry.read().await.watch(&"a".parse().unwrap()).unwrap();
    watch.mark_unchanged();
    let (failed, reloaded) = site.reload_beside(segment(Some(1))).await;
    assert!(failed.is_err());
    let error = reloaded.unwrap_err().to_string();
    assert!(error.contains("10.78.0.0/26 by a") && error.contains("nothing was changed"), "{error}");
    assert_eq!(site.live.now().networks.ranges.len(), 2);
    assert!(watch.has_changed().unwrap(), "a view may have shown the new ranges for a moment");
}
