//! The state directory: 0700, and its files 0600, also where an earlier release, a copy or an operator's hand left them open to others.

use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Permissions of everyone but the owner.
const OTHERS: u32 = 0o077;

/// Makes the directory if it is not there, and takes from it and its files what others may do with them. What is not ours to change stays, and
/// is named in the log: Kubernetes, for one, mounts a volume that is root's and open to the pod.
pub(crate) fn make(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the state directory {}", path.display()))?;
    close(path)?;
    // No links: what they lead to may be anyone's. A folder among them (a former state) is closed as a whole.
    for entry in fs::read_dir(path).with_context(|| format!("cannot read the state directory {}", path.display()))? {
        let entry = entry.with_context(|| format!("cannot read the state directory {}", path.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
        if kind.is_file() || kind.is_dir() {
            close(&entry.path())?;
        }
    }
    Ok(())
}

fn close(path: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let mode = found.mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS)) {
        Ok(()) => tracing::info!(path = %path.display(), "it was open to others (mode {mode:04o}): now it is not"),
        Err(error) if found.uid() != rustix::process::geteuid().as_raw() => {
            tracing::info!(path = %path.display(), owner = found.uid(), "its mode {mode:04o} stays: {error}");
        }
        Err(error) => {
            return Err(error).with_context(|| format!("{} is open to others (mode {mode:04o})", path.display()));
        }
    }
    Ok(())
}
