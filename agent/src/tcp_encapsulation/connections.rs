//! The open TCP connections of this node, and their limits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_ike::{Instant, TcpConnectionId};
use rustix::net::SendFlags;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Maximum number of connections. At the limit, the oldest one that carries no IKE SA is closed; if
/// there is none, the new one.
const MAX_CONNECTIONS: usize = 4096;
/// Maximum number of connections that carry no IKE SA yet. At the limit, the oldest is closed.
const MAX_UNAUTHENTICATED: usize = 256;
/// Maximum number of connections from one source (an IPv4 address, or an IPv6 network with a 64-bit
/// prefix) that carry no IKE SA yet. Several edges may be behind one NAT. At the limit, the oldest
/// of the source is closed.
const MAX_UNAUTHENTICATED_OF_SOURCE: usize = 16;
/// Maximum number of messages that are read from a connection that carries no IKE SA yet: enough
/// for cookies, fragments and retransmissions. The next message closes the connection.
const MAX_UNAUTHENTICATED_MESSAGES: u32 = 64;
/// Time for which an accepted connection may carry no IKE SA. Then it is closed.
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

/// The port of the addresses that stand for the peers' ends: that of messages with the non-ESP
/// marker.
const REMOTE_PORT: u16 = 4500;

/// The open connections. Clones share them.
#[derive(Debug, Clone)]
pub struct Connections {
    /// The endpoint's port of messages with the non-ESP marker.
    nat_port: u16,
    table: Arc<Mutex<Table>>,
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
    /// Whether the peer began the connection. Only then do the limits apply.
    accepted: bool,
    /// Whether an IKE SA has been established on it.
    authenticated: bool,
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
    fn is_unauthenticated(&self) -> bool {
        self.accepted && !self.authenticated
    }
}

impl Connections {
    /// No connections. `nat_port` is the endpoint's port of messages with the non-ESP marker.
    pub fn new(nat_port: u16) -> Self {
        Self { nat_port, table: Arc::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. `accepted`: the peer began it. Returns `None` if there are too many
    /// connections.
    pub fn add(&self, ends: Ends, accepted: bool, now: Instant) -> Option<TcpConnectionId> {
        let mut table = self.table();
        if accepted {
            table.make_room(ends.remote.ip());
        }
        if table.open.len() >= MAX_CONNECTIONS {
            return None;
        }
        let id = table.free_id();
        let connection = Connection {
            ends,
            order: table.added,
            accepted,
            authenticated: false,
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

    /// Records that an IKE SA has been established on a connection.
    pub fn authenticated(&self, id: TcpConnectionId) {
        if let Some(connection) = self.table().open.get_mut(&id) {
            connection.authenticated = true;
            connection.unused_since = None;
        }
    }

    /// Closes the accepted connections that have carried no IKE SA for [`MAX_UNUSED`]. `used` are
    /// those that carry one now.
    pub fn close_unused(&self, used: &BTreeSet<TcpConnectionId>, now: Instant) {
        let mut table = self.table();
        for (id, connection) in &mut table.open {
            connection.unused_since = if used.contains(id) { None } else { connection.unused_since.or(Some(now)) };
        }
        let is_over = |connection: &Connection| {
            connection.accepted && connection.unused_since.is_some_and(|since| now >= since + MAX_UNUSED)
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
    /// from this address.
    fn make_room(&mut self, remote: IpAddr) {
        let unauthenticated = |table: &Self, of: Option<IpAddr>| -> Vec<TcpConnectionId> {
            let found = table.open.iter().filter(|(_, connection)| connection.is_unauthenticated());
            let found = found.filter(|(_, it)| of.is_none_or(|of| source(it.ends.remote.ip()) == of));
            let mut found: Vec<_> = found.map(|(id, connection)| (connection.order, *id)).collect();
            found.sort_unstable();
            found.into_iter().map(|(_, id)| id).collect()
        };
        let of_source = unauthenticated(self, Some(source(remote)));
        if let Some(oldest) = of_source.first().filter(|_| of_source.len() >= MAX_UNAUTHENTICATED_OF_SOURCE) {
            self.close(*oldest);
        }
        let all = unauthenticated(self, None);
        let full = all.len() >= MAX_UNAUTHENTICATED || self.open.len() >= MAX_CONNECTIONS;
        if let Some(oldest) = all.first().filter(|_| full) {
            self.close(*oldest);
        }
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

/// Returns whether the address stands for an end of a connection.
pub fn is_tcp(address: SocketAddr) -> bool {
    TcpConnectionId::of(address.ip()).is_some()
}

/// Returns the address, or the network, whose connections are counted together.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn from(remote: &str, port: u16) -> Ends {
        Ends { local: "192.0.2.1:4500".parse().unwrap(), remote: SocketAddr::new(remote.parse().unwrap(), port) }
    }

    fn accept(connections: &Connections, remote: &str, port: u16) -> TcpConnectionId {
        connections.add(from(remote, port), true, at(0)).unwrap()
    }

    fn is_open(connections: &Connections, id: TcpConnectionId) -> bool {
        connections.table().open.contains_key(&id)
    }

    #[test]
    fn strangers_of_one_source_make_room_for_each_other_and_for_no_member() {
        let connections = Connections::new(4500);
        let member = accept(&connections, "2001:db8::1", 1);
        connections.authenticated(member);
        let neighbour = accept(&connections, "2001:db8:0:1::1", 1);
        let first = accept(&connections, "2001:db8::2", 1);
        for port in 0..40_000 {
            accept(&connections, &format!("2001:db8::{:x}", port % 7 + 3), port);
        }
        assert!(is_open(&connections, member) && is_open(&connections, neighbour) && !is_open(&connections, first));
        assert_eq!(connections.table().open.len(), 2 + MAX_UNAUTHENTICATED_OF_SOURCE);
        assert_eq!(connections.ends(member), Some(from("2001:db8::1", 1)));
    }

    #[test]
    fn strangers_of_many_sources_never_have_more_than_their_share_and_close_no_member() {
        let connections = Connections::new(4500);
        let members: Vec<_> = (0..100).map(|port| accept_member(&connections, port)).collect();
        for number in 0..2_000_u32 {
            accept(&connections, &format!("203.{}.{}.1", number >> 8, number & 255), 7);
        }
        assert_eq!(connections.table().open.len(), members.len() + MAX_UNAUTHENTICATED);
        assert!(members.iter().all(|member| is_open(&connections, *member)));
        // The addresses of few closed connections are remembered.
        assert_eq!(connections.table().closed.len(), MAX_CLOSED);
    }

    fn accept_member(connections: &Connections, port: u16) -> TcpConnectionId {
        let id = accept(connections, "198.51.100.1", port);
        connections.authenticated(id);
        id
    }

    #[test]
    fn with_all_places_taken_by_members_a_new_connection_is_refused() {
        let connections = Connections::new(4500);
        for port in 0..4096 {
            accept_member(&connections, port);
        }
        assert_eq!(connections.add(from("192.0.2.9", 1), true, at(0)), None);
        let one = *connections.table().open.keys().next().unwrap();
        connections.close(one);
        assert!(connections.add(from("192.0.2.9", 1), true, at(0)).is_some());
    }

    #[test]
    fn numbers_that_begin_again_are_those_of_no_other_connection_and_the_oldest_stays_the_oldest() {
        let connections = Connections::new(4500);
        let [member, closed] = [accept_member(&connections, 1), accept(&connections, "192.0.2.8", 1)];
        connections.close(closed);
        connections.table().next = u32::MAX;
        let strangers: Vec<_> = (1..=17).map(|port| accept(&connections, "192.0.2.9", port)).collect();
        assert_eq!(strangers[0], TcpConnectionId::new(u32::MAX));
        assert!(!strangers.contains(&member) && !strangers.contains(&closed), "{strangers:?}");
        assert_eq!(connections.ends(member), Some(from("198.51.100.1", 1)));
        // The oldest has the largest number.
        let open: Vec<_> = strangers.iter().map(|id| is_open(&connections, *id)).collect();
        assert_eq!(open.iter().position(|open| !open), Some(0));
        assert_eq!(open.iter().filter(|open| **open).count(), MAX_UNAUTHENTICATED_OF_SOURCE);
    }

    #[test]
    fn a_connection_without_an_ike_sa_is_closed_after_a_while_and_after_many_messages() {
        let connections = Connections::new(4500);
        let (member, stranger) = (accept_member(&connections, 1), accept(&connections, "192.0.2.9", 1));
        let own = connections.add(from("192.0.2.10", 4500), false, at(0)).unwrap();
        let used = BTreeSet::from([member]);
        connections.close_unused(&used, at(19));
        assert!(is_open(&connections, stranger));
        connections.close_unused(&used, at(20));
        assert!(!is_open(&connections, stranger) && is_open(&connections, member));
        // Another IKE SA has replaced the one on the member's connection.
        connections.close_unused(&BTreeSet::new(), at(30));
        connections.close_unused(&BTreeSet::new(), at(49));
        assert!(is_open(&connections, member));
        connections.close_unused(&BTreeSet::new(), at(50));
        assert!(!is_open(&connections, member));
        assert!(is_open(&connections, own), "the edge itself decides about its connections");

        let chatty = accept(&connections, "192.0.2.9", 2);
        assert!((0..MAX_UNAUTHENTICATED_MESSAGES).all(|_| connections.count_message(chatty)));
        assert!(!connections.count_message(chatty));
        connections.authenticated(chatty);
        assert!(connections.count_message(chatty));
        assert!((0..1000).all(|_| connections.count_message(own)));
        assert!(!connections.count_message(stranger), "it is closed");
    }

    #[test]
    fn an_address_that_stands_for_a_connection_is_shown_as_the_real_one() {
        let connections = Connections::new(4500);
        let id = accept(&connections, "192.0.2.9", 61_000);
        let shown = |ip: IpAddr| connections.real(SocketAddr::new(ip, 4500)).to_string();
        assert_eq!((shown(id.local()), shown(id.remote())), ("192.0.2.1:4500".into(), "192.0.2.9:61000".into()));
        connections.close(id);
        assert_eq!(shown(id.remote()), "192.0.2.9:61000");
        assert_eq!(shown("192.0.2.7".parse().unwrap()), "192.0.2.7:4500");
        let error = connections.send(id, &[0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }
}
