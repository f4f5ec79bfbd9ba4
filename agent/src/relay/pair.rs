//! One pair of relayed nodes: which datagrams are copied, and to where.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::Instant;

/// Time without a copied datagram after which a pair closes. Nodes behind NATs send a keepalive
/// every 20 s.
const IDLE: Duration = Duration::from_secs(90);
/// How long the port from which a node sends must be silent before another port of its address
/// takes its place. Until then, nobody else behind the same NAT diverts the node's datagrams.
const PORT_SILENCE: Duration = Duration::from_secs(10);
/// Maximum number of datagrams of a pair that are copied in one second, in both directions
/// together. Further ones are dropped, as on a full link.
const MAX_RATE: u32 = 20_000;

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairEnd {
    /// The node that sends to the first port.
    First,
    /// The node that sends to the second port.
    Second,
}

/// The state of a pair.
#[derive(Debug)]
pub struct PairState {
    ends: [End; 2],
    /// When the last datagram was copied.
    copied: Instant,
    rate: Rate,
    /// Number of datagrams that were copied.
    pub copied_count: u64,
    /// Number of datagrams that were dropped: from a stranger, or more than the rate allows.
    pub dropped_count: u64,
}

#[derive(Debug)]
struct End {
    /// The address that the node's IKE SA with the hub has. Nothing is taken from another one.
    address: IpAddr,
    /// The port from which the node sends, with the time of its last datagram.
    port: Option<(u16, Instant)>,
}

/// Counts the datagrams of one second.
#[derive(Debug)]
struct Rate {
    since: Instant,
    count: u32,
}

impl PairState {
    /// Makes the state of a pair that was opened now, with the address of each node's IKE SA.
    pub fn new(addresses: [IpAddr; 2], now: Instant) -> Self {
        let ends = addresses.map(|address| End { address: address.to_canonical(), port: None });
        Self { ends, copied: now, rate: Rate { since: now, count: 0 }, copied_count: 0, dropped_count: 0 }
    }

    /// Sets the address of a node whose IKE SA has moved. The port is learned again.
    pub fn set_address(&mut self, end: PairEnd, address: IpAddr) {
        let [first, second] = &mut self.ends;
        let end = if end == PairEnd::First { first } else { second };
        let address = address.to_canonical();
        if end.address != address {
            *end = End { address, port: None };
        }
    }

    /// Handles a datagram that came from `from` to the port of this node. Returns the address to
    /// which the other port sends it on; `None`: it is dropped.
    pub fn datagram(&mut self, end: PairEnd, from: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let [first, second] = &mut self.ends;
        let (source, other) = if end == PairEnd::First { (first, second) } else { (second, first) };
        if !source.takes(from, now) || !self.rate.allows(now) {
            self.dropped_count = self.dropped_count.saturating_add(1);
            return None;
        }
        // The other node has sent nothing yet. It retransmits, and so does this one.
        let (port, _) = other.port?;
        self.copied = now;
        self.copied_count = self.copied_count.saturating_add(1);
        Some(SocketAddr::new(other.address, port))
    }

    /// The time at which the pair closes if no datagram is copied until then.
    pub fn closes_at(&self) -> Instant {
        self.copied + IDLE
    }
}

impl End {
    fn takes(&mut self, from: SocketAddr, now: Instant) -> bool {
        let alive = |heard: Instant| now < heard + PORT_SILENCE;
        let another = self.port.is_some_and(|(port, heard)| port != from.port() && alive(heard));
        let takes = from.ip().to_canonical() == self.address && !another;
        if takes {
            self.port = Some((from.port(), now));
        }
        takes
    }
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

    fn at(millis: u64) -> Instant {
        Instant::new(Duration::from_millis(millis))
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn pair() -> PairState {
        PairState::new(["203.0.113.1".parse().unwrap(), "2001:db8::2".parse().unwrap()], at(0))
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
            for moment in 0..1000 {
                assert_eq!(pair.datagram(First, stranger, at(moment)), None);
            }
        }
        assert_eq!((pair.dropped_count, pair.closes_at()), (3000, at(90_000)));
        let (one, other) = (address("[::ffff:203.0.113.1]:61000"), address("[2001:db8::2]:4500"));
        pair.datagram(Second, other, at(2000));
        assert_eq!(pair.datagram(First, one, at(2000)), Some(other), "an IPv4-mapped source is the node's own");
        assert_eq!(pair.closes_at(), at(92_000));
    }

    #[test]
    fn another_port_of_the_same_address_diverts_nothing_while_the_node_sends() {
        let (mut pair, node, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        let neighbour = address("203.0.113.1:666");
        pair.datagram(First, node, at(0));
        for second in 1..30 {
            assert_eq!(pair.datagram(First, neighbour, at(second * 1000)), None);
            assert_eq!(pair.datagram(Second, other, at(second * 1000)), Some(node));
            pair.datagram(First, node, at(second * 1000));
        }
        // The node's NAT has another mapping: after a silence, the new port counts.
        let moved = address("203.0.113.1:62000");
        assert_eq!(pair.datagram(First, moved, at(38_999)), None);
        assert_eq!(pair.datagram(First, moved, at(39_000)), Some(other));
        assert_eq!(pair.datagram(Second, other, at(39_001)), Some(moved));
    }

    #[test]
    fn a_node_whose_ike_sa_has_moved_is_taken_at_its_new_address_alone() {
        let (mut pair, old, new) = (pair(), address("203.0.113.1:61000"), address("198.51.100.7:4500"));
        let other = address("[2001:db8::2]:4500");
        pair.datagram(Second, other, at(0));
        assert_eq!(pair.datagram(First, old, at(0)), Some(other));
        pair.set_address(First, old.ip());
        assert_eq!(pair.datagram(Second, other, at(1)), Some(old), "nothing has changed");
        pair.set_address(First, new.ip());
        assert_eq!(pair.datagram(Second, other, at(2)), None, "not to the old address");
        assert_eq!(pair.datagram(First, old, at(3)), None);
        assert_eq!(pair.datagram(First, new, at(3)), Some(other));
    }

    #[test]
    fn more_than_the_rate_is_dropped_and_the_next_second_begins_anew() {
        let (mut pair, one, other) = (pair(), address("203.0.113.1:61000"), address("[2001:db8::2]:4500"));
        pair.datagram(Second, other, at(0));
        let copied = |pair: &mut PairState, from: u64| {
            (0..50_000).filter(|n| pair.datagram(First, one, at(from + n / 100)).is_some()).count()
        };
        assert_eq!(copied(&mut pair, 0), 19_999);
        assert_eq!(copied(&mut pair, 1000), 20_000);
    }
}
