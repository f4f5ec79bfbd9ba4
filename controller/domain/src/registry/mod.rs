//! The registry plans each change against the state, commits it to the store, then publishes it.
//!
//! One task takes plans from a queue. The task makes all waiting plans, each based on the one
//! before, undoes their changes in memory, and commits them to the store together. It applies and
//! publishes the changes that the store accepted and then replies to the callers. So no response
//! and no view shows a change that may still be lost, and readers never wait for the store. If
//! another replica changed the same rows first, the plan is repeated on the new state.
//!
//! - [`Registry`]: reads the state and carries out plans.
//! - `view_versions`: the version of each node's view, and the changes since earlier versions.
//! - `peer_cache`: the JSON of peers, serialised once for all views.
//! - `operator_streams`: counts the operator's streams of nodes' views.
//! - `each_node`: looks at all nodes without keeping changes waiting.

mod each_node;
mod operator_streams;
mod peer_cache;
mod view_versions;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use edge_types::{NodeName, Peer};
use tokio::sync::{RwLock, RwLockReadGuard, broadcast, mpsc, oneshot, watch};
use tracing::Span;

use crate::clock::{Clock, Seconds, StoredTime, rfc3339};
use crate::node_addresses::AddressChangeLimits;
use crate::random;
use crate::segments::Restored;
use crate::state::{Change, ChangedParts, RowKey, State};
use crate::store::{Note, Store, StoreError, StoreEvent};
pub use operator_streams::OperatorStream;
use operator_streams::OperatorStreams;
use peer_cache::PeerCache;
pub use peer_cache::PeerJson;
use view_versions::ViewVersions;

/// Maximum number of waiting plans. Callers with further plans wait until there is room.
const QUEUE: usize = 1024;
/// Maximum number of plans that share one commit.
const BATCH: usize = 256;
/// Maximum number of waiting store events. The store waits before it sends more.
const EVENTS: usize = 256;
/// Maximum number of registrations that are kept for a slow subscriber.
const REGISTRATIONS: usize = 1024;
/// Time for which a plan is repeated when other replicas change the same rows first. A replica
/// conflicts while its watch is behind, or while the reason for a missing object is unknown. That
/// takes a few seconds on a busy API server.
const RETRY_TIME: Duration = Duration::from_secs(10);
/// Maximum delay before the next attempt.
const PAUSE: Duration = Duration::from_millis(200);

/// A handle that reads and changes the state. Clones share the state.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<RwLock<Shared>>,
    commands: mpsc::Sender<Command>,
    store: Arc<dyn Store>,
    /// Identifier of this run of this replica. Versions can be compared within one epoch only.
    epoch: Arc<str>,
    /// The clock for plans.
    pub clock: Clock,
    /// The limits on how often nodes change their addresses.
    pub address_changes: AddressChangeLimits,
}

struct Shared {
    state: State,
    view_versions: ViewVersions,
    peers: PeerCache,
    operator_streams: OperatorStreams,
    registrations: broadcast::Sender<NodeName>,
    /// The revisions at which nodes and listed communities were created; only those created since
    /// the start.
    created_at: HashMap<RowKey, u64>,
    /// Whether something changed since a revision was published.
    changed: bool,
    /// Revision up to which the state contains all commits.
    revision: u64,
}

/// A command to the registry's task.
enum Command {
    Plan(Plan),
    /// Gives every view a new version, because every view may have changed although no row did.
    Refresh(oneshot::Sender<()>),
}

/// The changes of a plan, and the callback for their outcome.
struct PlannedChanges {
    changes: Vec<Change>,
    reply: Reply,
}

type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

type Plan = Box<dyn FnOnce(&mut State) -> PlannedChanges + Send>;

/// The reason why one attempt failed.
enum AttemptError<E> {
    Refused(E),
    Store(StoreError),
}

impl Registry {
    /// Reads the store and starts the registry's task. For `trust_node_labels` see [`State::load`].
    pub async fn start(store: Arc<dyn Store>, clock: Clock, trust_node_labels: bool) -> Result<Self, StoreError> {
        Self::start_at(store, clock, trust_node_labels, StoredTime::default()).await
    }

    /// Does the same as [`Self::start`]. `stored_time` says whether the latest time in the store is
    /// believed.
    pub async fn start_at(
        store: Arc<dyn Store>,
        clock: Clock,
        trust_node_labels: bool,
        stored_time: StoredTime,
    ) -> Result<Self, StoreError> {
        let (sender, events) = mpsc::channel(EVENTS);
        let snapshot = store.load(sender).await?;
        match stored_time.judge(&clock, snapshot.time)? {
            None => clock.not_before(snapshot.time),
            Some(machine) => {
                let (stored, now) = (rfc3339(snapshot.time), rfc3339(machine));
                tracing::warn!(stored, now, "the time in the store is dropped, as the operator says (accept_clock)");
                store.replace_time(machine).await?;
            }
        }
        let mut state = State::load(snapshot, trust_node_labels);
        state.ledger_mut().watch_releases(clock.clone());
        state.set_restored(restored(&*store, clock.now()).await?);
        // The configuration, and every view with it, may have changed since the last run of the
        // controller. An empty commit gives the views in this run a new revision.
        let revision = store.commit(vec![Vec::new()], clock.now()).await;
        revision.results.into_iter().collect::<Result<Vec<()>, _>>()?;
        let revision = revision.revision;
        let view_versions = ViewVersions::new(&state, revision);
        let (registrations, _) = broadcast::channel(REGISTRATIONS);
        let shared = Shared {
            state,
            view_versions,
            peers: PeerCache::default(),
            operator_streams: OperatorStreams::default(),
            registrations,
            created_at: HashMap::new(),
            changed: false,
            revision,
        };
        let shared = Arc::new(RwLock::new(shared));
        let (commands, queue) = mpsc::channel(QUEUE);
        let task = Task { shared: shared.clone(), store: store.clone(), clock: clock.clone() };
        tokio::spawn(task.run(queue, events));
        let epoch = random::octets(8).map_err(|error| StoreError::Failed(error.to_string()))?;
        let epoch = crate::ca::hex(&epoch);
        Ok(Self {
            shared,
            commands,
            store,
            epoch: epoch.into(),
            clock,
            address_changes: AddressChangeLimits::default(),
        })
    }

    /// Carries out a plan. The plan reads the state and returns changes or an error. This method
    /// returns when the changes are durable. It may call the plan several times, for up to
    /// [`RETRY_TIME`]; only the result of the last call is used.
    pub async fn change<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        plan: impl Fn(&mut State) -> Result<(T, Vec<Change>), E> + Send + Sync + 'static,
    ) -> Result<T, E> {
        self.change_within(RETRY_TIME, plan).await
    }

    async fn change_within<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        retry_time: Duration,
        plan: impl Fn(&mut State) -> Result<(T, Vec<Change>), E> + Send + Sync + 'static,
    ) -> Result<T, E> {
        let plan = Arc::new(plan);
        let started = tokio::time::Instant::now();
        let mut attempt = 0u32;
        loop {
            attempt += 1;
            match self.attempt(plan.clone()).await {
                Ok(value) => return Ok(value),
                Err(AttemptError::Store(error @ StoreError::Conflict { .. })) if started.elapsed() < retry_time => {
                    tracing::debug!(%error, attempt, "planning again");
                    tokio::time::sleep(random::jitter(PAUSE.min(Duration::from_millis(1 << attempt.min(10))))).await;
                }
                Err(AttemptError::Store(error)) => return Err(error.into()),
                Err(AttemptError::Refused(refusal)) => return Err(refusal),
            }
        }
    }

    async fn attempt<T: Send + 'static, E: Send + 'static>(
        &self,
        plan: Arc<impl Fn(&mut State) -> Result<(T, Vec<Change>), E> + Send + Sync + 'static>,
    ) -> Result<T, AttemptError<E>> {
        let (result, received) = oneshot::channel();
        // The registry's task makes the plan. The log shows the plan as a part of the caller's
        // request.
        let span = Span::current();
        let plan: Plan = Box::new(move |state| match span.in_scope(|| plan(state)) {
            Ok((value, changes)) => PlannedChanges {
                changes,
                // The caller may have stopped waiting. In that case no receiver gets the result.
                reply: Box::new(move |committed| {
                    let _ = result.send(committed.map(|()| value).map_err(AttemptError::Store));
                }),
            },
            Err(refusal) => PlannedChanges {
                changes: Vec::new(),
                reply: Box::new(move |committed| {
                    let _ = result
                        .send(Err(committed.map_or_else(AttemptError::Store, |()| AttemptError::Refused(refusal))));
                }),
            },
        });
        let stopped = || AttemptError::Store(StoreError::Stopping);
        self.commands.send(Command::Plan(plan)).await.map_err(|_| stopped())?;
        received.await.map_err(|_| stopped())?
    }

    /// Gives every view a new version, after a change to parts of views that do not come from rows.
    pub async fn refresh(&self) {
        let (done, waited) = oneshot::channel();
        if self.commands.send(Command::Refresh(done)).await.is_ok() {
            let _ = waited.await;
        }
    }

    /// Reads the state. All of its content is committed durably.
    pub async fn read(&self) -> StateGuard<'_> {
        StateGuard { shared: self.shared.read().await }
    }

    /// Waits until the state contains everything that any replica had committed at a revision.
    pub async fn catch_up(&self, revision: u64) -> Result<(), StoreError> {
        self.store.catch_up(revision).await
    }

    /// Waits until the state contains every segment that was granted before this call.
    pub async fn reload_segments(&self) -> Result<(), StoreError> {
        self.store.reload_segments().await
    }

    /// Reads a note that the store keeps in addition to the rows.
    pub async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.store.note(note).await
    }

    /// Writes a note that the store keeps in addition to the rows.
    pub async fn set_note(&self, note: Note, text: String) -> Result<(), StoreError> {
        self.store.set_note(note, text).await
    }

    /// Subscribes to the names of nodes that are registered from now on, by any replica.
    pub async fn registrations(&self) -> broadcast::Receiver<NodeName> {
        self.shared.read().await.registrations.subscribe()
    }

    /// Returns the identifier of this run of this replica. The registry keeps changes only between
    /// versions of one epoch.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }
}

/// Reads the note that says whether the rows were restored from a backup. The first start after a
/// restore begins the time during which grants wait for nodes.
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

/// Read access to the state. No change is applied while it exists.
pub struct StateGuard<'a> {
    shared: RwLockReadGuard<'a, Shared>,
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.shared.state
    }
}

impl StateGuard<'_> {
    /// Returns the revision of the state: the state contains everything that was committed up to
    /// this revision. Every view that is computed from this state has this revision as its version.
    pub fn revision(&self) -> u64 {
        self.shared.revision
    }

    /// Returns a receiver for the version of each change of a node's view. The receiver closes when
    /// the node is deregistered.
    pub fn watch(&self, node: &NodeName) -> Option<watch::Receiver<u64>> {
        self.shared.view_versions.watch(node)
    }

    /// Returns what changed in a node's view after a version of this epoch; `None` if the changes
    /// are no longer known.
    pub fn changed_since(&self, node: &NodeName, version: u64) -> Option<ChangedParts> {
        self.shared.view_versions.changed_since(&self.shared.state, node, version)
    }

    /// Returns a registered node as JSON, as its viewers see it: those that see what its
    /// communities have decided about tunnels (`for_members`), or the others. `make` is called if
    /// no JSON has been cached since the node changed. `None` if the node cannot be serialised.
    pub fn peer(&self, name: &NodeName, for_members: bool, make: impl FnOnce() -> Peer) -> Option<PeerJson> {
        self.shared.peers.get_or_make(name, for_members, make)
    }

    /// Returns the revision at which a node or a listed community was created; 0 if it existed at
    /// the start. A row that was deleted and written again counts as created again.
    pub fn created_at_revision(&self, key: &RowKey) -> u64 {
        self.shared.created_at.get(key).copied().unwrap_or(0)
    }

    /// Counts a stream by which the operator reads a node's view. Its receiver from
    /// [`Self::watch`] must be dropped before the result.
    pub fn begin_operator_stream(&self, node: &NodeName) -> OperatorStream {
        self.shared.operator_streams.begin(node)
    }

    /// Returns how many streams of its view a node has open at this replica, without those of the
    /// operator.
    pub fn view_streams(&self, node: &NodeName) -> usize {
        self.shared.view_versions.watchers(node).saturating_sub(self.shared.operator_streams.count(node))
    }

    /// Returns whether this node has a stream of its view open at this replica.
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
    async fn run(self, mut queue: mpsc::Receiver<Command>, mut events: mpsc::Receiver<StoreEvent>) {
        let mut commands = Vec::new();
        loop {
            tokio::select! {
                // Plans are based on the latest events from other replicas.
                biased;
                Some(event) = events.recv() => self.handle(event).await,
                count = queue.recv_many(&mut commands, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    self.carry_out(std::mem::take(&mut commands)).await;
                }
            }
        }
    }

    async fn carry_out(&self, commands: Vec<Command>) {
        let mut planned = Vec::new();
        let mut refreshed = Vec::new();
        {
            let mut shared = self.shared.write().await;
            let mut undo = Vec::new();
            for command in commands {
                match command {
                    Command::Refresh(done) => refreshed.push(done),
                    Command::Plan(plan) => {
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
            shared.state.take_changed_views();
        }
        // An empty element gives the refresh a revision.
        let mut batch: Vec<Vec<Change>> =
            planned.iter().map(|plan| plan.changes.clone()).filter(|changes| !changes.is_empty()).collect();
        let written = batch.len();
        if !refreshed.is_empty() {
            batch.push(Vec::new());
        }
        if batch.is_empty() {
            return planned.into_iter().for_each(|plan| (plan.reply)(Ok(())));
        }
        let committed = self.store.commit(batch, self.clock.now()).await;
        let mut results = committed.results.into_iter().take(written);
        let mut replies = Vec::new();
        let mut shared = self.shared.write().await;
        let shared = &mut *shared;
        // The row of the first change in this batch that was not committed.
        let mut missing: Option<RowKey> = None;
        let mut failures = 0_usize;
        for PlannedChanges { changes, reply } in planned {
            let result = match &missing {
                _ if !changes.is_empty() => results.next().unwrap_or_else(no_result),
                // A plan without changes may be based on changes that were not committed, for
                // example if a repeated request found the grant of the first one. The conflict
                // makes the caller plan again without them.
                Some(key) => Err(StoreError::Conflict { key: key.clone(), current: Vec::new() }),
                None => Ok(()),
            };
            if result.is_err() && missing.is_none() {
                missing = changes.first().map(Change::key);
            }
            match &result {
                Ok(()) => shared.apply(changes),
                Err(StoreError::Conflict { current, .. }) => shared.apply(current.clone()),
                Err(error) => {
                    // Only one failure of each batch is logged as an error, since its plans usually
                    // fail for the same reason.
                    if failures == 0 {
                        tracing::error!(%error, "a commit failed; its requests are refused");
                    }
                    failures += 1;
                }
            }
            replies.push((reply, result));
        }
        if failures > 1 {
            tracing::debug!(failures, "further plans of the batch failed");
        }
        // A refresh gets a new revision even if its commit failed. Otherwise the nodes that have
        // the present version would never get what changed: nothing repeats a refresh.
        shared.changed |= !refreshed.is_empty();
        shared.publish(committed.revision);
        if !refreshed.is_empty() {
            shared.view_versions.publish_all(shared.revision);
            shared.peers.clear();
        }
        // Callers get their replies last, so that callers find their changes in the state.
        replies.into_iter().for_each(|(reply, result)| reply(result));
        for done in refreshed {
            // The caller may have stopped waiting.
            let _ = done.send(());
        }
    }

    async fn handle(&self, event: StoreEvent) {
        let mut shared = self.shared.write().await;
        let shared = &mut *shared;
        let (changes, revision) = match event {
            StoreEvent::Changes { changes, recreated, revision } => {
                shared.recreated(recreated);
                (changes, revision)
            }
            StoreEvent::Rows(reply) => {
                // The caller may have stopped waiting.
                let _ = reply.send(shared.state.rows());
                return;
            }
            StoreEvent::Snapshot(snapshot) => {
                let revision = snapshot.revision;
                (shared.state.changes_to(snapshot), revision)
            }
        };
        shared.apply(changes);
        shared.publish(revision);
        self.store.acknowledge(revision);
    }
}

impl Shared {
    /// Applies changes. A change without effect, such as the echo of this replica's own commit,
    /// does not change a view.
    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            let change = match change {
                Change::GrantSegment(row) => Change::PutSegment(row),
                Change::PutNode(mut node) => {
                    if let Some(known) = self.state.node(&node.name) {
                        node.keep_pod_networks(known);
                    }
                    Change::PutNode(node)
                }
                other => other,
            };
            let before = self.state.inverse(&change);
            if before != change {
                match (&change, &before) {
                    (Change::PutNode(node), Change::DeleteNode(_)) => {
                        self.created_at.insert(change.key(), self.revision + 1);
                        // There may be no subscriber.
                        let _ = self.registrations.send(node.name.clone());
                    }
                    (Change::PutCommunity(_), Change::DeleteCommunity(_)) => {
                        self.created_at.insert(change.key(), self.revision + 1);
                    }
                    (Change::DeleteNode(_) | Change::DeleteCommunity(_), _) => {
                        self.created_at.remove(&change.key());
                    }
                    _ => {}
                }
                self.changed = true;
                self.state.apply(change);
            }
        }
    }

    /// Handles rows whose objects the store wrote again, unchanged. The rows count as created
    /// again, because the status of the former objects is lost.
    fn recreated(&mut self, keys: Vec<RowKey>) {
        for key in keys {
            if matches!(key, RowKey::Node(_) | RowKey::Community(_)) {
                self.created_at.insert(key, self.revision + 1);
                self.changed = true;
            }
        }
    }

    fn publish(&mut self, revision: u64) {
        let changed = self.state.take_changed_views();
        // Events from other replicas may arrive after a later commit by this replica. Such changes
        // also get a new revision.
        let late = u64::from(std::mem::take(&mut self.changed));
        self.revision = revision.max(self.revision + late);
        // Drops the cached JSON of all nodes that changed in a view or are no longer in one.
        self.peers.forget(changed.peers());
        self.view_versions.publish(&self.state, changed, self.revision);
    }
}

fn no_result() -> Result<(), StoreError> {
    Err(StoreError::Failed("it did not return the outcome of the change".into()))
}
