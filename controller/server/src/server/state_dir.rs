//! Closes the state directory to other users. The directory gets mode 0700 and the controller's
//! files in it 0600, even if an earlier release, a copy or an operator has left them open to
//! others. Other users' and programs' files stay unchanged, and so does a directory that holds such
//! files or that all users share: closing `/var/lib` or `/tmp` to other users would break the
//! machine.

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use edge_controller_domain::state_files::{is_ours, is_surely_ours};

use crate::config::Config;

/// Permission bits of everyone but the owner.
const OTHERS: u32 = 0o077;
/// The sticky bit. In a directory with this bit, users can remove only their own files, so users
/// share it.
const STICKY: u32 = 0o1000;

/// Creates the directory if it is missing, and removes other users' permissions from it and from
/// the controller's files. Permissions that the process may not change stay and are logged:
/// Kubernetes, for example, mounts a volume that belongs to root and is open to the pod. A
/// directory that is shared with others is refused, unless it already contains state or no state is
/// kept there.
pub(crate) fn make(config: &Config) -> anyhow::Result<()> {
    let path = &config.state_dir;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make the state directory {}", path.display()))?;
    let directory = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let found = DirectoryContents::look(config, &directory)
        .with_context(|| format!("cannot read the state directory {}", path.display()))?;
    let mode = directory.mode() & 0o7777;
    let shared = match &found.foreign {
        _ if mode & OTHERS == 0 => None,
        _ if mode & STICKY != 0 => Some("all users share it".to_owned()),
        Some(foreign) => Some(format!("it holds {}, which is not the controller's", foreign.display())),
        None => None,
    };
    match shared {
        None if found.state || !config.store_is_at_api_server() => close(path)?,
        Some(why) if found.state => tracing::warn!(
            "state_dir: {} is open to others (mode {mode:04o}) and is left so, since {why}; move the state to a directory of its own",
            path.display()
        ),
        Some(why) if !config.store_is_at_api_server() => bail!(
            "state_dir: {} is open to others (mode {mode:04o}), and {why}; name a directory of its own, such as {}",
            path.display(),
            path.join("edge-controller").display()
        ),
        // No state is kept in this directory.
        None | Some(_) => {}
    }
    found.ours.iter().try_for_each(|path| close(path))
}

/// The content of the directory.
#[derive(Default)]
struct DirectoryContents {
    /// The controller's files and directories. Links are left out, because they may point anywhere.
    /// A directory in this list (a former state) is closed as a whole.
    ours: Vec<PathBuf>,
    /// A file or directory that is not the controller's.
    foreign: Option<PathBuf>,
    /// Whether the directory contains a controller's state, and not a file of the same name that
    /// another user created.
    state: bool,
}

impl DirectoryContents {
    fn look(config: &Config, directory: &Metadata) -> std::io::Result<Self> {
        let mut found = Self::default();
        let mut unsure = Vec::new();
        for entry in fs::read_dir(&config.state_dir)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            // Skips the directory that file systems create, and the socket of an earlier run.
            if name == "lost+found" || path == config.admin_socket {
                continue;
            }
            if !is_ours(&name) {
                found.foreign = Some(path);
                continue;
            }
            let kind = entry.file_type()?;
            if !kind.is_file() && !kind.is_dir() {
                continue;
            }
            if name.to_str().is_some_and(is_surely_ours) {
                let owner = entry.metadata()?.uid();
                found.state |= owner == rustix::process::geteuid().as_raw() || owner == directory.uid();
                found.ours.push(path);
            } else {
                unsure.push(path);
            }
        }
        if found.ours.is_empty() {
            found.foreign = found.foreign.or(unsure.pop());
        } else {
            found.ours.append(&mut unsure);
        }
        Ok(found)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path, more: &str) -> Config {
        let text = format!(
            "server_names = [\"x\"]\nstate_dir = {directory:?}\nadmin_socket = {:?}\n[segments]\ncluster_ranges = [\"10.77.0.0/16\"]\n{more}",
            directory.join("admin.sock")
        );
        toml::from_str(&text).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn put(path: &Path) {
        fs::write(path, "").unwrap();
        set(path, 0o644);
    }

    #[test]
    fn a_volume_that_only_its_file_system_has_been_in_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("lost+found")).unwrap();
        // The socket looks as an earlier run leaves it, and the directory has the mode with which
        // Kubernetes creates a volume for the pod's group.
        put(&directory.path().join("admin.sock"));
        set(directory.path(), 0o2775);
        make(&config(directory.path(), "")).unwrap();
        assert_eq!((mode(directory.path()), mode(&directory.path().join("admin.sock"))), (0o2700, 0o644));
    }

    #[test]
    fn where_no_state_is_kept_a_shared_directory_is_no_obstacle_and_is_left() {
        for shared in [0o755, 0o1777] {
            let directory = tempfile::tempdir().unwrap();
            put(&directory.path().join("passwd"));
            set(directory.path(), shared);
            make(&config(directory.path(), "")).unwrap_err();
            make(&config(directory.path(), "[kubernetes]\nstore = false")).unwrap_err();
            make(&config(directory.path(), "[kubernetes]")).unwrap();
            assert_eq!((mode(directory.path()), mode(&directory.path().join("passwd"))), (shared, 0o644));
        }
    }

    #[test]
    fn what_another_user_put_under_our_name_is_no_state_of_ours() {
        // Only root can create a file that belongs to another user.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let planted = directory.path().join("controller.redb");
        put(&planted);
        std::os::unix::fs::chown(&planted, Some(65534), Some(65534)).unwrap();
        set(directory.path(), 0o1777);
        let why = make(&config(directory.path(), "")).unwrap_err().to_string();
        assert!(why.contains("all users share it"), "{why}");
        assert_eq!(mode(&planted), 0o644);
    }
}
