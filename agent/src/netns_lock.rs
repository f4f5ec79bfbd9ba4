//! One agent in a network namespace. Reqids, the guard's device, the nftables table and the routes'
//! protocol say "ours" for every agent alike, so a second one would tear down what the first one
//! keeps, whatever folders and ports it has.
//!
//! The lock is an abstract unix socket (`unix(7)`): such names belong to the network namespace, as
//! what is protected does, and go with the process however it ends. Anybody may take a name,
//! though. One that a stranger holds (SO_PEERCRED: neither root nor our own user) is passed over,
//! and so is one that takes no connection, so that no local user keeps the agent from starting.

use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::geteuid;

/// The first of the names that are tried.
const NAME: &str = "edge-cni-agent";
/// So many names are tried; whoever holds them all is named, and the agent runs without the lock.
const NAMES: usize = 16;
/// The holder answers at once, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest answer that is read, bytes.
const LONGEST: u64 = 4096 + 64;

/// Held while the agent runs.
#[derive(Debug)]
pub struct Instance {
    /// `None`: strangers hold every name.
    listener: Option<UnixListener>,
    answer: String,
}

/// Who holds a name.
enum Holder {
    Nobody,
    /// Another agent, in words.
    Agent(String),
    /// Its user.
    Stranger(u32),
}

impl Instance {
    /// Takes the lock, before anything of this namespace is touched.
    pub fn take(state_dir: &Path) -> anyhow::Result<Self> {
        let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let answer = format!("process {}, state folder {}\n", std::process::id(), state_dir.display());
        refuse_a_second(None)?;
        for number in 0..NAMES {
            match UnixListener::bind_addr(&name(number)?) {
                Ok(listener) => {
                    // Another may have come between the look and this: of two that start at once
                    // neither may go on unseen.
                    refuse_a_second(Some(number))?;
                    listener.set_nonblocking(true)?;
                    return Ok(Self { listener: Some(listener), answer });
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
        Ok(Self { listener: None, answer })
    }

    /// Says to others who this is. Never ends.
    pub async fn serve(self) {
        let Some(listener) = self.listener.and_then(|listener| tokio::net::UnixListener::from_std(listener).ok())
        else {
            return std::future::pending().await;
        };
        loop {
            match listener.accept().await {
                // It fits the send buffer, so nobody is waited for.
                Ok((stream, _)) => drop(stream.try_write(self.answer.as_bytes())),
                Err(_) => tokio::time::sleep(PATIENCE).await,
            }
        }
    }
}

fn refuse_a_second(ours: Option<usize>) -> anyhow::Result<()> {
    for number in (0..NAMES).filter(|number| Some(*number) != ours) {
        match holder(number)? {
            Holder::Agent(who) => bail!(
                "another edge-agent ({who}) already runs in this network namespace: two would tear down each other's tunnels, whatever their folders and \
                 ports are. Stop it, or put its peers into one configuration ([controller] and [[peer]] go together), or run this one in a network \
                 namespace of its own"
            ),
            Holder::Stranger(user) => {
                tracing::warn!(user, "@{}: a process of another user holds this name; it is passed over", text(number));
            }
            Holder::Nobody => {}
        }
    }
    Ok(())
}

fn holder(number: usize) -> anyhow::Result<Holder> {
    // Never waits: the holder of a name whose queue is full would otherwise keep us in connect(2)
    // for as long as it likes.
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, &SocketAddrUnix::new_abstract_name(text(number).as_bytes())?) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED) => return Ok(Holder::Nobody),
        // Its queue is full (EAGAIN), or it is no stream socket: an agent empties its queue, so it
        // is no agent's.
        Err(error) => {
            tracing::warn!(%error, "@{}: what holds this name takes no connection; it is passed over", text(number));
            return Ok(Holder::Nobody);
        }
    }
    let credentials = socket_peercred(&socket)?;
    if !credentials.uid.is_root() && credentials.uid != geteuid() {
        return Ok(Holder::Stranger(credentials.uid.as_raw()));
    }
    let mut stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = Vec::new();
    let _ = (&mut stream).take(LONGEST).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    Ok(Holder::Agent(match said.trim() {
        "" => format!("process {}", credentials.pid.as_raw_nonzero()),
        said => said.chars().filter(|character| !character.is_control()).collect(),
    }))
}

fn text(number: usize) -> String {
    if number == 0 { NAME.to_owned() } else { format!("{NAME}-{number}") }
}

fn name(number: usize) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(text(number))
}
