//! The Kubernetes store, which keeps rows as objects at the API server. Any number of replicas
//! share it.
//!
//! - [`store_core`]: the state that the parts of the store share.
//! - [`object_versions`]: tracks the version of every object, and whether the registry has
//!   processed that version.
//! - [`commit`]: writes a batch, each object over the version on which it was planned; [`grants`]:
//!   confirms granted segments or rolls them back; [`requests`]: sends single requests.
//! - [`recreate`]: creates a deleted object again.
//! - [`source`]: lists and watches objects.
//! - [`missing_objects`]: decides what a missing object means; [`definitions`]: checks the
//!   definitions (CRDs) of the objects; [`fields`]: finds fields that a definition drops.
//! - [`shared_config`]: keeps the configuration on which all replicas must agree.
//! - [`single_flight`]: shares one result among concurrent callers.
//!
//! The API server has no transactions. The elements of a batch, and the objects of one element, are
//! written one by one, in an order in which a partial write does no harm. A join first grants
//! segments, then uses up a token, then registers the node. If the join fails in between, a node
//! that is not registered holds a segment; the leader finds and releases that segment after a grace
//! period. A deregistration first deletes the node and then releases its segments, and a failure
//! leaves the same state. A plan that is repeated finds its own partial write and completes it.

mod commit;
mod definitions;
mod fields;
mod grants;
mod missing_objects;
mod object_versions;
mod recreate;
mod requests;
mod shared_config;
mod single_flight;
mod source;
mod store_core;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use edge_controller_domain::clock::{Clock, Seconds};
use edge_controller_domain::state::{Change, Snapshot};
use edge_controller_domain::store::{Committed, Note, Store, StoreError, StoreEvent};
use edge_types::view::SegmentPrefix;
use futures_util::future::{BoxFuture, try_join_all};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::client::ApiFailures;
use crate::events::EventRecorder;
use crate::list_watch::{list_and_watch, list_pages};
use crate::resources::kinds::{self, Apis, Kind, StoredObject};
use definitions::Definitions;
use object_versions::{NumberedEvent, ObjectVersions, RowEvent};
use shared_config::SharedConfig;
use single_flight::SingleFlight;
use store_core::StoreCore;

/// Maximum number of changes that are sent to the registry together.
const EVENTS_PER_SEND: usize = 4096;
/// Time for which `catch_up` does not read again after a read that did not reach the requested
/// revision.
const CATCH_UP_PAUSE: Duration = Duration::from_secs(1);

/// The store of rows as Kubernetes objects.
pub struct Kubernetes {
    core: Arc<StoreCore>,
    /// Events for the registry; `load` takes this receiver.
    row_events: Mutex<Option<mpsc::UnboundedReceiver<NumberedEvent>>>,
    /// Tasks that watch the objects until the store is dropped.
    followers: Mutex<JoinSet<()>>,
    catching_up: tokio::sync::Mutex<Option<Instant>>,
    segments_read: SingleFlight<Result<(), StoreError>>,
}

impl Kubernetes {
    /// Makes a store in the cluster that the client reaches. `namespace` holds the join tokens and
    /// the configuration that all replicas share. Segments are granted in these sizes.
    pub fn new(
        client: &Client,
        namespace: &str,
        sizes: SegmentPrefix,
        api_failures: ApiFailures,
        events: EventRecorder,
    ) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let core = StoreCore {
            apis: Apis::new(client, namespace),
            objects: Mutex::new(ObjectVersions::new(sender, events.clone())),
            shared_config: SharedConfig::new(client, namespace, sizes),
            definitions: Definitions::new(client),
            api_failures,
            events,
            confirm: AtomicBool::new(true),
            registry_events: OnceLock::new(),
            acknowledged: watch::Sender::new(0),
            unsettled: AtomicUsize::new(0),
        };
        Self {
            core: Arc::new(core),
            row_events: Mutex::new(Some(receiver)),
            followers: Mutex::default(),
            catching_up: tokio::sync::Mutex::default(),
            segments_read: SingleFlight::default(),
        }
    }

    /// Sets whether the operator must confirm before many nodes are deregistered at once because
    /// their EdgeNodes were deleted.
    pub fn confirming(self, confirm: bool) -> Self {
        self.core.confirm.store(confirm, Ordering::Relaxed);
        self
    }
}

impl Store for Kubernetes {
    fn load(&self, followed: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        Box::pin(async move {
            // The segment sizes are put in force before the segments are listed: see
            // `shared_config`.
            let noted = self.core.shared_config.put_in_force().await?;
            self.core.objects().begin_above(noted.offset);
            let _ = self.core.registry_events.set(followed.clone());
            let definitions = self.core.definitions.require_all().await?;
            for kind in Kind::CUSTOM {
                self.core.look_at_fields(kind).await?;
            }
            // A separate task decodes each list.
            let lists = Kind::ALL.map(|kind| {
                let core = self.core.clone();
                AbortOnDropHandle::new(tokio::spawn(async move { core.list(kind).await }))
            });
            let lists = try_join_all(lists.into_iter().map(async |list| {
                list.await.unwrap_or_else(|error| Err(StoreError::Failed(format!("reading was aborted: {error}"))))
            }));
            let lists = lists.await?;
            // Objects that were deleted with their definition are not in the lists.
            self.core.definitions.check_same(&definitions).await?;
            self.core.shared_config.note_definitions(&definitions).await?;
            self.core.definitions.set_known(definitions);
            let mut snapshot = Snapshot { time: noted.time, ..Snapshot::default() };
            let latest = latest_time();
            let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
            for (kind, objects, at) in lists {
                for row in self.core.objects().load(kind, objects, at) {
                    add_row(&mut snapshot, row, latest);
                }
                let (core, api_failures) = (self.core.clone(), self.core.api_failures.clone());
                let source = self.core.source(kind);
                followers.spawn(async move {
                    let mut before = at;
                    list_and_watch(source, Some(at), api_failures, |event| core.apply(kind, &mut before, event)).await;
                });
            }
            snapshot.revision = self.core.objects().revision();
            followers.spawn(missing_objects::run(self.core.clone()));
            let row_events = self.row_events.lock().unwrap_or_else(PoisonError::into_inner).take();
            let row_events = row_events.ok_or_else(|| StoreError::Failed("the store is loaded already".into()))?;
            followers.spawn(forward(row_events, followed));
            Ok(snapshot)
        })
    }

    fn read(&self) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        Box::pin(async move {
            let noted = self.core.shared_config.noted().await?;
            let mut objects = ObjectVersions::new(mpsc::unbounded_channel().0, EventRecorder::default());
            objects.begin_above(noted.offset);
            let mut snapshot = Snapshot { time: noted.time, ..Snapshot::default() };
            let latest = latest_time();
            let definitions = self.core.definitions.require_all().await?;
            for kind in Kind::ALL {
                // Reads by pages: reading the watch cache needs a write, and this method must not
                // write.
                let (read, at) = list_pages(&self.core.source(kind), None).await.map_err(StoreError::Failed)?;
                for StoredObject { name, row, .. } in read {
                    let row = row.map_err(|why| {
                        let what = kind.what();
                        StoreError::Failed(format!(
                            "the object {what} {name} cannot be read ({why}); correct it or delete it"
                        ))
                    })?;
                    add_row(&mut snapshot, row, latest);
                }
                objects.reached(kind, at);
            }
            self.core.definitions.check_same(&definitions).await?;
            snapshot.revision = objects.revision();
            Ok(snapshot)
        })
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        Box::pin(commit::commit(self.core.clone(), batch, now))
    }

    fn raise_revision(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let offset = self.core.shared_config.begin_above(revision).await?;
            self.core.objects().begin_above(offset);
            Ok(())
        })
    }

    fn replace_time(&self, now: Seconds) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.core.shared_config.replace_time(now))
    }

    fn note(&self, note: Note) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(self.core.shared_config.note(note))
    }

    fn set_note(&self, note: Note, text: String) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.core.shared_config.set_note(note, &text).await })
    }

    fn begin_import(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.core.shared_config.forget_definitions())
    }

    fn catch_up(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let version = self.core.objects().version_of(revision);
            if !self.core.objects().behind(version).is_empty() {
                // One caller reads for all callers that wait.
                let mut in_vain = self.catching_up.lock().await;
                let behind = self.core.objects().behind(version);
                if !behind.is_empty() && in_vain.is_none_or(|last| last.elapsed() >= CATCH_UP_PAUSE) {
                    let lists = behind.into_iter().map(|kind| async move {
                        let before = self.core.objects().at(kind);
                        self.core.list(kind).await.map(|list| (before, list))
                    });
                    for (before, (kind, objects, at)) in try_join_all(lists).await? {
                        self.core.objects().listed(kind, objects, at, before);
                    }
                    *in_vain = (!self.core.objects().behind(version).is_empty()).then(Instant::now);
                }
            }
            {
                let mut objects = self.core.objects();
                // All objects are read up to that version. The other replica's revision is still
                // higher if that replica received a change later than this one.
                if objects.revision() <= revision && objects.behind(version).is_empty() {
                    objects.rise_above(revision);
                }
            }
            self.core.until_acknowledged().await
        })
    }

    fn reload_segments(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.segments_read.run(async || {
            let before = self.core.objects().at(Kind::Segment);
            let (kind, objects, at) = self.core.list(Kind::Segment).await?;
            self.core.objects().listed(kind, objects, at, before);
            if self.core.unsettled.load(Ordering::SeqCst) > 0 {
                return Err(StoreError::Failed("it is not known yet whether some grants stand".into()));
            }
            self.core.until_acknowledged().await
        }))
    }

    fn acknowledge(&self, revision: u64) {
        self.core.objects().acknowledged(revision);
        self.core.acknowledged.send_replace(revision);
    }
}

/// Returns the latest time in an object that is believed. People may write any time into an object,
/// and the clock must not follow it. Without a valid machine's clock every time is believed.
fn latest_time() -> Seconds {
    Clock::system().machine_time().unwrap_or(Seconds::MAX)
}

fn add_row(snapshot: &mut Snapshot, row: Change, latest: Seconds) {
    snapshot.time = snapshot.time.max(kinds::time_of(&row).min(latest));
    match row {
        Change::PutNode(node) => snapshot.nodes.push(node),
        Change::PutToken(token) => snapshot.tokens.push(token),
        Change::PutSegment(row) => snapshot.segments.push(row),
        Change::PutCommunity(community) => snapshot.communities.push(community),
        _ => {}
    }
}

/// Sends events to the registry. All waiting events are sent together.
async fn forward(mut events: mpsc::UnboundedReceiver<NumberedEvent>, followed: mpsc::Sender<StoreEvent>) {
    let mut numbered = Vec::new();
    while events.recv_many(&mut numbered, EVENTS_PER_SEND).await > 0 {
        let revision = numbered.last().map_or(0, |(number, _)| *number);
        let (mut changes, mut recreated) = (Vec::new(), Vec::new());
        for event in numbered.drain(..).filter_map(|(_, event)| event) {
            match event {
                RowEvent::Changed(change) => changes.push(change),
                RowEvent::Recreated(key) => recreated.push(key),
            }
        }
        if followed.send(StoreEvent::Changes { changes, recreated, revision }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_controller_domain::segments::SegmentRecord;

    use super::*;

    #[test]
    fn a_time_in_an_object_does_not_set_the_clock_ahead() {
        let now = Clock::system().machine_time().unwrap();
        let row = |granted_at| {
            let (network, node) = ("10.77.0.0/26".parse().unwrap(), "a".parse().unwrap());
            Change::PutSegment(SegmentRecord::new(network, node, "r".into(), granted_at, None))
        };
        let mut snapshot = Snapshot { time: 7, ..Snapshot::default() };
        add_row(&mut snapshot, row(now - 100), latest_time());
        assert_eq!(snapshot.time, now - 100);
        add_row(&mut snapshot, row(2_903_000_000), latest_time());
        assert!((now..now + 60).contains(&snapshot.time), "{}", snapshot.time);
    }
}
