//! The open pairs of a hub: a task for each, which copies datagrams.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use edge_ike::{Instant, PeerName};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::sockets::{copy, open_port};
use super::table::MAX_PAIRS;

/// A pair that has ended, by its nodes in the order of their names.
#[derive(Debug)]
struct EndedPair {
    nodes: (PeerName, PeerName),
    number: u64,
}

/// One end of a pair: the addresses of a node's IKE SA with this hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayEnd {
    /// The hub's address.
    pub local: IpAddr,
    /// The node's address and port.
    pub remote: SocketAddr,
}

/// The open pairs. [`super::table::RelayTable`] limits their number.
#[derive(Debug)]
pub(super) struct OpenPairs {
    /// Where the tasks run: not on the thread of the tunnels.
    runtime: Handle,
    ports: RangeInclusive<u16>,
    now: fn() -> Instant,
    pairs: BTreeMap<(PeerName, PeerName), OpenPair>,
    /// Number of pairs that were opened so far.
    opened: u64,
    ended_tx: mpsc::Sender<EndedPair>,
    ended: mpsc::Receiver<EndedPair>,
}

#[derive(Debug)]
struct OpenPair {
    number: u64,
    locals: [IpAddr; 2],
    /// Ends the task when it is dropped.
    remotes: watch::Sender<[SocketAddr; 2]>,
}

impl OpenPairs {
    /// Makes an empty set of pairs whose tasks run on `runtime`. `now` is the clock.
    pub(super) fn new(runtime: Handle, ports: RangeInclusive<u16>, now: fn() -> Instant) -> Self {
        let (ended_tx, ended) = mpsc::channel(MAX_PAIRS);
        Self { runtime, ports, now, pairs: BTreeMap::new(), opened: 0, ended_tx, ended }
    }

    /// Opens the ports of two nodes, given in the order of their names, and copies datagrams
    /// between them until a node is not heard any more. `random` chooses the ports. Returns the
    /// ports.
    ///
    /// # Errors
    /// If no ports are free, or the agent lacks CAP_NET_ADMIN.
    pub(super) fn open(
        &mut self,
        nodes: (PeerName, PeerName),
        [first, second]: [RelayEnd; 2],
        random: [u16; 2],
    ) -> io::Result<[u16; 2]> {
        let sockets =
            [open_port(first.local, &self.ports, random[0])?, open_port(second.local, &self.ports, random[1])?];
        let ports = [sockets[0].local_addr()?.port(), sockets[1].local_addr()?.port()];
        let (remotes, receiver) = watch::channel([first.remote, second.remote]);
        self.opened += 1;
        let number = self.opened;
        self.pairs.insert(nodes.clone(), OpenPair { number, locals: [first.local, second.local], remotes });
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
        Ok(ports)
    }

    /// Returns whether the pair's ports are on the addresses to which the nodes' IKE SAs lead.
    pub(super) fn is_at(&self, nodes: &(PeerName, PeerName), ends: [RelayEnd; 2]) -> bool {
        self.pairs.get(nodes).is_some_and(|pair| pair.locals == ends.map(|end| end.local))
    }

    /// Follows a node whose IKE SA has moved. `first`: whether it is the first node of the pair.
    pub(super) fn move_end(&self, nodes: &(PeerName, PeerName), first: bool, remote: SocketAddr) {
        if let Some(pair) = self.pairs.get(nodes) {
            pair.remotes.send_if_modified(|[one, other]| {
                let end = if first { one } else { other };
                std::mem::replace(end, remote) != remote
            });
        }
    }

    /// Closes the ports of two nodes.
    pub(super) fn close(&mut self, nodes: &(PeerName, PeerName)) {
        self.pairs.remove(nodes);
    }

    /// Waits until a pair ends on its own, and returns its nodes. May be cancelled at any time.
    pub(super) async fn next_ended(&mut self) -> (PeerName, PeerName) {
        loop {
            let Some(EndedPair { nodes, number }) = self.ended.recv().await else {
                return std::future::pending().await;
            };
            // A pair that was closed, and perhaps opened again, has ended before.
            if self.pairs.get(&nodes).is_some_and(|pair| pair.number == number) {
                self.pairs.remove(&nodes);
                return nodes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use interop_tests::netns::is_root_or_skips;

    use super::*;

    static SECONDS: AtomicU64 = AtomicU64::new(0);

    fn end(port: u16) -> RelayEnd {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        RelayEnd { local: loopback, remote: SocketAddr::new(loopback, port) }
    }

    #[tokio::test]
    async fn a_pair_that_was_closed_does_not_end_the_one_that_took_its_place() {
        if !is_root_or_skips() {
            return;
        }
        let now = || Instant::new(Duration::from_secs(SECONDS.load(Ordering::Relaxed)));
        let mut pairs = OpenPairs::new(Handle::current(), 24_000..=25_023, now);
        let nodes = (PeerName::new("a"), PeerName::new("b"));
        let mut last = [0; 2];
        for _ in 0..10 {
            pairs.close(&nodes);
            last = pairs.open(nodes.clone(), [end(1), end(2)], [7, 9]).unwrap();
        }
        assert!(pairs.is_at(&nodes, [end(1), end(2)]));
        assert!(tokio::time::timeout(Duration::from_millis(50), pairs.next_ended()).await.is_err());
        SECONDS.store(90, Ordering::Relaxed);
        // Any event lets the task look at the clock.
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"x", (end(1).local, last[0])).await.unwrap();
        assert_eq!(pairs.next_ended().await, nodes);
        assert!(!pairs.is_at(&nodes, [end(1), end(2)]));
    }
}
