//! The embedded store: one redb file. A commit is one write transaction, on disk before it answers; a power cut leaves the last whole one.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Committed, Store, StoreError};
use crate::clock::Seconds;
use crate::segments::Row;
use crate::state::{Change, Snapshot};

/// Name of the file in the state directory.
pub const FILE: &str = "controller.redb";

// Rows are JSON: a newer release may add keys, an older one ignores them.
type Table = TableDefinition<'static, &'static str, &'static [u8]>;
const NODES: Table = TableDefinition::new("nodes");
const TOKENS: Table = TableDefinition::new("tokens");
const SEGMENTS: Table = TableDefinition::new("segments");
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const TIME: &str = "time";

/// The embedded store.
#[derive(Clone)]
pub struct Embedded {
    database: Arc<Database>,
}

impl Embedded {
    /// Opens the store below a state directory, and creates it if there is none.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(FILE);
        let explain = |error: &dyn std::fmt::Display| {
            StoreError::Failed(format!(
                "{}: {error}; is another edge-controller running? If not, the file is damaged: restore it from a backup",
                path.display()
            ))
        };
        match std::fs::metadata(&path) {
            Ok(found) if found.len() == 0 => Err(explain(&"it is empty, which it never is by itself")),
            Ok(_) => Database::open(&path).map_err(redb::Error::from).and_then(Self::prepare).map_err(|e| explain(&e)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::create(state_dir).map_err(|e| explain(&e))
            }
            Err(error) => Err(explain(&error)),
        }
    }

    /// Makes a store beside, and gives it its name when it is whole: what is empty under that name was cut, and whoever began anew in it would give
    /// every segment to a second node.
    fn create(state_dir: &Path) -> Result<Self, redb::Error> {
        let (path, new) = (state_dir.join(FILE), state_dir.join(format!("{FILE}.new")));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // Made here and not by redb, for its permissions.
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let store = Self::prepare(Database::create(&new)?)?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(state_dir)?.sync_all()?;
        Ok(store)
    }

    /// Tables exist from the first start on, so that reading needs no special case.
    fn prepare(database: Database) -> Result<Self, redb::Error> {
        let write = database.begin_write()?;
        for table in [NODES, TOKENS, SEGMENTS] {
            write.open_table(table)?;
        }
        write.open_table(META)?;
        write.commit()?;
        Ok(Self { database: Arc::new(database) })
    }

    fn write(&self, changes: &[Change], revision: u64, time: Seconds) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(failed)?;
        for change in changes {
            apply(&write, change)?;
        }
        {
            let mut meta = write.open_table(META).map_err(failed)?;
            meta.insert(REVISION, revision).map_err(failed)?;
            meta.insert(TIME, time.max(0).unsigned_abs()).map_err(failed)?;
        }
        write.commit().map_err(failed)
    }
}

impl Store for Embedded {
    fn load(&self) -> Result<Snapshot, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let meta = read.open_table(META).map_err(failed)?;
        let number = |key| Ok::<_, StoreError>(meta.get(key).map_err(failed)?.map_or(0, |value| value.value()));
        Ok(Snapshot {
            nodes: rows(&read, NODES, "node")?,
            tokens: rows(&read, TOKENS, "token")?,
            segments: rows(&read, SEGMENTS, "segment")?,
            revision: number(REVISION)?,
            time: i64::try_from(number(TIME)?).unwrap_or(0),
        })
    }

    fn commit(&self, changes: Vec<Change>, revision: u64, time: Seconds) -> Committed<'_> {
        let store = self.clone();
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || store.write(&changes, revision, time)).await {
                Ok(result) => result,
                Err(error) => Err(StoreError::Failed(error.to_string())),
            }
        })
    }
}

fn apply(write: &WriteTransaction, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::PutNode(node) => put(write, NODES, node.name.as_str(), node),
        Change::DeleteNode(name) => delete(write, NODES, name.as_str()),
        Change::PutToken(token) => put(write, TOKENS, &token.id, token),
        Change::DeleteToken(id) => delete(write, TOKENS, id),
        Change::ClaimSegment(row) => {
            let key = row.network.to_string();
            let table = write.open_table(SEGMENTS).map_err(failed)?;
            let held = match table.get(key.as_str()).map_err(failed)? {
                Some(old) => decode::<Row>("segment", &key, old.value())?.released_at.is_none(),
                None => false,
            };
            drop(table);
            if held { Err(StoreError::Claimed(key)) } else { put(write, SEGMENTS, &key, row) }
        }
        Change::PutSegment(row) => put(write, SEGMENTS, &row.network.to_string(), row),
        Change::DeleteSegment(network) => delete(write, SEGMENTS, &network.to_string()),
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

fn rows<T: DeserializeOwned>(
    read: &redb::ReadTransaction,
    table: Table,
    name: &'static str,
) -> Result<Vec<T>, StoreError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::NodeRecord;
    use edge_types::Role;

    fn row(node: &str, released_at: Option<i64>) -> Row {
        let network = "10.77.0.0/26".parse().unwrap();
        Row { network, node: node.parse().unwrap(), request_id: "r".into(), granted_at: 1, released_at }
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeRecord::new("a".parse().unwrap(), Role::Edge, 5);
        let store = Embedded::open(folder.path()).unwrap();
        let changes = vec![Change::PutNode(node.clone()), Change::ClaimSegment(row("a", None))];
        store.commit(changes, 3, 1_800_000_000).await.unwrap();
        drop(store);
        let snapshot = Embedded::open(folder.path()).unwrap().load().unwrap();
        assert_eq!((snapshot.nodes, snapshot.segments), (vec![node], vec![row("a", None)]));
        assert_eq!((snapshot.revision, snapshot.time), (3, 1_800_000_000));
    }

    #[tokio::test]
    async fn a_segment_that_is_held_is_claimed_by_nobody_else_and_nothing_of_that_commit_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path()).unwrap();
        store.commit(vec![Change::ClaimSegment(row("a", None))], 1, 0).await.unwrap();
        let other = NodeRecord::new("b".parse().unwrap(), Role::Edge, 5);
        let changes = vec![Change::PutNode(other), Change::ClaimSegment(row("b", None))];
        assert!(matches!(store.commit(changes, 2, 0).await, Err(StoreError::Claimed(_))));
        let snapshot = store.load().unwrap();
        assert!(snapshot.nodes.is_empty());
        assert_eq!((snapshot.segments, snapshot.revision), (vec![row("a", None)], 1));
        store.commit(vec![Change::PutSegment(row("a", Some(9)))], 2, 0).await.unwrap();
        store.commit(vec![Change::ClaimSegment(row("b", None))], 3, 0).await.unwrap();
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), vec![0x5a; 8192]).unwrap();
        let error = Embedded::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
