//! Writing a batch.
//!
//! Elements that change the same rows are carried out in order; where one of them fails, those that
//! were planned on it fail as conflicts. Others are carried out at the same time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use edge_controller_domain::clock::Seconds;
use edge_controller_domain::segments::Row;
use edge_controller_domain::state::{Change, Key};
use edge_controller_domain::store::{Committed, StoreError};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::DynamicObject;

use super::Inner;
use super::kinds::{DELETING, Kind, Observed, Place, encode};
use super::objects::{Base, Event, Unready, deletion};
use super::source::Object;
use crate::client::{REQUEST, explain, is_absent};

/// Elements that are carried out at once: the API server and its etcd take many at a time in little
/// more than the time of one.
const AT_ONCE: usize = 128;
/// How often the release of a segment is tried that others got ahead of.
const RELEASES: u32 = 4;
/// Wait before it is looked again whether claims may be told of.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A segment that was claimed, and is not told of yet.
struct Claim {
    place: Place,
    row: Row,
    base: Base,
    written: Observed,
}

pub(super) async fn commit(inner: Arc<Inner>, batch: Vec<Vec<Change>>, now: Seconds) -> Committed {
    // Claims are confirmed when they are made.
    if batch.iter().flatten().any(|change| !matches!(change, Change::ClaimSegment(_)))
        && let Err(error) = inner.settings.understood_since_now().await
    {
        let results = batch.iter().map(|_| Err(error.clone())).collect();
        return Committed { revision: inner.objects().revision(), results };
    }
    let mut results: Vec<(usize, Result<(), StoreError>)> = stream::iter(chains(&batch))
        .map(|chain| carry_out(&inner, &batch, chain))
        .buffer_unordered(AT_ONCE)
        .concat()
        .await;
    results.sort_by_key(|(index, _)| *index);
    let mut results: Vec<Result<(), StoreError>> = results.into_iter().map(|(_, result)| result).collect();
    if batch.iter().any(Vec::is_empty) {
        // Whoever wants a revision above all others gets it from the API server.
        let touched = inner.settings.touch(now).await.map(|version| inner.objects().noted(version));
        for (_, result) in batch.iter().zip(&mut results).filter(|(element, _)| element.is_empty()) {
            result.clone_from(&touched);
        }
    }
    let revision = inner.objects().revision();
    Committed { revision, results }
}

/// Elements by what they share, in order.
fn chains(batch: &[Vec<Change>]) -> Vec<Vec<usize>> {
    let mut chain_of: Vec<usize> = (0..batch.len()).collect();
    let mut last: HashMap<Key, usize> = HashMap::new();
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

async fn carry_out(
    inner: &Arc<Inner>,
    batch: &[Vec<Change>],
    chain: Vec<usize>,
) -> Vec<(usize, Result<(), StoreError>)> {
    let mut failed: BTreeSet<Key> = BTreeSet::new();
    let mut results = Vec::new();
    for index in chain {
        let element = &batch[index];
        let result = match element.iter().map(Change::key).find(|key| failed.contains(key)) {
            Some(key) => Err(StoreError::Conflict { key, current: Vec::new() }),
            None => element_of(inner, element).await,
        };
        if result.is_err() {
            failed.extend(element.iter().map(Change::key));
        }
        results.push((index, result));
    }
    results
}

/// Which changes of an element come first: see the module above.
fn stage(change: &Change) -> u8 {
    match change {
        Change::DeleteNode(_) => 0,
        Change::DeleteSegment(_) => 1,
        Change::ClaimSegment(_) => 2,
        Change::PutSegment(_) => 3,
        Change::PutToken(_) | Change::DeleteToken(_) => 4,
        Change::PutCommunity(_) | Change::DeleteCommunity(_) => 5,
        Change::PutNode(_) => 6,
    }
}

async fn element_of(inner: &Arc<Inner>, element: &[Change]) -> Result<(), StoreError> {
    // Before any change of the element: a node stays if its segments could not be kept for it.
    element.iter().try_for_each(|change| inner.check_fields(change)).map_err(StoreError::Failed)?;
    let mut stages: Vec<u8> = element.iter().map(stage).collect();
    stages.sort_unstable();
    stages.dedup();
    // A node that is gone leaves its segments, whatever happened to their rows meanwhile.
    let leaves = element.iter().any(|change| matches!(change, Change::DeleteNode(_)));
    let mut done: Vec<Change> = Vec::new();
    for now in stages {
        let changes = element.iter().filter(|change| stage(change) == now);
        let written = join_all(changes.map(|change| async move {
            let result = match change {
                Change::PutSegment(row) if leaves => release(inner, row).await.map(|()| None),
                other => write(inner, other).await,
            };
            (change, result)
        }));
        let (mut claims, mut failed) = (Vec::new(), None);
        for (change, result) in written.await {
            match result {
                Ok(None) => done.push(change.clone()),
                Ok(Some(claim)) => claims.push(claim),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if !claims.is_empty() {
            let rows: Vec<Change> = claims.iter().map(|claim| Change::PutSegment(claim.row.clone())).collect();
            match confirm(inner, claims).await {
                Ok(()) => done.extend(rows),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            // What was done of it holds, and the registry hears of it as it hears of what others
            // do. Where it plans anew, it must know at once: another plan might take the place of
            // what was claimed, and this one claim more.
            give_back_tokens(inner, &mut done).await;
            let mut objects = inner.objects();
            done.iter().cloned().for_each(|change| objects.tell_of(change));
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

/// Writes one change. A claim comes back: its object stays in flight until it is confirmed.
async fn write(inner: &Inner, change: &Change) -> Result<Option<Claim>, StoreError> {
    let key = change.key();
    let place = Kind::place(&key);
    let begun = inner.objects().begin(&place);
    let base = match begun {
        Ok(base) => base,
        Err(Unready::Stale) => return Err(StoreError::Conflict { key, current: Vec::new() }),
        Err(Unready::Frozen(why)) => return Err(StoreError::Failed(why)),
        Err(Unready::Busy) => {
            return Err(StoreError::Failed(format!("an earlier write of {key} has not come to its end yet")));
        }
    };
    let sent = send(inner, change, &place, &base).await;
    match sent {
        Ok(Some(object)) => match change {
            Change::ClaimSegment(row) => Ok(Some(Claim { place, row: row.clone(), base, written: object })),
            _ => {
                inner.objects().end_written(place, object, change);
                Ok(None)
            }
        },
        Ok(None) => {
            inner.objects().end_deleted(&place);
            Ok(None)
        }
        Err(Failure::Other(why)) => {
            // What became of it is not known: the watch will tell.
            inner.objects().end(&place);
            Err(StoreError::Failed(why))
        }
        Err(Failure::Changed) => {
            let now = present(inner, &place).await;
            let mut objects = inner.objects();
            // As if the watch had said it, and in its place among what the watch says: the registry
            // must not go back to what was before.
            let current = match now {
                Ok(Some(object)) => {
                    let row = object.row.clone();
                    objects.event(place.clone(), Event::Put(object));
                    row.map(|row| vec![row])
                }
                Ok(None) => {
                    let (uid, version) = match &base {
                        Base::Nothing => (None, 0),
                        Base::Object { uid, version, .. } => (Some(uid.clone()), *version),
                    };
                    objects.event(place.clone(), Event::Gone { uid, version, ours: false });
                    Ok(match place.0 {
                        Kind::Token => vec![deletion(&key)],
                        // It is to be seen first why it is missing.
                        _ => Vec::new(),
                    })
                }
                Err(_) => Ok(Vec::new()),
            };
            objects.end(&place);
            match current {
                Ok(current) => Err(StoreError::Conflict { key, current }),
                Err(why) => Err(StoreError::Failed(format!(
                    "the object {} {} cannot be read ({why}); correct it or delete it",
                    place.0.what(),
                    place.1
                ))),
            }
        }
    }
}

pub(super) enum Failure {
    /// The object is not what we took it for.
    Changed,
    Other(String),
}

/// Sends one write, and says what is there afterwards.
async fn send(inner: &Inner, change: &Change, place: &Place, base: &Base) -> Result<Option<Observed>, Failure> {
    let (kind, name) = (place.0, place.1.as_str());
    let api = inner.apis.of(kind);
    let nothing = super::kinds::Foreign::default();
    let foreign = match base {
        Base::Object { foreign, .. } => foreign,
        Base::Nothing => &nothing,
    };
    let object = encode(change, foreign).map_err(Failure::Other)?;
    let failure = |error: kube::Error| match &error {
        kube::Error::Api(status) if status.code == 409 => Failure::Changed,
        error if is_absent(error) => Failure::Changed,
        error => Failure::Other(explain(kind.what(), error)),
    };
    let observed = |object: DynamicObject| read(kind, object).map(Some);
    match (object, base) {
        (Some(object), Base::Nothing) => {
            answered(kind, api.create(&PostParams::default(), &object)).await?.map_err(failure).and_then(observed)
        }
        // Nobody planned on that who knew it.
        (Some(_), Base::Object { held: true, .. }) if matches!(change, Change::ClaimSegment(_)) => {
            Err(Failure::Changed)
        }
        (Some(mut object), Base::Object { uid, version, .. }) => {
            object.metadata.uid = Some(uid.clone());
            object.metadata.resource_version = Some(version.to_string());
            answered(kind, api.replace(name, &PostParams::default(), &object))
                .await?
                .map_err(failure)
                .and_then(observed)
        }
        (None, Base::Nothing) => Ok(None),
        (None, Base::Object { uid, version, .. }) => {
            let version = match kind {
                Kind::Node | Kind::Segment => match mark(api, kind, name, uid, *version).await? {
                    Some(marked) => marked,
                    None => return Ok(None),
                },
                Kind::Community | Kind::Token => *version,
            };
            let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: Some(version.to_string()) };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match answered(kind, api.delete(name, &params)).await? {
                Ok(_) => Ok(None),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(failure(error)),
            }
        }
    }
}

/// Marks an object for its deletion, so that the other replicas know who deletes it. Returns its
/// version then; `None` where it is gone already.
async fn mark(
    api: &Api<DynamicObject>,
    kind: Kind,
    name: &str,
    uid: &str,
    version: u64,
) -> Result<Option<u64>, Failure> {
    let failure = |error: kube::Error| match &error {
        kube::Error::Api(status) if status.code == 409 => Failure::Changed,
        error => Failure::Other(explain(kind.what(), error)),
    };
    let found = match answered(kind, api.get(name)).await? {
        Err(error) if is_absent(&error) => return Ok(None),
        found => found.map_err(failure)?,
    };
    let mut object = found;
    let same = object.metadata.uid.as_deref() == Some(uid)
        && object.metadata.resource_version.as_ref().is_some_and(|now| *now == version.to_string());
    if !same {
        return Err(Failure::Changed);
    }
    let now = Timestamp::now().to_string();
    object.metadata.annotations.get_or_insert_default().insert(DELETING.into(), now);
    match answered(kind, api.replace(name, &PostParams::default(), &object)).await? {
        Err(error) if is_absent(&error) => Ok(None),
        written => read(kind, written.map_err(failure)?).map(|object| Some(object.version)),
    }
}

pub(super) async fn answered<T>(kind: Kind, request: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(REQUEST, request).await.map_err(|_| {
        Failure::Other(format!(
            "the API server did not answer about {} within {} s; what became of the request is not known yet",
            kind.what(),
            REQUEST.as_secs()
        ))
    })
}

pub(super) fn read(kind: Kind, object: DynamicObject) -> Result<Observed, Failure> {
    Observed::of(kind, Object::from(object)).map_err(Failure::Other)
}

/// What is there now.
pub(super) async fn present(inner: &Inner, place: &Place) -> Result<Option<Observed>, Failure> {
    let found = answered(place.0, inner.apis.of(place.0).get_opt(&place.1)).await?;
    match found {
        Ok(Some(object)) => read(place.0, object).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(Failure::Other(explain(place.0.what(), &error))),
    }
}

/// Releases a segment of a node that is gone: also where its row was changed since, unless it is
/// not that grant any more.
async fn release(inner: &Inner, row: &Row) -> Result<(), StoreError> {
    let change = Change::PutSegment(row.clone());
    let place = Kind::place(&change.key());
    let mut result = write(inner, &change).await.map(drop);
    for _ in 0..RELEASES {
        if !matches!(result, Err(StoreError::Conflict { .. })) {
            return result;
        }
        let Ok(now) = present(inner, &place).await else { return result };
        let held = now.filter(|object| holds(object, row));
        let Some(object) = held else { return Ok(()) };
        {
            let mut objects = inner.objects();
            // Where it was missed meanwhile: it is there.
            objects.keep(&place);
            objects.event(place.clone(), Event::Put(object));
            objects.plan_knows(&place);
        }
        result = write(inner, &change).await.map(drop);
        if result.is_ok() {
            // Behind the news that the plan did not know.
            inner.objects().tell_of(change.clone());
        }
    }
    result
}

/// Gives back uses of tokens of an element that came to nothing; where that fails too, the use is
/// lost, which lets nobody in.
async fn give_back_tokens(inner: &Inner, done: &mut Vec<Change>) {
    let used =
        done.iter().position(|change| matches!(change, Change::PutToken(token) if !token.redemptions.is_empty()));
    let Some(index) = used else { return };
    let Change::PutToken(mut token) = done[index].clone() else { return };
    token.redemptions.pop();
    match write(inner, &Change::PutToken(token.clone())).await {
        Ok(_) => drop(done.remove(index)),
        Err(error) => tracing::warn!(id = token.id, %error, "a use of a join token was not given back"),
    }
}

/// Makes sure that what was claimed may be told of; takes it back otherwise.
async fn confirm(inner: &Arc<Inner>, claims: Vec<Claim>) -> Result<(), StoreError> {
    match inner.settings.in_force_since_now().await {
        Ok(Ok(())) => {
            let mut objects = inner.objects();
            for Claim { place, row, written, .. } in claims {
                objects.end_written(place, written, &Change::ClaimSegment(row));
            }
            Ok(())
        }
        Ok(Err(why)) => {
            tracing::error!("{why}");
            take_back(inner, claims).await;
            Err(StoreError::Failed(why))
        }
        Err(error) => {
            // Not told of, and not forgotten either: the objects stay in flight until it is known.
            inner.unsettled.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(settle(inner.clone(), claims));
            Err(error)
        }
    }
}

/// Looks again until it is known whether claims may be told of.
async fn settle(inner: Arc<Inner>, claims: Vec<Claim>) {
    settled(&inner, claims).await;
    inner.unsettled.fetch_sub(1, Ordering::SeqCst);
}

async fn settled(inner: &Inner, claims: Vec<Claim>) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        match inner.settings.in_force().await {
            Ok(Ok(())) => {
                // Nobody was told of them: whoever asked heard of a failure, and gets them when it
                // asks again.
                let mut objects = inner.objects();
                claims.iter().for_each(|claim| objects.end(&claim.place));
                return;
            }
            Ok(Err(why)) => {
                tracing::error!("{why}");
                return take_back(inner, claims).await;
            }
            Err(error) => tracing::debug!(%error, "claims are not settled yet"),
        }
    }
}

async fn take_back(inner: &Inner, claims: Vec<Claim>) {
    join_all(claims.into_iter().map(async |claim| {
        let Claim { place, row, base, mut written } = claim;
        let change = match (&base, before(&row)) {
            (Base::Object { .. }, Some(before)) => Change::PutSegment(before),
            _ => Change::DeleteSegment(row.network),
        };
        let mut why = "others go on writing it".to_owned();
        for _ in 0..RELEASES {
            let (uid, foreign) = (written.uid.clone(), written.foreign.clone());
            let upon = Base::Object { uid, version: written.version, held: true, foreign };
            match send(inner, &change, &place, &upon).await {
                Ok(None) => return inner.objects().end_taken_back(place, written, &Change::ClaimSegment(row)),
                Ok(Some(_)) => return inner.objects().end(&place),
                // Somebody has written it: perhaps only beside the row.
                Err(Failure::Changed) => match present(inner, &place).await {
                    Ok(Some(now)) if holds(&now, &row) => written = now,
                    Ok(_) => return inner.objects().end(&place),
                    Err(Failure::Changed) => {}
                    Err(Failure::Other(error)) => why = error,
                },
                Err(Failure::Other(error)) => {
                    why = error;
                    break;
                }
            }
        }
        tracing::error!(segment = %row.network, why, "a claim was not taken back; it is released as one of a node that does not hold it");
        inner.objects().end(&place);
    }))
    .await;
}

/// Whether an object is still this very grant.
fn holds(object: &Observed, row: &Row) -> bool {
    match &object.row {
        Ok(Change::PutSegment(now)) => {
            now.node == row.node && now.granted_at == row.granted_at && now.released_at.is_none()
        }
        _ => false,
    }
}

/// The released row in whose place a row was claimed.
fn before(row: &Row) -> Option<Row> {
    let last = row.past.first()?;
    let past = row.past.get(1..).unwrap_or_default().to_vec();
    let released = Some(last.released_at);
    Some(Row { past, ..Row::new(row.network, last.node.clone(), String::new(), last.granted_at, released) })
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

    #[test]
    fn the_row_before_a_claim_comes_back() {
        let network = "10.77.0.0/26".parse().unwrap();
        let old = Row::new(network, "a".parse().unwrap(), String::new(), 1, Some(2));
        let new = old.regranted("b".parse().unwrap(), "r".into(), 3);
        assert_eq!(before(&new), Some(old));
        assert_eq!(before(&Row::new(network, "a".parse().unwrap(), String::new(), 1, None)), None);
    }
}
