//! The sockets and connections of a relayed pair.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;

use edge_ike::Instant;
use tokio::sync::watch;

use super::awaited_streams::StreamsOfEnd;
use super::ends::RelayEnd;
use super::frames::{FrameStream, Incoming};
use super::pair::{Destination, PairEnd, PairState};

/// Size of the buffer for one datagram, in octets. It holds the datagram of a jumbo frame.
/// Datagrams that fill the buffer, or are larger, are dropped.
const BUFFER: usize = 9216;

/// Opens a UDP socket on an address of this hub and on one of these ports. The socket bypasses all
/// XFRM policies. `start` determines the first port that is tried, so that the order of the ports
/// varies.
///
/// # Errors
/// Returns an error if no port is free (the error of the last attempt), or if the XFRM policies
/// cannot be bypassed.
pub(super) fn open_port(local: IpAddr, ports: &RangeInclusive<u16>, start: u16) -> io::Result<UdpSocket> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the range of ports is empty");
    let count = u32::try_from(ports.clone().count()).unwrap_or(0);
    for step in 0..count {
        let offset = (u32::from(start) + step) % count;
        let port = u16::try_from(u32::from(*ports.start()) + offset).unwrap_or(*ports.end());
        match UdpSocket::bind((local, port)) {
            Ok(socket) => {
                edge_xfrm::socket::bypass(&socket, local.is_ipv6()).map_err(io::Error::other)?;
                socket.set_nonblocking(true)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// How the hub reaches one of the two nodes.
#[derive(Debug)]
pub(super) enum EndSocket {
    /// By a UDP port.
    Udp(UdpSocket),
    /// By the connection that the node opens.
    Tcp(StreamsOfEnd),
}

/// An [`EndSocket`] that is in use.
enum ActiveEnd {
    Udp {
        socket: tokio::net::UdpSocket,
        buffer: Vec<u8>,
    },
    Tcp {
        streams: StreamsOfEnd,
        /// The node's latest connection; `None` until it is open, and after it has ended.
        stream: Option<FrameStream>,
        frame: Vec<u8>,
    },
}

/// What happened at an end.
enum Arrived {
    /// A datagram of this length from this address.
    Datagram(usize, SocketAddr),
    /// A frame.
    Frame,
    /// A frame of this length, which is not read.
    TooLarge(usize),
    /// The node's connection is open, or has ended.
    Stream(bool),
    /// An ICMP error about an earlier datagram.
    Nothing,
}

impl ActiveEnd {
    fn new(socket: EndSocket) -> io::Result<Self> {
        Ok(match socket {
            EndSocket::Udp(socket) => {
                Self::Udp { socket: tokio::net::UdpSocket::from_std(socket)?, buffer: vec![0; BUFFER] }
            }
            EndSocket::Tcp(streams) => Self::Tcp { streams, stream: None, frame: Vec::new() },
        })
    }

    fn is_connection(&self) -> bool {
        matches!(self, Self::Tcp { .. })
    }

    /// Waits for something to arrive. This method is cancel safe.
    async fn arrives(&mut self) -> Arrived {
        match self {
            Self::Udp { socket, buffer } => match socket.recv_from(buffer).await {
                // A datagram that fills the buffer may have been truncated.
                Ok((length, from)) if length < BUFFER => Arrived::Datagram(length, from),
                _ => Arrived::Nothing,
            },
            Self::Tcp { streams, stream: None, .. } => {
                let opened = streams.next().await;
                self.set_stream(opened)
            }
            Self::Tcp { streams, stream: Some(open), frame } => tokio::select! {
                // The node has connected again. Its former connection may not have ended here yet.
                another = streams.next() => self.set_stream(another),
                read = open.next(frame) => match read {
                    Ok(Incoming::Frame) => Arrived::Frame,
                    Ok(Incoming::TooLarge(length)) => Arrived::TooLarge(length),
                    Err(_) => self.end_stream(),
                },
            },
        }
    }

    fn set_stream(&mut self, opened: std::net::TcpStream) -> Arrived {
        let Self::Tcp { stream, .. } = self else { return Arrived::Nothing };
        *stream = FrameStream::new(opened, BUFFER - 1).ok();
        Arrived::Stream(stream.is_some())
    }

    fn end_stream(&mut self) -> Arrived {
        if let Self::Tcp { stream, .. } = self {
            *stream = None;
        }
        Arrived::Stream(false)
    }

    /// Sends a datagram, or a frame. Returns `false` if it cannot be sent at once, and is therefore
    /// dropped, as on a full link.
    fn send(&mut self, content: &[u8], to: Destination) -> bool {
        match (self, to) {
            (Self::Udp { socket, .. }, Destination::Address(to)) => socket.try_send_to(content, to).is_ok(),
            (Self::Tcp { stream: Some(stream), .. }, Destination::Stream) => stream.send(content),
            _ => false,
        }
    }

    /// Returns the datagram of this length, or the frame, that has just arrived.
    fn content(&self, length: usize) -> &[u8] {
        match self {
            Self::Udp { buffer, .. } => buffer.get(..length).unwrap_or_default(),
            Self::Tcp { frame, .. } => frame,
        }
    }
}

/// Copies datagrams and frames between two nodes until one of them no longer sends, or until the
/// sender of `places` is dropped. `places` says how each node's IKE SA reaches the hub. Returns the
/// state at the end. `now` is the clock. Must be called within a tokio runtime.
///
/// # Errors
/// Returns an error if the sockets cannot be registered with the runtime.
pub(super) async fn copy(
    [first, second]: [EndSocket; 2],
    mut places: watch::Receiver<[RelayEnd; 2]>,
    now: impl Fn() -> Instant,
) -> io::Result<PairState> {
    let (mut first, mut second) = (ActiveEnd::new(first)?, ActiveEnd::new(second)?);
    let mut state = PairState::new(*places.borrow_and_update(), now());
    loop {
        // Neither many datagrams nor many frames keep the other tasks of this thread waiting.
        tokio::task::coop::consume_budget().await;
        let at = now();
        if state.closes_at().is_some_and(|closes| closes <= at) {
            return Ok(state);
        }
        let full_until = state.full_until(at);
        let left = state.closes_at().into_iter().chain(full_until).min().map(|next| next.saturating_since(at));
        let (read_first, read_second) =
            (full_until.is_none() || !first.is_connection(), full_until.is_none() || !second.is_connection());
        tokio::select! {
            arrived = first.arrives(), if read_first => {
                pass_on(&mut state, PairEnd::First, &arrived, &first, &mut second, now());
            }
            arrived = second.arrives(), if read_second => {
                pass_on(&mut state, PairEnd::Second, &arrived, &second, &mut first, now());
            }
            changed = places.changed() => {
                if changed.is_err() {
                    return Ok(state);
                }
                state.set_ends(*places.borrow_and_update());
            }
            () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
        }
    }
}

/// Handles what has arrived at one end.
fn pass_on(state: &mut PairState, end: PairEnd, arrived: &Arrived, from: &ActiveEnd, to: &mut ActiveEnd, now: Instant) {
    let (content, destination) = match *arrived {
        Arrived::Datagram(length, source) => (from.content(length), state.datagram(end, source, length, now)),
        Arrived::Frame => {
            let frame = from.content(0);
            (frame, state.frame(end, frame.len(), now))
        }
        Arrived::TooLarge(length) => return state.too_large(end, length, now),
        Arrived::Stream(open) => return state.stream_changed(end, open, now),
        Arrived::Nothing => return,
    };
    if let Some(destination) = destination
        && !to.send(content, destination)
    {
        state.not_sent();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use edge_ike::wire::RelayToken;
    use interop_tests::netns::is_root_or_skips;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UdpSocket as Node};
    use tokio::sync::Notify;

    use crate::relay::awaited_streams::AwaitedStreams;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A pair with a running [`copy`], and a clock that the test sets.
    struct Running {
        ports: [SocketAddr; 2],
        addresses: watch::Sender<[RelayEnd; 2]>,
        seconds: Arc<AtomicU64>,
        ended: tokio::task::JoinHandle<io::Result<PairState>>,
    }

    fn ike(addresses: [&str; 2]) -> [RelayEnd; 2] {
        addresses.map(|address| RelayEnd::Udp { local: ip(LOOPBACK), remote: SocketAddr::new(ip(address), 4500) })
    }

    async fn start(addresses: [&str; 2]) -> Running {
        let open = || {
            let socket = UdpSocket::bind((ip(LOOPBACK), 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let sockets = [open(), open()];
        let ports = [sockets[0].local_addr().unwrap(), sockets[1].local_addr().unwrap()];
        run(sockets.map(EndSocket::Udp), ports, ike(addresses)).await
    }

    async fn run(sockets: [EndSocket; 2], ports: [SocketAddr; 2], ends: [RelayEnd; 2]) -> Running {
        let seconds = Arc::new(AtomicU64::new(0));
        let (clock, asked) = (seconds.clone(), Arc::new(Notify::new()));
        let asks = asked.clone();
        let (addresses, receiver) = watch::channel(ends);
        let now = move || {
            asks.notify_one();
            Instant::new(Duration::from_secs(clock.load(Ordering::Relaxed)))
        };
        let ended = tokio::spawn(copy(sockets, receiver, now));
        // The task has read the clock, so the pair is open.
        asked.notified().await;
        Running { ports, addresses, seconds, ended }
    }

    async fn node(address: &str) -> Node {
        Node::bind((ip(address), 0)).await.unwrap()
    }

    /// Returns the next datagram that [`meet`] did not send.
    async fn receive(socket: &Node) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 10_000];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if buffer[..length] != *b"hello" {
                return (buffer[..length].to_vec(), from);
            }
        }
    }

    /// Sends datagrams from both nodes until one from `one` has arrived at `other`, as IKE does by
    /// retransmission.
    async fn meet(running: &Running, one: &Node, other: &Node) {
        other.send_to(b"hello", running.ports[1]).await.unwrap();
        let mut buffer = [0; 100];
        loop {
            one.send_to(b"hello", running.ports[0]).await.unwrap();
            let arrived = tokio::time::timeout(Duration::from_millis(50), other.recv_from(&mut buffer));
            if arrived.await.is_ok() {
                return;
            }
        }
    }

    #[tokio::test]
    async fn two_nodes_exchange_datagrams_unchanged_and_a_stranger_reaches_neither() {
        let running = start(["127.0.0.2", "127.0.0.3"]).await;
        let (one, other, stranger) = (node("127.0.0.2").await, node("127.0.0.3").await, node("127.0.0.9").await);
        meet(&running, &one, &other).await;
        for n in 0..100_u8 {
            for port in running.ports {
                stranger.send_to(b"flood", port).await.unwrap();
            }
            let payload = vec![n; usize::from(n) * 14 + 1];
            one.send_to(&payload, running.ports[0]).await.unwrap();
            assert_eq!(receive(&other).await, (payload.clone(), running.ports[1]));
            other.send_to(&payload, running.ports[1]).await.unwrap();
            assert_eq!(receive(&one).await, (payload, running.ports[0]));
        }
        drop(running.addresses);
        let state = running.ended.await.unwrap().unwrap();
        assert!(state.copied_count >= 200 && state.dropped_count > 0, "{state:?}");
    }

    #[tokio::test]
    async fn a_node_that_moves_is_followed_when_its_ike_sa_has_moved() {
        let running = start(["127.0.0.2", "127.0.0.3"]).await;
        let (one, other, moved) = (node("127.0.0.2").await, node("127.0.0.3").await, node("127.0.0.4").await);
        meet(&running, &one, &other).await;
        running.addresses.send_replace(ike(["127.0.0.4", "127.0.0.3"]));
        meet(&running, &moved, &other).await;
        other.send_to(b"to the new address", running.ports[1]).await.unwrap();
        assert_eq!(receive(&moved).await.0, b"to the new address");
    }

    #[tokio::test]
    async fn an_idle_pair_closes_its_ports() {
        let running = start(["127.0.0.2", "127.0.0.3"]).await;
        running.seconds.store(90, Ordering::Relaxed);
        // Any event makes the task read the clock.
        node("127.0.0.9").await.send_to(b"x", running.ports[0]).await.unwrap();
        assert_eq!(running.ended.await.unwrap().unwrap().copied_count, 0);
        for port in running.ports {
            UdpSocket::bind(port).unwrap();
        }
    }

    #[test]
    fn ports_come_from_the_range_and_a_full_range_is_an_error() {
        if !is_root_or_skips() {
            return;
        }
        let probe = UdpSocket::bind((ip(LOOPBACK), 0)).unwrap();
        let taken = probe.local_addr().unwrap().port();
        let range = taken..=taken;
        let error = open_port(ip(LOOPBACK), &range, 7).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(probe);
        assert_eq!(open_port(ip(LOOPBACK), &range, 65_535).unwrap().local_addr().unwrap().port(), taken);
        #[expect(clippy::reversed_empty_ranges, reason = "a range that the configuration must refuse")]
        let empty = 2..=1;
        assert!(open_port(ip(LOOPBACK), &empty, 0).is_err());
    }

    /// Returns a connection of a node to the hub, of which the hub's end was delivered.
    async fn connect(awaited: &AwaitedStreams, token: RelayToken) -> TcpStream {
        let listener = TcpListener::bind((ip(LOOPBACK), 0)).await.unwrap();
        let node = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(awaited.deliver(&token, listener.accept().await.unwrap().0), "no pair has the token");
        node
    }

    async fn write_frame(node: &mut TcpStream, content: &[u8]) {
        let length = u16::try_from(content.len() + 2).unwrap().to_be_bytes();
        node.write_all(&[&length, content].concat()).await.unwrap();
    }

    async fn read_frame(node: &mut TcpStream) -> io::Result<Vec<u8>> {
        let length = usize::from(node.read_u16().await?) - 2;
        let mut content = vec![0; length];
        node.read_exact(&mut content).await?;
        Ok(content)
    }

    /// Reads frames until one with this content has arrived.
    async fn read_until(node: &mut TcpStream, wanted: &[u8]) {
        while read_frame(node).await.unwrap() != wanted {}
    }

    /// Sends a frame until it has arrived: the pair may not have both connections yet.
    async fn send_until_arrived(from: &mut TcpStream, to: &mut TcpStream, content: &[u8]) {
        loop {
            write_frame(from, content).await;
            if tokio::time::timeout(Duration::from_millis(50), to.readable()).await.is_ok() {
                return read_until(to, content).await;
            }
        }
    }

    #[tokio::test]
    async fn a_node_with_a_connection_and_one_with_a_port_exchange_what_they_send() {
        let (awaited, token) = (AwaitedStreams::default(), RelayToken::new([7; 16]));
        let socket = UdpSocket::bind((ip(LOOPBACK), 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let port = socket.local_addr().unwrap();
        let [udp, _] = ike(["127.0.0.2", "127.0.0.2"]);
        let sockets = [EndSocket::Udp(socket), EndSocket::Tcp(awaited.expect(token))];
        let running = run(sockets, [port, port], [udp, RelayEnd::Tcp]).await;
        let one = node("127.0.0.2").await;
        let mut other = connect(&awaited, token).await;
        // The port of the first node becomes known with its first datagram. The pair may not have
        // the connection of the other one yet.
        loop {
            one.send_to(b"hello", port).await.unwrap();
            if tokio::time::timeout(Duration::from_millis(50), other.readable()).await.is_ok() {
                break;
            }
        }
        for n in 0..100_u8 {
            // What has fewer octets than an ESP header is not passed on from a connection.
            let payload = vec![n; usize::from(n) * 14 + 8];
            one.send_to(&payload, port).await.unwrap();
            read_until(&mut other, &payload).await;
            write_frame(&mut other, b"tiny").await;
            write_frame(&mut other, &payload).await;
            assert_eq!(receive(&one).await, (payload, port));
        }
        // The node connects again: the new connection takes the place of the former one, which
        // ends.
        let mut again = connect(&awaited, token).await;
        assert!(read_frame(&mut other).await.is_err(), "the former connection has ended");
        one.send_to(b"to the new one", port).await.unwrap();
        read_until(&mut again, b"to the new one").await;
        // A connection that breaks the framing ends, and the pair stays.
        again.write_all(&[0, 0]).await.unwrap();
        assert!(read_frame(&mut again).await.is_err());
        let mut third = connect(&awaited, token).await;
        write_frame(&mut third, b"still here").await;
        assert_eq!(receive(&one).await.0, b"still here");
        drop(running.addresses);
        assert!(running.ended.await.unwrap().unwrap().copied_count >= 202);
        assert!(!awaited.deliver(&token, third), "a closed pair has no token");
    }

    #[tokio::test]
    async fn two_nodes_with_connections_reach_each_other_and_a_broken_frame_is_not_passed_on() {
        let awaited = AwaitedStreams::default();
        let tokens = [RelayToken::new([1; 16]), RelayToken::new([2; 16])];
        let sockets = tokens.map(|token| EndSocket::Tcp(awaited.expect(token)));
        let nowhere = SocketAddr::new(ip(LOOPBACK), 1);
        let running = run(sockets, [nowhere; 2], [RelayEnd::Tcp; 2]).await;
        let mut one = connect(&awaited, tokens[0]).await;
        let mut other = connect(&awaited, tokens[1]).await;
        send_until_arrived(&mut one, &mut other, b"one to the other").await;
        send_until_arrived(&mut other, &mut one, b"other to the one").await;
        // A frame of which only a part arrives before its connection ends.
        one.write_all(&[0, 100, 1, 2, 3]).await.unwrap();
        drop(one);
        let mut one = connect(&awaited, tokens[0]).await;
        send_until_arrived(&mut one, &mut other, b"one again").await;
        send_until_arrived(&mut other, &mut one, b"other again").await;
        drop(running.addresses);
        running.ended.await.unwrap().unwrap();
    }
}
