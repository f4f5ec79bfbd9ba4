//! The state directory. A lock ensures that only one agent uses it; files are replaced atomically.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use edge_types::durable::{self, ReplaceError};
use edge_types::shared_files::LOCK_FILE;
use serde::{Serialize, de::DeserializeOwned};

use super::permissions::make_private;

/// File that the running agent locks exclusively. It contains the agent's process ID.
const AGENT_LOCK_FILE: &str = "agent.lock";

/// Maximum size of a file that is read from the state directory, in bytes. A hub's view of ten
/// thousand nodes is about 4 MiB.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// The reason why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another agent uses the same state directory.
    #[error(
        "another edge-agent (process {pid}) already runs on {path}; stop it, or give this one a `state_dir` of its own"
    )]
    Running {
        /// The state directory.
        path: PathBuf,
        /// Process ID of the other agent, from the lock file.
        pid: String,
    },
    /// A system call failed.
    #[error("{doing} {path}: {error}")]
    Io {
        /// The operation, such as "opening".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The agent is ending, and the operation was not started.
    #[error("the agent is ending")]
    Ending,
    /// A file does not have the expected content.
    #[error("{path} is damaged: {why}; {advice}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The difference from the expected content.
        why: String,
        /// The remedy.
        advice: &'static str,
    },
    /// A newer release wrote a file.
    #[error(
        "{path} is of layout {found}, which a newer release wrote; this one reads layouts up to {known}: install the newer release again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The layout number of the file.
        found: u64,
        /// The highest layout number that this release reads.
        known: u32,
    },
}

/// The state directory, locked against a second agent while this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// The kernel releases the lock with the file handle, even after `kill -9`.
    _agent_lock: File,
}

impl StateDir {
    /// Creates the directory if it is missing, makes it accessible to its owner only, and takes the
    /// agent's lock. Fails with [`StateDirError::Running`] if another agent holds it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        make_private(path).map_err(io_error("making private", path))?;
        let lock_path = path.join(AGENT_LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("opening", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Err(StateDirError::Running { path: path.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(io_error("locking", &lock_path)(error)),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(io_error("writing", &lock_path))?;
        Ok(Self { path: path.to_owned(), _agent_lock: lock })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock that the plugin and the agent share. Blocks until the lock is free. The lock
    /// must be held only briefly, and never while waiting for the controller.
    pub fn lock_shared_files(&self) -> Result<SharedLock, StateDirError> {
        let path = self.path.join(LOCK_FILE);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        file.lock().map_err(io_error("locking", &path))?;
        Ok(SharedLock { _file: file })
    }

    /// Reads a whole file; `None` if it does not exist. Fails if the file is larger than 64 MiB.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateDirError> {
        read_file(&self.path.join(name))
    }

    /// Reads a JSON file; `None` if it does not exist. `advice` is the remedy in the error for a
    /// damaged file.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str, advice: &'static str) -> Result<Option<T>, StateDirError> {
        read_json(&self.path, name, advice)
    }

    /// Reads a file as [`Self::read_json`] does. The file's key `version` is the number of its
    /// layout, which must be at most `known`.
    pub fn read_layout<T: DeserializeOwned>(
        &self,
        name: &str,
        known: u32,
        advice: &'static str,
    ) -> Result<Option<T>, StateDirError> {
        read_layout(&self.path, name, known, advice)
    }

    /// Replaces a JSON file atomically.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateDirError> {
        self.write(name, &json_bytes(&self.path.join(name), value)?)
    }

    /// Replaces a file atomically. The file is readable by its owner only. After a power cut, it
    /// has the old or the new content.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateDirError> {
        replace_file(&self.path.join(name), bytes, 0o600)
    }

    /// Removes a file. Succeeds if it does not exist.
    pub fn remove(&self, name: &str) -> Result<(), StateDirError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("removing", &path)(error)),
        }
    }

    /// Renames a damaged file to `NAME.damaged`, so that the operator can inspect it. Returns the
    /// new path.
    pub fn put_aside(&self, name: &str) -> Result<PathBuf, StateDirError> {
        let (from, to) = (self.path.join(name), self.path.join(format!("{name}.damaged")));
        fs::rename(&from, &to).map_err(io_error("renaming", &from))?;
        sync_dir(&self.path)?;
        Ok(to)
    }
}

/// The guard of the lock that the plugin and the agent share. Dropping it releases the lock.
#[derive(Debug)]
#[must_use]
pub struct SharedLock {
    _file: File,
}

/// Reads the content of a file; `None` if it does not exist.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, StateDirError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("opening", path)(error)),
    };
    // With the right capacity, the file is read by one call and another one that finds its end.
    let size = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_FILE));
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io_error("reading", path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(StateDirError::Damaged {
            path: path.to_owned(),
            why: format!("it is larger than {MAX_FILE} bytes"),
            advice: "remove it",
        });
    }
    Ok(Some(bytes))
}

/// Reads a JSON file as [`StateDir::read_json`] does, for programs other than the agent: takes no
/// lock. Files are replaced atomically, so the result is complete.
pub fn read_json<T: DeserializeOwned>(
    directory: &Path,
    name: &str,
    advice: &'static str,
) -> Result<Option<T>, StateDirError> {
    let path = directory.join(name);
    let Some(bytes) = read_file(&path)? else { return Ok(None) };
    parse_json(&path, &bytes, advice).map(Some)
}

/// Encodes a value as the content of the JSON file `path`.
pub fn json_bytes<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, StateDirError> {
    serde_json::to_vec_pretty(value).map_err(|error| io_error("encoding", path)(error.into()))
}

/// Decodes the content of the JSON file `path`.
pub(super) fn parse_json<T: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    advice: &'static str,
) -> Result<T, StateDirError> {
    serde_json::from_slice(bytes).map_err(|error| StateDirError::Damaged {
        path: path.to_owned(),
        // The message contains the line and the column, but never the content, which may be secret.
        why: if bytes.is_empty() { "it is empty".to_owned() } else { describe(&error) },
        advice,
    })
}

/// Reads a file as [`StateDir::read_layout`] does, for programs other than the agent.
///
/// # Errors
/// [`StateDirError::Newer`] if the layout number is higher than `known`, whatever else the JSON
/// object contains; otherwise the same errors as [`read_json`].
pub fn read_layout<T: DeserializeOwned>(
    directory: &Path,
    name: &str,
    known: u32,
    advice: &'static str,
) -> Result<Option<T>, StateDirError> {
    #[derive(serde::Deserialize)]
    struct Layout {
        version: u64,
    }
    let path = directory.join(name);
    let Some(bytes) = read_file(&path)? else { return Ok(None) };
    // A file without a layout number is damaged. In that case, parsing the whole file returns an
    // error that describes the damage.
    match parse_json(&path, &bytes, advice) {
        Ok(Layout { version: found }) if found > u64::from(known) => Err(StateDirError::Newer { path, found, known }),
        _ => parse_json(&path, &bytes, advice).map(Some),
    }
}

/// Replaces a file as [`durable::replace_file`] does, with [`StateDirError`] as the error.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StateDirError> {
    durable::replace_file(path, bytes, mode)?;
    Ok(())
}

fn sync_dir(directory: &Path) -> Result<(), StateDirError> {
    File::open(directory).and_then(|f| f.sync_all()).map_err(io_error("syncing", directory))
}

impl From<ReplaceError> for StateDirError {
    fn from(ReplaceError { doing, path, error }: ReplaceError) -> Self {
        Self::Io { doing, path, error }
    }
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    let path = path.to_owned();
    move |error| StateDirError::Io { doing, path, error }
}

fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it is cut short",
        serde_json::error::Category::Data => "it does not hold the expected fields",
        _ => "it is not JSON",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_agent_on_the_same_folder_is_refused_with_the_first_ones_process() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        StateDir::open(directory.path()).unwrap();
    }

    #[test]
    fn what_a_power_cut_left_behind_does_not_keep_a_file_from_being_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        state.write("view.json", b"old").unwrap();
        fs::write(directory.path().join("view.json.tmp"), b"ha").unwrap();
        assert_eq!(state.read("view.json").unwrap().unwrap(), b"old");
        state.write("view.json", b"new").unwrap();
        assert_eq!(state.read("view.json").unwrap().unwrap(), b"new");
        let mode = fs::metadata(directory.path().join("view.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!directory.path().join("view.json.tmp").exists());
    }

    #[test]
    fn a_damaged_file_is_named_with_the_place_and_what_to_do_but_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        assert!(state.read_json::<Vec<u32>>("x.json", "remove it").unwrap().is_none());
        for (content, expected) in
            [("", "empty"), ("[1, 2", "cut short"), ("{\"key\": \"hunter2\"}", "expected fields"), ("\0\0", "not JSON")]
        {
            fs::write(directory.path().join("x.json"), content).unwrap();
            let error = state.read_json::<Vec<u32>>("x.json", "remove it").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("x.json") && error.contains("remove it"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
