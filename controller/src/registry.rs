//! The one place where changes happen: planned against the state, made durable, then seen by everyone.
//!
//! A single task takes plans from a queue. All that wait are carried out together and share one commit to the store; whoever asked hears of
//! it only after the commit. Should it fail, the state is read again from the store and everyone in that batch is told so.

use std::collections::HashMap;
use std::sync::Arc;

use edge_types::NodeName;
use tokio::sync::{RwLock, RwLockReadGuard, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::state::{Change, State};
use crate::store::{Store, StoreError};

/// Plans that wait at most; more make their callers wait.
const QUEUE: usize = 1024;
/// Plans that share one commit at most.
const BATCH: usize = 256;

/// The state, and the way to change it.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<RwLock<Shared>>,
    plans: mpsc::Sender<Plan>,
    /// Time, for whoever plans.
    pub clock: Clock,
}

struct Shared {
    state: State,
    /// Version of each registered node's view.
    versions: HashMap<NodeName, watch::Sender<u64>>,
    revision: u64,
}

/// Changes that a plan asks for, and how to answer when their fate is known.
struct Planned {
    changes: Vec<Change>,
    answer: Answer,
}

type Answer = Box<dyn FnOnce(Result<(), &StoreError>) + Send>;

type Plan = Box<dyn FnOnce(&mut State) -> Planned + Send>;

impl Registry {
    /// Reads the store and starts the task that changes it.
    pub async fn start(store: Arc<dyn Store>, clock: Clock) -> Result<Self, StoreError> {
        let snapshot = store.load()?;
        clock.not_before(snapshot.time);
        // The configuration may have changed while we were away, and with it every view.
        let revision = snapshot.revision + 1;
        store.commit(Vec::new(), revision, clock.now()).await?;
        let state = State::load(snapshot);
        let versions = state.nodes().map(|node| (node.name.clone(), watch::Sender::new(revision))).collect();
        let shared = Arc::new(RwLock::new(Shared { state, versions, revision }));
        let (plans, queue) = mpsc::channel(QUEUE);
        tokio::spawn(carry_out(queue, shared.clone(), store, clock.clone()));
        Ok(Self { shared, plans, clock })
    }

    /// Carries out a plan: it looks at the state and says what to change, or refuses. Its answer comes when the change is durable.
    pub async fn change<T: Send + 'static>(
        &self,
        plan: impl FnOnce(&mut State) -> Result<(T, Vec<Change>), Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        let plan: Plan = Box::new(move |state| match plan(state) {
            Ok((value, changes)) => Planned {
                changes,
                // Whoever asked may have gone: then the answer is for nobody.
                answer: Box::new(move |committed| {
                    let _ = answer.send(committed.map(|()| value).map_err(|e| Refusal::Store(e.to_string())));
                }),
            },
            Err(refusal) => Planned {
                changes: Vec::new(),
                answer: Box::new(move |_| {
                    let _ = answer.send(Err(refusal));
                }),
            },
        });
        let stopped = || Refusal::Store("the controller is stopping".into());
        self.plans.send(plan).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Looks at the state. All of it is durable.
    pub async fn read(&self) -> View<'_> {
        View { shared: self.shared.read().await }
    }
}

/// The state while one looks at it.
pub struct View<'a> {
    shared: RwLockReadGuard<'a, Shared>,
}

impl View<'_> {
    /// The state.
    pub fn state(&self) -> &State {
        &self.shared.state
    }

    /// Version of a node's view, and a way to hear of the next one. It closes when the node is deregistered.
    pub fn watch(&self, node: &NodeName) -> Option<watch::Receiver<u64>> {
        self.shared.versions.get(node).map(watch::Sender::subscribe)
    }

    /// Version of a node's view.
    pub fn version(&self, node: &NodeName) -> Option<u64> {
        self.shared.versions.get(node).map(|version| *version.borrow())
    }

    /// Whether a view stream of this node is open.
    pub fn is_connected(&self, node: &NodeName) -> bool {
        self.shared.versions.get(node).is_some_and(|version| version.receiver_count() > 0)
    }
}

async fn carry_out(mut queue: mpsc::Receiver<Plan>, shared: Arc<RwLock<Shared>>, store: Arc<dyn Store>, clock: Clock) {
    let mut plans = Vec::new();
    while queue.recv_many(&mut plans, BATCH).await > 0 {
        let mut guard = shared.write().await;
        let shared = &mut *guard;
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        for plan in plans.drain(..) {
            let planned = plan(&mut shared.state);
            for change in planned.changes {
                shared.state.apply(change.clone());
                changes.push(change);
            }
            answers.push(planned.answer);
        }
        let committed = if changes.is_empty() {
            Ok(())
        } else {
            store.commit(changes, shared.revision + 1, clock.now()).await.map(|()| shared.revision += 1)
        };
        match &committed {
            Ok(()) => publish(shared),
            Err(error) => {
                tracing::error!(%error, "a commit failed; its requests are refused");
                restore(shared, store.as_ref());
            }
        }
        drop(guard);
        for answer in answers {
            answer(committed.as_ref().copied());
        }
    }
}

/// Gives a new version to the view of every node that the last changes concern.
fn publish(shared: &mut Shared) {
    for name in shared.state.take_concerned() {
        if shared.state.node(&name).is_some() {
            let revision = shared.revision;
            shared.versions.entry(name).or_insert_with(|| watch::Sender::new(revision)).send_replace(revision);
        }
    }
    // Dropping a deregistered node's sender ends its streams.
    let state = &shared.state;
    if shared.versions.len() != state.nodes().len() {
        shared.versions.retain(|name, _| state.node(name).is_some());
    }
}

/// After a failed commit: what the store holds is what holds.
fn restore(shared: &mut Shared, store: &dyn Store) {
    match store.load() {
        Ok(snapshot) => {
            shared.revision = snapshot.revision.max(shared.revision);
            shared.state = State::load(snapshot);
        }
        // Neither writing nor reading works: going on would mean to answer from a state that nobody holds.
        Err(error) => {
            tracing::error!(%error, "the store can be neither written nor read; stopping");
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::clock::Seconds;
    use crate::state::{NodeRecord, Snapshot};
    use crate::store::Committed;
    use crate::store::embedded::Embedded;
    use edge_types::Role;

    /// The embedded store on a disk that fills up when the test says so.
    struct FullDisk {
        store: Embedded,
        full: Arc<AtomicBool>,
    }

    impl Store for FullDisk {
        fn load(&self) -> Result<Snapshot, StoreError> {
            self.store.load()
        }

        fn commit(&self, changes: Vec<Change>, revision: u64, time: Seconds) -> Committed<'_> {
            if self.full.load(Ordering::Relaxed) {
                return Box::pin(async { Err(StoreError::Failed("no space left on device".into())) });
            }
            self.store.commit(changes, revision, time)
        }
    }

    async fn put(registry: &Registry, name: &str) -> Result<(), Refusal> {
        let record = NodeRecord::new(name.parse().unwrap(), Role::Edge, 0);
        registry.change(move |_| Ok(((), vec![Change::PutNode(record)]))).await
    }

    #[tokio::test]
    async fn a_commit_that_fails_is_told_and_changes_nothing_and_the_next_one_works() {
        let folder = tempfile::tempdir().unwrap();
        let full = Arc::new(AtomicBool::new(false));
        let store = FullDisk { store: Embedded::open(folder.path()).unwrap(), full: full.clone() };
        let registry = Registry::start(Arc::new(store), Clock::system()).await.unwrap();
        put(&registry, "a").await.unwrap();
        let version = registry.read().await.version(&"a".parse().unwrap());
        full.store(true, Ordering::Relaxed);
        let (b, c) = tokio::join!(put(&registry, "b"), put(&registry, "c"));
        for refused in [b, c] {
            assert!(refused.unwrap_err().to_string().contains("no space left on device"));
        }
        {
            let view = registry.read().await;
            assert_eq!(view.state().nodes().len(), 1);
            assert_eq!(view.version(&"a".parse().unwrap()), version);
            assert_eq!(view.version(&"b".parse().unwrap()), None);
        }
        full.store(false, Ordering::Relaxed);
        put(&registry, "b").await.unwrap();
        assert!(registry.read().await.version(&"b".parse().unwrap()) > version);
    }
}
