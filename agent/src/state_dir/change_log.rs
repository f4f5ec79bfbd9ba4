//! Stores a large file and the changes since it was written. For a small change, one line is added
//! to a second file, instead of writing the whole file again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use edge_types::durable;
use ring::digest::{SHA256, digest};
use serde::de::DeserializeOwned;

use super::dir::{StateDirError, io_error, parse_json, read_file};

/// Minimum size of a file whose changes are stored separately, in bytes: a view with some twenty
/// peers. A smaller file is always written as a whole, which takes several times as many system
/// calls as adding a line, but then the whole content is in one file for the operator and other
/// programs.
const SMALLEST: usize = 8 << 10;
/// Divisor of the file's size that yields the maximum size of the changes. Reading more changes
/// would take long.
const SHARE: usize = 4;
/// Suffix of the name of the second file. Its first line is the digest of the file to which the
/// changes belong; each further line is a change.
const SUFFIX: &str = ".changes";

/// Writes a file and its changes. After a power cut, the file and its changes are on disk, up to
/// the last change that was written or was being written. When the changes would exceed a quarter
/// of the file's size ([`SHARE`]), the file must be written as a whole.
#[derive(Debug)]
pub struct ChangeLog {
    path: PathBuf,
    /// The content on disk. `None` if it is unknown, because an earlier run wrote it or a write
    /// failed, or if the file must be written as a whole.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    size: usize,
    digest: String,
    /// The second file, and the bytes of the changes in it.
    changes: Option<(File, usize)>,
}

impl ChangeLog {
    /// Creates a log for the file `path`, without reading or writing it.
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Replaces the file and drops its changes.
    ///
    /// # Errors
    /// If the file cannot be written; in that case it keeps its old content with the changes. Also
    /// if the former changes cannot be removed; in that case the file has its new content.
    pub fn replace(&mut self, content: &[u8]) -> Result<(), StateDirError> {
        self.written = None;
        durable::replace_file(&self.path, content, 0o600)?;
        // The second file contains the changes to the former content. If it cannot be removed,
        // readers ignore it.
        let changes = changes_path(&self.path);
        match fs::remove_file(&changes) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("removing", &changes)(error)),
            _ => {}
        }
        if content.len() >= SMALLEST {
            self.written = Some(Written { size: content.len(), digest: hex_digest(content), changes: None });
        }
        Ok(())
    }

    /// Adds a change, which must be a single line. Returns `false` if nothing was written, because
    /// the whole file must be written.
    ///
    /// # Errors
    /// If the change cannot be written. In that case the whole file must be written.
    pub fn append(&mut self, change: &str) -> Result<bool, StateDirError> {
        let Some(mut written) = self.written.take() else { return Ok(false) };
        let before = written.changes.as_ref().map_or(0, |(_, size)| *size);
        let size = before.saturating_add(change.len()).saturating_add(1);
        if change.contains('\n') || size > written.size / SHARE {
            return Ok(false);
        }
        let path = changes_path(&self.path);
        let file = match written.changes.take() {
            None => durable::replace_file(&path, format!("{}\n{change}\n", written.digest).as_bytes(), 0o600)?,
            Some((mut file, _)) => {
                let line = format!("{change}\n");
                let appended = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
                appended.map_err(io_error("writing", &path))?;
                file
            }
        };
        written.changes = Some((file, size));
        self.written = Some(written);
        Ok(true)
    }
}

/// Reads a JSON file and its changes, oldest first, up to the first damaged change. `None` if the
/// file does not exist, even if there are changes.
///
/// # Errors
/// If one of the two files cannot be read or is too large, or the JSON file is not valid. `advice`
/// is the remedy in the error for a damaged file.
pub fn read_json_with_changes<T: DeserializeOwned, C: DeserializeOwned>(
    path: &Path,
    advice: &'static str,
) -> Result<Option<(T, Vec<C>)>, StateDirError> {
    let Some((content, changes)) = read_with_changes(path)? else { return Ok(None) };
    let value = parse_json(path, &content, advice)?;
    Ok(Some((value, changes.iter().map_while(|change| serde_json::from_slice(change).ok()).collect())))
}

/// The content of a file and its changes, without the line feeds of the changes.
type ContentAndChanges = (Vec<u8>, Vec<Vec<u8>>);

/// Reads the content of a file and its changes. An incomplete change is left out.
fn read_with_changes(path: &Path) -> Result<Option<ContentAndChanges>, StateDirError> {
    let Some(content) = read_file(path)? else { return Ok(None) };
    let text = read_file(&changes_path(path))?.unwrap_or_default();
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"));
    let belong = lines.next().is_some_and(|digest| digest == hex_digest(&content).as_bytes());
    let changes = if belong { lines.map(<[u8]>::to_vec).collect() } else { vec![] };
    Ok(Some((content, changes)))
}

fn changes_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

fn hex_digest(content: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest(&SHA256, content).as_ref())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn changes(path: &Path) -> Vec<String> {
        let (_, changes) = read_with_changes(path).unwrap().unwrap();
        changes.into_iter().map(|change| String::from_utf8(change).unwrap()).collect()
    }

    fn large(letter: u8) -> Vec<u8> {
        vec![letter; SMALLEST]
    }

    #[test]
    fn changes_of_a_large_file_are_read_in_their_order_and_a_new_file_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("view.json");
        let mut log = ChangeLog::new(path.clone());
        assert!(read_with_changes(&path).unwrap().is_none());
        assert!(!log.append("1").unwrap(), "there is no file");
        log.replace(&large(b'a')).unwrap();
        for change in ["1", "2", "3"] {
            assert!(log.append(change).unwrap());
        }
        assert_eq!(changes(&path), ["1", "2", "3"]);
        assert_eq!(fs::metadata(changes_path(&path)).unwrap().permissions().mode() & 0o777, 0o600);
        log.replace(&large(b'b')).unwrap();
        assert_eq!((changes(&path), changes_path(&path).exists()), (vec![], false));
        assert!(log.append("4").unwrap());
        assert_eq!(changes(&path), ["4"]);
    }

    #[test]
    fn a_power_cut_at_any_byte_leaves_the_changes_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("view.json");
        let mut log = ChangeLog::new(path.clone());
        log.replace(&large(b'a')).unwrap();
        let all = ["first", "second", "third"];
        for change in all {
            assert!(log.append(change).unwrap());
        }
        let whole = fs::read(changes_path(&path)).unwrap();
        for length in 0..=whole.len() {
            fs::write(changes_path(&path), &whole[..length]).unwrap();
            let left = changes(&path);
            assert_eq!(left, all[..left.len()], "{length} bytes");
        }
        assert_eq!(changes(&path).len(), 3);
        // The next run does not know the content on disk, so it must write the whole file.
        assert!(!ChangeLog::new(path.clone()).append("fourth").unwrap());
    }

    #[test]
    fn changes_of_another_content_are_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("view.json");
        let mut log = ChangeLog::new(path.clone());
        log.replace(&large(b'a')).unwrap();
        assert!(log.append("1").unwrap());
        // The state after a power cut between the two steps of `replace`, or after an older release
        // that writes only the first file.
        fs::write(&path, large(b'b')).unwrap();
        assert_eq!(changes(&path), [""; 0]);
        fs::remove_file(&path).unwrap();
        assert!(read_with_changes(&path).unwrap().is_none(), "an operator who removes the file removes the state");
    }

    #[test]
    fn changes_never_outgrow_the_file_and_a_small_file_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("view.json");
        let mut log = ChangeLog::new(path.clone());
        log.replace(&large(b'a')).unwrap();
        let change = "x".repeat(1023);
        let appended = (0..1000).take_while(|_| log.append(&change).unwrap()).count();
        assert_eq!(appended, SMALLEST / SHARE / 1024);
        assert!(!log.append("1").unwrap(), "it has to be written as a whole now");
        assert_eq!(changes(&path).len(), appended);
        log.replace(b"small").unwrap();
        assert!(!log.append("1").unwrap());
        log.replace(&large(b'a')).unwrap();
        assert!(!log.append("two\nlines").unwrap());
    }

    #[test]
    fn after_a_failed_write_the_whole_file_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("view.json");
        let mut log = ChangeLog::new(path.clone());
        log.replace(&large(b'a')).unwrap();
        // A directory has the name of the second file, which therefore cannot be written.
        fs::create_dir(changes_path(&path)).unwrap();
        assert!(log.append("1").is_err());
        fs::remove_dir(changes_path(&path)).unwrap();
        assert!(!log.append("2").unwrap());
        log.replace(&large(b'c')).unwrap();
        assert!(log.append("3").unwrap());
        assert_eq!(changes(&path), ["3"]);
    }
}
