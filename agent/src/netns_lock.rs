//! The lock that allows only one agent in each network namespace. All agents use the same
//! identifiers for their objects in the kernel (reqids, the guard's device, the nftables table, the
//! routes' protocol). A second agent would therefore remove the first agent's objects, even with
//! other directories and ports.
//!
//! The lock is an abstract unix socket (`unix(7)`). Such a name belongs to the network namespace,
//! and the kernel frees it no matter how the process ends. However, any user may bind the name. A
//! name is therefore skipped if another user's process holds it (SO_PEERCRED: neither root nor the
//! agent's own user), or if its holder accepts no connection. As a result, no local user can
//! prevent the agent from starting.

use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::peer_credentials::PeerCredentials;

/// The first name that is tried.
const NAME: &str = "edge-cni-agent";
/// Number of names that are tried. If other users hold all of them, the agent runs without the lock
/// and logs a warning.
const NAMES: usize = 16;
/// Timeout for the holder's description, which an agent sends immediately.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum length of a description, in bytes.
const MAX_DESCRIPTION: u64 = 4096 + 64;

/// Held while the agent runs.
#[derive(Debug)]
pub struct NetnsLock {
    /// `None` if other users hold every name.
    listener: Option<UnixListener>,
    /// The text that [`Self::serve`] sends: process and state directory.
    description: String,
}

/// The holder of a name.
enum LockHolder {
    /// The name is free, or its holder accepts no connection.
    Nobody,
    /// Another agent, with its description.
    Agent(String),
    /// Another user's process, with the user ID.
    OtherUser(u32),
}

impl NetnsLock {
    /// Takes the lock. Must be called before any change in this namespace. Fails if another agent
    /// holds the lock.
    pub fn acquire(state_dir: &Path) -> anyhow::Result<Self> {
        let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let description = format!("process {}, state directory {}\n", std::process::id(), state_dir.display());
        refuse_second_agent(None)?;
        for number in 0..NAMES {
            match UnixListener::bind_addr(&address(number)?) {
                Ok(listener) => {
                    // Another agent may have bound a name since the first check. The check is
                    // therefore repeated. If two agents start at the same moment, at least one of
                    // them finds the other.
                    refuse_second_agent(Some(number))?;
                    listener.set_nonblocking(true)?;
                    return Ok(Self { listener: Some(listener), description });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error.into()),
            }
        }
        tracing::warn!(
            "other users hold all of the abstract sockets @{NAME} to @{NAME}-{}: a second agent in this network namespace would not be noticed; \
             `ss -xlp` shows who they are",
            NAMES - 1
        );
        Ok(Self { listener: None, description })
    }

    /// Sends the description to each agent that connects. This future never completes.
    pub async fn serve(self) {
        let Some(listener) = self.listener.and_then(|listener| tokio::net::UnixListener::from_std(listener).ok())
        else {
            return std::future::pending().await;
        };
        loop {
            match listener.accept().await {
                // The description fits into the send buffer, so the write does not block.
                Ok((stream, _)) => drop(stream.try_write(self.description.as_bytes())),
                Err(_) => tokio::time::sleep(READ_TIMEOUT).await,
            }
        }
    }
}

fn refuse_second_agent(ours: Option<usize>) -> anyhow::Result<()> {
    for number in (0..NAMES).filter(|number| Some(*number) != ours) {
        match holder(number)? {
            LockHolder::Agent(who) => bail!(
                "another edge-agent ({who}) already runs in this network namespace: two would tear down each other's tunnels, whatever their directories and \
                 ports are. Stop it, or put its peers into one configuration ([controller] and [[peer]] go together), or run this one in a network \
                 namespace of its own"
            ),
            LockHolder::OtherUser(user) => {
                tracing::warn!(user, "@{}: another user's process holds this name; skipping it", name(number));
            }
            LockHolder::Nobody => {}
        }
    }
    Ok(())
}

fn holder(number: usize) -> anyhow::Result<LockHolder> {
    // The socket is non-blocking, since connect(2) would otherwise wait if the holder's queue is
    // full.
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &SocketAddrUnix::new_abstract_name(name(number).as_bytes())?) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED) => return Ok(LockHolder::Nobody),
        // The queue is full (EAGAIN), or the socket is not a stream socket. The holder is not an
        // agent, since an agent empties its queue.
        Err(error) => {
            tracing::warn!(%error, "@{}: the process that holds this name accepts no connection; skipping it", name(number));
            return Ok(LockHolder::Nobody);
        }
    }
    let credentials = PeerCredentials::of(&socket)?;
    if !credentials.is_trusted() {
        return Ok(LockHolder::OtherUser(credentials.user));
    }
    let mut stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut description = Vec::new();
    let _ = (&mut stream).take(MAX_DESCRIPTION).read_to_end(&mut description);
    let description = String::from_utf8_lossy(&description);
    Ok(LockHolder::Agent(match description.trim() {
        "" => credentials.process.map_or("in another container".to_owned(), |process| format!("process {process}")),
        description => description.chars().filter(|character| !character.is_control()).collect(),
    }))
}

fn name(number: usize) -> String {
    if number == 0 { NAME.to_owned() } else { format!("{NAME}-{number}") }
}

fn address(number: usize) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name(number))
}
