//! The open pairs of a hub, each with a task that copies its datagrams.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use edge_ike::{Instant, PeerName};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::sockets::{copy, open_port};
use super::table::MAX_PAIRS;

/// A pair that has ended. Its nodes are in the order of their names.
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
    /// The runtime of the tasks, so that they do not run on the thread of the tunnels.
    runtime: Handle,
    ports: RangeInclusive<u16>,
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
    locals: [IpAddr; 2],
    /// The remote address and port of each node's IKE SA. Dropping the sender ends the task.
    remotes: watch::Sender<[SocketAddr; 2]>,
}

impl OpenPairs {
    /// Creates an empty set of pairs. Their tasks run on `runtime`, and `now` is their clock.
    pub(super) fn new(runtime: Handle, ports: RangeInclusive<u16>, now: fn() -> Instant) -> Self {
        let (ended_tx, ended) = mpsc::channel(MAX_PAIRS);
        Self { runtime, ports, now, pairs: BTreeMap::new(), opened: 0, ended_tx, ended }
    }

    /// Opens the ports of two nodes, given in the order of their names, and starts to copy
    /// datagrams between them. The pair ends when one of the nodes no longer sends. `random`
    /// determines the ports. Returns the ports.
    ///
    /// # Errors
    /// Returns an error if no ports are free, or if the agent lacks CAP_NET_ADMIN.
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

    /// Returns whether the pair is open and its ports are on the hub's addresses in `ends`.
    pub(super) fn is_at(&self, nodes: &(PeerName, PeerName), ends: [RelayEnd; 2]) -> bool {
        self.pairs.get(nodes).is_some_and(|pair| pair.locals == ends.map(|end| end.local))
    }

    /// Sets the remote address and port of a node's IKE SA. `first` says whether the node is the
    /// first one of the pair.
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
        // Any event makes the task read the clock.
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"x", (end(1).local, last[0])).await.unwrap();
        assert_eq!(pairs.next_ended().await, nodes);
        assert!(!pairs.is_at(&nodes, [end(1), end(2)]));
    }
}
