//! The open TCP connections of this node, and their limits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_ike::{Instant, PeerName, TcpConnectionId};
use rustix::net::SendFlags;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::accept_rate::{AcceptRate, Admission, Origin};

/// Maximum number of connections. At the limit, one that carries no IKE SA makes room (see
/// [`Table::make_room`]); if none can, the new one is refused.
const MAX_CONNECTIONS: usize = 4096;
/// Maximum number of connections that carry no IKE SA yet. At the limit, one of them makes room, or
/// the new one is refused.
const MAX_UNAUTHENTICATED: usize = 256;
/// Maximum number of connections from one source (an IPv4 address, or an IPv6 network with a 64-bit
/// prefix) that carry no IKE SA yet. Several edges may be behind one NAT, and all of them connect
/// again when the hub has restarted. At the limit, one of the source makes room, or the new one is
/// refused.
const MAX_UNAUTHENTICATED_OF_SOURCE: usize = 64;
/// Maximum number of connections from one source whose stream prefix has not arrived. At the limit,
/// the oldest of them is closed.
const MAX_WITHOUT_PREFIX_OF_SOURCE: usize = 16;
/// Maximum number of accepted connections of one peer on which IKE SAs have been established: the
/// one in use, and the one before, on which packets may still be under way. At the limit, the
/// earlier one is closed.
const MAX_OF_PEER: usize = 2;
/// Time for a handshake. A connection whose stream prefix has arrived makes no room before.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Maximum number of messages that are read from a connection that carries no IKE SA yet: enough
/// for cookies, fragments and retransmissions. The next message closes the connection.
const MAX_UNAUTHENTICATED_MESSAGES: u32 = 64;
/// Time for which a connection that was accepted, or leads to a relay, may carry no IKE SA. Then it
/// is closed.
const MAX_UNUSED: Duration = Duration::from_secs(20);
/// Maximum number of closed connections whose addresses are still known, since the endpoint may
/// still have SAs on them. Beyond it, the one that was closed first is forgotten.
const MAX_CLOSED: usize = 1024;

/// The addresses and ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// This node's end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

/// Who began a connection, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// A peer, or a stranger. Only then do the limits of unauthenticated connections apply.
    Accepted,
    /// This node, to a hub.
    ToHub,
    /// This node, to a hub that relays to one peer in it.
    ToRelay,
}

/// The port of the addresses that stand for the peers' ends: that of messages with the non-ESP
/// marker.
const REMOTE_PORT: u16 = 4500;

/// The open connections. Clones share them.
#[derive(Debug, Clone)]
pub struct Connections {
    /// The endpoint's port of messages with the non-ESP marker.
    nat_port: u16,
    table: Arc<Mutex<Table>>,
    /// The rate of accepted connections, of all listeners together.
    accept_rate: Arc<Mutex<AcceptRate>>,
}

#[derive(Debug, Default)]
struct Table {
    /// The number that is tried first for the next connection.
    next: u32,
    /// Number of connections that were ever added.
    added: u64,
    open: BTreeMap<TcpConnectionId, Connection>,
    closed: VecDeque<(TcpConnectionId, Ends)>,
}

#[derive(Debug)]
struct Connection {
    ends: Ends,
    /// Number of connections that were added before it. Unlike the [`TcpConnectionId`], it is
    /// never used again.
    order: u64,
    kind: ConnectionKind,
    /// The peer with which an IKE SA has been established on it.
    peer: Option<PeerName>,
    /// Number of messages that were read.
    messages: u32,
    /// Since when it carries no IKE SA; `None` while it carries one.
    unused_since: Option<Instant>,
    /// `None` until the stream prefix has arrived.
    stream: Option<Arc<TcpStream>>,
    /// The task that reads from the connection.
    reader: Option<AbortHandle>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The task shares the stream, which is closed when both have dropped it.
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

impl Connection {
    fn is_accepted(&self) -> bool {
        self.kind == ConnectionKind::Accepted
    }

    fn is_unauthenticated(&self) -> bool {
        self.is_accepted() && self.peer.is_none()
    }
}

impl Connections {
    /// No connections. `nat_port` is the endpoint's port of messages with the non-ESP marker.
    pub fn new(nat_port: u16) -> Self {
        Self { nat_port, table: Arc::default(), accept_rate: Arc::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides whether a new connection from this address is used, and logs when a limit of the
    /// rate is reached.
    pub(super) fn admit(&self, remote: SocketAddr, now: Instant) -> Admission {
        let mut rate = self.accept_rate.lock().unwrap_or_else(PoisonError::into_inner);
        let ip = remote.ip();
        let origin = Origin { remote, source: source(ip), network: with_prefixes(ip, 24, 48) };
        let (admission, line) = rate.admit(origin, now);
        if let Some(line) = line {
            tracing::warn!("{line}");
        }
        admission
    }

    /// Adds a connection. Returns `None` if there are too many connections.
    pub fn add(&self, ends: Ends, kind: ConnectionKind, now: Instant) -> Option<TcpConnectionId> {
        let mut table = self.table();
        let has_room =
            if kind == ConnectionKind::Accepted { table.make_room(ends.remote.ip(), now) } else { !table.is_full() };
        if !has_room {
            return None;
        }
        let id = table.free_id();
        let connection = Connection {
            ends,
            order: table.added,
            kind,
            peer: None,
            messages: 0,
            unused_since: Some(now),
            stream: None,
            reader: None,
        };
        table.added += 1;
        table.open.insert(id, connection);
        Some(id)
    }

    /// Sets the stream of a connection, after the stream prefix.
    pub fn set_stream(&self, id: TcpConnectionId, stream: Arc<TcpStream>) {
        if let Some(connection) = self.table().open.get_mut(&id) {
            connection.stream = Some(stream);
        }
    }

    /// Removes an accepted connection that carries no IKE and ESP of this node, but stays open. The
    /// task that reads from it, which calls this, goes on.
    pub fn release(&self, id: TcpConnectionId) {
        if let Some(mut connection) = self.table().open.remove(&id) {
            connection.reader = None;
        }
    }

    /// Returns the addresses that stand for both ends of a connection.
    pub fn stand_ins(&self, id: TcpConnectionId) -> (SocketAddr, SocketAddr) {
        (SocketAddr::new(id.local(), self.nat_port), SocketAddr::new(id.remote(), REMOTE_PORT))
    }

    /// Sets the task that reads from a connection. It ends when the connection is closed.
    pub fn set_reader(&self, id: TcpConnectionId, reader: AbortHandle) {
        match self.table().open.get_mut(&id) {
            Some(connection) => connection.reader = Some(reader),
            None => reader.abort(),
        }
    }

    /// Counts a message that was read. Returns `false` if the connection must be closed, since it
    /// has sent too much without an IKE SA.
    pub fn count_message(&self, id: TcpConnectionId) -> bool {
        let mut table = self.table();
        let Some(connection) = table.open.get_mut(&id) else { return false };
        connection.messages = connection.messages.saturating_add(1);
        !connection.is_unauthenticated() || connection.messages <= MAX_UNAUTHENTICATED_MESSAGES
    }

    /// Records that an IKE SA with a peer has been established on a connection. Closes the peer's
    /// earlier connections, but for the last one before.
    pub fn authenticated(&self, id: TcpConnectionId, peer: &PeerName) {
        let mut table = self.table();
        let Some(connection) = table.open.get_mut(&id) else { return };
        connection.peer = Some(peer.clone());
        connection.unused_since = None;
        let of_peer = table.open.iter().filter(|(other, it)| **other != id && it.is_accepted());
        let of_peer = of_peer.filter(|(_, it)| it.peer.as_ref() == Some(peer));
        let mut earlier: Vec<_> = of_peer.map(|(id, connection)| (connection.order, *id)).collect();
        earlier.sort_unstable();
        let over = (earlier.len() + 1).saturating_sub(MAX_OF_PEER);
        for (_, id) in earlier.into_iter().take(over) {
            table.close(id);
        }
    }

    /// Closes the connections that have carried no IKE SA for [`MAX_UNUSED`], but for those to hubs
    /// ([`super::Fallback`] closes them). `used` are those that carry one now.
    pub fn close_unused(&self, used: &BTreeSet<TcpConnectionId>, now: Instant) {
        let mut table = self.table();
        for (id, connection) in &mut table.open {
            connection.unused_since = if used.contains(id) { None } else { connection.unused_since.or(Some(now)) };
        }
        let is_over = |connection: &Connection| {
            connection.kind != ConnectionKind::ToHub
                && connection.unused_since.is_some_and(|since| now >= since + MAX_UNUSED)
        };
        let over: Vec<_> = table.open.iter().filter(|(_, it)| is_over(it)).map(|(id, _)| *id).collect();
        for id in over {
            tracing::debug!(?id, "closing a TCP connection that carries no IKE SA");
            table.close(id);
        }
    }

    /// Returns whether there are open connections.
    pub fn is_empty(&self) -> bool {
        self.table().open.is_empty()
    }

    /// Returns whether a connection is open.
    pub fn is_open(&self, id: TcpConnectionId) -> bool {
        self.table().open.contains_key(&id)
    }

    /// Closes a connection. Its addresses stay known for a while.
    pub fn close(&self, id: TcpConnectionId) {
        self.table().close(id);
    }

    /// Returns the addresses and ports of a connection, which may be closed.
    pub fn ends(&self, id: TcpConnectionId) -> Option<Ends> {
        let table = self.table();
        let closed = || table.closed.iter().find(|(known, _)| *known == id).map(|(_, ends)| *ends);
        table.open.get(&id).map(|connection| connection.ends).or_else(closed)
    }

    /// Returns the address that people know: of an address that stands for the end of a connection,
    /// the real one.
    pub fn real(&self, address: SocketAddr) -> SocketAddr {
        let Some((id, ends)) = TcpConnectionId::of(address.ip()).and_then(|id| Some((id, self.ends(id)?))) else {
            return address;
        };
        if address.ip() == id.local() { ends.local } else { ends.remote }
    }

    /// Sends an IKE message, with the non-ESP marker.
    ///
    /// # Errors
    /// Returns an error if the connection is closed, or if its send buffer is full. The endpoint
    /// then sends the message again later.
    pub fn send(&self, id: TcpConnectionId, message: &[u8]) -> io::Result<()> {
        let stream = self.table().open.get(&id).and_then(|connection| connection.stream.clone());
        let stream =
            stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the TCP connection is closed"))?;
        // One call sends one message. The kernel refuses other flags. The runtime's own way to send
        // would wait for events that the kernel does not send for such sockets.
        rustix::net::send(&stream, message, SendFlags::DONTWAIT)?;
        Ok(())
    }
}

impl Table {
    /// Closes connections that carry no IKE SA, as far as the limits require it before another one
    /// from this address. Returns `false` if the new one must be refused.
    ///
    /// The network with the most such connections gives up one of its own, so that a stranger with
    /// many addresses keeps nobody out. A wave of new connections, after a restart of this hub,
    /// throws out none that is in the middle of its handshake.
    fn make_room(&mut self, remote: IpAddr, now: Instant) -> bool {
        let of_source = self.unauthenticated(|it| source(it.ends.remote.ip()) == source(remote));
        let without_prefix = of_source.iter().filter(|(_, it)| it.stream.is_none()).count();
        if without_prefix >= MAX_WITHOUT_PREFIX_OF_SOURCE || of_source.len() >= MAX_UNAUTHENTICATED_OF_SOURCE {
            let Some(id) = giving_way(&of_source, now) else { return false };
            self.close(id);
        }
        let all = self.unauthenticated(|_| true);
        if all.len() >= MAX_UNAUTHENTICATED || self.is_full() {
            let unused = || if all.len() < MAX_UNAUTHENTICATED { self.longest_unused() } else { None };
            let Some(id) = giving_way_to(remote, &all, now).or_else(unused) else { return false };
            self.close(id);
        }
        true
    }

    /// Returns the accepted connection that carried an IKE SA once, and has carried none for the
    /// longest time.
    fn longest_unused(&self) -> Option<TcpConnectionId> {
        let used_once = self.open.iter().filter(|(_, it)| it.is_accepted() && it.peer.is_some());
        let unused = used_once.filter_map(|(id, it)| Some((it.unused_since?, it.order, *id)));
        unused.min().map(|(_, _, id)| id)
    }

    fn is_full(&self) -> bool {
        self.open.len() >= MAX_CONNECTIONS
    }

    /// Returns the connections that carry no IKE SA yet and fit, the oldest first.
    fn unauthenticated(&self, fits: impl Fn(&Connection) -> bool) -> Vec<(TcpConnectionId, &Connection)> {
        let found = self.open.iter().filter(|(_, it)| it.is_unauthenticated() && fits(it));
        let mut found: Vec<_> = found.map(|(id, connection)| (*id, connection)).collect();
        found.sort_unstable_by_key(|(_, connection)| connection.order);
        found
    }

    /// Returns the next number that no open connection has, and no closed one that is still known.
    /// There are far more numbers than such connections.
    fn free_id(&mut self) -> TcpConnectionId {
        loop {
            let id = TcpConnectionId::new(self.next);
            self.next = self.next.wrapping_add(1);
            if !self.open.contains_key(&id) && self.closed.iter().all(|(closed, _)| *closed != id) {
                return id;
            }
        }
    }

    fn close(&mut self, id: TcpConnectionId) {
        let Some(connection) = self.open.remove(&id) else { return };
        self.closed.push_back((id, connection.ends));
        if self.closed.len() > MAX_CLOSED {
            self.closed.pop_front();
        }
    }
}

/// Returns which of these connections, the oldest first, is closed for another one: the oldest
/// without a stream prefix, or the oldest that has had its time for a handshake.
fn giving_way(connections: &[(TcpConnectionId, &Connection)], now: Instant) -> Option<TcpConnectionId> {
    let had_its_time = |it: &Connection| it.unused_since.is_some_and(|since| now >= since + HANDSHAKE);
    let silent = connections.iter().find(|(_, it)| it.stream.is_none());
    silent.or_else(|| connections.iter().find(|(_, it)| had_its_time(it))).map(|(id, _)| *id)
}

/// Returns which of these connections, the oldest first, is closed for another one from this
/// address: one of the networks that have most of them, with the new one. If the new one's network
/// is not among these, the latest is closed if none gives way.
fn giving_way_to(
    remote: IpAddr,
    connections: &[(TcpConnectionId, &Connection)],
    now: Instant,
) -> Option<TcpConnectionId> {
    let new = network(remote);
    let mut numbers = BTreeMap::from([(new, 1)]);
    for (_, connection) in connections {
        *numbers.entry(network(connection.ends.remote.ip())).or_default() += 1;
    }
    let most = numbers.values().copied().max();
    let has_most = |network: IpAddr| numbers.get(&network).copied() == most;
    let of_most: Vec<_> =
        connections.iter().filter(|(_, it)| has_most(network(it.ends.remote.ip()))).copied().collect();
    let latest = of_most.last().filter(|_| !has_most(new)).map(|(id, _)| *id);
    giving_way(&of_most, now).or(latest)
}

/// Returns whether the address stands for an end of a connection.
pub fn is_tcp(address: SocketAddr) -> bool {
    TcpConnectionId::of(address.ip()).is_some()
}

/// Returns the address, or the network, whose connections are counted together.
fn source(address: IpAddr) -> IpAddr {
    with_prefixes(address, 32, 64)
}

/// Returns the address, or the network, that competes with others for the places of connections.
/// Whoever has a network of this size can have connections from many sources.
fn network(address: IpAddr) -> IpAddr {
    with_prefixes(address, 32, 48)
}

/// Returns the first address of the network of an address. The prefix of IPv4 networks has `v4`
/// bits, that of IPv6 networks `v6`, at least one.
fn with_prefixes(address: IpAddr, v4: u8, v6: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - v4))).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - v6))).into(),
    }
}

#[cfg(test)]
mod tests;
