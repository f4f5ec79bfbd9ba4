//! Decides what a missing object means. An object may be missing although nobody deleted it on
//! purpose.
//!
//! - Its definition (CRD) is missing or about to be deleted: all rows of this kind stay in the
//!   state, and none is written. When the definition exists again, all objects are created again.
//! - Somebody deleted a segment: its object is created again while its node is registered or its
//!   quarantine may last.
//! - Somebody deleted an EdgeNode: that deregisters the node. If many are deleted at once, they are
//!   created again; see [`edge_controller_domain::mass_deletion`].
//! - Somebody deleted a community: that is the operator's decision.
//!
//! A replica marks an object before it deletes the object, and that deletion counts at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::mass_deletion::{RecentDeletions, SETTLE_TIME};
use edge_controller_domain::segments::{Ledger, SegmentRecord};
use edge_controller_domain::state::{Change, CommunityRecord, NodeRecord, RowKey, Snapshot};
use edge_types::{Community, IpNetwork, NodeName};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, MissedTickBehavior};

use super::definitions::DefinitionState;
use super::object_versions::MissingObject;
use super::recreate::{Recreation, recreate};
use super::store_core::StoreCore;
use crate::events::Regarding;
use crate::resources::kinds::{Kind, is_blocked};
use crate::resources::object_name;

/// Interval at which the definitions are checked, even without an event.
const CHECK_PERIOD: Duration = Duration::from_secs(10);
/// Delay before a pending decision is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Maximum number of objects that are created again at the same time.
const CONCURRENT_WRITES: usize = 32;

/// Decides about missing objects. Never returns.
pub(super) async fn run(core: Arc<StoreCore>) {
    let absence = core.objects().absence();
    let mut look = tokio::time::interval(CHECK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut recent = RecentDeletions::default();
    let mut undecided = false;
    if let Err(why) = core.definitions.check_cluster().await {
        tracing::warn!(why, "the cluster of the objects is not known yet");
    }
    loop {
        tokio::select! {
            () = absence.notified() => {}
            _ = look.tick() => {}
            () = tokio::time::sleep(RETRY), if undecided => {}
        }
        undecided = false;
        for kind in Kind::CUSTOM {
            undecided |= !decide(&core, kind, &mut recent).await;
        }
    }
}

/// Decides about all missing objects of a kind. Returns true if nothing is left to decide.
async fn decide(core: &StoreCore, kind: Kind, recent: &mut RecentDeletions) -> bool {
    if let Err(error) = core.look_at_fields(kind).await {
        tracing::debug!(kind = kind.what(), %error, "it is not known whether its definition drops fields");
    }
    // The missing objects are listed before the definition is read.
    let missing = core.objects().missing(kind);
    let what = format!("the definition {}", kind.what());
    match core.definitions.state(kind).await {
        Ok(DefinitionState::Unchanged) => {
            core.objects().freeze(kind, None);
            core.api_failures.clear(&what);
            missing.is_empty() || decide_missing(core, kind, missing, recent).await
        }
        Ok(DefinitionState::Unavailable(why)) => {
            core.objects().freeze(kind, Some(why.clone()));
            core.api_failures.record(&what, why);
            false
        }
        Ok(DefinitionState::Recreated(uid)) => {
            let so = format!("{what} (CRD) was deleted and made again; its objects are written again");
            core.objects().freeze(kind, Some(so.clone()));
            match recreate_all(core, kind, uid).await {
                Ok(count) => {
                    tracing::warn!(
                        kind = kind.what(),
                        count,
                        "objects were written again: their definition was deleted and made again"
                    );
                    core.objects().freeze(kind, None);
                    core.api_failures.clear(&what);
                    true
                }
                Err(why) => {
                    core.api_failures.record(&what, format!("{so}: {why}"));
                    false
                }
            }
        }
        Err(error) => {
            core.api_failures.record(&what, error.to_string());
            missing.is_empty()
        }
    }
}

/// Creates all objects of a kind again and records their new definition. Returns their number.
async fn recreate_all(core: &StoreCore, kind: Kind, uid: String) -> Result<usize, String> {
    core.definitions.check_cluster().await?;
    let rows = core.known_rows().await?;
    let wanted: Vec<Change> = match kind {
        Kind::Node => rows.nodes.into_iter().map(Change::PutNode).collect(),
        Kind::Segment => rows.segments.into_iter().filter(|row| !is_blocked(row)).map(Change::PutSegment).collect(),
        Kind::Community => rows.communities.into_iter().map(Change::PutCommunity).collect(),
        Kind::Token => Vec::new(),
    };
    let count = wanted.len();
    let written = recreate_rows(core, wanted).await.into_iter();
    let failed: Vec<String> = written
        .filter_map(|(_, again)| match again {
            Recreation::Done => None,
            Recreation::Pending(why) => Some(why),
        })
        .collect();
    if let Some(why) = failed.first() {
        return Err(format!("{} of {count} objects are not created yet: {why}", failed.len()));
    }
    // The last known state of the other objects is kept as long as this process runs, because their
    // objects cannot be created.
    let left = core.objects().missing(kind);
    left.iter().for_each(|missing| core.objects().keep_row(&missing.object_key));
    let known = core.definitions.set_known_kind(kind, uid);
    core.shared_config.store_definitions(&known).await.map_err(|error| error.to_string())?;
    Ok(count)
}

/// Decides about objects that somebody deleted while their definition stayed the same.
async fn decide_missing(
    core: &StoreCore,
    kind: Kind,
    missing: Vec<MissingObject>,
    recent: &mut RecentDeletions,
) -> bool {
    let (recreated, missing): (Vec<MissingObject>, Vec<MissingObject>) =
        missing.into_iter().partition(|missing| missing.recreated);
    recreated.iter().for_each(|missing| core.objects().keep_row(&missing.object_key));
    if missing.is_empty() {
        return true;
    }
    let rows = match core.known_rows().await {
        Ok(rows) => KnownRows::from(rows),
        Err(why) => {
            tracing::warn!(why, "cannot decide yet what to do about missing objects");
            return false;
        }
    };
    let (restored, missing): (Vec<MissingObject>, Vec<MissingObject>) =
        missing.into_iter().partition(|missing| missing.restored);
    let written = recreate_lost_by_restore(core, restored, &rows).await;
    let decided = match kind {
        _ if missing.is_empty() => true,
        Kind::Node => decide_nodes(core, missing, &rows, recent).await,
        Kind::Segment => decide_segments(core, missing, &rows).await,
        Kind::Community | Kind::Token => {
            missing.iter().for_each(|missing| core.objects().accept_deletion(&missing.object_key));
            true
        }
    };
    decided && written
}

/// Creates objects again. Returns the outcome of each.
async fn recreate_rows(core: &StoreCore, changes: Vec<Change>) -> Vec<(Change, Recreation)> {
    let writes = stream::iter(changes).map(|change| async move {
        let again = recreate(core, &change).await;
        (change, again)
    });
    writes.buffer_unordered(CONCURRENT_WRITES).collect().await
}

/// Creates again the objects that etcd has lost because it was restored from a backup.
async fn recreate_lost_by_restore(core: &StoreCore, missing: Vec<MissingObject>, rows: &KnownRows) -> bool {
    let mut changes = Vec::new();
    for MissingObject { object_key, key, .. } in missing {
        let change = match &key {
            RowKey::Node(name) => rows.nodes.get(name).cloned().map(Change::PutNode),
            RowKey::Segment(network) => rows.needed(network).cloned().map(Change::PutSegment),
            RowKey::Community(name) => rows.communities.get(name).cloned().map(Change::PutCommunity),
            RowKey::Token(_) => None,
        };
        match change {
            Some(change) => changes.push(change),
            None => core.objects().accept_deletion(&object_key),
        }
    }
    let mut decided = true;
    for (change, again) in recreate_rows(core, changes).await {
        match again {
            Recreation::Done => {
                tracing::warn!(key = %change.key(), "etcd was restored from a backup that lacks it; written again")
            }
            Recreation::Pending(why) => {
                tracing::warn!(key = %change.key(), why, "etcd was restored from a backup that lacks it; not written again yet");
                decided = false;
            }
        }
    }
    decided
}

async fn decide_segments(core: &StoreCore, missing: Vec<MissingObject>, rows: &KnownRows) -> bool {
    let mut changes = Vec::new();
    for MissingObject { object_key, key, .. } in missing {
        let RowKey::Segment(network) = key else { continue };
        match rows.needed(&network) {
            Some(row) => changes.push(Change::PutSegment(row.clone())),
            None => core.objects().accept_deletion(&object_key),
        }
    }
    let mut decided = true;
    for (change, again) in recreate_rows(core, changes).await {
        let Change::PutSegment(row) = change else { continue };
        let segment = row.network;
        match again {
            Recreation::Done => {
                let so = match row.released_at {
                    None => {
                        format!("node {} holds it: deregister that (edge-controller node deregister {0})", row.node)
                    }
                    Some(_) => format!("node {} held it, and its quarantine is kept", row.node),
                };
                tracing::warn!(%segment, node = %row.node, "its object was deleted and is written again: {so}");
                let note = format!("deleted and written again: {so}");
                core.events.warning(Regarding::Segment, &object_name(&segment), "DeletionUndone", note);
            }
            Recreation::Pending(why) => {
                tracing::warn!(%segment, why, "its object was deleted and is not written again yet");
                decided = false;
            }
        }
    }
    decided
}

async fn decide_nodes(
    core: &StoreCore,
    missing: Vec<MissingObject>,
    rows: &KnownRows,
    recent: &mut RecentDeletions,
) -> bool {
    let (mut unexplained, mut newest) = (Vec::new(), None::<Instant>);
    for MissingObject { object_key, key, since, .. } in missing {
        let RowKey::Node(name) = key else { continue };
        match rows.nodes.get(&name) {
            Some(record) if !rows.has_left(record) => {
                newest = newest.max(Some(since));
                unexplained.push((object_key, record));
            }
            _ => core.objects().accept_deletion(&object_key),
        }
    }
    if newest.is_some_and(|newest| newest.elapsed() < SETTLE_TIME) {
        return false;
    }
    if !core.confirm() || !recent.are_too_many(unexplained.len(), rows.nodes.len(), Instant::now()) {
        recent.note(unexplained.len(), Instant::now());
        unexplained.iter().for_each(|(object_key, _)| core.objects().accept_deletion(object_key));
        return true;
    }
    let count = unexplained.len();
    let changes = unexplained.into_iter().map(|(_, record)| Change::PutNode(record.clone())).collect();
    let mut decided = true;
    for (change, again) in recreate_rows(core, changes).await {
        let Change::PutNode(NodeRecord { name, .. }) = change else { continue };
        match again {
            Recreation::Done => {
                let note = format!(
                    "{count} EdgeNodes were deleted at once: written again, and the node stays registered; where it shall go, edge-controller node \
                     deregister {name}"
                );
                tracing::warn!(node = %name, "{note}");
                core.events.warning(Regarding::EdgeNode, name.as_str(), "DeletionUndone", note);
            }
            Recreation::Pending(why) => {
                tracing::warn!(node = %name, why, "its EdgeNode was deleted and is not written again yet");
                decided = false;
            }
        }
    }
    decided
}

/// The registry's rows, indexed for many look-ups.
struct KnownRows {
    nodes: HashMap<NodeName, NodeRecord>,
    communities: HashMap<Community, CommunityRecord>,
    ledger: Ledger,
}

impl From<Snapshot> for KnownRows {
    fn from(rows: Snapshot) -> Self {
        let mut ledger = Ledger::default();
        rows.segments.into_iter().for_each(|row| ledger.insert(row));
        let nodes = rows.nodes.into_iter().map(|record| (record.name.clone(), record)).collect();
        let communities = rows.communities.into_iter().map(|record| (record.name.clone(), record)).collect();
        Self { nodes, communities, ledger }
    }
}

impl KnownRows {
    /// Returns the row of a segment that must be kept: a registered node holds the segment, or the
    /// segment is released and its quarantine may last. In both cases no other segment overlaps it.
    fn needed(&self, network: &IpNetwork) -> Option<&SegmentRecord> {
        let row = self.ledger.row(network).filter(|row| !is_blocked(row))?;
        let wanted = row.released_at.is_some() || self.nodes.contains_key(&row.node);
        let replaced = self.ledger.overlapping_with(network).any(|other| other.network != *network);
        (wanted && !replaced).then_some(row)
    }

    /// Returns whether a replica has deregistered the node. In that case its segments were
    /// released. A person who only deletes an EdgeNode does not release them.
    fn has_left(&self, record: &NodeRecord) -> bool {
        let after =
            |row: &SegmentRecord| row.node == record.name && row.released_at.is_some_and(|at| at >= record.joined_at);
        self.ledger.held_by(&record.name).is_empty() && self.ledger.rows().any(after)
    }
}
