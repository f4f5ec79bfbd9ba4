//! Decides which files in the state directory and in the socket directory belong to the agent and
//! the plugin.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edge_types::forwarding::FORWARDING_FILE;
use edge_types::shared_files::{LEASES_FILE, LOCK_FILE, SEGMENTS_FILE};

use crate::socket_holder;

/// Prefixes of the names of the files that the agent and the plugin keep in the directory. Suffixes
/// such as `.tmp` and `.damaged` may follow. The list includes the sockets, since `run_dir` may be
/// the same directory.
const OURS: [&str; 19] = [
    "admin.sock",
    "agent.lock",
    "agent.sock",
    "application.json",
    "clock.json",
    "enforced-revocations.json",
    "former-networks.json",
    "identity.json",
    "internal-addresses.json",
    "key.pending",
    "missed.json",
    "reqids.json",
    socket_holder::DIRECTORY,
    "taken-back.json",
    "view",
    FORWARDING_FILE,
    LEASES_FILE,
    LOCK_FILE,
    SEGMENTS_FILE,
];

/// Prefix of the plugin's files `segments-BRIDGE.json`, which contain the segments of networks with
/// other bridges.
const OTHER_NETWORKS: &str = "segments-";

/// Returns whether the agent or the plugin keeps a file with this name.
pub(super) fn is_ours(name: &OsStr) -> bool {
    let known = |name: &str| OURS.iter().chain([&OTHER_NETWORKS]).any(|known| name.starts_with(known));
    name.to_str().is_some_and(known)
}

/// Returns whether the directory has files of the agent or the plugin; `false` if it does not
/// exist.
///
/// # Errors
/// If the directory cannot be read.
pub fn has_ours(directory: &Path) -> io::Result<bool> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        entries => entries?.try_fold(false, |found, entry| Ok(found || is_ours(&entry?.file_name()))),
    }
}

/// The result of [`remove_ours`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RemovedFiles {
    /// Number of files and directories that were removed.
    pub count: usize,
    /// Other programs' files, which were kept.
    pub kept: Vec<PathBuf>,
}

/// Removes the files of the agent and the plugin from a directory, and the directory itself if it
/// is then empty. Does not follow symbolic links. Succeeds if the directory does not exist.
///
/// # Errors
/// If the directory cannot be read, or a file cannot be removed.
pub fn remove_ours(directory: &Path) -> io::Result<RemovedFiles> {
    let mut removed = RemovedFiles::default();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if !is_ours(&entry.file_name()) {
            removed.kept.push(entry.path());
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
        removed.count += 1;
    }
    if removed.kept.is_empty() {
        match fs::remove_dir(directory) {
            Ok(()) => removed.count += 1,
            // The directory is a mount point, such as a container's volume.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_files_go_and_those_of_others_stay() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        fs::create_dir(&directory).unwrap();
        let outside = parent.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, directory.join("view-before.json")).unwrap();
        fs::create_dir(directory.join(socket_holder::DIRECTORY)).unwrap();
        fs::write(directory.join(socket_holder::DIRECTORY).join(socket_holder::LISTENER), "").unwrap();
        for name in ["identity.json", "view.json.damaged", "lock", "leases.tmp", "segments-br1.json", "passwd"] {
            fs::write(directory.join(name), "").unwrap();
        }
        assert!(has_ours(&directory).unwrap());
        let removed = remove_ours(&directory).unwrap();
        assert_eq!(removed, RemovedFiles { count: 7, kept: vec![directory.join("passwd")] });
        assert!(outside.join("file").exists(), "no link is followed");
        assert!(!has_ours(&directory).unwrap() && !has_ours(&outside.join("none")).unwrap());
        fs::remove_file(directory.join("passwd")).unwrap();
        assert_eq!(remove_ours(&directory).unwrap().count, 1);
        assert_eq!(remove_ours(&directory).unwrap(), RemovedFiles::default());
    }
}
