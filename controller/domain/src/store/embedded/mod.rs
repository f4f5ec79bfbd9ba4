//! The embedded store, which is one redb file. A commit is one write transaction, which is on disk
//! before the call returns. After a power cut the file holds the last complete commit.

#[cfg(test)]
mod tests;

use std::fs::TryLockError;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, TableError, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::{Committed, Note, Store, StoreError, StoreEvent};
use crate::clock::Seconds;
use crate::segments::SegmentRecord;
use crate::state::{Change, Snapshot};

/// Name of the file in the state directory.
pub const FILE: &str = "controller.redb";

// Rows are JSON. A newer release may add keys, which an older release ignores.
type Table = TableDefinition<'static, &'static str, &'static [u8]>;
const NODES: Table = TableDefinition::new("nodes");
const TOKENS: Table = TableDefinition::new("tokens");
const SEGMENTS: Table = TableDefinition::new("segments");
const COMMUNITIES: Table = TableDefinition::new("communities");
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
/// The notes. Files of earlier releases lack this table, and earlier releases do not change it.
const NOTES: TableDefinition<&'static str, &'static str> = TableDefinition::new("notes");
const REVISION: &str = "revision";
const TIME: &str = "time";
/// Layout version of the tables. Files of the first release lack it; their layout is version 1.
const SCHEMA: &str = "schema";
/// The layout version that this release reads and writes.
const OURS: u64 = 1;

/// The store in one file of the state directory. One process opens it at a time.
#[derive(Clone)]
pub struct Embedded {
    /// `None` if the file could not be opened again after an error. The next write then tries to
    /// open it.
    database: Arc<RwLock<Option<Database>>>,
    /// Opens the file again after an error.
    open: Arc<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    revision: Arc<AtomicU64>,
    /// The channel that receives the rows of the file after a commit with an unknown outcome.
    events: Arc<OnceLock<mpsc::Sender<StoreEvent>>>,
}

impl Embedded {
    /// Opens the store of a state directory. Creates it if there is none.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        let explain = |error: DatabaseError| StoreError::Failed(format!("{}: {}", path.display(), reason(error)));
        match std::fs::metadata(&path) {
            // An empty file was cut short. A new store in its place would grant every segment to a
            // second node.
            Ok(found) if found.len() == 0 => Err(explain(StorageError::Corrupted("it is empty".into()).into())),
            Ok(_) => {
                let copy = copy(&path).map_err(explain)?;
                check_schema(&path, &copy.begin_read().map_err(failed)?)?;
                Self::prepare(Database::open(&path).map_err(explain)?, opens(path.clone()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::create(state_dir),
            Err(error) => Err(explain(error.into())),
        }
    }

    /// Creates a store under a temporary name and renames it when it is complete.
    fn create(state_dir: &Path) -> Result<Self, StoreError> {
        let (path, new) = (state_dir.join(FILE), state_dir.join(format!("{FILE}.new")));
        let explain = |error: DatabaseError| StoreError::Failed(format!("{}: {}", path.display(), reason(error)));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(explain(error.into())),
            _ => {}
        }
        // This code and not redb creates the file, in order to set the file's permissions.
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
        made.map_err(|error| explain(error.into()))?;
        let store = Self::prepare(Database::create(&new).map_err(explain)?, opens(path.clone()))?;
        let named = std::fs::rename(&new, &path).and_then(|()| std::fs::File::open(state_dir)?.sync_all());
        named.map_err(|error| explain(error.into()))?;
        Ok(store)
    }

    /// Creates all tables at the first start, so that reading needs no special case.
    fn prepare(
        database: Database,
        open: Arc<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    ) -> Result<Self, StoreError> {
        let write = database.begin_write().map_err(failed)?;
        for table in [NODES, TOKENS, SEGMENTS, COMMUNITIES] {
            write.open_table(table).map_err(failed)?;
        }
        write.open_table(NOTES).map_err(failed)?;
        write.open_table(META).map_err(failed)?.insert(SCHEMA, OURS).map_err(failed)?;
        write.commit().map_err(failed)?;
        let database = Arc::new(RwLock::new(Some(database)));
        Ok(Self { database, open, revision: Arc::default(), events: Arc::default() })
    }

    fn reading<T>(&self, act: impl FnOnce(ReadTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        act(database.as_ref().ok_or_else(closed)?.begin_read().map_err(failed)?)
    }

    /// Runs and commits a transaction. If it fails with [`StoreError::Failed`], the file is opened
    /// again: after an I/O error, redb refuses all later writes and answers reads from memory.
    fn writing<T>(&self, act: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let outcome = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            write_to(database.as_ref(), act)
        };
        if let Err(StoreError::Failed(_)) = &outcome {
            let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
            // The database must be closed before it is opened again, because it holds the file's
            // lock.
            *database = None;
            match (self.open)() {
                Ok(opened) => *database = Some(opened),
                Err(error) => tracing::error!("the store's file cannot be opened again: {}", reason(error)),
            }
        }
        outcome
    }

    fn read(&self) -> Result<Snapshot, StoreError> {
        self.reading(|read| read_all(&read))
    }

    /// Writes the whole batch in one transaction. All elements of the batch are synced to disk
    /// together, and succeed or fail together.
    fn write(&self, batch: &[Vec<Change>], revision: u64, now: Seconds) -> Result<(), StoreError> {
        self.writing(|write| {
            batch.iter().flatten().try_for_each(|change| apply(write, change))?;
            let mut meta = write.open_table(META).map_err(failed)?;
            meta.insert(REVISION, revision).map_err(failed)?;
            meta.insert(TIME, now.max(0).unsigned_abs()).map_err(failed)?;
            Ok(())
        })
    }

    fn write_revision(&self, above: u64) -> Result<(), StoreError> {
        let revision = self.writing(|write| {
            let mut meta = write.open_table(META).map_err(failed)?;
            let present = meta.get(REVISION).map_err(failed)?.map_or(0, |present| present.value());
            meta.insert(REVISION, present.max(above)).map_err(failed)?;
            Ok(present.max(above))
        })?;
        self.revision.store(revision, Ordering::Relaxed);
        Ok(())
    }

    fn write_batch(&self, batch: &[Vec<Change>], now: Seconds) -> Committed {
        let revision = self.revision.load(Ordering::Relaxed) + 1;
        match self.write(batch, revision, now) {
            Ok(()) => {
                self.revision.store(revision, Ordering::Relaxed);
                Committed { revision, results: batch.iter().map(|_| Ok(())).collect() }
            }
            Err(error) => {
                // It is unknown whether the commit is on disk. The rows that can be read from the
                // file are taken as the result.
                match (self.read(), self.events.get()) {
                    (Ok(snapshot), Some(events)) => {
                        self.revision.fetch_max(snapshot.revision, Ordering::Relaxed);
                        // The receiver may be the task that waits for this result, so this code
                        // must not wait for it.
                        if let Err(error) = events.try_send(StoreEvent::Snapshot(snapshot)) {
                            tracing::error!(%error, "the rows of the store cannot be passed on to the registry");
                        }
                    }
                    (Err(error), _) => {
                        // The state in memory may differ from every copy on disk, so responses from
                        // it could be wrong.
                        tracing::error!(%error, "the store can be neither written nor read; stopping");
                        std::process::exit(1);
                    }
                    (Ok(_), None) => {}
                }
                let revision = self.revision.load(Ordering::Relaxed);
                Committed { revision, results: batch.iter().map(|_| Err(error.clone())).collect() }
            }
        }
    }
}

impl Store for Embedded {
    fn load(&self, events: mpsc::Sender<StoreEvent>) -> BoxFuture<'_, Result<Snapshot, StoreError>> {
        let store = self.clone();
        Box::pin(async move {
            let _ = store.events.set(events);
            let snapshot = blocking(move || store.read()).await??;
            self.revision.store(snapshot.revision, Ordering::Relaxed);
            Ok(snapshot)
        })
    }

    fn raise_revision(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        let store = self.clone();
        Box::pin(async move { blocking(move || store.write_revision(revision)).await? })
    }

    fn commit(&self, batch: Vec<Vec<Change>>, now: Seconds) -> BoxFuture<'_, Committed> {
        let store = self.clone();
        let size = batch.len();
        Box::pin(async move {
            blocking(move || store.write_batch(&batch, now)).await.unwrap_or_else(|error| Committed {
                revision: self.revision.load(Ordering::Relaxed),
                results: (0..size).map(|_| Err(error.clone())).collect(),
            })
        })
    }

    fn note(&self, note: Note) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        let store = self.clone();
        let read = move || {
            store.reading(|read| {
                let notes = read.open_table(NOTES).map_err(failed)?;
                Ok(notes.get(note.key()).map_err(failed)?.map(|text| text.value().to_owned()))
            })
        };
        Box::pin(async move { blocking(read).await? })
    }

    fn set_note(&self, note: Note, text: String) -> BoxFuture<'_, Result<(), StoreError>> {
        let store = self.clone();
        let write = move || {
            store.writing(|write| {
                write.open_table(NOTES).map_err(failed)?.insert(note.key(), text.as_str()).map_err(failed)?;
                Ok(())
            })
        };
        Box::pin(async move { blocking(write).await? })
    }

    fn acknowledge(&self, _: u64) {
        // A store with one user sends no events that must be acknowledged.
    }
}

fn read_all(read: &ReadTransaction) -> Result<Snapshot, StoreError> {
    let meta = read.open_table(META).map_err(failed)?;
    let number = |key| Ok::<_, StoreError>(meta.get(key).map_err(failed)?.map_or(0, |value| value.value()));
    Ok(Snapshot {
        nodes: rows(read, NODES, "node")?,
        tokens: rows(read, TOKENS, "token")?,
        segments: rows(read, SEGMENTS, "segment")?,
        communities: rows(read, COMMUNITIES, "community")?,
        revision: number(REVISION)?,
        time: i64::try_from(number(TIME)?).unwrap_or(0),
    })
}

fn write_to<T>(
    database: Option<&Database>,
    act: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let write = database.ok_or_else(closed)?.begin_write().map_err(failed)?;
    let value = act(&write)?;
    write.commit().map_err(failed)?;
    Ok(value)
}

fn opens(path: PathBuf) -> Arc<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync> {
    Arc::new(move || Database::open(&path))
}

fn closed() -> StoreError {
    StoreError::Failed("its file could not be opened again after an error of the disk".to_owned())
}

/// Returns whether another process uses the store of a state directory.
pub fn is_in_use(state_dir: &Path) -> std::io::Result<bool> {
    let file = match std::fs::File::open(state_dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Copies the file into memory and verifies every page, so that this process does not write to a
/// file that is damaged or of a newer release.
fn copy(path: &Path) -> Result<Database, DatabaseError> {
    let file = std::fs::File::open(path)?;
    // The process that uses the file holds a lock. A copy that is made while that process writes
    // would look damaged.
    file.try_lock_shared().map_err(|error| match error {
        TryLockError::WouldBlock => DatabaseError::DatabaseAlreadyOpen,
        TryLockError::Error(error) => error.into(),
    })?;
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes)?;
    let memory = InMemoryBackend::new();
    let written = memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes));
    written.map_err(std::io::Error::other)?;
    drop(bytes);
    redb::Builder::new().set_check_integrity_on_open(true).create_with_backend(memory)
}

/// Returns an error that explains what is wrong with a file and what to do.
fn reason(error: DatabaseError) -> String {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            format!("another edge-controller uses it; stop that one first ({error})")
        }
        DatabaseError::UpgradeRequired(_) => {
            format!("{error}; use the release that wrote it to make a backup, and restore that with this one")
        }
        // These error kinds of redb mean that the file lacks something.
        DatabaseError::Storage(StorageError::Io(error))
            if !matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            error.to_string()
        }
        other => format!("the file is damaged ({other}); restore a backup: edge-controller restore --replace FILE"),
    }
}

/// Refuses a layout that this release does not support.
fn check_schema(path: &Path, read: &ReadTransaction) -> Result<(), StoreError> {
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        // The file was created, but nothing is written yet.
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let found = meta.get(SCHEMA).map_err(failed)?.map_or(OURS, |found| found.value());
    if found > OURS { Err(StoreError::Newer { path: path.into(), found, ours: OURS }) } else { Ok(()) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Failed(error.to_string()))
}

fn apply(write: &WriteTransaction, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::PutNode(node) => put(write, NODES, node.name.as_str(), node),
        Change::DeleteNode(name) => delete(write, NODES, name.as_str()),
        Change::PutToken(token) => put(write, TOKENS, &token.id, token),
        Change::DeleteToken(id) => delete(write, TOKENS, id),
        Change::GrantSegment(row) => {
            let key = row.network.to_string();
            let table = write.open_table(SEGMENTS).map_err(failed)?;
            let held = match table.get(key.as_str()).map_err(failed)? {
                Some(old) => {
                    Some(decode::<SegmentRecord>("segment", &key, old.value())?).filter(|old| old.released_at.is_none())
                }
                None => None,
            };
            drop(table);
            match held {
                Some(held) => Err(StoreError::Conflict { key: change.key(), current: vec![Change::PutSegment(held)] }),
                None => put(write, SEGMENTS, &key, row),
            }
        }
        Change::PutSegment(row) => put(write, SEGMENTS, &row.network.to_string(), row),
        Change::DeleteSegment(network) => delete(write, SEGMENTS, &network.to_string()),
        Change::PutCommunity(community) => put(write, COMMUNITIES, community.name.as_str(), community),
        Change::DeleteCommunity(name) => delete(write, COMMUNITIES, name.as_str()),
    }
}

fn put<T: Serialize>(write: &WriteTransaction, table: Table, key: &str, row: &T) -> Result<(), StoreError> {
    let json = serde_json::to_vec(row).map_err(|e| StoreError::Failed(e.to_string()))?;
    write.open_table(table).map_err(failed)?.insert(key, json.as_slice()).map_err(failed)?;
    Ok(())
}

fn delete(write: &WriteTransaction, table: Table, key: &str) -> Result<(), StoreError> {
    write.open_table(table).map_err(failed)?.remove(key).map_err(failed)?;
    Ok(())
}

fn rows<T: DeserializeOwned>(read: &ReadTransaction, table: Table, name: &'static str) -> Result<Vec<T>, StoreError> {
    let table = read.open_table(table).map_err(failed)?;
    let mut rows = Vec::new();
    for entry in table.iter().map_err(failed)? {
        let (key, value) = entry.map_err(failed)?;
        rows.push(decode(name, key.value(), value.value())?);
    }
    Ok(rows)
}

fn decode<T: DeserializeOwned>(table: &'static str, key: &str, json: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|e| StoreError::Unreadable { table, key: key.into(), why: e.to_string() })
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Failed(error.into().to_string())
}
