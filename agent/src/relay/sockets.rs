//! The sockets of a relayed pair.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;

use edge_ike::Instant;
use tokio::sync::watch;

use super::pair::{PairEnd, PairState};

/// Size of the buffer for one datagram, bytes. A larger datagram than a jumbo frame holds is
/// dropped.
const BUFFER: usize = 9216;
/// Maximum number of ports that are tried for one socket.
const MAX_TRIES: u16 = 64;

/// Opens a UDP socket on an address of this hub, on one of these ports, which no policy of XFRM
/// concerns. `start` chooses where the search begins, so that ports are not tried in the same order
/// each time.
///
/// # Errors
/// If none of the ports that were tried is free, with the error of the last one.
pub(super) fn open_port(local: IpAddr, ports: &RangeInclusive<u16>, start: u16) -> io::Result<UdpSocket> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the range of ports is empty");
    let count = u32::try_from(ports.clone().count()).unwrap_or(0);
    for step in 0..u32::from(MAX_TRIES).min(count) {
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

/// Copies datagrams between two sockets until a node is not heard any more, or until `addresses`,
/// which has the remote address and port of each node's IKE SA, is dropped. Returns the state at
/// the end. `now` is the clock. Must be called within a tokio runtime.
///
/// # Errors
/// If the sockets cannot be registered with the runtime.
pub(super) async fn copy(
    [first, second]: [UdpSocket; 2],
    mut addresses: watch::Receiver<[SocketAddr; 2]>,
    now: impl Fn() -> Instant,
) -> io::Result<PairState> {
    let (first, second) = (tokio::net::UdpSocket::from_std(first)?, tokio::net::UdpSocket::from_std(second)?);
    let mut state = PairState::new(*addresses.borrow_and_update(), now());
    let (mut from_first, mut from_second) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let left = state.closes_at().saturating_since(now());
        if left.is_zero() {
            return Ok(state);
        }
        tokio::select! {
            received = first.recv_from(&mut from_first) => {
                pass_on(&mut state, PairEnd::First, received, &from_first, &second, now());
            }
            received = second.recv_from(&mut from_second) => {
                pass_on(&mut state, PairEnd::Second, received, &from_second, &first, now());
            }
            changed = addresses.changed() => {
                if changed.is_err() {
                    return Ok(state);
                }
                state.set_addresses(*addresses.borrow_and_update());
            }
            () = tokio::time::sleep(left) => {}
        }
    }
}

/// Sends a datagram on. What cannot be sent at once is dropped, as on a full link; an error is an
/// ICMP error about an earlier datagram.
fn pass_on(
    state: &mut PairState,
    end: PairEnd,
    received: io::Result<(usize, SocketAddr)>,
    buffer: &[u8],
    out: &tokio::net::UdpSocket,
    now: Instant,
) {
    let Ok((length, from)) = received else { return };
    // A datagram that fills the buffer may have been cut.
    let Some(datagram) = buffer.get(..length).filter(|datagram| datagram.len() < BUFFER) else { return };
    if let Some(to) = state.datagram(end, from, now) {
        let _ = out.try_send_to(datagram, to);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use interop_tests::netns::is_root_or_skips;
    use tokio::net::UdpSocket as Node;
    use tokio::sync::Notify;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A pair whose copying runs, on a clock that the test sets.
    struct Running {
        ports: [SocketAddr; 2],
        addresses: watch::Sender<[SocketAddr; 2]>,
        seconds: Arc<AtomicU64>,
        ended: tokio::task::JoinHandle<io::Result<PairState>>,
    }

    fn ike(addresses: [&str; 2]) -> [SocketAddr; 2] {
        addresses.map(|address| SocketAddr::new(ip(address), 4500))
    }

    async fn start(addresses: [&str; 2]) -> Running {
        let open = || {
            let socket = UdpSocket::bind((ip(LOOPBACK), 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let sockets = [open(), open()];
        let ports = [sockets[0].local_addr().unwrap(), sockets[1].local_addr().unwrap()];
        let seconds = Arc::new(AtomicU64::new(0));
        let (clock, asked) = (seconds.clone(), Arc::new(Notify::new()));
        let asks = asked.clone();
        let (addresses, receiver) = watch::channel(ike(addresses));
        let now = move || {
            asks.notify_one();
            Instant::new(Duration::from_secs(clock.load(Ordering::Relaxed)))
        };
        let ended = tokio::spawn(copy(sockets, receiver, now));
        // It has looked at the clock, so the pair is open.
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

    /// Sends until the first datagram of the other node has arrived, as IKE retransmits.
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
        // Any event lets it look at the clock.
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
}
