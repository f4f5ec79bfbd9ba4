//! Keeps the agent's UDP sockets open while no agent runs, unless systemd does
//! (`edge-agent.socket`). The kernel decapsulates ESP in UDP only while a socket with `UDP_ENCAP`
//! is open. Without a holder, every such packet that arrives between the end of the agent and its
//! next start would be lost.
//!
//! The holder is a process of the same program. It holds descriptors (`SCM_RIGHTS`, `unix(7)`) and
//! reads nothing from the network. There are two ways to run it:
//!
//! - On a host, the agent starts it once its sockets are open, and passes the sockets over a unix
//!   socket that is the holder's standard input. The next agent finds the holder through an
//!   abstract unix socket: the name of such a socket belongs to the network namespace, like the UDP
//!   sockets, and the kernel frees the name when the process ends.
//! - In a container, all processes end with the agent. So the holder runs in another pod
//!   (`edge-agent hold-sockets --listen FILE`), and listens on a file that only root on this node
//!   can reach. The agent passes its sockets to the holder whenever one answers. An abstract name
//!   would be open to every pod with the host's network, and such a pod's root is the user 0, too.
//!
//! Both sides accept only processes of root or of their own user (`SO_PEERCRED`). The agent keeps
//! its connection open as long as it runs.
//!
//! - [`client`]: the requests that the agent and `down` send to the holder.
//! - [`process`]: the process that holds the sockets.
//! - [`socket_file`]: the file on which the holder in a pod listens.

pub mod client;
pub mod process;
mod socket_file;

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::peer_credentials::PeerCredentials;

/// The abstract name of the holder's socket.
const NAME: &str = "edge-cni-sockets";
/// Maximum number of sockets that are held. The agent has four.
const MAX_SOCKETS: usize = 8;
/// Maximum length of a message, in bytes.
const MAX_MESSAGE: usize = 64;
/// Timeout for a message from the other side, which responds immediately.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Directory in `run_dir` with the file on which the holder in a pod listens. The pod mounts this
/// directory alone.
pub const DIRECTORY: &str = "socket-holder";
/// The file in [`DIRECTORY`].
pub const LISTENER: &str = "holder.sock";

/// The agent's message with the sockets to hold, in place of those that are held. It is the first
/// message to a holder that the agent starts.
const HOLD: &[u8] = b"hold 1\n";
/// The response of the holder in a pod to [`HOLD`].
const HELD: &[u8] = b"held 1\n";
/// The agent's request for the sockets.
const TAKE: &[u8] = b"take 1\n";
/// The holder's response with the sockets.
const SOCKETS: &[u8] = b"sockets 1\n";
/// The agent's request to close the sockets. A holder that an agent started also exits.
const END: &[u8] = b"end 1\n";
/// What [`END`] begins with in all versions, so that an agent of any version gets the ports.
const END_OF_ANY_VERSION: &[u8] = b"end ";
/// The holder's response to a message that it does not know, before it closes the connection.
const VERSION: &[u8] = b"version 1\n";

/// Returns whether this process runs in a container. The kernel kills a PID namespace together with
/// its first process (`pid_namespaces(7)`), and the kubelet all processes of a pod. Kubernetes sets
/// a variable in every container.
pub fn is_in_container() -> bool {
    std::process::id() == 1 || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// Returns whether a holder stays that this process starts. It does not in a container, nor where
/// the agent is the main process of a systemd service (`systemd.kill(5)`). systemd sets a variable
/// with the main process (`systemd.exec(5)`).
pub fn child_outlives_agent() -> bool {
    let pid = std::process::id();
    let main_process = std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|main| main == pid.to_string());
    !main_process && !is_in_container()
}

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// Returns whether the process at the other end belongs to root or to this process's user.
fn is_trusted(stream: &UnixStream) -> bool {
    PeerCredentials::of(stream).is_ok_and(PeerCredentials::is_trusted)
}

/// Sends a message with descriptors, at most [`MAX_SOCKETS`].
fn send(stream: &UnixStream, message: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other(format!("{} sockets; at most {MAX_SOCKETS} can be held", sockets.len())));
    }
    let sent = sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives a message and the descriptors that came with it. The message is empty at the end of the
/// stream. Fails if descriptors are missing, for which this process has no space
/// (`RLIMIT_NOFILE`).
fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MAX_MESSAGE];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("descriptors that came with a message are missing"));
    }
    message.truncate(received.bytes);
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    Ok((message, sockets.flatten().collect()))
}

fn borrowed<F: AsFd>(sockets: &[F]) -> Vec<BorrowedFd<'_>> {
    sockets.iter().map(AsFd::as_fd).collect()
}
