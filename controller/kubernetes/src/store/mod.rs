//! The Kubernetes store: rows are objects at the API server, and any number of replicas share them.
//!
//! - [`kinds`]: which rows are which objects.
//! - [`objects`]: versions, and what the registry knows already.
//! - [`commit`]: writing, each object over the version that was planned on.
//! - [`rewrite`]: writing an object again that somebody deleted.
//! - [`source`]: reading them, all and as they change.
//! - [`absences`]: what it means when an object is missing; [`definitions`]: whether its definition
//!   (CRD) is there; [`fields`]: what it drops of what is written.
//! - [`settings`]: what all replicas must agree on.
//! - [`turns`]: one answer for all who ask at the same time.
//!
//! The API server has no transactions: the elements of a batch, and the objects of one element, are
//! written one by one, in an order in which what may be left over after a failure does no harm.
//! Segments are claimed first, then a token is used up, then the node is registered: what is left
//! over is a segment that is held by a node which is not registered, and is found and released
//! after a while. A node is deleted first and its segments are released then, with the same
//! remainder. A plan that is made anew meets its own remainder and completes it.

mod absences;
mod commit;
mod definitions;
mod fields;
mod kinds;
mod objects;
mod rewrite;
mod settings;
mod source;
mod turns;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::state::{Change, Snapshot};
use edge_controller_domain::store::{Committed, Note, Store, StoreError, StoreEvent};
use edge_types::view::SegmentPrefix;
use futures_util::future::BoxFuture;
use futures_util::future::try_join_all;
use kube::Client;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::client::{Obstacles, REQUEST};
use crate::events::Events;
use crate::list_watch::{ListWatchEvent, list, list_and_watch, list_pages};
use definitions::Definitions;
pub use kinds::is_blocked;
use kinds::{Apis, Kind, Observed};
use objects::{Event, Objects, Said, Told};
use settings::Settings;
use source::RowSource;
use turns::Turns;

/// Changes that are told together at most.
const TOGETHER: usize = 4096;
/// After somebody asked for what never was, nothing is read for others who do for so long.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The store.
pub struct Kubernetes {
    inner: Arc<Inner>,
    /// Kept for `load`.
    news: Mutex<Option<mpsc::UnboundedReceiver<Told>>>,
    /// Follow the objects until the store is dropped.
    followers: Mutex<JoinSet<()>>,
    catching_up: tokio::sync::Mutex<Option<Instant>>,
    segments_read: Turns<Result<(), StoreError>>,
}

struct Inner {
    apis: Apis,
    objects: Mutex<Objects>,
    settings: Settings,
    definitions: Definitions,
    obstacles: Obstacles,
    events: Events,
    /// Whether many deletions at once are undone and the operator is asked.
    confirm: AtomicBool,
    /// Where the registry listens.
    followed: OnceLock<mpsc::Sender<StoreEvent>>,
    /// The registry has taken in the news up to this number.
    taken_in: watch::Sender<u64>,
    /// Batches of claims of which it is not known yet whether they may be told of.
    unsettled: AtomicUsize,
}

impl Kubernetes {
    /// A store in the cluster that the client reaches; tokens and what all replicas agree on are
    /// kept in `namespace`. Segments are cut in these sizes.
    pub fn new(client: &Client, namespace: &str, sizes: SegmentPrefix, obstacles: Obstacles, events: Events) -> Self {
        let (told, news) = mpsc::unbounded_channel();
        let inner = Inner {
            apis: Apis::new(client, namespace),
            objects: Mutex::new(Objects::new(told, events.clone())),
            settings: Settings::new(client, namespace, sizes),
            definitions: Definitions::new(client),
            obstacles,
            events,
            confirm: AtomicBool::new(true),
            followed: OnceLock::new(),
            taken_in: watch::Sender::new(0),
            unsettled: AtomicUsize::new(0),
        };
        Self {
            inner: Arc::new(inner),
            news: Mutex::new(Some(news)),
            followers: Mutex::default(),
            catching_up: tokio::sync::Mutex::default(),
            segments_read: Turns::default(),
        }
    }

    /// Says whether the operator is asked before many nodes are deregistered at once because their
    /// EdgeNodes were deleted.
    pub fn confirming(self, confirm: bool) -> Self {
        self.inner.confirm.store(confirm, Ordering::Relaxed);
        self
    }
}

impl Inner {
    fn confirm(&self) -> bool {
        self.confirm.load(Ordering::Relaxed)
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks whether the definition of a kind drops fields that are written, and says so.
    async fn look_at_fields(&self, kind: Kind) -> Result<(), StoreError> {
        let obstacle = format!("fields of {}", kind.what());
        match fields::warning(kind, &self.definitions.look_at_fields(kind).await?) {
            Some(why) => self.obstacles.fails_aside(&obstacle, why),
            None => self.obstacles.works(&obstacle),
        }
        Ok(())
    }

    /// Refuses a change if the definition of its kind drops a field that must not be lost.
    fn check_fields(&self, change: &Change) -> Result<(), String> {
        fields::check(change, &self.definitions.dropped(Kind::place(&change.key()).0))
    }

    fn source(&self, kind: Kind) -> RowSource {
        RowSource { kind, api: self.apis.of(kind).clone() }
    }

    async fn list(&self, kind: Kind) -> Result<(Kind, Vec<Observed>, u64), StoreError> {
        let (objects, at) = list(&self.source(kind)).await.map_err(StoreError::Failed)?;
        Ok((kind, objects, at))
    }

    /// Waits until the registry knows all that has been followed.
    async fn until_taken_in(&self) -> Result<(), StoreError> {
        let last = self.objects().last_told();
        let mut taken_in = self.taken_in.subscribe();
        let waited = tokio::time::timeout(REQUEST, taken_in.wait_for(|number| *number >= last)).await;
        let late = || StoreError::Failed(format!("news were not taken in within {} s", REQUEST.as_secs()));
        waited.map_err(|_| late())?.map(drop).map_err(|_| late())
    }

    /// All rows as the registry knows them.
    async fn known_rows(&self) -> Result<Snapshot, String> {
        let registry = self.followed.get().ok_or("the store is not loaded yet")?;
        let (answer, answered) = oneshot::channel();
        let asked = async {
            registry.send(StoreEvent::Rows(answer)).await.ok()?;
            answered.await.ok()
        };
        let late = || format!("the rows were not told within {} s", REQUEST.as_secs());
        let rows = tokio::time::timeout(REQUEST, asked).await.map_err(|_| late())?;
        rows.ok_or_else(|| "nobody knows the rows any more".to_owned())
    }

    fn hear(&self, kind: Kind, before: &mut u64, news: ListWatchEvent<Observed>) {
        match news {
            ListWatchEvent::ListStarted => *before = self.objects().at(kind),
            ListWatchEvent::Listed(all, at) => self.objects().all(kind, all, at, *before),
            ListWatchEvent::Bookmark(version) => self.objects().reached(kind, version),
            ListWatchEvent::Applied(object) => {
                let (place, version) = ((kind, object.name.clone()), object.version);
                let mut objects = self.objects();
                objects.event(place, Event::Put(object));
                objects.reached(kind, version);
            }
            ListWatchEvent::Deleted(object) => {
                let Observed { name, uid, version, deleting, .. } = object;
                let mut objects = self.objects();
                objects.event((kind, name), Event::Gone { uid: Some(uid), version, ours: deleting });
                objects.reached(kind, version);
            }
        }
    }
}

impl Store for Kubernetes {
    fn load(&self, followed: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        Box::pin(async move {
            // Before the segments are listed: see `settings`.
            let noted = self.inner.settings.put_in_force().await?;
            self.inner.objects().begin_above(noted.offset);
            let _ = self.inner.followed.set(followed.clone());
            let definitions = self.inner.definitions.all_there().await?;
            for kind in Kind::CUSTOM {
                self.inner.look_at_fields(kind).await?;
            }
            // Each is decoded by a task of its own.
            let lists = Kind::ALL.map(|kind| {
                let inner = self.inner.clone();
                AbortOnDropHandle::new(tokio::spawn(async move { inner.list(kind).await }))
            });
            let lists = try_join_all(lists.into_iter().map(async |list| {
                list.await.unwrap_or_else(|error| Err(StoreError::Failed(format!("reading came to no end: {error}"))))
            }));
            let lists = lists.await?;
            // Whatever was deleted with its definition is not in the lists.
            self.inner.definitions.check_same(&definitions).await?;
            self.inner.settings.note_definitions(&definitions).await?;
            self.inner.definitions.know(definitions);
            let mut snapshot = Snapshot { time: noted.time, ..Snapshot::default() };
            let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
            for (kind, objects, at) in lists {
                for row in self.inner.objects().load(kind, objects, at) {
                    take(&mut snapshot, row);
                }
                let (inner, obstacles) = (self.inner.clone(), self.inner.obstacles.clone());
                let source = self.inner.source(kind);
                followers.spawn(async move {
                    let mut before = at;
                    list_and_watch(source, Some(at), obstacles, |news| inner.hear(kind, &mut before, news)).await;
                });
            }
            snapshot.revision = self.inner.objects().revision();
            followers.spawn(absences::run(self.inner.clone()));
            let news = self.news.lock().unwrap_or_else(PoisonError::into_inner).take();
            let news = news.ok_or_else(|| StoreError::Failed("the store is loaded already".into()))?;
            followers.spawn(forward(news, followed));
            Ok(snapshot)
        })
    }

    fn read(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        Box::pin(async move {
            let noted = self.inner.settings.noted().await?;
            let mut objects = Objects::new(mpsc::unbounded_channel().0, Events::default());
            objects.begin_above(noted.offset);
            let mut snapshot = Snapshot { time: noted.time, ..Snapshot::default() };
            let definitions = self.inner.definitions.all_there().await?;
            for kind in Kind::ALL {
                // By pages: nothing is to be written.
                let (read, at) = list_pages(&self.inner.source(kind), None).await.map_err(StoreError::Failed)?;
                for Observed { name, row, .. } in read {
                    let row = row.map_err(|why| {
                        let what = kind.what();
                        StoreError::Failed(format!(
                            "the object {what} {name} cannot be read ({why}); correct it or delete it"
                        ))
                    })?;
                    take(&mut snapshot, row);
                }
                objects.reached(kind, at);
            }
            self.inner.definitions.check_same(&definitions).await?;
            snapshot.revision = objects.revision();
            Ok(snapshot)
        })
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        Box::pin(commit::commit(self.inner.clone(), batch, now))
    }

    fn raise_revision(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let offset = self.inner.settings.begin_above(revision).await?;
            self.inner.objects().begin_above(offset);
            Ok(())
        })
    }

    fn note(&self, note: Note) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(self.inner.settings.note(note))
    }

    fn set_note(&self, note: Note, text: String) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.inner.settings.set_note(note, &text).await })
    }

    fn begin_import(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.inner.settings.forget_definitions())
    }

    fn catch_up(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let version = self.inner.objects().version_of(revision);
            if !self.inner.objects().behind(version).is_empty() {
                // One reads for all who wait.
                let mut in_vain = self.catching_up.lock().await;
                let behind = self.inner.objects().behind(version);
                if !behind.is_empty() && in_vain.is_none_or(|last| last.elapsed() >= CATCH_UP) {
                    let lists = behind.into_iter().map(|kind| async move {
                        let before = self.inner.objects().at(kind);
                        self.inner.list(kind).await.map(|list| (before, list))
                    });
                    for (before, (kind, objects, at)) in try_join_all(lists).await? {
                        self.inner.objects().all(kind, objects, at, before);
                    }
                    *in_vain = (!self.inner.objects().behind(version).is_empty()).then(Instant::now);
                }
            }
            {
                let mut objects = self.inner.objects();
                // Of the same history, and yet more than we have given: by late news of another
                // replica.
                if objects.revision() <= revision && objects.behind(version).is_empty() {
                    objects.rise_above(revision);
                }
            }
            self.inner.until_taken_in().await
        })
    }

    fn reload_segments(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.segments_read.ask(async || {
            let before = self.inner.objects().at(Kind::Segment);
            let (kind, objects, at) = self.inner.list(Kind::Segment).await?;
            self.inner.objects().all(kind, objects, at, before);
            if self.inner.unsettled.load(Ordering::SeqCst) > 0 {
                return Err(StoreError::Failed("it is not known yet whether some claims may be told of".into()));
            }
            self.inner.until_taken_in().await
        }))
    }

    fn acknowledge(&self, revision: u64) {
        self.inner.objects().taken_in(revision);
        self.inner.taken_in.send_replace(revision);
    }
}

fn take(snapshot: &mut Snapshot, row: Change) {
    snapshot.time = snapshot.time.max(kinds::time_of(&row));
    match row {
        Change::PutNode(node) => snapshot.nodes.push(node),
        Change::PutToken(token) => snapshot.tokens.push(token),
        Change::PutSegment(row) => snapshot.segments.push(row),
        Change::PutCommunity(community) => snapshot.communities.push(community),
        _ => {}
    }
}

/// Brings news to the registry; those that wait for it are told together.
async fn forward(mut news: mpsc::UnboundedReceiver<Told>, followed: mpsc::Sender<StoreEvent>) {
    let mut told = Vec::new();
    while news.recv_many(&mut told, TOGETHER).await > 0 {
        let revision = told.last().map_or(0, |(number, _)| *number);
        let (mut changes, mut recreated) = (Vec::new(), Vec::new());
        for said in told.drain(..).filter_map(|(_, said)| said) {
            match said {
                Said::Change(change) => changes.push(change),
                Said::Recreated(key) => recreated.push(key),
            }
        }
        if followed.send(StoreEvent::Changes { changes, recreated, revision }).await.is_err() {
            return;
        }
    }
}
