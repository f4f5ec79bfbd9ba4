//! The process at the other end of a unix socket (SO_PEERCRED, `unix(7)`). rustix's call cannot say
//! that the process has no ID here, as it is for processes of other containers: it then returns
//! another error each time.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The process that connected, or that called listen(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    /// Process ID; `None` if the process is in another PID namespace.
    pub(crate) process: Option<u32>,
    /// User ID.
    pub(crate) user: u32,
}

impl PeerCredentials {
    /// Reads them from a connected socket.
    #[allow(unsafe_code)]
    pub(crate) fn of(socket: impl AsFd) -> io::Result<Self> {
        let mut found = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
        let mut length = size_of_val(&found) as libc::socklen_t;
        // SAFETY: `found` outlives the call, and `length` is its size.
        let done = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut length,
            )
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let process = u32::try_from(found.pid).ok().filter(|process| *process != 0);
        Ok(Self { process, user: found.uid })
    }

    /// Returns whether the process belongs to root or to this process's user.
    pub(crate) fn is_trusted(self) -> bool {
        self.user == 0 || self.user == rustix::process::geteuid().as_raw()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (ours, _its) = UnixStream::pair().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let expected = PeerCredentials { process: Some(std::process::id()), user };
        assert_eq!(PeerCredentials::of(&ours).unwrap(), expected);
        assert!(expected.is_trusted() && PeerCredentials { user: 0, ..expected }.is_trusted());
        assert!(!PeerCredentials { user: user + 1, ..expected }.is_trusted());
        assert!(PeerCredentials::of(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
