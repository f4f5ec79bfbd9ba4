//! Short files below `/proc`, read and written with as few system calls as possible: an ADD needs
//! about thirty of them.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};

/// Maximum length of such a file, bytes. The rest of a longer one is not read.
const LONGEST: usize = 128;

/// Reads a file, without white space around its content.
pub(crate) fn read(path: &str) -> Result<String> {
    content(&open(CWD, path, OFlags::RDONLY)?)
}

/// Writes `value` to a file below `directory`, unless it has that value already.
pub(crate) fn set(directory: BorrowedFd<'_>, name: &str, value: &str) -> Result<()> {
    let (file, refusal) = match open(directory, name, OFlags::RDWR) {
        // On a read-only file system it is enough if the value is right.
        Err(error @ (Errno::ROFS | Errno::ACCESS | Errno::PERM)) => {
            (open(directory, name, OFlags::RDONLY)?, Some(error))
        }
        opened => (opened?, None),
    };
    if content(&file)? == value {
        return Ok(());
    }
    match refusal {
        Some(error) => Err(error),
        // The kernel ignores what is written behind the beginning.
        None => rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, value.as_bytes(), 0)).map(drop),
    }
}

/// Opens a directory for [`set`].
pub(crate) fn directory(path: &str) -> Result<OwnedFd> {
    open(CWD, path, OFlags::PATH | OFlags::DIRECTORY)
}

fn open(directory: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, Mode::empty())
}

fn content(file: &OwnedFd) -> Result<String> {
    let mut bytes = [0; LONGEST];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut bytes))?;
    let text = bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok());
    Ok(text.unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_value_that_is_right_needs_no_write_and_another_one_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("accept_ra");
        std::fs::write(&path, "1\n").unwrap();
        let directory = directory(place.path().to_str().unwrap()).unwrap();
        set(directory.as_fd(), "accept_ra", "1").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n");
        set(directory.as_fd(), "accept_ra", "0").unwrap();
        assert_eq!(read(path.to_str().unwrap()).unwrap(), "0");
        assert_eq!(set(directory.as_fd(), "missing", "0"), Err(Errno::NOENT));
        assert_eq!(read("/proc/sys/kernel/random/boot_id").unwrap().len(), 36);
    }
}
