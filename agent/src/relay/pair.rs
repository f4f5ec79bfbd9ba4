//! One pair of relayed nodes: which datagrams are copied, and to where.

use std::net::SocketAddr;
use std::time::Duration;

use edge_ike::Instant;

/// Time without a datagram from one of the nodes after which a pair closes. Nodes behind NATs send
/// a keepalive every 20 s, and behind a relay each node finds a NAT.
const IDLE: Duration = Duration::from_secs(90);
/// How long the port from which a node sends must be silent before another port of its address
/// takes its place. It is longer than the interval of keepalives, so that nobody else behind the
/// same NAT, or with a forged address, diverts the node's datagrams.
const PORT_SILENCE: Duration = Duration::from_secs(60);
/// Maximum number of datagrams of a pair that are copied in one second, in both directions
/// together. Further ones are dropped, as on a full link.
const MAX_RATE: u32 = 20_000;

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
    /// Number of datagrams that were copied.
    pub(super) copied_count: u64,
    /// Number of datagrams that were dropped: from a stranger, or more than the rate allows.
    pub(super) dropped_count: u64,
}

#[derive(Debug)]
struct End {
    /// The address and port of the node on its IKE SA with the hub. Nothing is taken from another
    /// address.
    ike: SocketAddr,
    /// The port from which the node sends to the relay.
    port: Option<u16>,
    /// When the node was last heard, or the pair was opened.
    heard: Instant,
}

/// Counts the datagrams of one second.
#[derive(Debug)]
struct Rate {
    since: Instant,
    count: u32,
}

impl PairState {
    /// Makes the state of a pair that was opened now, with the remote address and port of each
    /// node's IKE SA.
    pub(super) fn new(ike: [SocketAddr; 2], now: Instant) -> Self {
        let ends = ike.map(|ike| End { ike: canonical(ike), port: None, heard: now });
        Self { ends, rate: Rate { since: now, count: 0 }, copied_count: 0, dropped_count: 0 }
    }

    /// Sets the remote address and port of each node's IKE SA. If one has moved, its NAT has
    /// probably changed all ports, so the port is learned again.
    pub(super) fn set_addresses(&mut self, ike: [SocketAddr; 2]) {
        for (end, ike) in self.ends.iter_mut().zip(ike.map(canonical)) {
            if end.ike != ike {
                *end = End { ike, port: None, heard: end.heard };
            }
        }
    }

    /// Handles a datagram that came from `from` to the port of this node. Returns the address to
    /// which the other port sends it on; `None`: it is dropped.
    pub(super) fn datagram(&mut self, end: PairEnd, from: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let [first, second] = &mut self.ends;
        let (source, other) = if end == PairEnd::First { (first, second) } else { (second, first) };
        if !source.takes(from, now) || !self.rate.allows(now) {
            self.dropped_count = self.dropped_count.saturating_add(1);
            return None;
        }
        // The other node has sent nothing yet. It retransmits, and so does this one.
        let port = other.port?;
        self.copied_count = self.copied_count.saturating_add(1);
        Some(SocketAddr::new(other.ike.ip(), port))
    }

    /// The time at which the pair closes if a node is not heard until then.
    pub(super) fn closes_at(&self) -> Instant {
        let [first, second] = &self.ends;
        first.heard.min(second.heard) + IDLE
    }
}

impl End {
    fn takes(&mut self, from: SocketAddr, now: Instant) -> bool {
        let another = self.port.is_some_and(|port| port != from.port() && now < self.heard + PORT_SILENCE);
        let takes = from.ip().to_canonical() == self.ike.ip() && !another;
        if takes {
            (self.port, self.heard) = (Some(from.port()), now);
        }
        takes
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Rate {
    fn allows(&mut self, now: Instant) -> bool {
        if now >= self.since + Duration::from_secs(1) {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
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
        PairState::new([address("203.0.113.1:4500"), address("[2001:db8::2]:4500")], at(0))
    }

    #[test]
    fn datagrams_go_to_the_port_from_which_the_other_node_sent_also_between_families() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        assert_eq!(pair.datagram(First, one, at(0)), None, "the other one is not known yet");
        assert_eq!(pair.datagram(Second, other, at(1)), Some(one));
        assert_eq!(pair.datagram(First, one, at(2)), Some(other));
        assert_eq!((pair.copied_count, pair.dropped_count), (2, 0));
    }

    #[test]
    fn a_stranger_is_never_learned_and_does_not_keep_a_pair_open() {
        let mut pair = pair();
        for stranger in ["198.51.100.9:4500", "[2001:db8::2]:4500", "[::1]:1"].map(address) {
            for moment in 0..80 {
                assert_eq!(pair.datagram(First, stranger, at(moment)), None);
            }
        }
        assert_eq!((pair.dropped_count, pair.closes_at()), (240, at(90)));
        let (one, other) = (address("[::ffff:203.0.113.1]:61000"), address("[2001:db8::2]:4500"));
        pair.datagram(Second, other, at(2));
        assert_eq!(pair.datagram(First, one, at(2)), Some(other), "an IPv4-mapped source is the node's own");
        assert_eq!(pair.closes_at(), at(92));
    }

    #[test]
    fn a_pair_closes_when_one_node_is_gone_whatever_the_other_one_sends() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        pair.datagram(First, one, at(10));
        for second in 10..80 {
            pair.datagram(Second, other, at(second));
        }
        assert_eq!(pair.closes_at(), at(100));
    }

    #[test]
    fn another_port_of_the_same_address_diverts_nothing_while_the_node_sends() {
        let (mut pair, node, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        let neighbour = address("203.0.113.1:666");
        pair.datagram(First, node, at(0));
        for second in 1..100 {
            assert_eq!(pair.datagram(First, neighbour, at(second)), None);
            assert_eq!(pair.datagram(Second, other, at(second)), Some(node));
            // The node's keepalives.
            if second % 20 == 0 {
                pair.datagram(First, node, at(second));
            }
        }
        // The node's NAT has another mapping: after a silence, the new port counts.
        let moved = address("203.0.113.1:62000");
        assert_eq!(pair.datagram(First, moved, at(139)), None);
        assert_eq!(pair.datagram(First, moved, at(140)), Some(other));
        assert_eq!(pair.datagram(Second, other, at(141)), Some(moved));
    }

    #[test]
    fn a_node_whose_ike_sa_has_moved_is_taken_at_its_new_address_alone_and_at_once() {
        let (mut pair, old, new) = (pair(), address("203.0.113.1:61000"), address("198.51.100.7:4500"));
        let other = address("[2001:db8::2]:4500");
        pair.datagram(Second, other, at(0));
        assert_eq!(pair.datagram(First, old, at(0)), Some(other));
        pair.set_addresses([address("203.0.113.1:4500"), other]);
        assert_eq!(pair.datagram(Second, other, at(1)), Some(old), "nothing has changed");
        // The node's NAT was restarted: its address is the same, but not its ports.
        pair.set_addresses([address("203.0.113.1:7"), other]);
        let port = address("203.0.113.1:62000");
        assert_eq!(pair.datagram(First, port, at(1)), Some(other));
        assert_eq!(pair.datagram(Second, other, at(1)), Some(port));
        pair.set_addresses([new, other]);
        assert_eq!(pair.datagram(Second, other, at(2)), None, "not to the old address");
        assert_eq!(pair.datagram(First, port, at(3)), None);
        assert_eq!(pair.datagram(First, new, at(3)), Some(other));
    }

    #[test]
    fn more_than_the_rate_is_dropped_and_the_next_second_begins_anew() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        pair.datagram(Second, other, at(0));
        let copied = |pair: &mut PairState, second: u64| {
            (0..50_000).filter(|_| pair.datagram(First, one, at(second)).is_some()).count()
        };
        assert_eq!(copied(&mut pair, 0), 19_999);
        assert_eq!(copied(&mut pair, 1), 20_000);
    }
}
