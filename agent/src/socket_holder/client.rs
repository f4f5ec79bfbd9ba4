//! The requests that the agent and `edge-agent down` send to the holder.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::{END, HOLD, MAX_MESSAGE, NAME, SOCKETS, TAKE, TIMEOUT, borrowed, is_trusted, receive, send};

/// A connection to the holder. When the connection is closed, the holder waits for another agent.
#[derive(Debug)]
pub struct HolderConnection(UnixStream);

/// Finds the holder of this network namespace, if one runs. Fails if another user's process has
/// bound the holder's name, or if the holder accepts no connection.
///
/// Waits at most [`TIMEOUT`] for a connection.
pub fn find() -> anyhow::Result<Option<HolderConnection>> {
    let Some(stream) = connect().context("the holder of the sockets")? else { return Ok(None) };
    if !is_trusted(&stream) {
        bail!("the abstract socket of the socket holder belongs to another user; `ss -xlp` shows the process");
    }
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(Some(HolderConnection(stream)))
}

/// Connects to the holder's name; `None` if no process has bound it. Any local user may bind the
/// name or fill the holder's queue. Without a timeout, connect(2) would then wait for ever.
fn connect() -> anyhow::Result<Option<UnixStream>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // The timeout of sends is also that of connect(2) (unix(7), `unix_stream_connect`).
    stream.set_write_timeout(Some(TIMEOUT))?;
    match rustix::net::connect(&stream, &SocketAddrUnix::new_abstract_name(NAME.as_bytes())?) {
        Ok(()) => Ok(Some(stream)),
        Err(Errno::CONNREFUSED) => Ok(None),
        Err(Errno::AGAIN) => {
            bail!("the process that has bound the abstract socket @{NAME} accepts no connection; `ss -xlp` shows it")
        }
        Err(error) => Err(error.into()),
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
    /// Requests the sockets. The holder keeps its descriptors open.
    pub fn take(&self) -> anyhow::Result<Vec<OwnedFd>> {
        send(&self.0, TAKE, &[]).context("the holder of the sockets")?;
        let (message, sockets) = receive(&self.0).context("the holder of the sockets")?;
        if message != SOCKETS {
            bail!("the holder of the sockets answers {:?}", String::from_utf8_lossy(&message));
        }
        Ok(sockets)
    }

    /// Makes the holder close the sockets and exit, and waits until it has exited.
    pub fn end(mut self) -> anyhow::Result<()> {
        send(&self.0, END, &[]).context("the holder of the sockets")?;
        match self.0.read(&mut [0; MAX_MESSAGE]) {
            Ok(0) => Ok(()),
            Ok(_) => bail!("the socket holder does not exit"),
            Err(error) => Err(error).context("the socket holder does not exit"),
        }
    }

    /// Returns once the holder has exited.
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
