//! One pair of relayed nodes: which datagrams are copied, and to which address.

use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::Instant;

use super::ends::RelayEnd;

/// Time without a datagram from one of the nodes after which a pair closes. Nodes behind NATs send
/// a keepalive every 20 s, and a relay looks like a NAT to both nodes.
const IDLE: Duration = Duration::from_secs(90);
/// Time without a datagram from the port that a node uses, after which another port of the same
/// address replaces that port. It is longer than the interval of keepalives, so that another host
/// behind the same NAT, or one that forges the address, cannot divert the node's datagrams.
const PORT_SILENCE: Duration = Duration::from_secs(60);
/// Maximum number of datagrams of a pair that are copied in one second, in both directions
/// together. A datagram counts once, and once more for each [`UNIT`] octets that it has. Datagrams
/// beyond the limit are dropped, as on a full link. Connections are not read at the limit, so that
/// their senders wait.
const MAX_RATE: u32 = 20_000;
/// Number of octets below which a frame is neither ESP nor IKE, but could become a packet that is
/// many times larger. It is dropped.
const MIN_FRAME: usize = 8;
/// The time in which datagrams are counted.
const PERIOD: Duration = Duration::from_secs(1);
/// Number of octets in a datagram for which it counts once more, see [`MAX_RATE`].
const UNIT: usize = 1500;

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PairEnd {
    /// The node that sends to the first port.
    First,
    /// The node that sends to the second port.
    Second,
}

/// The state of a pair.
#[derive(Debug)]
pub(super) struct PairState {
    ends: [End; 2],
    rate: Rate,
    /// Number of datagrams that were passed on.
    pub(super) copied_count: u64,
    /// Number of datagrams and frames that were dropped because they came from another address or
    /// port, had a size that none of IKE and ESP has, exceeded [`MAX_RATE`], or found no room.
    pub(super) dropped_count: u64,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// From the other port to this address.
    Address(SocketAddr),
    /// To the other node's connection.
    Stream,
}

#[derive(Debug)]
struct End {
    place: Place,
    /// The time of the node's last datagram, or the time at which the pair was opened or its
    /// connection ended.
    heard: Instant,
}

#[derive(Debug)]
enum Place {
    Udp {
        /// The remote address and port of the node's IKE SA with the hub. Datagrams from another
        /// address are dropped.
        ike: SocketAddr,
        /// The port from which the node sends to the relay; `None` until its first datagram.
        port: Option<u16>,
    },
    Tcp {
        /// Whether the node's connection for this pair is open.
        open: bool,
    },
}

/// Counts the datagrams of one second.
#[derive(Debug)]
struct Rate {
    since: Instant,
    count: u32,
}

impl PairState {
    /// Creates the state of a pair that is opened at `now`.
    pub(super) fn new(ends: [RelayEnd; 2], now: Instant) -> Self {
        let ends = ends.map(|end| End { place: Place::of(end), heard: now });
        Self { ends, rate: Rate { since: now, count: 0 }, copied_count: 0, dropped_count: 0 }
    }

    /// Sets the remote address and port of each node's IKE SA. If an IKE SA has moved, the node's
    /// NAT has probably changed all ports, so the next datagram determines the node's port again.
    pub(super) fn set_ends(&mut self, ends: [RelayEnd; 2]) {
        for (end, new) in self.ends.iter_mut().zip(ends.map(Place::of)) {
            if let (Place::Udp { ike, .. }, Place::Udp { ike: moved, .. }) = (&end.place, &new)
                && ike != moved
            {
                end.place = new;
            }
        }
    }

    /// Handles a datagram of `octets` octets from `from` that arrived at the port for the node at
    /// `end`. Returns where it goes; `None` if it must be dropped.
    pub(super) fn datagram(
        &mut self,
        end: PairEnd,
        from: SocketAddr,
        octets: usize,
        now: Instant,
    ) -> Option<Destination> {
        let (source, _) = self.both(end);
        let takes = source.takes(from, now);
        self.pass(end, takes, octets, now)
    }

    /// Handles a frame of `octets` octets that arrived in the connection of the node at `end`.
    /// Returns where it goes; `None` if it must be dropped.
    pub(super) fn frame(&mut self, end: PairEnd, octets: usize, now: Instant) -> Option<Destination> {
        self.both(end).0.heard = now;
        self.pass(end, octets >= MIN_FRAME, octets, now)
    }

    /// Handles a frame that is too large to be copied.
    pub(super) fn too_large(&mut self, end: PairEnd, octets: usize, now: Instant) {
        self.both(end).0.heard = now;
        self.pass(end, false, octets, now);
    }

    /// Records that what was to be copied last could not be sent.
    pub(super) fn not_sent(&mut self) {
        self.copied_count = self.copied_count.saturating_sub(1);
        self.dropped_count = self.dropped_count.saturating_add(1);
    }

    /// Records that the connection of the node at `end` is open, or has ended.
    pub(super) fn stream_changed(&mut self, end: PairEnd, is_open: bool, now: Instant) {
        let (source, _) = self.both(end);
        if let Place::Tcp { open } = &mut source.place {
            (*open, source.heard) = (is_open, now);
        }
    }

    /// Returns the time until which no connection is read, because the pair has copied as much as
    /// it may in this second. Frames of two octets would otherwise cost the hub far more than their
    /// sender.
    pub(super) fn full_until(&self, now: Instant) -> Option<Instant> {
        let until = self.rate.since + PERIOD;
        (self.rate.count >= MAX_RATE && now < until).then_some(until)
    }

    fn both(&mut self, end: PairEnd) -> (&mut End, &mut End) {
        let [first, second] = &mut self.ends;
        if end == PairEnd::First { (first, second) } else { (second, first) }
    }

    fn pass(&mut self, end: PairEnd, takes: bool, octets: usize, now: Instant) -> Option<Destination> {
        // A datagram of a stranger must not use up the rate, but a frame is the node's own.
        let is_frame = matches!(self.both(end).0.place, Place::Tcp { .. });
        let within_rate = (takes || is_frame) && self.rate.allows(octets, now);
        if !takes || !within_rate {
            self.dropped_count = self.dropped_count.saturating_add(1);
            return None;
        }
        // If the other node has sent nothing yet, its port is unknown, and the datagram is dropped.
        // IKE retransmits at both nodes.
        let destination = match self.both(end).1.place {
            Place::Udp { ike, port } => Destination::Address(SocketAddr::new(ike.ip(), port?)),
            Place::Tcp { open } => open.then_some(Destination::Stream)?,
        };
        self.copied_count = self.copied_count.saturating_add(1);
        Some(destination)
    }

    /// Returns the time at which the pair closes unless the node that has been silent longer sends
    /// a datagram before; `None` while both nodes have a connection.
    pub(super) fn closes_at(&self) -> Option<Instant> {
        // A node sends no keepalives in a connection. The kernel notices that the node is gone, and
        // ends the connection.
        let silent = self.ends.iter().filter(|end| !matches!(end.place, Place::Tcp { open: true }));
        silent.map(|end| end.heard + IDLE).min()
    }
}

impl Place {
    fn of(end: RelayEnd) -> Self {
        match end {
            RelayEnd::Udp { remote, .. } => Self::Udp { ike: canonical(remote), port: None },
            RelayEnd::Tcp => Self::Tcp { open: false },
        }
    }
}

impl End {
    fn takes(&mut self, from: SocketAddr, now: Instant) -> bool {
        let Place::Udp { ike, port } = &mut self.place else { return false };
        let another = port.is_some_and(|port| port != from.port() && now < self.heard + PORT_SILENCE);
        let takes = from.ip().to_canonical() == ike.ip() && !another;
        if takes {
            (*port, self.heard) = (Some(from.port()), now);
        }
        takes
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Rate {
    fn allows(&mut self, octets: usize, now: Instant) -> bool {
        if now >= self.since + PERIOD {
            *self = Self { since: now, count: 0 };
        }
        let units = u32::try_from(octets / UNIT).unwrap_or(u32::MAX).saturating_add(1);
        self.count = self.count.saturating_add(units);
        self.count <= MAX_RATE
    }
}

#[cfg(test)]
mod tests {
    use super::PairEnd::{First, Second};
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn pair() -> PairState {
        PairState::new(ends([address("203.0.113.1:4500"), address("[2001:db8::2]:4500")]), at(0))
    }

    fn ends(remotes: [SocketAddr; 2]) -> [RelayEnd; 2] {
        remotes.map(|remote| RelayEnd::Udp { local: "192.0.2.1".parse().unwrap(), remote })
    }

    /// Returns the address to which a datagram is copied.
    fn datagram(
        pair: &mut PairState,
        end: PairEnd,
        from: SocketAddr,
        octets: usize,
        now: Instant,
    ) -> Option<SocketAddr> {
        pair.datagram(end, from, octets, now).map(|to| match to {
            Destination::Address(address) => address,
            Destination::Stream => panic!("neither node has a connection"),
        })
    }

    #[test]
    fn datagrams_go_to_the_port_from_which_the_other_node_sent_also_between_families() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        assert_eq!(datagram(&mut pair, First, one, 100, at(0)), None, "the other one is not known yet");
        assert_eq!(datagram(&mut pair, Second, other, 100, at(1)), Some(one));
        assert_eq!(datagram(&mut pair, First, one, 100, at(2)), Some(other));
        assert_eq!((pair.copied_count, pair.dropped_count), (2, 0));
    }

    #[test]
    fn a_stranger_is_never_learned_and_does_not_keep_a_pair_open() {
        let mut pair = pair();
        for stranger in ["198.51.100.9:4500", "[2001:db8::2]:4500", "[::1]:1"].map(address) {
            for moment in 0..80 {
                assert_eq!(datagram(&mut pair, First, stranger, 100, at(moment)), None);
            }
        }
        assert_eq!((pair.dropped_count, pair.closes_at()), (240, Some(at(90))));
        let (one, other) = (address("[::ffff:203.0.113.1]:61000"), address("[2001:db8::2]:4500"));
        datagram(&mut pair, Second, other, 100, at(2));
        assert_eq!(datagram(&mut pair, First, one, 100, at(2)), Some(other), "an IPv4-mapped source is the node's own");
        assert_eq!(pair.closes_at(), Some(at(92)));
    }

    #[test]
    fn a_pair_closes_when_one_node_is_gone_whatever_the_other_one_sends() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        datagram(&mut pair, First, one, 100, at(10));
        for second in 10..80 {
            datagram(&mut pair, Second, other, 100, at(second));
        }
        assert_eq!(pair.closes_at(), Some(at(100)));
    }

    #[test]
    fn another_port_of_the_same_address_diverts_nothing_while_the_node_sends() {
        let (mut pair, node, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        let neighbour = address("203.0.113.1:666");
        datagram(&mut pair, First, node, 100, at(0));
        for second in 1..100 {
            assert_eq!(datagram(&mut pair, First, neighbour, 100, at(second)), None);
            assert_eq!(datagram(&mut pair, Second, other, 100, at(second)), Some(node));
            // The node's keepalives.
            if second % 20 == 0 {
                datagram(&mut pair, First, node, 100, at(second));
            }
        }
        // The node's NAT has changed its mapping. The new port is accepted after `PORT_SILENCE`.
        let moved = address("203.0.113.1:62000");
        assert_eq!(datagram(&mut pair, First, moved, 100, at(139)), None);
        assert_eq!(datagram(&mut pair, First, moved, 100, at(140)), Some(other));
        assert_eq!(datagram(&mut pair, Second, other, 100, at(141)), Some(moved));
    }

    #[test]
    fn a_node_whose_ike_sa_has_moved_is_taken_at_its_new_address_alone_and_at_once() {
        let (mut pair, old, new) = (pair(), address("203.0.113.1:61000"), address("198.51.100.7:4500"));
        let other = address("[2001:db8::2]:4500");
        datagram(&mut pair, Second, other, 100, at(0));
        assert_eq!(datagram(&mut pair, First, old, 100, at(0)), Some(other));
        pair.set_ends(ends([address("203.0.113.1:4500"), other]));
        assert_eq!(datagram(&mut pair, Second, other, 100, at(1)), Some(old), "nothing has changed");
        // The node's NAT was restarted: the address is the same, but the ports are different.
        pair.set_ends(ends([address("203.0.113.1:7"), other]));
        let port = address("203.0.113.1:62000");
        assert_eq!(datagram(&mut pair, First, port, 100, at(1)), Some(other));
        assert_eq!(datagram(&mut pair, Second, other, 100, at(1)), Some(port));
        pair.set_ends(ends([new, other]));
        assert_eq!(datagram(&mut pair, Second, other, 100, at(2)), None, "not to the old address");
        assert_eq!(datagram(&mut pair, First, port, 100, at(3)), None);
        assert_eq!(datagram(&mut pair, First, new, 100, at(3)), Some(other));
    }

    #[test]
    fn more_than_the_rate_is_dropped_and_the_next_second_begins_anew() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        datagram(&mut pair, Second, other, 100, at(0));
        let copied = |pair: &mut PairState, second: u64| {
            (0..50_000).filter(|_| datagram(pair, First, one, 100, at(second)).is_some()).count()
        };
        assert_eq!(copied(&mut pair, 0), 19_999);
        assert_eq!(copied(&mut pair, 1), 20_000);
        let large = (0..50_000).filter(|_| datagram(&mut pair, First, one, 9000, at(2)).is_some()).count();
        assert_eq!(large, 20_000 / 7, "a jumbo frame counts for seven");
    }

    #[test]
    fn a_node_with_a_connection_is_reached_in_it_and_needs_no_keepalives_while_it_is_open() {
        let other = address("[2001:db8::2]:4500");
        let [_, udp] = ends([other, other]);
        let mut pair = PairState::new([RelayEnd::Tcp, udp], at(0));
        assert_eq!(pair.datagram(Second, other, 100, at(1)), None, "it has no connection yet");
        assert_eq!(pair.closes_at(), Some(at(90)));
        pair.stream_changed(First, true, at(2));
        assert_eq!(pair.datagram(Second, other, 100, at(3)), Some(Destination::Stream));
        assert_eq!(pair.frame(First, 100, at(4)), Some(Destination::Address(other)));
        assert_eq!(pair.datagram(First, other, 100, at(5)), None, "the node has no port");
        assert_eq!(pair.closes_at(), Some(at(93)), "the other node must be heard");
        pair.datagram(Second, other, 100, at(500));
        assert_eq!(pair.closes_at(), Some(at(590)), "the connection alone is enough");
        pair.stream_changed(First, false, at(501));
        assert_eq!(pair.datagram(Second, other, 100, at(502)), None);
        pair.datagram(Second, other, 100, at(580));
        assert_eq!(pair.closes_at(), Some(at(591)), "the node must connect again");
    }

    #[test]
    fn frames_of_two_connections_have_the_same_rate_as_datagrams() {
        let mut pair = PairState::new([RelayEnd::Tcp; 2], at(0));
        pair.stream_changed(First, true, at(0));
        pair.stream_changed(Second, true, at(0));
        assert_eq!(pair.closes_at(), None);
        let mut copied = 0;
        while pair.full_until(at(0)).is_none() {
            copied += usize::from(pair.frame(First, 8, at(0)) == Some(Destination::Stream));
        }
        assert_eq!((copied, pair.full_until(at(0)), pair.full_until(at(1))), (20_000, Some(at(1)), None));
        assert_eq!(pair.frame(First, 8, at(0)), None);
        assert_eq!(pair.frame(First, 8, at(1)), Some(Destination::Stream));
        // What is too small or too large to be copied counts too.
        assert_eq!(pair.frame(First, 7, at(1)), None);
        let mut skipped = 2;
        while pair.full_until(at(1)).is_none() {
            pair.too_large(Second, 65_000, at(1));
            skipped += 44;
        }
        assert!((20_000..20_044).contains(&skipped), "{skipped}");
        let before = (pair.copied_count, pair.dropped_count);
        pair.not_sent();
        assert_eq!((pair.copied_count, pair.dropped_count), (before.0 - 1, before.1 + 1));
    }
}
