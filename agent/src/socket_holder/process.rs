//! The process that holds the sockets: `edge-agent hold-sockets`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::setsid;

use super::{END, HOLD, SOCKETS, TAKE, TIMEOUT, address, borrowed, is_trusted, receive, send};

/// Time for which the sockets stay open without an agent. It is longer than an upgrade, and longer
/// than the kubelet's maximum delay before it restarts a container (5 minutes).
const AWAY: Duration = Duration::from_secs(600);
/// Maximum number of connections: the agent, `down`, and a connection that is being closed. Further
/// connections are closed immediately.
const MAX_CONNECTIONS: usize = 4;

/// Receives sockets from standard input and holds them until a client sends `END`, or until no
/// agent has been connected for ten minutes.
pub fn run() -> anyhow::Result<()> {
    let agent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // A session leader gets no signals from the agent's terminal.
    let _ = setsid();
    agent.set_read_timeout(Some(TIMEOUT))?;
    let (message, sockets) = receive(&agent).context("standard input is no unix socket of an agent")?;
    if message != HOLD || sockets.is_empty() {
        bail!("this command is for the agent, which starts it with its sockets on standard input");
    }
    let listener = UnixListener::bind_addr(&address()?).context("another process holds sockets already")?;
    listener.set_nonblocking(true)?;
    hold(listener, vec![agent], sockets, AWAY)
}

/// Serves agents until one sends `END`, or until no agent has been connected for `away`.
fn hold(
    listener: UnixListener,
    mut agents: Vec<UnixStream>,
    sockets: Vec<OwnedFd>,
    away: Duration,
) -> anyhow::Result<()> {
    let mut alone_since = Instant::now();
    loop {
        let mut polled = vec![PollFd::new(&listener, PollFlags::IN)];
        polled.extend(agents.iter().map(|agent| PollFd::new(agent, PollFlags::IN)));
        let left = away.saturating_sub(alone_since.elapsed());
        let timeout = if agents.is_empty() { Some(Timespec::try_from(left)?) } else { None };
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) if alone_since.elapsed() >= away => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        drop(polled);
        let (new, ready) = ready.split_first().map_or((false, &[][..]), |(new, ready)| (*new, ready));
        let were_there = !agents.is_empty();
        let mut kept = Vec::new();
        for (agent, ready) in agents.into_iter().zip(ready) {
            match ready.then(|| answer(&agent, &sockets)) {
                None | Some(Reply::Stay) => kept.push(agent),
                Some(Reply::Close) => {}
                // When the connection ends, the caller relies on the ports and the name being free.
                // The sockets are therefore closed before the connection.
                Some(Reply::End) => {
                    drop((sockets, listener));
                    return Ok(());
                }
            }
        }
        agents = kept;
        if were_there && agents.is_empty() {
            alone_since = Instant::now();
        }
        if new
            && let Ok((agent, _)) = listener.accept()
            && is_trusted(&agent)
            && agents.len() < MAX_CONNECTIONS
            && agent.set_read_timeout(Some(TIMEOUT)).is_ok()
            && agent.set_write_timeout(Some(TIMEOUT)).is_ok()
        {
            agents.push(agent);
        }
    }
}

enum Reply {
    Stay,
    Close,
    End,
}

fn answer(agent: &UnixStream, sockets: &[OwnedFd]) -> Reply {
    match receive(agent) {
        Ok((message, _)) if message == TAKE => match send(agent, SOCKETS, &borrowed(sockets)) {
            Ok(()) => Reply::Stay,
            Err(_) => Reply::Close,
        },
        Ok((message, _)) if message == END => Reply::End,
        _ => Reply::Close,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::UdpSocket;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    use std::thread;

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
        let holder = thread::spawn(move || hold(listener, vec![its], vec![socket.into()], away));
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
            assert_eq!(
                receive(&stranger).map(|(bytes, sockets)| (bytes.len(), sockets.len())).unwrap_or_default(),
                (0, 0)
            );
        }
        assert_eq!(started.take(started.agent.as_ref().unwrap()), started.port);
        send(started.agent.as_ref().unwrap(), END, &[]).unwrap();
        started.holder.join().unwrap().unwrap();
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
