//! The one place where changes happen: planned against the state, made durable, then seen by
//! everyone.
//!
//! A single task takes plans from a queue. All that wait are planned one on top of the other, taken
//! back, and committed to the store together; what the store took is applied and published, and
//! whoever asked hears of it. So nobody ever sees, in an answer or in a view, what may yet be lost,
//! and nobody who only looks waits for the store. Where another replica was quicker the plan is
//! made anew on what holds by then.
//!
//! - [`Registry`]: state, plans, and news from other replicas.
//! - `viewers`: versions of views, and what changed since.
//! - `peers`: peers as they are told.

mod peer_cache;
mod view_versions;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use edge_types::{NodeName, Peer};
use tokio::sync::{RwLock, RwLockReadGuard, broadcast, mpsc, oneshot, watch};

use crate::clock::{Clock, Seconds};
use crate::endpoints::Changes;
use crate::random;
use crate::segments::Restored;
use crate::state::{Change, Key, State, ViewDelta};
use crate::store::{Followed, Note, Store, StoreError};
use peer_cache::PeerCache;
pub use peer_cache::PeerJson;
use view_versions::ViewVersions;

/// Plans that wait at most; more make their callers wait.
const QUEUE: usize = 1024;
/// Plans that share one commit at most.
const BATCH: usize = 256;
/// News of other replicas that wait at most; more make the store wait.
const NEWS: usize = 256;
/// Newcomers that are remembered for whoever is slow to look at them.
const NEWCOMERS: usize = 1024;
/// How often a plan is made anew because another replica was quicker.
const ATTEMPTS: u32 = 16;
/// Longest wait before a plan is made anew.
const PAUSE: Duration = Duration::from_millis(200);

/// The state, and the way to change it.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<RwLock<Shared>>,
    orders: mpsc::Sender<Order>,
    store: Arc<dyn Store>,
    /// Names this run of this replica: versions of one epoch are of one history.
    epoch: Arc<str>,
    /// Time, for whoever plans.
    pub clock: Clock,
    /// How often nodes change their addresses.
    pub endpoint_changes: Changes,
}

struct Shared {
    state: State,
    view_versions: ViewVersions,
    peers: PeerCache,
    newcomers: broadcast::Sender<NodeName>,
    /// Nodes and listed communities that came since the start, with the revision at which each did.
    came: HashMap<Key, u64>,
    /// Something changed since the revision was published.
    changed: bool,
    /// Everything up to this revision of the store is in the state.
    revision: u64,
}

/// What the task is asked to do.
enum Order {
    Plan(Plan),
    /// Everyone's view may have changed, without a change of any row.
    Refresh(oneshot::Sender<()>),
}

/// Changes that a plan asks for, and how to answer when their fate is known.
struct Planned {
    changes: Vec<Change>,
    answer: Answer,
}

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

type Plan = Box<dyn FnOnce(&mut State) -> Planned + Send>;

/// Why one attempt came to nothing.
enum Setback<E> {
    Refused(E),
    Store(StoreError),
}

impl Registry {
    /// Reads the store and starts the task that changes it. `trust_node_labels` as in
    /// [`State::load`].
    pub async fn start(store: Arc<dyn Store>, clock: Clock, trust_node_labels: bool) -> Result<Self, StoreError> {
        let (followed, news) = mpsc::channel(NEWS);
        let snapshot = store.load(followed).await?;
        clock.not_before(snapshot.time);
        let mut state = State::load(snapshot, trust_node_labels);
        state.ledger_mut().watch(clock.clone());
        state.set_restored(restored(&*store, clock.now()).await?);
        // The configuration may have changed while we were away, and with it every view: hence a
        // revision of our own.
        let revision = store.commit(vec![Vec::new()], clock.now()).await;
        revision.results.into_iter().collect::<Result<Vec<()>, _>>()?;
        let revision = revision.revision;
        let view_versions = ViewVersions::new(&state, revision);
        let (newcomers, _) = broadcast::channel(NEWCOMERS);
        let shared = Shared {
            state,
            view_versions,
            peers: PeerCache::default(),
            newcomers,
            came: HashMap::new(),
            changed: false,
            revision,
        };
        let shared = Arc::new(RwLock::new(shared));
        let (orders, queue) = mpsc::channel(QUEUE);
        let task = Task { shared: shared.clone(), store: store.clone(), clock: clock.clone() };
        tokio::spawn(task.run(queue, news));
        let epoch = random::octets(8).map_err(|error| StoreError::Failed(error.to_string()))?;
        let epoch = crate::ca::hex(&epoch);
        Ok(Self { shared, orders, store, epoch: epoch.into(), clock, endpoint_changes: Changes::default() })
    }

    /// Carries out a plan: it looks at the state and says what to change, or refuses. Its answer
    /// comes when the change is durable. It may be made several times, of which only the last one
    /// counts.
    pub async fn change<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        plan: impl Fn(&mut State) -> Result<(T, Vec<Change>), E> + Send + Sync + 'static,
    ) -> Result<T, E> {
        let plan = Arc::new(plan);
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.attempt(plan.clone()).await {
                Ok(value) => return Ok(value),
                Err(Setback::Store(error @ StoreError::Conflict { .. })) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "planning anew");
                    tokio::time::sleep(random::jitter(PAUSE.min(Duration::from_millis(1 << attempt)))).await;
                }
                Err(Setback::Store(error)) => return Err(error.into()),
                Err(Setback::Refused(refusal)) => return Err(refusal),
            }
        }
    }

    async fn attempt<T: Send + 'static, E: Send + 'static>(
        &self,
        plan: Arc<impl Fn(&mut State) -> Result<(T, Vec<Change>), E> + Send + Sync + 'static>,
    ) -> Result<T, Setback<E>> {
        let (answer, answered) = oneshot::channel();
        let plan: Plan = Box::new(move |state| match plan(state) {
            Ok((value, changes)) => Planned {
                changes,
                // Whoever asked may have gone: then the answer is for nobody.
                answer: Box::new(move |committed| {
                    let _ = answer.send(committed.map(|()| value).map_err(Setback::Store));
                }),
            },
            Err(refusal) => Planned {
                changes: Vec::new(),
                answer: Box::new(move |_| {
                    let _ = answer.send(Err(Setback::Refused(refusal)));
                }),
            },
        });
        let stopped = || Setback::Store(StoreError::Stopping);
        self.orders.send(Order::Plan(plan)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Gives every view a new version: what it takes from elsewhere than the rows has changed.
    pub async fn refresh(&self) {
        let (done, waited) = oneshot::channel();
        if self.orders.send(Order::Refresh(done)).await.is_ok() {
            let _ = waited.await;
        }
    }

    /// Looks at the state. All of it is durable.
    pub async fn read(&self) -> View<'_> {
        View { shared: self.shared.read().await }
    }

    /// Makes sure that the state holds all that any replica knew at a revision.
    pub async fn catch_up(&self, revision: u64) -> Result<(), StoreError> {
        self.store.catch_up(revision).await
    }

    /// Makes sure that the state holds every segment that was claimed before this is called.
    pub async fn read_segments_anew(&self) -> Result<(), StoreError> {
        self.store.read_segments_anew().await
    }

    /// What was noted beside the rows, if anything.
    pub async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.store.note(note).await
    }

    /// Notes something beside the rows.
    pub async fn set_note(&self, note: Note, text: String) -> Result<(), StoreError> {
        self.store.set_note(note, text).await
    }

    /// Hears the name of each node that is registered from now on, by whichever replica.
    pub async fn newcomers(&self) -> broadcast::Receiver<NodeName> {
        self.shared.read().await.newcomers.subscribe()
    }

    /// Names this run of this replica. What changed since a version is known only for versions of
    /// the same epoch.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }
}

/// Whether the rows were restored. From the first start after it, nodes are waited for.
async fn restored(store: &dyn Store, now: Seconds) -> Result<Option<Restored>, StoreError> {
    let Some(note) = store.note(Note::Restored).await? else { return Ok(None) };
    let unreadable = |why| StoreError::Unreadable { table: "note", key: Note::Restored.key().to_owned(), why };
    let mut restored = Restored::from_note(&note).map_err(unreadable)?;
    if restored.served_from.is_none() {
        restored.served_from = Some(now);
        store.set_note(Note::Restored, restored.to_note()).await?;
    }
    Ok(Some(restored))
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

    /// Everything up to this revision of the store is in the state: the version of every view that
    /// is computed from it.
    pub fn revision(&self) -> u64 {
        self.shared.revision
    }

    /// Hears of each change of a node's view. It closes when the node is deregistered.
    pub fn watch(&self, node: &NodeName) -> Option<watch::Receiver<u64>> {
        self.shared.view_versions.watch(node)
    }

    /// What changed in a node's view after a version of this epoch; `None` if that is not known any
    /// more.
    pub fn delta_since(&self, node: &NodeName, version: u64) -> Option<ViewDelta> {
        self.shared.view_versions.delta_since(&self.shared.state, node, version)
    }

    /// A registered node in JSON as its viewers see it; `make` shows it, if that was not done since
    /// it changed. `None` if it does not serialise.
    pub fn peer(&self, name: &NodeName, make: impl FnOnce() -> Peer) -> Option<PeerJson> {
        self.shared.peers.get_or_make(name, make)
    }

    /// The revision at which a node or a listed community came; 0 where it was there at the start.
    /// One that was deleted and came back as it was has come anew.
    pub fn came(&self, key: &Key) -> u64 {
        self.shared.came.get(key).copied().unwrap_or(0)
    }

    /// How many streams of a node's view are open here.
    pub fn view_streams(&self, node: &NodeName) -> usize {
        self.shared.view_versions.watchers(node)
    }

    /// Whether a view stream of this node is open.
    pub fn is_connected(&self, node: &NodeName) -> bool {
        self.view_streams(node) > 0
    }
}

struct Task {
    shared: Arc<RwLock<Shared>>,
    store: Arc<dyn Store>,
    clock: Clock,
}

impl Task {
    async fn run(self, mut queue: mpsc::Receiver<Order>, mut news: mpsc::Receiver<Followed>) {
        let mut orders = Vec::new();
        loop {
            tokio::select! {
                // Plans are better made on the latest news.
                biased;
                Some(followed) = news.recv() => self.follow(followed).await,
                count = queue.recv_many(&mut orders, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.carry_out(std::mem::take(&mut orders)).await;
                }
            }
        }
    }

    async fn carry_out(&self, orders: Vec<Order>) {
        let mut planned = Vec::new();
        let mut refreshed = Vec::new();
        {
            let mut shared = self.shared.write().await;
            let mut undo = Vec::new();
            for order in orders {
                match order {
                    Order::Refresh(done) => refreshed.push(done),
                    Order::Plan(plan) => {
                        let plan = plan(&mut shared.state);
                        for change in &plan.changes {
                            undo.push(shared.state.inverse(change));
                            shared.state.apply(change.clone());
                        }
                        planned.push(plan);
                    }
                }
            }
            undo.into_iter().rev().for_each(|change| shared.state.apply(change));
            shared.state.take_view_deltas();
        }
        // An empty element gives a refresh its revision.
        let mut batch: Vec<Vec<Change>> =
            planned.iter().map(|plan| plan.changes.clone()).filter(|changes| !changes.is_empty()).collect();
        let written = batch.len();
        if !refreshed.is_empty() {
            batch.push(Vec::new());
        }
        if batch.is_empty() {
            return planned.into_iter().for_each(|plan| (plan.answer)(Ok(())));
        }
        let committed = self.store.commit(batch, self.clock.now()).await;
        let mut results = committed.results.into_iter().take(written);
        let mut answers = Vec::new();
        let mut shared = self.shared.write().await;
        let shared = &mut *shared;
        for Planned { changes, answer } in planned {
            let result = if changes.is_empty() { Ok(()) } else { results.next().unwrap_or_else(no_result) };
            match &result {
                Ok(()) => shared.apply(changes),
                Err(StoreError::Conflict { current, .. }) => shared.apply(current.clone()),
                Err(error) => tracing::error!(%error, "a commit failed; its request is refused"),
            }
            answers.push((answer, result));
        }
        shared.publish(committed.revision);
        if !refreshed.is_empty() {
            shared.view_versions.publish_all(shared.revision);
            shared.peers.clear();
        }
        // What was asked for is seen by whoever hears that it is done.
        answers.into_iter().for_each(|(answer, result)| answer(result));
        for done in refreshed {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }

    async fn follow(&self, followed: Followed) {
        let mut shared = self.shared.write().await;
        let shared = &mut *shared;
        let (changes, revision) = match followed {
            Followed::Changes { changes, recreated, revision } => {
                shared.recreated(recreated);
                (changes, revision)
            }
            Followed::Rows(asked) => {
                // Whoever asked may have gone.
                let _ = asked.send(shared.state.rows());
                return;
            }
            Followed::Snapshot(snapshot) => {
                let revision = snapshot.revision;
                (shared.state.changes_to(snapshot), revision)
            }
        };
        shared.apply(changes);
        shared.publish(revision);
        self.store.taken_in(revision);
    }
}

impl Shared {
    /// Applies changes; those that change nothing, such as the echo of our own, concern nobody.
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            let claimed = match change {
                Change::ClaimSegment(row) => Change::PutSegment(row),
                other => other,
            };
            let before = self.state.inverse(&claimed);
            if before != claimed {
                match (&claimed, &before) {
                    (Change::PutNode(node), Change::DeleteNode(_)) => {
                        self.came.insert(claimed.key(), self.revision + 1);
                        // Nobody may be listening.
                        let _ = self.newcomers.send(node.name.clone());
                    }
                    (Change::PutCommunity(_), Change::DeleteCommunity(_)) => {
                        self.came.insert(claimed.key(), self.revision + 1);
                    }
                    (Change::DeleteNode(_) | Change::DeleteCommunity(_), _) => drop(self.came.remove(&claimed.key())),
                    _ => {}
                }
                self.changed = true;
                self.state.apply(claimed);
            }
        }
    }

    /// Objects of these rows were written again as they were: they have come anew, and what was
    /// shown on them is gone.
    fn recreated(&mut self, keys: Vec<Key>) {
        for key in keys {
            if matches!(key, Key::Node(_) | Key::Community(_)) {
                self.came.insert(key, self.revision + 1);
                self.changed = true;
            }
        }
    }

    fn publish(&mut self, revision: u64) {
        let deltas = self.state.take_view_deltas();
        // News of other replicas may come later than what was written after them. What changes gets
        // a new revision nevertheless.
        let late = u64::from(std::mem::take(&mut self.changed));
        self.revision = revision.max(self.revision + late);
        // Whoever is seen differently, or by others than before, is touched.
        self.peers.forget(deltas.peers());
        self.view_versions.publish(&self.state, deltas, self.revision);
    }
}

fn no_result() -> Result<(), StoreError> {
    Err(StoreError::Failed("it did not say what became of the change".into()))
}
