//! Imports an archive into a store.

use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::format::Archive;
use crate::ca::CaError;
use crate::ca::storage::CaStorage;
use crate::clock::Seconds;
use crate::segments::Restored;
use crate::state::{Change, RowKey, Snapshot};
use crate::store::{Note, Store, StoreError};

/// Distance between the archive's revision and the first revision after an import. After the
/// archive was written, nodes may have received views of later, unknown versions. With this
/// distance, nodes treat the views from the import on as newer.
const AHEAD: u64 = 1 << 32;

/// The reason why an archive was not imported, or was imported only in part.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store has rows that the archive lacks.
    #[error(
        "the store is not empty: it holds {0}, which the archive lacks or has with another content; an import goes into an empty store, or goes on with \
         one that was interrupted"
    )]
    NotEmpty(RowKey),
    /// Other certificate authorities are stored already.
    #[error(
        "another certificate authority is stored already, which no node of the archive trusts; an import goes into an empty store"
    )]
    OtherAuthority,
    /// The certificate authorities cannot be stored.
    #[error("{0}; import the same file again to resume")]
    Ca(#[from] CaError),
    /// The store could not be read or written. Rows written so far stay.
    #[error("{0}; import the same file again to resume")]
    Store(#[from] StoreError),
}

/// Imports an archive into a store that is empty, or that holds a part of the same archive. Returns
/// how many rows were missing.
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
    let wanted: BTreeMap<RowKey, Change> = puts(archive.rows).map(|change| (change.key(), change)).collect();
    // This read does not load the store. Loading would put this controller's segment sizes into
    // effect, even if the import is refused.
    without(&wanted, store.read().await?)?;
    store.begin_import().await?;
    let wanted = without(&wanted, store.load(mpsc::channel(1).0).await?)?;
    // The revision is raised first: a controller that uses the partly filled store then issues no
    // versions that nodes treat as old.
    store.raise_revision(revision.saturating_add(AHEAD)).await?;
    // The note is written before any row, because a controller that serves the rows must take into
    // account that they lack later grants.
    store.set_note(Note::Restored, Restored::at(now.max(time)).to_note()).await?;
    let missing = wanted.len();
    // Each row is a separate batch element. A store without large transactions writes the rows one
    // by one, and the embedded store writes all of them in one transaction.
    let batch = wanted.into_values().map(|change| vec![claim(change)]).collect();
    for result in store.commit(batch, now.max(time)).await.results {
        result?;
    }
    if let (None, Some(ca)) = (&present, &archive.ca) {
        storage.store(ca, None).await?;
    }
    Ok(missing)
}

/// Returns the wanted rows that the store lacks. Fails if the store has any other row.
fn without(wanted: &BTreeMap<RowKey, Change>, present: Snapshot) -> Result<BTreeMap<RowKey, Change>, ImportError> {
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

/// Turns the row of a held segment into a grant, so that two nodes never get the segment.
fn claim(change: Change) -> Change {
    match change {
        Change::PutSegment(row) if row.released_at.is_none() => Change::GrantSegment(row),
        other => other,
    }
}
