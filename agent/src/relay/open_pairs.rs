//! The open pairs of a hub, each with a task that copies its datagrams.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;

use edge_ike::{Instant, PeerName};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::awaited_streams::AwaitedStreams;
use super::ends::{EndRandom, RelayAccess, RelayEnd};
use super::sockets::{EndSocket, copy, open_port};
use super::table::MAX_PAIRS;

/// A pair that has ended. Its nodes are in the order of their names.
#[derive(Debug)]
struct EndedPair {
    nodes: (PeerName, PeerName),
    number: u64,
}

/// The open pairs. [`super::table::RelayTable`] limits their number.
#[derive(Debug)]
pub(super) struct OpenPairs {
    /// The runtime of the tasks, so that they do not run on the thread of the tunnels.
    runtime: Handle,
    ports: RangeInclusive<u16>,
    streams: AwaitedStreams,
    now: fn() -> Instant,
    pairs: BTreeMap<(PeerName, PeerName), OpenPair>,
    /// Number of pairs that have been opened so far.
    opened: u64,
    ended_tx: mpsc::Sender<EndedPair>,
    ended: mpsc::Receiver<EndedPair>,
}

#[derive(Debug)]
struct OpenPair {
    number: u64,
    /// How each node's IKE SA reaches this hub. Dropping the sender ends the task.
    ends: watch::Sender<[RelayEnd; 2]>,
}

impl OpenPairs {
    /// Creates an empty set of pairs. Their tasks run on `runtime`, and `now` is their clock.
    pub(super) fn new(
        runtime: Handle,
        ports: RangeInclusive<u16>,
        streams: AwaitedStreams,
        now: fn() -> Instant,
    ) -> Self {
        let (ended_tx, ended) = mpsc::channel(MAX_PAIRS);
        Self { runtime, ports, streams, now, pairs: BTreeMap::new(), opened: 0, ended_tx, ended }
    }

    /// Opens a pair of two nodes, given in the order of their names: for each, a UDP port, or a
    /// token for a TCP connection. Starts to copy between them. The pair ends when one of the nodes
    /// no longer sends. Returns what the nodes must know.
    ///
    /// # Errors
    /// Returns an error if no ports are free, or if the agent lacks CAP_NET_ADMIN.
    pub(super) fn open(
        &mut self,
        nodes: (PeerName, PeerName),
        ends: [RelayEnd; 2],
        random: [EndRandom; 2],
    ) -> io::Result<[RelayAccess; 2]> {
        let [(first, of_first), (second, of_second)] =
            [self.socket(ends[0], random[0])?, self.socket(ends[1], random[1])?];
        let (sockets, accesses) = ([first, second], [of_first, of_second]);
        let (ends, receiver) = watch::channel(ends);
        self.opened += 1;
        let number = self.opened;
        self.pairs.insert(nodes.clone(), OpenPair { number, ends });
        let (ended, now) = (self.ended_tx.clone(), self.now);
        self.runtime.spawn(async move {
            let outcome = copy(sockets, receiver, now).await;
            let (one, other) = (&nodes.0, &nodes.1);
            match outcome {
                Ok(state) => tracing::info!(
                    %one, %other, copied = state.copied_count, dropped = state.dropped_count,
                    "the relay between two nodes is closed"
                ),
                Err(error) => tracing::warn!(%one, %other, %error, "the relay between two nodes cannot be used"),
            }
            let _ = ended.send(EndedPair { nodes, number }).await;
        });
        Ok(accesses)
    }

    fn socket(&self, end: RelayEnd, random: EndRandom) -> io::Result<(EndSocket, RelayAccess)> {
        Ok(match end {
            RelayEnd::Udp { local, .. } => {
                let socket = open_port(local, &self.ports, random.port)?;
                let port = socket.local_addr()?.port();
                (EndSocket::Udp(socket), RelayAccess::Port(port))
            }
            RelayEnd::Tcp => (EndSocket::Tcp(self.streams.expect(random.token)), RelayAccess::Connection(random.token)),
        })
    }

    /// Returns whether the pair is open and can be used as the nodes' IKE SAs reach this hub now.
    pub(super) fn is_at(&self, nodes: &(PeerName, PeerName), ends: [RelayEnd; 2]) -> bool {
        let serves = |pair: &OpenPair| pair.ends.borrow().iter().zip(&ends).all(|(end, now)| end.is_served_as(now));
        self.pairs.get(nodes).is_some_and(serves)
    }

    /// Sets how a node's IKE SA reaches this hub. `first` says whether the node is the first one of
    /// the pair. Returns `false` if the pair cannot be used any more, since the node's IKE SA has
    /// changed between UDP and TCP.
    pub(super) fn move_end(&self, nodes: &(PeerName, PeerName), first: bool, to: RelayEnd) -> bool {
        let Some(pair) = self.pairs.get(nodes) else { return true };
        let mut same_transport = true;
        pair.ends.send_if_modified(|[one, other]| {
            let end = if first { one } else { other };
            same_transport =
                matches!((*end, to), (RelayEnd::Tcp, RelayEnd::Tcp) | (RelayEnd::Udp { .. }, RelayEnd::Udp { .. }));
            let (RelayEnd::Udp { remote, .. }, RelayEnd::Udp { remote: moved, .. }) = (end, to) else { return false };
            std::mem::replace(remote, moved) != moved
        });
        same_transport
    }

    /// Closes the ports of two nodes.
    pub(super) fn close(&mut self, nodes: &(PeerName, PeerName)) {
        self.pairs.remove(nodes);
    }

    /// Waits until a pair ends that was not closed by [`Self::close`], and returns its nodes. This
    /// method is cancel safe.
    pub(super) async fn next_ended(&mut self) -> (PeerName, PeerName) {
        loop {
            let Some(EndedPair { nodes, number }) = self.ended.recv().await else {
                return std::future::pending().await;
            };
            // A pair that was closed has ended too. The entry, if there is one, belongs to a later
            // pair of the same nodes.
            if self.pairs.get(&nodes).is_some_and(|pair| pair.number == number) {
                self.pairs.remove(&nodes);
                return nodes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use edge_ike::wire::RelayToken;
    use interop_tests::netns::is_root_or_skips;

    use super::*;

    static SECONDS: AtomicU64 = AtomicU64::new(0);

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn end(port: u16) -> RelayEnd {
        RelayEnd::Udp { local: LOOPBACK, remote: SocketAddr::new(LOOPBACK, port) }
    }

    fn random(port: u16) -> EndRandom {
        EndRandom { port, token: RelayToken::new([0; 16]) }
    }

    #[tokio::test]
    async fn a_pair_that_was_closed_does_not_end_the_one_that_took_its_place() {
        if !is_root_or_skips() {
            return;
        }
        let now = || Instant::new(Duration::from_secs(SECONDS.load(Ordering::Relaxed)));
        let mut pairs = OpenPairs::new(Handle::current(), 24_000..=25_023, AwaitedStreams::default(), now);
        let nodes = (PeerName::new("a"), PeerName::new("b"));
        let mut last = None;
        for _ in 0..10 {
            pairs.close(&nodes);
            last = Some(pairs.open(nodes.clone(), [end(1), end(2)], [random(7), random(9)]).unwrap());
        }
        assert!(pairs.is_at(&nodes, [end(1), end(2)]));
        assert!(tokio::time::timeout(Duration::from_millis(50), pairs.next_ended()).await.is_err());
        SECONDS.store(90, Ordering::Relaxed);
        // Any event makes the task read the clock.
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let Some([RelayAccess::Port(port), _]) = last else { panic!("no port: {last:?}") };
        socket.send_to(b"x", (LOOPBACK, port)).await.unwrap();
        assert_eq!(pairs.next_ended().await, nodes);
        assert!(!pairs.is_at(&nodes, [end(1), end(2)]));
    }

    #[tokio::test]
    async fn a_pair_serves_a_node_until_that_changes_between_udp_and_tcp() {
        let now = || Instant::new(Duration::ZERO);
        let mut pairs = OpenPairs::new(Handle::current(), 24_000..=25_023, AwaitedStreams::default(), now);
        let nodes = (PeerName::new("a"), PeerName::new("b"));
        let token = RelayToken::new([4; 16]);
        let accesses =
            pairs.open(nodes.clone(), [RelayEnd::Tcp; 2], [random(1), EndRandom { port: 2, token }]).unwrap();
        assert_eq!(accesses[1], RelayAccess::Connection(token));
        // The node's IKE SA is in another connection. That of the pair is not concerned.
        assert!(pairs.move_end(&nodes, true, RelayEnd::Tcp));
        assert!(pairs.is_at(&nodes, [RelayEnd::Tcp; 2]));
        assert!(!pairs.is_at(&nodes, [RelayEnd::Tcp, end(1)]));
        assert!(!pairs.move_end(&nodes, false, end(1)));
    }
}
