//! Network namespaces.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Code, Context, Error, Result};

/// The network namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// statfs(2) f_type of `/proc/PID/ns/net` and its bind mounts (linux/magic.h, NSFS_MAGIC).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A network namespace. It continues to exist as long as this value does.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens a container's namespace. Refuses the namespace of this process: a path such as
    /// `/proc/PID/ns/net` may lead to the host's namespace if the process has ended and another
    /// process now has its PID.
    pub(crate) fn of_container(path: &Path) -> Result<Self> {
        let wrong = |why: String| {
            let path = path.display();
            let message = format!("CNI_NETNS is {path}: {why}; the runtime must name the pod's network namespace");
            Error::new(Code::InvalidEnvironment, message)
        };
        // Non-blocking, since opening a pipe with that name would wait forever.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| wrong(format!("it cannot be opened: {error}")))?;
        let kind = rustix::fs::fstatfs(&file).context("examine", path)?.f_type;
        #[allow(clippy::unnecessary_cast, reason = "the width of f_type differs by architecture")]
        if kind as i64 != NSFS_MAGIC {
            return Err(wrong("it is not a network namespace".into()));
        }
        let identity = |data: fs::Metadata| (data.dev(), data.ino());
        let own = fs::metadata(OWN).context("examine", Path::new(OWN))?;
        if identity(file.metadata().context("examine", path)?) == identity(own) {
            return Err(wrong("it is the host's own network namespace".into()));
        }
        Ok(Self { file, path: path.into() })
    }

    /// Returns the file descriptor, for the attribute that moves a link to this namespace.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` with this thread in the namespace. Afterwards, the thread returns to its former
    /// namespace, even if `work` fails.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = File::open(OWN).context("open", Path::new(OWN))?;
        let enter = |file: &File| move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
        enter(&self.file).context("enter the network namespace", &self.path)?;
        let outcome = work();
        enter(&own).context("return from the network namespace", &self.path)?;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_namespace_is_refused_whatever_its_path() {
        for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net"] {
            let error = Namespace::of_container(Path::new(path)).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.message.contains("host's own") && error.message.contains(path), "{error}");
        }
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.as_path(), directory.path(), Path::new("/dev/null"), Path::new("/no/such/thing")] {
            let error = Namespace::of_container(path).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{}", path.display());
            assert!(error.message.contains("CNI_NETNS") && error.message.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
