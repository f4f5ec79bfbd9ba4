//! Bringing an archive into a store.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::Archive;
use crate::ca::CaError;
use crate::ca::storage::CaStorage;
use crate::clock::Seconds;
use crate::segments::Restored;
use crate::state::{Change, Key, Snapshot};
use crate::store::{Note, Store, StoreError};

/// Versions of views that were handed out after the archive was written are not known. None is so
/// far ahead: nodes take what comes now for newer.
const AHEAD: u64 = 1 << 32;

/// Why an archive was not brought in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store has rows of its own.
    #[error(
        "the store is not empty: it holds {0}, which the archive does not, or not like this; an import goes into an empty store, or goes on with \
         one that was interrupted"
    )]
    NotEmpty(Key),
    /// There are authorities already, and others.
    #[error(
        "there is another certificate authority already, with which no node of the archive could go on; an import goes into an empty store"
    )]
    OtherAuthority,
    /// The authorities cannot be kept.
    #[error("{0}; import again to go on where it stopped")]
    Ca(#[from] CaError),
    /// The store failed.
    #[error("{0}; import again to go on where it stopped")]
    Store(#[from] StoreError),
}

/// Brings an archive into a store that is empty, or holds a part of this very archive. Returns how
/// many rows were missing.
pub async fn import(
    store: &dyn Store,
    storage: &dyn CaStorage,
    archive: Archive,
    now: Seconds,
) -> Result<usize, ImportError> {
    let present = storage.load().await?.map(|(document, _)| document);
    if present.is_some() && present != archive.ca {
        return Err(ImportError::OtherAuthority);
    }
    let (revision, time) = (archive.rows.revision, archive.rows.time);
    let wanted: BTreeMap<Key, Change> = puts(archive.rows).map(|change| (change.key(), change)).collect();
    // Who loads takes part, and puts its own sizes of segments in force: not where the import is
    // refused.
    without(&wanted, store.read().await?)?;
    store.begin_import().await?;
    let wanted = without(&wanted, store.load(mpsc::channel(1).0).await?)?;
    // First, so that whoever uses a half filled store hands out no versions that nodes take for old
    // ones.
    store.raise_revision(revision.saturating_add(AHEAD)).await?;
    // Before any row: a controller that serves the rows must know that they lack later grants.
    store.set_note(Note::Restored, Restored::at(now.max(time)).to_note()).await?;
    let missing = wanted.len();
    // A row an element: a store without large transactions takes them one by one, and the embedded
    // one all together.
    let batch = wanted.into_values().map(|change| vec![claim(change)]).collect();
    for result in store.commit(batch, now.max(time)).await.results {
        result?;
    }
    if let (None, Some(ca)) = (&present, &archive.ca) {
        storage.store(ca, None).await?;
    }
    Ok(missing)
}

/// What is wanted and not there yet; an error where something else is there.
fn without(wanted: &BTreeMap<Key, Change>, present: Snapshot) -> Result<BTreeMap<Key, Change>, ImportError> {
    let mut missing = wanted.clone();
    for found in puts(present) {
        let key = found.key();
        match missing.remove(&key) {
            Some(same) if same == found => {}
            _ => return Err(ImportError::NotEmpty(key)),
        }
    }
    Ok(missing)
}

fn puts(rows: Snapshot) -> impl Iterator<Item = Change> {
    let Snapshot { nodes, tokens, segments, communities, .. } = rows;
    communities
        .into_iter()
        .map(Change::PutCommunity)
        .chain(tokens.into_iter().map(Change::PutToken))
        .chain(nodes.into_iter().map(Change::PutNode))
        .chain(segments.into_iter().map(Change::PutSegment))
}

/// A segment that is held is claimed, so that two can never have it.
fn claim(change: Change) -> Change {
    match change {
        Change::PutSegment(row) if row.released_at.is_none() => Change::ClaimSegment(row),
        other => other,
    }
}
