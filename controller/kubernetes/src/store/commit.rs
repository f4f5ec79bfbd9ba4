//! Writes a batch of changes.
//!
//! Elements that change the same rows are written in order. If one of them fails, the elements that
//! were planned on its result fail as conflicts. Independent elements are written at the same time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::segments::SegmentRecord;
use edge_controller_domain::state::{Change, RowKey};
use edge_controller_domain::store::{Committed, StoreError};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;

use super::grants::{self, UnconfirmedGrant, is_same_grant};
use super::object_versions::{NotWritable, ObjectEvent, WriteBase, deletion};
use super::requests::{Failure, read_object, send};
use super::store_core::StoreCore;
use crate::resources::kinds::Kind;

/// Maximum number of chains (groups of elements that share rows) that are written at the same time.
/// The API server and etcd process many concurrent writes in little more time than one write.
const CONCURRENT_CHAINS: usize = 128;
/// Number of attempts to release a segment if other writers change its object at the same time.
const RELEASE_ATTEMPTS: u32 = 4;

pub(super) async fn commit(core: Arc<StoreCore>, batch: Vec<Vec<Change>>, now: Seconds) -> Committed {
    // For grants, the shared configuration is checked later, when the grants are confirmed.
    if batch.iter().flatten().any(|change| !matches!(change, Change::GrantSegment(_)))
        && let Err(error) = core.shared_config.understood_since_now().await
    {
        let results = batch.iter().map(|_| Err(error.clone())).collect();
        return Committed { revision: core.objects().revision(), results };
    }
    let mut results: Vec<(usize, Result<(), StoreError>)> = stream::iter(chains(&batch))
        .map(|chain| commit_chain(&core, &batch, chain))
        .buffer_unordered(CONCURRENT_CHAINS)
        .concat()
        .await;
    results.sort_by_key(|(index, _)| *index);
    let mut results: Vec<Result<(), StoreError>> = results.into_iter().map(|(_, result)| result).collect();
    if batch.iter().any(Vec::is_empty) {
        // An empty element requests a revision higher than all others; the API server provides it.
        let touched = core.shared_config.advance_version(now).await.map(|version| core.objects().raise_number(version));
        for (_, result) in batch.iter().zip(&mut results).filter(|(element, _)| element.is_empty()) {
            result.clone_from(&touched);
        }
    }
    let revision = core.objects().revision();
    Committed { revision, results }
}

/// Groups elements that share rows, each group in order.
fn chains(batch: &[Vec<Change>]) -> Vec<Vec<usize>> {
    let mut chain_of: Vec<usize> = (0..batch.len()).collect();
    let mut last: HashMap<RowKey, usize> = HashMap::new();
    fn root(chain_of: &[usize], mut index: usize) -> usize {
        while chain_of[index] != index {
            index = chain_of[index];
        }
        index
    }
    for (index, element) in batch.iter().enumerate() {
        for change in element {
            if let Some(before) = last.insert(change.key(), index) {
                let (a, b) = (root(&chain_of, before), root(&chain_of, index));
                chain_of[a.max(b)] = a.min(b);
            }
        }
    }
    let mut chains: Vec<Vec<usize>> = vec![Vec::new(); batch.len()];
    for index in 0..batch.len() {
        chains[root(&chain_of, index)].push(index);
    }
    chains.retain(|chain| !chain.is_empty());
    chains
}

async fn commit_chain(
    core: &Arc<StoreCore>,
    batch: &[Vec<Change>],
    chain: Vec<usize>,
) -> Vec<(usize, Result<(), StoreError>)> {
    let mut failed: BTreeSet<RowKey> = BTreeSet::new();
    let mut results = Vec::new();
    for index in chain {
        let element = &batch[index];
        let result = match element.iter().map(Change::key).find(|key| failed.contains(key)) {
            Some(key) => Err(StoreError::Conflict { key, current: Vec::new() }),
            None => commit_element(core, element).await,
        };
        if result.is_err() {
            failed.extend(element.iter().map(Change::key));
        }
        results.push((index, result));
    }
    results
}

/// Returns the position of a change in an element's order, lowest first: see the store's module.
fn stage(change: &Change) -> u8 {
    match change {
        Change::DeleteNode(_) => 0,
        Change::DeleteSegment(_) => 1,
        Change::GrantSegment(_) => 2,
        Change::PutSegment(_) => 3,
        Change::PutToken(_) | Change::DeleteToken(_) => 4,
        Change::PutCommunity(_) | Change::DeleteCommunity(_) => 5,
        Change::PutNode(_) => 6,
    }
}

async fn commit_element(core: &Arc<StoreCore>, element: &[Change]) -> Result<(), StoreError> {
    // This check comes before any change of the element is written: a node stays registered if its
    // segments could not be kept for it.
    element.iter().try_for_each(|change| core.check_fields(change)).map_err(StoreError::Failed)?;
    let mut stages: Vec<u8> = element.iter().map(stage).collect();
    stages.sort_unstable();
    stages.dedup();
    // A node that leaves releases its segments, even if their rows have changed in the meantime.
    let leaves = element.iter().any(|change| matches!(change, Change::DeleteNode(_)));
    let mut done: Vec<Change> = Vec::new();
    for now in stages {
        let changes = element.iter().filter(|change| stage(change) == now);
        let written = join_all(changes.map(|change| async move {
            let result = match change {
                Change::PutSegment(row) if leaves => release(core, row).await.map(|()| None),
                other => write(core, other).await,
            };
            (change, result)
        }));
        let (mut grants, mut failed, mut unknown) = (Vec::new(), None, Vec::new());
        for (change, result) in written.await {
            match result {
                Ok(None) => done.push(change.clone()),
                Ok(Some(grant)) => grants.push(grant),
                Err(error) => {
                    if !matches!(error, StoreError::Conflict { .. }) {
                        unknown.push(change);
                    }
                    failed = failed.or(Some(error));
                }
            }
        }
        if !grants.is_empty() {
            let rows: Vec<Change> = grants.iter().map(|grant| Change::PutSegment(grant.row.clone())).collect();
            match grants::confirm(core, grants).await {
                Ok(()) => done.extend(rows),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            // The changes that were written stay, and the registry receives them like changes of
            // other replicas. The registry must receive them before it plans again: otherwise the
            // new plan might grant further segments.
            give_back_tokens(core, &mut done, &unknown).await;
            let mut objects = core.objects();
            done.iter().cloned().for_each(|change| objects.publish_write(change));
            return Err(match error {
                StoreError::Conflict { key, mut current } => {
                    current.extend(done);
                    StoreError::Conflict { key, current }
                }
                other => other,
            });
        }
    }
    Ok(())
}

/// Writes one change. Returns the grant if the change is one; the grant's object stays in flight
/// until it is confirmed.
async fn write(core: &StoreCore, change: &Change) -> Result<Option<UnconfirmedGrant>, StoreError> {
    let key = change.key();
    let object_key = Kind::object_key(&key);
    let begun = core.objects().begin(&object_key);
    let base = match begun {
        Ok(base) => base,
        Err(NotWritable::Stale) => return Err(StoreError::Conflict { key, current: Vec::new() }),
        Err(NotWritable::Frozen(why)) => return Err(StoreError::Failed(why)),
        Err(NotWritable::Busy) => {
            return Err(StoreError::Failed(format!("an earlier write of {key} has not ended yet")));
        }
    };
    if let Some(other) = other_row(&base, &key) {
        core.objects().end(&object_key);
        return Err(StoreError::Failed(format!(
            "{key} and {other} are the same object {} {}; names that differ only in capital letters cannot both exist: use the \
             existing one, or delete it first",
            object_key.0.what(),
            object_key.1
        )));
    }
    let sent = send(core, change, &object_key, &base).await;
    match sent {
        Ok(Some(object)) => match change {
            Change::GrantSegment(row) => {
                Ok(Some(UnconfirmedGrant { object_key, row: row.clone(), base, written: object }))
            }
            _ => {
                core.objects().end_written(object_key, object, change);
                Ok(None)
            }
        },
        Ok(None) => {
            core.objects().end_deleted(&object_key);
            Ok(None)
        }
        Err(Failure::Other(why)) => {
            // The outcome is not known; the watch will show it.
            core.objects().end(&object_key);
            Err(StoreError::Failed(why))
        }
        Err(Failure::Changed) => {
            let now = read_object(core, &object_key).await;
            let mut objects = core.objects();
            // The current state is handled like a watch event, in order with the other events, so
            // that the registry does not return to an earlier state.
            let current = match now {
                Ok(Some(object)) => {
                    let row = object.row.clone();
                    objects.observe(object_key.clone(), ObjectEvent::Applied(object));
                    row.map(|row| vec![row])
                }
                Ok(None) => {
                    let (uid, version) = match &base {
                        WriteBase::Nothing => (None, 0),
                        WriteBase::Object { uid, version, .. } => (Some(uid.clone()), *version),
                    };
                    objects.observe(object_key.clone(), ObjectEvent::Deleted { uid, version, by_replica: false });
                    Ok(match object_key.0 {
                        Kind::Token => vec![deletion(&key)],
                        // The write must wait until the reason why the object is missing is known.
                        _ => Vec::new(),
                    })
                }
                Err(_) => Ok(Vec::new()),
            };
            objects.end(&object_key);
            match current {
                Ok(current) => Err(StoreError::Conflict { key, current }),
                Err(why) => Err(StoreError::Failed(format!(
                    "the object {} {} cannot be read ({why}); correct it or delete it",
                    object_key.0.what(),
                    object_key.1
                ))),
            }
        }
    }
}

/// Returns the row that the object holds if it is another one. The name of a community's object is
/// in small letters, so two communities may have the same object.
fn other_row<'a>(base: &'a WriteBase, key: &RowKey) -> Option<&'a RowKey> {
    match base {
        WriteBase::Object { key: held, .. } if held != key => Some(held),
        WriteBase::Object { .. } | WriteBase::Nothing => None,
    }
}

/// Releases a segment of a node that is deregistered. If the row has changed in the meantime, the
/// segment is still released, unless the row is another grant.
async fn release(core: &StoreCore, row: &SegmentRecord) -> Result<(), StoreError> {
    let change = Change::PutSegment(row.clone());
    let object_key = Kind::object_key(&change.key());
    let mut result = write(core, &change).await.map(drop);
    for _ in 0..RELEASE_ATTEMPTS {
        if !matches!(result, Err(StoreError::Conflict { .. })) {
            return result;
        }
        let Ok(now) = read_object(core, &object_key).await else { return result };
        let held = now.filter(|object| is_same_grant(object, row));
        let Some(object) = held else { return Ok(()) };
        {
            let mut objects = core.objects();
            // If the object was missing in the meantime, it exists again.
            objects.keep_row(&object_key);
            objects.observe(object_key.clone(), ObjectEvent::Applied(object));
            objects.plan_knows(&object_key);
        }
        result = write(core, &change).await.map(drop);
        if result.is_ok() {
            // The registry must apply this write after the event on which the plan was not based.
            core.objects().publish_write(change.clone());
        }
    }
    result
}

/// Gives back the use of a token if the element that used it failed. The use is lost if that fails
/// too, or if one of the changes whose outcome is `unknown` may have been written: the token then
/// lets one node fewer join. Otherwise it could let one node more join.
async fn give_back_tokens(core: &StoreCore, done: &mut Vec<Change>, unknown: &[&Change]) {
    let used = done.iter().position(|change| matches!(change, Change::PutToken(token) if token.used() > 0));
    let Some(index) = used else { return };
    let Change::PutToken(mut token) = done[index].clone() else { return };
    for change in unknown {
        let object_key = Kind::object_key(&change.key());
        let written = match read_object(core, &object_key).await {
            Ok(Some(object)) => object.row.as_ref() == Ok(*change),
            Ok(None) => false,
            Err(_) => true,
        };
        if written {
            tracing::warn!(id = token.id, row = %change.key(), "the use of a join token stays counted: the join may have been written");
            return;
        }
    }
    token.set_used(token.used() - 1);
    match write(core, &Change::PutToken(token.clone())).await {
        Ok(_) => drop(done.remove(index)),
        Err(error) => tracing::warn!(id = token.id, %error, "cannot undo a use of a join token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_share_a_row_are_one_chain_in_order() {
        let delete = |names: &[&str]| -> Vec<Change> {
            names.iter().map(|name| Change::DeleteNode(name.parse().unwrap())).collect()
        };
        let batch =
            vec![delete(&["a"]), delete(&["b"]), delete(&["c", "a"]), Vec::new(), delete(&["b", "c"]), delete(&["d"])];
        let mut chains = chains(&batch);
        chains.sort();
        assert_eq!(chains, [vec![0, 1, 2, 4], vec![3], vec![5]]);
    }
}
