//! The file on which the holder in a pod listens. Its directory is accessible to its owner only.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::process::geteuid;

use super::client;

/// A listening socket with a name in the file system.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file.
    id: (u64, u64),
}

impl SocketFile {
    /// Listens on this file. Makes its directory accessible to its owner only. Replaces the file of
    /// a holder that has ended. Fails if a holder listens on it, or if the directory belongs to
    /// another user, who could replace the file.
    pub(super) fn listen(path: &Path) -> anyhow::Result<(UnixListener, Self)> {
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.with_context(|| format!("{}: give the whole path", path.display()))?;
        make_private(directory).with_context(|| directory.display().to_string())?;
        if client::find_at(path)?.is_some() {
            bail!("{}: another process holds sockets already", path.display());
        }
        match path.symlink_metadata() {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => bail!("{} is no socket: remove it, or choose another path", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
        let listener = UnixListener::bind(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let id = id(path)?;
        Ok((listener, Self { path: path.to_owned(), id }))
    }

    /// Returns whether agents still find this socket at its path.
    pub(super) fn is_there(&self) -> bool {
        id(&self.path).is_ok_and(|id| id == self.id)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|found| (found.dev(), found.ino()))
}

fn make_private(directory: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let found = directory.symlink_metadata()?;
    if !found.is_dir() {
        bail!("it is no directory");
    }
    if found.uid() != geteuid().as_raw() {
        bail!("it belongs to user {}, who could replace the socket; run as this user", found.uid());
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn refusal(path: &Path) -> String {
        format!("{:#}", SocketFile::listen(path).unwrap_err())
    }

    #[test]
    fn the_directory_is_closed_to_others_and_the_file_of_a_holder_that_ended_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("socket-holder");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        let path = directory.join("holder.sock");
        let (listener, file) = SocketFile::listen(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&path), file.is_there()), (0o700, 0o600, true));
        assert!(refusal(&path).contains("another process holds sockets already"));
        drop(listener);
        let (_listener, again) = SocketFile::listen(&path).unwrap();
        assert!(again.is_there() && UnixStream::connect(&path).is_ok());
        fs::remove_file(&path).unwrap();
        assert!(!again.is_there());
    }

    #[test]
    fn a_file_that_is_no_socket_and_a_directory_of_another_kind_are_refused_in_words() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("holder.sock");
        fs::write(&path, "").unwrap();
        assert!(refusal(&path).contains("is no socket"));
        assert!(path.exists(), "no file of others is removed");
        let link = parent.path().join("link");
        symlink(parent.path(), &link).unwrap();
        assert!(refusal(&link.join("other.sock")).contains("it is no directory"));
        assert!(refusal(Path::new("holder.sock")).contains("give the whole path"));
    }
}
