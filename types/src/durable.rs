//! Files that are replaced as a whole and survive a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The step that failed while a file was being replaced. The file still has its old content.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {error}")]
pub struct ReplaceError {
    /// The operation, for example `writing`.
    pub doing: &'static str,
    /// The file or directory of the operation.
    pub path: PathBuf,
    /// The operating system's error.
    pub error: io::Error,
}

/// Replaces the content of `path`, or creates the file, with these permission bits (less the
/// umask). Writes `NAME.tmp` in the same directory, syncs it, renames it, and syncs the directory.
/// A power cut therefore leaves either the old or the new content, never a mixture. Returns the new
/// file, open for reading and writing.
///
/// Two callers must not replace the same file at the same time, since they would use the same
/// temporary file.
///
/// # Errors
/// Returns [`ReplaceError`], which names the step. If only the last step fails, which is the sync
/// of the directory, the file has its new content, but a power cut may undo that.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<File, ReplaceError> {
    let temporary = temporary_of(path);
    // A temporary file left by a power cut may have other permissions, so it is never reused.
    remove_temporary(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        Ok(file)
    });
    let renamed = written.map_err(failed("writing", &temporary)).and_then(|file| {
        fs::rename(&temporary, path).map_err(failed("renaming to", path))?;
        Ok(file)
    });
    let file = renamed.inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_directory(path)?;
    Ok(file)
}

/// Removes the temporary file that a [`replace_file`] of `path` left when its process was killed.
/// Succeeds if there is none.
///
/// # Errors
/// Returns an error if a temporary file exists and cannot be removed.
pub fn remove_temporary(path: &Path) -> Result<(), ReplaceError> {
    let temporary = temporary_of(path);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &temporary)(error)),
        _ => Ok(()),
    }
}

fn temporary_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn sync_directory(path: &Path) -> Result<(), ReplaceError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("syncing", directory))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReplaceError {
    let path = path.to_owned();
    move |error| ReplaceError { doing, path, error }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_a_power_cut_left_has_no_say_in_content_or_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let (path, temporary) = (directory.path().join("view.json"), directory.path().join("view.json.tmp"));
        drop(replace_file(&path, b"old", 0o600).unwrap());
        fs::write(&temporary, b"half of something longer").unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        replace_file(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!temporary.exists());
    }

    #[test]
    fn a_link_under_the_temporary_name_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("leases"), directory.path().join("other"));
        fs::write(&other, b"another file").unwrap();
        symlink(&other, directory.path().join("leases.tmp")).unwrap();
        replace_file(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"another file");
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    }

    #[test]
    fn the_returned_file_is_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("leases");
        let mut file = replace_file(&path, b"first\n", 0o600).unwrap();
        file.write_all(b"second\n").unwrap();
        let mut text = String::new();
        File::open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "first\nsecond\n");
    }

    #[test]
    fn an_error_names_the_step_and_leaves_the_old_content_and_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file.
        let path = directory.path().join("x.json");
        fs::create_dir(&path).unwrap();
        let error = replace_file(&path, b"new", 0o600).unwrap_err();
        assert_eq!(error.doing, "renaming to");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(path.is_dir() && !directory.path().join("x.json.tmp").exists());
        let absent = replace_file(&directory.path().join("no/x.json"), b"new", 0o600).unwrap_err();
        assert_eq!((absent.doing, absent.error.kind()), ("writing", io::ErrorKind::NotFound));
    }
}
