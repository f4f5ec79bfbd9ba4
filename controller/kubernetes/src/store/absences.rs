//! What it means when an object is missing: absence is not an order.
//!
//! - Its definition (CRD) is missing or about to be deleted: everything of this kind goes on to
//!   hold as it is known, and nothing of it is written. When the definition is there again, all
//!   objects are written again.
//! - A segment was deleted by hand: its object is written again, while its node is registered or
//!   its quarantine may last.
//! - An EdgeNode was deleted by hand: that deregisters the node. Where many are deleted at once
//!   they are written again; see [`edge_controller_domain::absence`].
//! - A community was deleted: it is the operator's.
//!
//! What replicas delete themselves they mark before, and it is believed at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use edge_controller_domain::absence::{Recent, SETTLE};
use edge_controller_domain::segments::{Ledger, Row};
use edge_controller_domain::state::{Change, CommunityRecord, Key, NodeRecord, Snapshot};
use edge_types::{Community, IpNetwork, NodeName};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, MissedTickBehavior};

use super::Inner;
use super::definitions::Standing;
use super::kinds::{Kind, is_blocked};
use super::objects::Missing;
use super::rewrite::{Again, write_again};
use crate::events::About;
use crate::resources::object_name;

/// How often definitions are looked at, whatever was heard.
const LOOK: Duration = Duration::from_secs(10);
/// How soon what is not decided yet is looked at again.
const AGAIN: Duration = Duration::from_millis(500);
/// Objects that are written again at once.
const AT_ONCE: usize = 32;

/// Decides; ends never.
pub(super) async fn run(inner: Arc<Inner>) {
    let absence = inner.objects().absence();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut recent = Recent::default();
    let mut undecided = false;
    if let Err(why) = inner.definitions.check_cluster().await {
        tracing::warn!(why, "it is not known yet in which cluster the objects are");
    }
    loop {
        tokio::select! {
            () = absence.notified() => {}
            _ = look.tick() => {}
            () = tokio::time::sleep(AGAIN), if undecided => {}
        }
        undecided = false;
        for kind in Kind::CUSTOM {
            undecided |= !decide(&inner, kind, &mut recent).await;
        }
    }
}

/// Decides about all that is missing of a kind; whether nothing is left to decide.
async fn decide(inner: &Inner, kind: Kind, recent: &mut Recent) -> bool {
    if let Err(error) = inner.look_at_fields(kind).await {
        tracing::debug!(kind = kind.what(), %error, "it is not known whether its definition drops fields");
    }
    // Known to be missing before the definition is read.
    let missing = inner.objects().missing(kind);
    let obstacle = format!("the definition {}", kind.what());
    match inner.definitions.standing(kind).await {
        Ok(Standing::Same) => {
            inner.objects().freeze(kind, None);
            inner.obstacles.works(&obstacle);
            missing.is_empty() || judge(inner, kind, missing, recent).await
        }
        Ok(Standing::Ending(why)) => {
            inner.objects().freeze(kind, Some(why.clone()));
            inner.obstacles.fails(&obstacle, why);
            false
        }
        Ok(Standing::MadeAgain(uid)) => {
            let so = format!("{obstacle} (CRD) was deleted and made again; its objects are written again");
            inner.objects().freeze(kind, Some(so.clone()));
            match write_all_again(inner, kind, uid).await {
                Ok(count) => {
                    tracing::warn!(
                        kind = kind.what(),
                        count,
                        "objects were written again: their definition was deleted and made again"
                    );
                    inner.objects().freeze(kind, None);
                    inner.obstacles.works(&obstacle);
                    true
                }
                Err(why) => {
                    inner.obstacles.fails(&obstacle, format!("{so}: {why}"));
                    false
                }
            }
        }
        Err(error) => {
            inner.obstacles.fails(&obstacle, error.to_string());
            missing.is_empty()
        }
    }
}

/// Writes all objects of a kind again, and counts on this definition from then on.
async fn write_all_again(inner: &Inner, kind: Kind, uid: String) -> Result<usize, String> {
    inner.definitions.check_cluster().await?;
    let rows = inner.known_rows().await?;
    let wanted: Vec<Change> = match kind {
        Kind::Node => rows.nodes.into_iter().map(Change::PutNode).collect(),
        Kind::Segment => rows.segments.into_iter().filter(|row| !is_blocked(row)).map(Change::PutSegment).collect(),
        Kind::Community => rows.communities.into_iter().map(Change::PutCommunity).collect(),
        Kind::Token => Vec::new(),
    };
    let count = wanted.len();
    let written = write(inner, wanted).await.into_iter();
    let failed: Vec<String> = written
        .filter_map(|(_, again)| match again {
            Again::There => None,
            Again::Not(why) => Some(why),
        })
        .collect();
    if let Some(why) = failed.first() {
        return Err(format!("{} of {count} are not there yet: {why}", failed.len()));
    }
    // Of what nobody can write again the last known state holds, as long as this process lives.
    let left = inner.objects().missing(kind);
    left.iter().for_each(|missing| inner.objects().keep(&missing.place));
    let known = inner.definitions.know_one(kind, uid);
    inner.settings.renote_definitions(&known).await.map_err(|error| error.to_string())?;
    Ok(count)
}

/// Decides about objects that are missing while their definition is as it was: somebody deleted
/// them.
async fn judge(inner: &Inner, kind: Kind, missing: Vec<Missing>, recent: &mut Recent) -> bool {
    let (recreated, missing): (Vec<Missing>, Vec<Missing>) = missing.into_iter().partition(|missing| missing.recreated);
    recreated.iter().for_each(|missing| inner.objects().keep(&missing.place));
    if missing.is_empty() {
        return true;
    }
    let rows = match inner.known_rows().await {
        Ok(rows) => Known::from(rows),
        Err(why) => {
            tracing::warn!(why, "it is not decided yet what becomes of missing objects");
            return false;
        }
    };
    let (restored, missing): (Vec<Missing>, Vec<Missing>) = missing.into_iter().partition(|missing| missing.restored);
    let written = write_restored_again(inner, restored, &rows).await;
    let judged = match kind {
        _ if missing.is_empty() => true,
        Kind::Node => judge_nodes(inner, missing, &rows, recent).await,
        Kind::Segment => judge_segments(inner, missing, &rows).await,
        Kind::Community | Kind::Token => {
            missing.iter().for_each(|missing| inner.objects().believe(&missing.place));
            true
        }
    };
    judged && written
}

/// Writes objects again; what became of each.
async fn write(inner: &Inner, changes: Vec<Change>) -> Vec<(Change, Again)> {
    let writes = stream::iter(changes).map(|change| async move {
        let again = write_again(inner, &change).await;
        (change, again)
    });
    writes.buffer_unordered(AT_ONCE).collect().await
}

/// Writes again what etcd lacks since it was restored from a backup.
async fn write_restored_again(inner: &Inner, missing: Vec<Missing>, rows: &Known) -> bool {
    let mut changes = Vec::new();
    for Missing { place, key, .. } in missing {
        let change = match &key {
            Key::Node(name) => rows.nodes.get(name).cloned().map(Change::PutNode),
            Key::Segment(network) => rows.needed(network).cloned().map(Change::PutSegment),
            Key::Community(name) => rows.communities.get(name).cloned().map(Change::PutCommunity),
            Key::Token(_) => None,
        };
        match change {
            Some(change) => changes.push(change),
            None => inner.objects().believe(&place),
        }
    }
    let mut decided = true;
    for (change, again) in write(inner, changes).await {
        match again {
            Again::There => {
                tracing::warn!(key = %change.key(), "etcd was restored from a backup that lacks it; written again")
            }
            Again::Not(why) => {
                tracing::warn!(key = %change.key(), why, "etcd was restored from a backup that lacks it; not written again yet");
                decided = false;
            }
        }
    }
    decided
}

async fn judge_segments(inner: &Inner, missing: Vec<Missing>, rows: &Known) -> bool {
    let mut changes = Vec::new();
    for Missing { place, key, .. } in missing {
        let Key::Segment(network) = key else { continue };
        match rows.needed(&network) {
            Some(row) => changes.push(Change::PutSegment(row.clone())),
            None => inner.objects().believe(&place),
        }
    }
    let mut decided = true;
    for (change, again) in write(inner, changes).await {
        let Change::PutSegment(row) = change else { continue };
        let segment = row.network;
        match again {
            Again::There => {
                let so = match row.released_at {
                    None => {
                        format!("node {} holds it: deregister that (edge-controller node deregister {0})", row.node)
                    }
                    Some(_) => format!("node {} held it, and its quarantine is kept", row.node),
                };
                tracing::warn!(%segment, node = %row.node, "its object was deleted and is written again: {so}");
                let note = format!("deleted and written again: {so}");
                inner.events.warning(About::Segment, &object_name(&segment), "DeletionUndone", note);
            }
            Again::Not(why) => {
                tracing::warn!(%segment, why, "its object was deleted and is not written again yet");
                decided = false;
            }
        }
    }
    decided
}

async fn judge_nodes(inner: &Inner, missing: Vec<Missing>, rows: &Known, recent: &mut Recent) -> bool {
    let (mut unexplained, mut newest) = (Vec::new(), None::<Instant>);
    for Missing { place, key, since, .. } in missing {
        let Key::Node(name) = key else { continue };
        match rows.nodes.get(&name) {
            Some(record) if !rows.has_left(record) => {
                newest = newest.max(Some(since));
                unexplained.push((place, record));
            }
            _ => inner.objects().believe(&place),
        }
    }
    if newest.is_some_and(|newest| newest.elapsed() < SETTLE) {
        return false;
    }
    if !inner.confirm() || !recent.is_too_much(unexplained.len(), rows.nodes.len(), Instant::now()) {
        recent.note(unexplained.len(), Instant::now());
        unexplained.iter().for_each(|(place, _)| inner.objects().believe(place));
        return true;
    }
    let count = unexplained.len();
    let changes = unexplained.into_iter().map(|(_, record)| Change::PutNode(record.clone())).collect();
    let mut decided = true;
    for (change, again) in write(inner, changes).await {
        let Change::PutNode(NodeRecord { name, .. }) = change else { continue };
        match again {
            Again::There => {
                let note = format!(
                    "{count} EdgeNodes were deleted at once: written again, and the node stays registered; where it shall go, edge-controller node \
                     deregister {name}"
                );
                tracing::warn!(node = %name, "{note}");
                inner.events.warning(About::EdgeNode, name.as_str(), "DeletionUndone", note);
            }
            Again::Not(why) => {
                tracing::warn!(node = %name, why, "its EdgeNode was deleted and is not written again yet");
                decided = false;
            }
        }
    }
    decided
}

/// What the registry knows, for looking up many.
struct Known {
    nodes: HashMap<NodeName, NodeRecord>,
    communities: HashMap<Community, CommunityRecord>,
    ledger: Ledger,
}

impl From<Snapshot> for Known {
    fn from(rows: Snapshot) -> Self {
        let mut ledger = Ledger::default();
        rows.segments.into_iter().for_each(|row| ledger.insert(row));
        let nodes = rows.nodes.into_iter().map(|record| (record.name.clone(), record)).collect();
        let communities = rows.communities.into_iter().map(|record| (record.name.clone(), record)).collect();
        Self { nodes, communities, ledger }
    }
}

impl Known {
    /// A segment that is to be kept: a registered node holds it, or a node held it last, and
    /// nothing else stands in its place.
    fn needed(&self, network: &IpNetwork) -> Option<&Row> {
        let row = self.ledger.row(network).filter(|row| !is_blocked(row))?;
        let wanted = row.released_at.is_some() || self.nodes.contains_key(&row.node);
        let replaced = self.ledger.overlapping_with(network).any(|other| other.network != *network);
        (wanted && !replaced).then_some(row)
    }

    /// Whether a replica has deregistered the node: then its segments were released, which nobody
    /// does who only deletes an EdgeNode.
    fn has_left(&self, record: &NodeRecord) -> bool {
        let after = |row: &Row| row.node == record.name && row.released_at.is_some_and(|at| at >= record.joined_at);
        self.ledger.held_by(&record.name).is_empty() && self.ledger.rows().any(after)
    }
}
