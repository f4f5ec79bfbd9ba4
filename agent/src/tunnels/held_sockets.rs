//! Has a holder keep the UDP sockets open ([`crate::socket_holder`]), and takes them from it at the
//! start.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use edge_types::Role;
use tokio::sync::watch;

use super::datagram_socket::Socket;
use crate::config::Config;
use crate::socket_holder::client::{self, HolderConnection};
use crate::socket_holder::{child_outlives_agent, is_in_container};
use crate::status::{SocketHolder, SocketHolding};

/// First delay before another holder is started, or looked for; doubled after each failure.
const MIN_RETRY: Duration = Duration::from_secs(1);
/// Maximum delay before another holder is started.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// Maximum delay before the agent in a container looks for the holder in a pod again. A look is one
/// failed connect(2).
const MAX_LOOK: Duration = Duration::from_secs(10);
/// Maximum number of reads of the kernel's table of UDP sockets, before a socket counts as foreign.
const MAX_READS: usize = 4;

/// Why nothing holds the sockets although this agent has started a holder.
const WITH_SERVICE: &str = "the process that holds them ends with the agent, which is the main process of a systemd service without edge-agent.socket";

/// A connection to a holder, and its kind.
type Found = (HolderConnection, SocketHolder);

/// Which holders count.
#[derive(Debug, Clone)]
pub(super) struct HolderPlace {
    /// The file of the holder in a pod.
    path: PathBuf,
    /// Whether the agent is in a container. Then the abstract name of a holder that an agent on the
    /// host started proves nothing, since each container with the host's network may bind it.
    in_container: bool,
    /// Whether packets are lost without a holder. A cloud node has no tunnels.
    has_tunnels: bool,
}

impl HolderPlace {
    pub(super) fn new(config: &Config) -> Self {
        let has_tunnels = config.role != Some(Role::Cloud);
        Self { path: config.holder_socket(), in_container: is_in_container(), has_tunnels }
    }

    /// Finds the holder of an earlier agent, and its sockets. If a holder cannot be used, logs the
    /// reason and has it close its sockets, so that the ports are free.
    ///
    /// A holder that does not answer delays this by at most 4 s: 2 s for the connection, and 2 s
    /// for the answer. One that answers something else delays it by at most as much again. Two
    /// places are asked: on a host the file and the abstract name, and in a container a process
    /// that has bound the abstract name may also delay this by 4 s.
    pub(super) fn take(&self) -> (Option<Found>, Vec<Socket>) {
        if self.in_container
            && let Ok(Some(of_host)) = client::find()
        {
            tracing::info!("ending the holder of an agent on the host, since this agent is in a container");
            end(of_host);
        }
        let in_pod = take_from(|| client::find_at(&self.path), SocketHolder::Pod);
        match in_pod {
            Some((holder, sockets)) if self.in_container || !sockets.is_empty() => (Some(holder), sockets),
            None if self.in_container => (None, vec![]),
            in_pod => match take_from(client::find, SocketHolder::Process) {
                // The holder in the pod gets these sockets.
                Some(((holder, _), sockets)) if in_pod.is_some() => {
                    end(holder);
                    (None, sockets)
                }
                Some((holder, sockets)) => (Some(holder), sockets),
                None => (None, vec![]),
            },
        }
    }

    /// Returns whether a process listens at the place of a holder, which may answer or not.
    pub(super) fn is_taken(&self) -> bool {
        !matches!(client::find_at(&self.path), Ok(None)) || (!self.in_container && !matches!(client::find(), Ok(None)))
    }

    /// Has a holder hold these sockets. Returns it with its name in the status.
    fn obtain(&self, sockets: &[Arc<Socket>]) -> anyhow::Result<Found> {
        match self.hold_in_pod(sockets) {
            Ok(Some(holder)) => return Ok((holder, SocketHolder::Pod)),
            Ok(None) if self.in_container => bail!("no `edge-agent hold-sockets` listens on {}", self.path.display()),
            Err(error) if self.in_container => return Err(error),
            Ok(None) => {}
            Err(error) => tracing::warn!("{error:#}; the agent starts a holder of its own"),
        }
        // The holder of other sockets ends first.
        if let Some(other) = client::find()? {
            other.end()?;
        }
        Ok((client::start(sockets)?, SocketHolder::Process))
    }

    fn hold_in_pod(&self, sockets: &[Arc<Socket>]) -> anyhow::Result<Option<HolderConnection>> {
        let Some(holder) = client::find_at(&self.path)? else { return Ok(None) };
        holder.hold(sockets)?;
        Ok(Some(holder))
    }
}

/// Returns whether the holder gave no answer at all, so that another request would only take time.
fn is_silence(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    })
}

/// Has a holder close its sockets. A failure is only logged: it shows again when the ports are
/// opened.
pub(super) fn end(holder: HolderConnection) {
    holder.end().unwrap_or_else(|error| tracing::warn!("{error:#}"));
}

/// Takes the sockets of a holder. If it cannot be used, logs the reason and has it close its
/// sockets.
fn take_from(
    find: impl Fn() -> anyhow::Result<Option<HolderConnection>>,
    kind: SocketHolder,
) -> Option<(Found, Vec<Socket>)> {
    let found = find().and_then(|found| found.map(|holder| taken_from((holder, kind))).transpose());
    found.unwrap_or_else(|error| {
        tracing::warn!("{error:#}; its sockets are not taken");
        if !is_silence(&error)
            && let Ok(Some(holder)) = find()
        {
            end(holder);
        }
        None
    })
}

fn taken_from((holder, kind): Found) -> anyhow::Result<(Found, Vec<Socket>)> {
    let sockets = holder.take()?;
    if let Some(foreign) = foreign(&sockets)? {
        bail!("the holder gave {foreign} of another network namespace, or not bound to a UDP port");
    }
    let adopt = |fd| Socket::adopt(fd).map_err(|problem| anyhow!("a socket that the holder gave: {problem}"));
    let sockets = sockets.into_iter().map(adopt).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(((holder, kind), sockets))
}

/// Returns a description of the first socket that is not among the UDP sockets of this network
/// namespace. A holder in a pod has a name in the file system, which several namespaces may share.
fn foreign(sockets: &[OwnedFd]) -> anyhow::Result<Option<String>> {
    if sockets.is_empty() {
        return Ok(None);
    }
    let inodes = sockets.iter().map(|socket| Ok(fs::File::from(socket.try_clone()?).metadata()?.ino()));
    let inodes = inodes.collect::<io::Result<Vec<u64>>>()?;
    let (mut ours, mut missing) = (BTreeSet::new(), None);
    // The kernel's table is no snapshot: while other sockets open and close, a read may miss some.
    for _ in 0..MAX_READS {
        for table in ["/proc/self/net/udp", "/proc/self/net/udp6"] {
            ours.extend(inodes_in(&fs::read_to_string(table).unwrap_or_default()));
        }
        missing = inodes.iter().position(|inode| !ours.contains(inode));
        if missing.is_none() {
            break;
        }
    }
    Ok(missing.map(|at| format!("socket {} of {}", at + 1, sockets.len())))
}

/// Parses the inodes from a table in the format of `udp4_seq_show` (`net/ipv4/udp.c`), in which
/// they are the tenth column.
fn inodes_in(table: &str) -> impl Iterator<Item = u64> {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9)?.parse().ok())
}

/// Has a holder hold these sockets, unless `holder` has exactly these already. Does so again
/// whenever the holder ends, and in a container whenever one answers.
pub(super) async fn keep(
    place: HolderPlace,
    mut holder: Option<Found>,
    sockets: Vec<Arc<Socket>>,
    state: watch::Sender<SocketHolding>,
) {
    let max_retry = if place.in_container { MAX_LOOK } else { MAX_RETRY };
    let mut wait = MIN_RETRY;
    loop {
        if holder.is_none() {
            // This blocks for seconds if an earlier holder does not answer.
            let (ours, at) = (sockets.clone(), place.clone());
            let obtained = tokio::task::spawn_blocking(move || at.obtain(&ours)).await;
            match obtained.map_err(anyhow::Error::from).flatten() {
                Ok(obtained) => holder = Some(obtained),
                Err(error) => {
                    let problem = format!("{error:#}");
                    if place.has_tunnels && state.borrow().problem.as_ref() != Some(&problem) {
                        tracing::warn!(
                            "no process holds the UDP sockets, so that packets are lost while the agent restarts: {problem}"
                        );
                    }
                    state.send_replace(SocketHolding::none(problem));
                }
            }
        }
        let since = Instant::now();
        if let Some((holder, kind)) = holder.take() {
            state.send_replace(match kind {
                SocketHolder::Process if !child_outlives_agent() => SocketHolding::none(WITH_SERVICE),
                kind => SocketHolding::by(kind),
            });
            holder.ended().await;
            state.send_replace(SocketHolding::none("the process that held them has ended"));
            tracing::warn!("the process that holds the UDP sockets ended; another one gets them");
        }
        wait = if since.elapsed() > max_retry { MIN_RETRY } else { (wait * 2).min(max_retry) };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn only_bound_udp_sockets_of_this_network_namespace_are_taken() {
        let udp: OwnedFd = UdpSocket::bind("127.0.0.1:0").unwrap().into();
        assert_eq!(foreign(&[udp.try_clone().unwrap()]).unwrap(), None);
        let tcp: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0").unwrap().into();
        for other in [tcp, File::open("/dev/null").unwrap().into()] {
            assert_eq!(foreign(&[udp.try_clone().unwrap(), other]).unwrap(), Some("socket 2 of 2".into()));
        }
    }

    #[test]
    fn a_holder_without_an_answer_is_distinguished_from_one_with_another_answer() {
        let (ours, _its) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let silent = io::Read::read(&mut &ours, &mut [0]).unwrap_err();
        assert!(is_silence(&anyhow::Error::from(silent).context("the holder")));
        assert!(!is_silence(&anyhow!("version 2")));
    }
}
