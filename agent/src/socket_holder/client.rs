//! The requests that the agent and `edge-agent down` send to the holder.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::{END, HELD, HOLD, MAX_MESSAGE, NAME, SOCKETS, TAKE, TIMEOUT, borrowed, is_trusted, receive, send};

/// A connection to the holder. When the connection is closed, the holder waits for another agent.
#[derive(Debug)]
pub struct HolderConnection(UnixStream);

/// The holder does not have this agent's version. The holder in a pod is not replaced together with
/// the agent.
#[derive(Debug, thiserror::Error)]
#[error(
    "the holder of the sockets answers {0:?}: it is of another release; replace it by this release's (kubectl delete pod, if it is a pod)"
)]
pub struct OtherVersion(String);

/// Finds the holder that an agent started in this network namespace, if one runs. Fails if another
/// user's process has bound the holder's name, or if the holder accepts no connection.
///
/// Waits at most [`TIMEOUT`] for a connection.
pub fn find() -> anyhow::Result<Option<HolderConnection>> {
    let address = SocketAddrUnix::new_abstract_name(NAME.as_bytes())?;
    trusted(&address, &format!("abstract socket @{NAME}")).context("the holder of the sockets")
}

/// Finds the holder that listens on this file, if one runs. Fails like [`find`]. No process can
/// listen on a path that is too long (108 bytes).
///
/// Waits at most [`TIMEOUT`] for a connection.
pub fn find_at(path: &Path) -> anyhow::Result<Option<HolderConnection>> {
    let Ok(address) = SocketAddrUnix::new(path.as_os_str().as_bytes()) else { return Ok(None) };
    trusted(&address, &format!("socket {}", path.display())).context("the holder of the sockets")
}

fn trusted(address: &SocketAddrUnix, name: &str) -> anyhow::Result<Option<HolderConnection>> {
    let Some(stream) = connect(address, name)? else { return Ok(None) };
    if !is_trusted(&stream) {
        bail!("the {name} belongs to another user; `ss -xlp` shows the process");
    }
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(Some(HolderConnection(stream)))
}

/// Connects to the holder; `None` if no process listens. Any local user may bind the abstract name
/// or fill the holder's queue. Without a timeout, connect(2) would then wait for ever.
fn connect(address: &SocketAddrUnix, name: &str) -> anyhow::Result<Option<UnixStream>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // The timeout of sends is also that of connect(2) (unix(7), `unix_stream_connect`).
    stream.set_write_timeout(Some(TIMEOUT))?;
    match rustix::net::connect(&stream, address) {
        Ok(()) => Ok(Some(stream)),
        Err(Errno::CONNREFUSED | Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(Errno::AGAIN) => {
            bail!("the process that has bound the {name} accepts no connection; `ss -xlp` shows it")
        }
        Err(error) => Err(anyhow::Error::from(error).context(name.to_owned())),
    }
}

/// Starts a holder for these sockets. It is a process in its own session, so that a signal to the
/// agent's process group does not reach it.
pub fn start<F: AsFd>(sockets: &[F]) -> anyhow::Result<HolderConnection> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("edge-agent").arg("hold-sockets").stdin(OwnedFd::from(its));
    command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // The holder reads nothing from the environment, which may contain secrets.
    command.env_clear();
    let mut child = command.spawn().context("edge-agent hold-sockets")?;
    send(&ours, HOLD, &borrowed(sockets))?;
    // The holder is a child of the agent. Without a call of `wait`, it would become a zombie.
    std::thread::Builder::new().name("holder".into()).stack_size(64 * 1024).spawn(move || child.wait())?;
    Ok(HolderConnection(ours))
}

impl HolderConnection {
    /// Requests the sockets. The holder keeps its descriptors open. Waits at most [`TIMEOUT`] for
    /// the response.
    pub fn take(&self) -> anyhow::Result<Vec<OwnedFd>> {
        self.request(TAKE, &[], SOCKETS)
    }

    /// Makes the holder in a pod hold these sockets, and close those that it held. Waits at most
    /// twice [`TIMEOUT`].
    pub fn hold<F: AsFd>(&self, sockets: &[F]) -> anyhow::Result<()> {
        // A holder that does not answer gets no descriptors: in its queue they would keep the ports
        // from the next agent.
        self.take()?;
        self.request(HOLD, &borrowed(sockets), HELD).map(drop)
    }

    fn request(&self, message: &[u8], sockets: &[BorrowedFd<'_>], expected: &[u8]) -> anyhow::Result<Vec<OwnedFd>> {
        send(&self.0, message, sockets).context("the holder of the sockets")?;
        let (answer, sockets) = receive(&self.0).context("the holder of the sockets does not answer")?;
        if answer.is_empty() {
            bail!("the holder of the sockets closes the connection");
        }
        if answer != expected {
            return Err(OtherVersion(String::from_utf8_lossy(&answer).trim_end().to_owned()).into());
        }
        Ok(sockets)
    }

    /// Makes the holder close the sockets, and waits until it has. A holder that an agent started
    /// also exits.
    pub fn end(mut self) -> anyhow::Result<()> {
        send(&self.0, END, &[]).context("the holder of the sockets")?;
        match self.0.read(&mut [0; MAX_MESSAGE]) {
            Ok(0) => Ok(()),
            Ok(_) => bail!("the socket holder does not close the sockets"),
            Err(error) => Err(error).context("the socket holder does not close the sockets"),
        }
    }

    /// Returns once the holder has closed the connection, which it does not do as long as it holds
    /// the sockets.
    pub async fn ended(self) {
        let stream = self.0.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(self.0));
        match stream {
            Ok(stream) => drop(stream.readable().await),
            Err(error) => {
                tracing::warn!(%error, "the holder of the sockets cannot be watched");
                std::future::pending().await
            }
        }
    }
}
