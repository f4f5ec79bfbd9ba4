//! A TCP connection's socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use edge_ike::wire::RelayToken;
use edge_ike::{Instant, PeerName, TcpConnectionId};
use edge_xfrm::socket as options;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connections::{ConnectionKind, Connections, Ends};
use crate::relay::AwaitedStreams;

/// What the side that begins a connection sends first (RFC 9329).
const STREAM_PREFIX: &[u8; 6] = b"IKETCP";
/// What it sends first in a connection to a relay, before the token. No standard has it.
const RELAY_PREFIX: &[u8; 6] = b"EDGERL";
/// Maximum size of an IKE message with the non-ESP marker, bytes: the length field has 16 bits and
/// counts itself.
const MAX_MESSAGE: usize = 65_533;
/// Time for the stream prefix, with a token if there is one, to arrive. Then the connection is
/// closed.
const PREFIX_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the rest of a message to arrive. Then the kernel ends the connection.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a connection to be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without an acknowledgement of what was sent after which the kernel ends the connection,
/// milliseconds.
const USER_TIMEOUT_MS: u32 = 10_000;
/// Time without data after which the kernel probes an idle connection. This also keeps the mapping
/// of a NAT: NAT keepalives must not be sent in TCP (RFC 9329).
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Interval of these probes if they are not answered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(4);
/// Number of unanswered probes after which the connection ends.
const KEEPALIVE_COUNT: u32 = 3;

/// An IKE message with the addresses that stand for its connection.
pub type Received = (Vec<u8>, SocketAddr, SocketAddr);

/// The outcome of [`connect`], or the end of any connection.
#[derive(Debug)]
pub enum TcpEvent {
    /// The connection to the hub is open.
    Opened(PeerName, TcpConnectionId),
    /// No address of the hub could be reached, and why.
    Failed(PeerName, String),
    /// A connection has ended.
    Ended(TcpConnectionId),
    /// The outcome of [`connect_to_relay`]: the connection is open, or why it is not.
    Relay(RelayTarget, Result<TcpConnectionId, String>),
}

/// A relay of a hub to one peer, for [`connect_to_relay`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTarget {
    /// The peer.
    pub peer: PeerName,
    /// The hub.
    pub hub: PeerName,
    /// What the connection begins with.
    pub token: RelayToken,
}

/// Returns why this kernel cannot carry IKE and ESP in TCP; `Ok` if it can.
///
/// # Errors
/// Returns the reason and what to do.
pub fn support() -> Result<(), String> {
    let probe = TcpSocket::new_v4().map_err(|error| format!("a TCP socket cannot be opened: {error}"))?;
    encapsulate(&probe)
}

fn encapsulate(socket: &impl AsFd) -> Result<(), String> {
    options::encapsulate_in_tcp(socket).map_err(|error| match &error {
        edge_xfrm::Error::SocketOption { error: of_kernel, .. } if of_kernel.raw_os_error() == Some(libc::ENOENT) => {
            "this kernel cannot carry ESP in TCP: it lacks CONFIG_INET_ESPINTCP (Linux 5.6 and later); \
             use a kernel with it, or let UDP pass"
                .to_owned()
        }
        _ => error.to_string(),
    })
}

/// Sets the options of a connection that do not depend on the side.
pub(super) fn prepare(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    options::bypass(socket, ipv6).map_err(io::Error::other)?;
    if ipv6 {
        options::prefer_lasting_source(socket).map_err(io::Error::other)?;
    }
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(MESSAGE_TIMEOUT))?;
    sockopt::set_tcp_user_timeout(socket, USER_TIMEOUT_MS)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_COUNT)?;
    Ok(())
}

/// Connects to a hub at all addresses of the first choice at once, and at those of the second one
/// if that fails. Uses the first connection that is established, and reports the outcome.
pub async fn connect(
    hub: PeerName,
    choices: [Vec<SocketAddr>; 2],
    connections: Connections,
    now: fn() -> Instant,
    messages: mpsc::Sender<Received>,
    events: mpsc::Sender<TcpEvent>,
) {
    let mut errors = Vec::new();
    for addresses in choices {
        let Some(stream) = dial_first(addresses, &mut errors).await else { continue };
        let report = match open(stream, ConnectionKind::ToHub, &connections, now(), messages, events.clone()) {
            Ok(id) => TcpEvent::Opened(hub, id),
            Err(error) => TcpEvent::Failed(hub, error),
        };
        let _ = events.send(report).await;
        return;
    }
    let errors = if errors.is_empty() { "it has no address".to_owned() } else { errors.join("; ") };
    let _ = events.send(TcpEvent::Failed(hub, errors)).await;
}

/// Connects to a relay at the address of its hub, and reports the outcome.
pub async fn connect_to_relay(
    target: RelayTarget,
    address: SocketAddr,
    connections: Connections,
    now: fn() -> Instant,
    messages: mpsc::Sender<Received>,
    events: mpsc::Sender<TcpEvent>,
) {
    let beginning = [&RELAY_PREFIX[..], target.token.octets()].concat();
    let opened = match dial(address, &beginning).await {
        Ok(stream) => open(stream, ConnectionKind::ToRelay, &connections, now(), messages, events.clone()),
        Err(error) => Err(format!("{address}: {error}")),
    };
    let _ = events.send(TcpEvent::Relay(target, opened)).await;
}

/// Connects to all the addresses at once. Returns the first connection that is established, or adds
/// to the errors why there is none.
async fn dial_first(addresses: Vec<SocketAddr>, errors: &mut Vec<String>) -> Option<TcpStream> {
    let mut attempts: JoinSet<Result<TcpStream, String>> = JoinSet::new();
    for address in addresses {
        attempts
            .spawn(async move { dial(address, STREAM_PREFIX).await.map_err(|error| format!("{address}: {error}")) });
    }
    while let Some(attempt) = attempts.join_next().await {
        match attempt.map_err(|error| error.to_string()).flatten() {
            Ok(stream) => return Some(stream),
            Err(error) => errors.push(error),
        }
    }
    None
}

/// Connects, and sends what a connection begins with.
async fn dial(address: SocketAddr, beginning: &[u8]) -> Result<TcpStream, String> {
    let failed = |error: io::Error| error.to_string();
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    prepare(&socket, address.is_ipv6()).map_err(failed)?;
    let connecting = timeout(CONNECT_TIMEOUT, socket.connect(address)).await;
    let mut stream = connecting.map_err(|_| "no answer".to_owned())?.map_err(failed)?;
    stream.write_all(beginning).await.map_err(failed)?;
    Ok(stream)
}

/// Reads the stream prefix from an accepted connection, then IKE messages until the connection
/// ends. A connection to a relay goes to `relayed` after the token.
pub(super) async fn accepted(
    mut stream: TcpStream,
    id: TcpConnectionId,
    connections: Connections,
    relayed: AwaitedStreams,
    messages: mpsc::Sender<Received>,
    events: mpsc::Sender<TcpEvent>,
) {
    let begun = timeout(PREFIX_TIMEOUT, read_beginning(&mut stream)).await;
    let begun = begun.unwrap_or_else(|_| Err(format!("no stream prefix within {PREFIX_TIMEOUT:?}")));
    let outcome = match begun {
        Ok(Beginning::Ike) => encapsulate(&stream).map(|()| {
            let stream = Arc::new(stream);
            connections.set_stream(id, stream.clone());
            stream
        }),
        Ok(Beginning::Relay(token)) => {
            connections.release(id);
            if !relayed.deliver(&token, stream) {
                tracing::debug!(?id, "a TCP connection is closed: no open relay has its token");
            }
            return;
        }
        Err(error) => Err(error),
    };
    match outcome {
        Ok(stream) => read(stream, id, connections, messages, events).await,
        Err(error) => {
            // Anybody can cause this, so it is not logged at a higher level.
            tracing::debug!(?id, "a TCP connection is closed: {error}");
            connections.close(id);
        }
    }
}

/// What an accepted connection begins with.
enum Beginning {
    /// The stream prefix of RFC 9329.
    Ike,
    /// The prefix and the token of a relay.
    Relay(RelayToken),
}

async fn read_beginning(stream: &mut TcpStream) -> Result<Beginning, String> {
    let mut prefix = [0; STREAM_PREFIX.len()];
    stream.read_exact(&mut prefix).await.map_err(|error| error.to_string())?;
    match &prefix {
        STREAM_PREFIX => Ok(Beginning::Ike),
        RELAY_PREFIX => {
            let mut token = [0; RelayToken::LEN];
            stream.read_exact(&mut token).await.map_err(|error| error.to_string())?;
            Ok(Beginning::Relay(RelayToken::new(token)))
        }
        _ => Err(format!("the stream begins with {:?}; expected IKETCP", prefix.escape_ascii().to_string())),
    }
}

/// Hands a connection to a hub, or to a relay of it, over to the kernel's encapsulation after what
/// it begins with, and starts to read IKE messages from it.
fn open(
    stream: TcpStream,
    kind: ConnectionKind,
    connections: &Connections,
    now: Instant,
    messages: mpsc::Sender<Received>,
    events: mpsc::Sender<TcpEvent>,
) -> Result<TcpConnectionId, String> {
    let ends = ends(&stream).map_err(|error| error.to_string())?;
    encapsulate(&stream)?;
    let id = connections.add(ends, kind, now).ok_or_else(|| "this node has too many TCP connections".to_owned())?;
    let stream = Arc::new(stream);
    connections.set_stream(id, stream.clone());
    let reader = tokio::spawn(read(stream, id, connections.clone(), messages, events));
    connections.set_reader(id, reader.abort_handle());
    Ok(id)
}

/// Returns the addresses and ports of a connection.
pub(super) fn ends(stream: &TcpStream) -> io::Result<Ends> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    Ok(Ends { local: canonical(stream.local_addr()?), remote: canonical(stream.peer_addr()?) })
}

/// Passes the IKE messages of a connection on, until the connection ends. Waits while the receiver
/// is busy, so that the peer's TCP waits too.
async fn read(
    stream: Arc<TcpStream>,
    id: TcpConnectionId,
    connections: Connections,
    messages: mpsc::Sender<Received>,
    events: mpsc::Sender<TcpEvent>,
) {
    let (local, remote) = connections.stand_ins(id);
    let why = loop {
        let ready = match stream.ready(Interest::READABLE).await {
            Ok(ready) => ready,
            Err(error) => break error.to_string(),
        };
        // Most connections are idle most of the time, so none of them keeps a buffer.
        let mut message = Vec::with_capacity(MAX_MESSAGE);
        match stream.try_read_buf(&mut message) {
            Ok(0) => break "the peer has closed it".to_owned(),
            Ok(_) => {
                if !connections.count_message(id) {
                    break "too many messages without an IKE SA".to_owned();
                }
                message.shrink_to_fit();
                if messages.send((message, local, remote)).await.is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ready.is_read_closed() {
                    break "the peer has closed it".to_owned();
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    tracing::debug!(?id, "a TCP connection has ended: {why}");
    // The report comes first, since closing the connection ends this task.
    let _ = events.send(TcpEvent::Ended(id)).await;
    connections.close(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_carry_esp_in_tcp_is_named_with_the_remedy() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        if let Err(why) = support() {
            assert!(why.contains("CONFIG_INET_ESPINTCP") && why.contains("let UDP pass"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_hub_that_refuses_at_all_addresses_is_reported_with_each_of_them() {
        // Ports on which nothing listens.
        let closed = [0; 2].map(|_| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        });
        let (messages, _messages) = mpsc::channel(1);
        let (events, mut received) = mpsc::channel(1);
        let now = || Instant::new(Duration::ZERO);
        let hub = PeerName::new("hub");
        let choices = closed.map(|address| vec![address]);
        connect(hub.clone(), choices, Connections::new(4500), now, messages, events).await;
        let Some(TcpEvent::Failed(name, why)) = received.recv().await else { panic!("not refused") };
        assert_eq!(name, hub);
        assert!(closed.iter().all(|address| why.contains(&address.to_string())), "{why}");
    }
}
