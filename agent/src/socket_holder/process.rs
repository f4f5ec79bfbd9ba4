//! The process that holds the sockets: `edge-agent hold-sockets`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{ipproto, sockopt};
use rustix::process::setsid;

use super::socket_file::SocketFile;
use super::{
    END_OF_ANY_VERSION, HELD, HOLD, MAX_SOCKETS, SOCKETS, TAKE, TIMEOUT, VERSION, address, borrowed, is_trusted,
    receive, send,
};
use crate::{hardening, logging};

/// Time for which the sockets stay open without an agent. It is longer than an upgrade, and longer
/// than the kubelet's maximum delay before it restarts a container (5 minutes).
const AWAY: Duration = Duration::from_secs(600);
/// Maximum number of connections: the agent, `down`, and a connection that is being closed. A
/// further one takes the place of the oldest that has sent nothing; if there is none, it is closed
/// immediately.
const MAX_CONNECTIONS: usize = 4;
/// Time between two checks that agents still find the socket file.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Receives sockets from standard input and holds them until a client sends `END`, or until no
/// agent has been connected for ten minutes.
pub fn run() -> anyhow::Result<()> {
    let agent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // A session leader gets no signals from the agent's terminal.
    let _ = setsid();
    let received = agent.set_read_timeout(Some(TIMEOUT)).and_then(|()| receive(&agent));
    let (message, sockets) = received.context(
        "standard input is no unix socket of an agent: without --listen, only the agent starts this command",
    )?;
    if message != HOLD || sockets.is_empty() {
        bail!("without --listen, this command is for the agent, which starts it with its sockets on standard input");
    }
    let listener = UnixListener::bind_addr(&address()?).context("another process holds sockets already")?;
    listener.set_nonblocking(true)?;
    Holder::new(listener, None, vec![Connection { stream: agent, is_agent: true }], sockets, AWAY).run()
}

/// Listens on this file, and holds the sockets that agents pass until no agent has been connected
/// for ten minutes. Then waits for other sockets.
pub fn listen(path: &Path) -> anyhow::Result<()> {
    logging::start(false);
    hardening::make_files_private();
    let (listener, file) = SocketFile::listen(path)?;
    tracing::info!("waiting for the agent's sockets at {}", path.display());
    Holder::new(listener, Some(file), vec![], vec![], AWAY).run()
}

/// A connection to an agent or to `down`.
struct Connection {
    stream: UnixStream,
    /// Whether it has passed or taken the sockets.
    is_agent: bool,
}

/// What the process holds.
struct Holder {
    listener: UnixListener,
    /// The file on which a holder in a pod listens. Without a file, the holder exits together with
    /// the sockets.
    file: Option<SocketFile>,
    connections: Vec<Connection>,
    sockets: Vec<OwnedFd>,
    away: Duration,
    /// Since when no agent has been connected.
    alone_since: Instant,
}

impl Holder {
    fn new(
        listener: UnixListener,
        file: Option<SocketFile>,
        connections: Vec<Connection>,
        sockets: Vec<OwnedFd>,
        away: Duration,
    ) -> Self {
        Self { listener, file, connections, sockets, away, alone_since: Instant::now() }
    }

    /// Serves agents until one sends `END`, or until no agent has been connected for `away`. With a
    /// file, only the sockets are closed then.
    fn run(mut self) -> anyhow::Result<()> {
        loop {
            let (new, ready) = self.wait()?;
            if let Some(last) = self.answer(&ready) {
                // When the connection ends, the caller relies on the ports and the name being free.
                drop(self);
                drop(last);
                return Ok(());
            }
            if self.is_left() {
                if self.file.is_none() {
                    return Ok(());
                }
                tracing::warn!("no agent has come back for {} s; closing its sockets", self.away.as_secs());
                self.sockets.clear();
            }
            if new {
                self.accept();
            }
            self.check_file()?;
        }
    }

    /// Waits for a connection, a message, or the next check. Returns whether there is a new
    /// connection, and which of the connections have a message.
    fn wait(&self) -> anyhow::Result<(bool, Vec<bool>)> {
        let mut polled = vec![PollFd::new(&self.listener, PollFlags::IN)];
        polled.extend(self.connections.iter().map(|connection| PollFd::new(&connection.stream, PollFlags::IN)));
        let left = self.alone().map(|alone| self.away.saturating_sub(alone));
        let timeout = left.into_iter().chain(self.file.as_ref().map(|_| CHECK_INTERVAL)).min();
        let timeout = timeout.map(Timespec::try_from).transpose()?;
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        Ok(ready.split_first().map_or((false, vec![]), |(new, ready)| (*new, ready.to_vec())))
    }

    /// Returns how long the sockets have been held without an agent; `None` if one is connected, or
    /// no sockets are held.
    fn alone(&self) -> Option<Duration> {
        let idle = self.file.is_some() && self.sockets.is_empty();
        let alone = !idle && !self.connections.iter().any(|connection| connection.is_agent);
        alone.then(|| self.alone_since.elapsed())
    }

    fn is_left(&self) -> bool {
        self.alone().is_some_and(|alone| alone >= self.away)
    }

    /// Answers the connections that have a message. Returns a connection that asked the process to
    /// exit.
    fn answer(&mut self, ready: &[bool]) -> Option<Connection> {
        let agents = |all: &[Connection]| all.iter().filter(|connection| connection.is_agent).count();
        let before = agents(&self.connections);
        let mut kept: Vec<Connection> = Vec::new();
        let mut rest: VecDeque<_> = std::mem::take(&mut self.connections).into_iter().zip(ready).collect();
        while let Some((mut connection, ready)) = rest.pop_front() {
            match ready.then(|| reply(&connection.stream, &mut self.sockets)) {
                None => kept.push(connection),
                Some(Reply::Taken) => {
                    connection.is_agent = true;
                    kept.push(connection);
                }
                Some(Reply::Replaced) => {
                    // An agent of before does not rely on sockets that are not held any more.
                    kept.retain(|connection| !connection.is_agent);
                    rest.retain(|(connection, _)| !connection.is_agent);
                    connection.is_agent = true;
                    tracing::info!(sockets = self.sockets.len(), "holding the agent's sockets");
                    kept.push(connection);
                }
                Some(Reply::Close) => {}
                Some(Reply::End) if self.file.is_none() => return Some(connection),
                // The sockets are closed before the connection, since the caller relies on the
                // ports being free when that ends. No other agent relies on the sockets any more.
                Some(Reply::End) => {
                    self.sockets.clear();
                    kept.clear();
                    rest.clear();
                    tracing::info!("closed the agent's sockets, as it asked");
                }
            }
        }
        self.connections = kept;
        if before > 0 && agents(&self.connections) == 0 {
            self.alone_since = Instant::now();
            if self.file.is_some() && !self.sockets.is_empty() {
                tracing::info!(sockets = self.sockets.len(), "the agent has ended; holding its sockets");
            }
        }
        None
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let timeouts = || stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
        if !is_trusted(&stream) || timeouts().is_err() {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let Some(silent) = self.connections.iter().position(|connection| !connection.is_agent) else { return };
            self.connections.remove(silent);
        }
        self.connections.push(Connection { stream, is_agent: false });
    }

    /// Listens again if the socket file was removed or replaced. Fails if that is impossible, for
    /// example because the directory of a volume was removed: a new container gets another one.
    fn check_file(&mut self) -> anyhow::Result<()> {
        let Some(file) = self.file.as_ref().filter(|file| !file.is_there()) else { return Ok(()) };
        tracing::warn!("{} has been removed; opening it again", file.path().display());
        let (listener, file) = SocketFile::listen(file.path())?;
        (self.listener, self.file) = (listener, Some(file));
        Ok(())
    }
}

enum Reply {
    Taken,
    Replaced,
    Close,
    End,
}

/// A process that is no agent may not keep other files open, such as those of a file system that is
/// to be unmounted.
fn is_udp(passed: &OwnedFd) -> bool {
    sockopt::socket_protocol(passed).is_ok_and(|protocol| protocol == Some(ipproto::UDP))
}

/// Reads one message, and answers it.
fn reply(stream: &UnixStream, sockets: &mut Vec<OwnedFd>) -> Reply {
    let Ok((message, passed)) = receive(stream) else { return Reply::Close };
    if message == TAKE {
        match send(stream, SOCKETS, &borrowed(sockets)) {
            Ok(()) => Reply::Taken,
            Err(_) => Reply::Close,
        }
    } else if message == HOLD && (1..=MAX_SOCKETS).contains(&passed.len()) && passed.iter().all(is_udp) {
        // The sockets of before are closed, unless they are among these.
        *sockets = passed;
        match send(stream, HELD, &[]) {
            Ok(()) => Reply::Replaced,
            Err(_) => Reply::Close,
        }
    } else if message.starts_with(END_OF_ANY_VERSION) {
        Reply::End
    } else {
        if !message.is_empty() {
            let _ = send(stream, VERSION, &[]);
        }
        Reply::Close
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::net::UdpSocket;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    use std::path::PathBuf;
    use std::thread;

    use interop_tests::wait;

    use super::super::END;
    use super::super::client::{self, HolderConnection};
    use super::*;

    /// A holder of one UDP socket that runs on a thread, with its own name and a connected agent.
    struct Started {
        name: SocketAddr,
        agent: Option<UnixStream>,
        port: u16,
        holder: thread::JoinHandle<anyhow::Result<()>>,
    }

    fn start(name: &str, away: Duration) -> Started {
        let name = SocketAddr::from_abstract_name(format!("{name}-{}", std::process::id())).unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        listener.set_nonblocking(true).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let (agent, its) = UnixStream::pair().unwrap();
        let connections = vec![Connection { stream: its, is_agent: true }];
        let holder = Holder::new(listener, None, connections, vec![socket.into()], away);
        let holder = thread::spawn(move || holder.run());
        Started { name, agent: Some(agent), port, holder }
    }

    impl Started {
        fn connect(&self) -> UnixStream {
            UnixStream::connect_addr(&self.name).unwrap()
        }

        fn take(&self, by: &UnixStream) -> u16 {
            send(by, TAKE, &[]).unwrap();
            let (message, mut sockets) = receive(by).unwrap();
            assert_eq!((message.as_slice(), sockets.len()), (SOCKETS, 1));
            UdpSocket::from(sockets.remove(0)).local_addr().unwrap().port()
        }
    }

    #[test]
    fn an_agent_that_comes_after_another_gets_the_same_sockets() {
        let mut started = start("next", AWAY);
        drop(started.agent.take());
        for _ in 0..2 {
            let next = started.connect();
            assert_eq!(started.take(&next), started.port);
        }
        send(&started.connect(), END, &[]).unwrap();
        started.holder.join().unwrap().unwrap();
        assert!(UdpSocket::bind(("127.0.0.1", started.port)).is_ok(), "the port is free again");
    }

    #[test]
    fn once_the_connection_is_closed_the_port_and_the_name_are_free() {
        for round in 0..100 {
            let mut started = start(&format!("free-{round}"), AWAY);
            let mut agent = started.agent.take().unwrap();
            send(&agent, END, &[]).unwrap();
            assert_eq!(agent.read(&mut [0; 8]).unwrap(), 0);
            assert!(UdpSocket::bind(("127.0.0.1", started.port)).is_ok(), "the port is free in round {round}");
            assert!(UnixListener::bind_addr(&started.name).is_ok(), "the name is free in round {round}");
        }
    }

    #[test]
    fn sockets_are_closed_when_no_agent_comes_for_too_long() {
        let mut started = start("away", Duration::from_millis(20));
        drop(started.agent.take());
        started.holder.join().unwrap().unwrap();
    }

    #[test]
    fn a_connection_that_says_something_else_is_closed_and_nothing_is_given() {
        let started = start("else", AWAY);
        for message in [&b"take 2\n"[..], b"x", &[0; 200]] {
            let stranger = started.connect();
            // The holder may close the connection during the send.
            let _ = send(&stranger, message, &[]);
            let (answer, sockets) = receive(&stranger).unwrap_or_default();
            assert!((answer.is_empty() || answer == VERSION) && sockets.is_empty(), "{answer:?}");
            assert_eq!(receive(&stranger).map_or(0, |(answer, _)| answer.len()), 0, "the connection is closed");
        }
        assert_eq!(started.take(started.agent.as_ref().unwrap()), started.port);
        send(started.agent.as_ref().unwrap(), END, &[]).unwrap();
        started.holder.join().unwrap().unwrap();
    }

    /// A holder in a pod, with a connected agent that has passed one socket.
    fn start_in_pod(directory: &Path, away: Duration) -> (PathBuf, HolderConnection, u16) {
        let path = directory.join("holder/holder.sock");
        let (listener, file) = SocketFile::listen(&path).unwrap();
        thread::spawn(move || Holder::new(listener, Some(file), vec![], vec![], away).run());
        let agent = client::find_at(&path).unwrap().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        agent.hold(&[&socket]).unwrap();
        (path, agent, port)
    }

    fn taken(path: &Path) -> Vec<u16> {
        let sockets = client::find_at(path).unwrap().unwrap().take().unwrap();
        sockets.into_iter().map(|socket| UdpSocket::from(socket).local_addr().unwrap().port()).collect()
    }

    fn free(port: u16) {
        wait::expect("the port to be free", Duration::from_secs(60), || UdpSocket::bind(("127.0.0.1", port)).ok());
    }

    #[test]
    fn a_holder_in_a_pod_keeps_the_sockets_of_the_latest_agent_and_goes_on_when_they_are_closed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, agent, first) = start_in_pod(directory.path(), AWAY);
        assert_eq!(taken(&path), [first]);
        drop(agent);
        assert_eq!(taken(&path), [first], "the sockets outlive the agent");
        // The next agent has another port, and closes that of before.
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let agent = client::find_at(&path).unwrap().unwrap();
        agent.hold(&[&other]).unwrap();
        free(first);
        let second = other.local_addr().unwrap().port();
        assert_eq!(taken(&path), [second]);
        drop(other);
        client::find_at(&path).unwrap().unwrap().end().unwrap();
        assert!(UdpSocket::bind(("127.0.0.1", second)).is_ok(), "the port is free once the connection ends");
        assert_eq!(taken(&path), [0; 0]);
    }

    #[test]
    fn a_holder_in_a_pod_closes_the_sockets_when_no_agent_comes_for_too_long_and_serves_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let (path, agent, port) = start_in_pod(directory.path(), Duration::from_millis(20));
        drop(agent);
        free(port);
        assert_eq!(taken(&path), [0; 0]);
    }

    #[test]
    fn silent_connections_keep_no_agent_out_of_the_holder_and_no_socket_open() {
        let directory = tempfile::tempdir().unwrap();
        let (path, agent, port) = start_in_pod(directory.path(), Duration::from_millis(20));
        let silent: Vec<UnixStream> = (0..1000).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(taken(&path), [port]);
        drop(agent);
        free(port);
        drop(silent);
    }

    #[test]
    fn a_message_of_another_version_is_answered_with_the_version_and_its_end_closes_the_sockets() {
        let directory = tempfile::tempdir().unwrap();
        let (path, agent, port) = start_in_pod(directory.path(), AWAY);
        let of_later = UnixStream::connect(&path).unwrap();
        send(&of_later, b"take 2\n", &[]).unwrap();
        assert_eq!(receive(&of_later).unwrap().0, VERSION);
        let of_later = UnixStream::connect(&path).unwrap();
        send(&of_later, b"end 2\n", &[]).unwrap();
        assert_eq!(receive(&of_later).unwrap().0, b"");
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_ok());
        assert!(agent.take().is_err(), "the agent learns that its sockets are not held any more");
    }

    #[test]
    fn a_holder_keeps_nothing_but_udp_sockets_and_eight_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _agent, port) = start_in_pod(directory.path(), AWAY);
        let file = fs::File::open("/dev/null").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for passed in
            [vec![], vec![udp.as_fd(), file.as_fd()], vec![udp.as_fd(); MAX_SOCKETS + 1], vec![udp.as_fd(); 16]]
        {
            let other = UnixStream::connect(&path).unwrap();
            // The space for more than the maximum is the test's own.
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            assert!(passed.is_empty() || control.push(rustix::net::SendAncillaryMessage::ScmRights(&passed)));
            let message = [io::IoSlice::new(HOLD)];
            rustix::net::sendmsg(&other, &message, &mut control, rustix::net::SendFlags::NOSIGNAL).unwrap();
            // Without space for all descriptors, the connection is closed.
            let expected = if passed.len() > MAX_SOCKETS + 1 { &[] } else { VERSION };
            assert_eq!(receive(&other).unwrap().0, expected);
            assert_eq!(taken(&path), [port]);
        }
    }

    #[test]
    fn an_agent_with_sockets_that_are_not_held_any_more_is_disconnected() {
        let directory = tempfile::tempdir().unwrap();
        let (path, agent, _) = start_in_pod(directory.path(), AWAY);
        let connected = || {
            let other = client::find_at(&path).unwrap().unwrap();
            assert_eq!(other.take().unwrap().len(), 1);
            other
        };
        // These connect after the agent that changes the sockets.
        let other = connected();
        agent.hold(&[UdpSocket::bind("127.0.0.1:0").unwrap()]).unwrap();
        assert!(other.take().is_err());
        let other = connected();
        agent.end().unwrap();
        assert!(other.take().is_err());
    }

    #[test]
    fn a_holder_listens_again_when_its_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, agent, port) = start_in_pod(directory.path(), AWAY);
        fs::remove_file(&path).unwrap();
        // A message wakes the holder.
        assert_eq!(agent.take().unwrap().len(), 1);
        wait::expect("the file", Duration::from_secs(60), || path.exists().then_some(()));
        assert_eq!(taken(&path), [port]);
    }

    #[test]
    fn connections_without_number_are_closed() {
        let started = start("many", AWAY);
        let kept: Vec<UnixStream> = (1..MAX_CONNECTIONS).map(|_| started.connect()).collect();
        kept.iter().for_each(|agent| assert_eq!(started.take(agent), started.port));
        let (message, sockets) = receive(&started.connect()).unwrap_or_default();
        assert_eq!((message.len(), sockets.len()), (0, 0));
        send(&kept[0], END, &[]).unwrap();
        started.holder.join().unwrap().unwrap();
    }
}
