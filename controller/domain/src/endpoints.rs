//! Where peers are sent to look for a node. What a node says of itself makes hubs and members send
//! packets there, so not every address is passed on, few of them are, and they do not change
//! quickly.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_types::{IpNetwork, NodeName};
use tokio::time::Instant;

/// Most addresses of one node that its peers get; the operator's for a hub come on top.
pub const MOST: usize = 8;
/// Changes of a node's addresses that are passed on at once...
const BURST: u32 = 8;
/// ...and then one within so long; the latest counts.
const PERIOD: Duration = Duration::from_secs(10);
/// Nodes of which changes are remembered before those that may change as they like are forgotten.
const REMEMBERED: usize = 1024;

/// Whether a peer may be sent there: no address that means something else on another machine, or
/// stands for no machine (RFC 6890, RFC 4291), and none in a network that is reached through a
/// tunnel.
pub fn is_reachable<'a>(address: &IpAddr, mut networks: impl Iterator<Item = &'a IpNetwork>) -> bool {
    let address = address.to_canonical();
    let usable = match address {
        IpAddr::V4(ip) => is_usable_v4(&ip),
        IpAddr::V6(ip) => is_usable_v6(&ip),
    };
    usable && !networks.any(|network| network.contains(address))
}

fn is_usable_v4(ip: &Ipv4Addr) -> bool {
    // "This network" 0.0.0.0/8, and 240.0.0.0/4 with the broadcast address.
    let reserved = ip.octets()[0] == 0 || ip.octets()[0] >= 240;
    // Link-local holds the metadata service of clouds, 169.254.169.254.
    !(reserved || ip.is_loopback() || ip.is_link_local() || ip.is_multicast())
}

fn is_usable_v6(ip: &Ipv6Addr) -> bool {
    let [first, second, third, ..] = ip.segments();
    // ::/96 with :: and ::1, once addresses of IPv4; 100::/64, which discards; 64:ff9b:1::/48,
    // which translates as each network likes.
    let reserved =
        ip.segments()[..6] == [0; 6] || (first, second) == (0x0100, 0) || [first, second, third] == [0x64, 0xff9b, 1];
    // fe80::/10, and the site-local fec0::/10 before it was given up.
    let local = first & 0xff80 == 0xfe80;
    // The metadata service of one cloud.
    let metadata = *ip == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    !(reserved || local || metadata || ip.is_multicast()) && within(ip).is_none_or(|ip| is_usable_v4(&ip))
}

/// The IPv4 address to which packets are translated or tunnelled: 64:ff9b::/96 (RFC 6052 2.1),
/// 2002::/16 (RFC 3056 2).
fn within(ip: &Ipv6Addr) -> Option<Ipv4Addr> {
    let [first, second, third, .., seventh, eighth] = ip.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(of(seventh, eighth)),
        _ if first == 0x2002 => Some(of(second, third)),
        _ => None,
    }
}

/// The first of a node's addresses that its peers may get, in its order. One place is left for the
/// address from which its report came, which is the only good one behind a NAT.
pub fn passed_on<'a>(
    addresses: impl IntoIterator<Item = IpAddr>,
    networks: impl Iterator<Item = &'a IpNetwork> + Clone,
) -> Vec<IpAddr> {
    let mut passed = Vec::with_capacity(MOST - 1);
    for address in addresses.into_iter().map(|address| address.to_canonical()) {
        if passed.len() < MOST - 1 && !passed.contains(&address) && is_reachable(&address, networks.clone()) {
            passed.push(address);
        }
    }
    passed
}

/// What a node says of where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Addresses, likeliest first.
    pub reported: Vec<IpAddr>,
    /// UDP port.
    pub port: u16,
    /// From where it said so, if that is of use.
    pub observed: Option<IpAddr>,
}

/// How often each node has changed its addresses of late.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Mutex<Nodes>>);

#[derive(Debug)]
struct Nodes {
    all: HashMap<NodeName, Recent>,
    forget_at: usize,
}

#[derive(Debug)]
struct Recent {
    /// When the next change may be passed on, had there been no burst: the bucket as a single time
    /// (GCRA).
    due: Instant,
    /// What waits for its turn.
    waiting: Option<Place>,
    /// Somebody waits with it.
    attended: bool,
}

/// What is to be done with a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is passed on.
    Now,
    /// It waits, and whoever asked waits with it: [`Changes::next`].
    Wait,
    /// It waits, and somebody waits already.
    Waits,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    At(Instant),
    Now(Option<Place>),
}

impl Default for Nodes {
    fn default() -> Self {
        Self { all: HashMap::new(), forget_at: REMEMBERED }
    }
}

impl Recent {
    fn new(now: Instant) -> Self {
        Self { due: now, waiting: None, attended: false }
    }

    /// When one more is allowed.
    fn allowed_at(&self) -> Instant {
        self.due.checked_sub(PERIOD * (BURST - 1)).unwrap_or(self.due)
    }

    fn take(&mut self, now: Instant) -> bool {
        let allowed = self.allowed_at() <= now;
        if allowed {
            self.due = self.due.max(now) + PERIOD;
        }
        allowed
    }
}

impl Changes {
    /// Whether a node may change its addresses now.
    pub fn take(&self, node: &NodeName) -> bool {
        let now = Instant::now();
        self.with(node, now, |recent| recent.take(now))
    }

    /// A node is somewhere else: passed on now, or later unless it is somewhere else again by then.
    pub fn moved(&self, node: &NodeName, place: &Place) -> Verdict {
        self.moved_at(node, place, Instant::now())
    }

    fn moved_at(&self, node: &NodeName, place: &Place, now: Instant) -> Verdict {
        self.with(node, now, |recent| {
            if recent.waiting.is_none() && recent.take(now) {
                return Verdict::Now;
            }
            recent.waiting = Some(place.clone());
            match std::mem::replace(&mut recent.attended, true) {
                false => Verdict::Wait,
                true => Verdict::Waits,
            }
        })
    }

    /// A node is where it was known to be: what waited is void.
    pub fn stays(&self, node: &NodeName) {
        if let Some(recent) = self.nodes().all.get_mut(node) {
            recent.waiting = None;
        }
    }

    /// What could not be noted waits again, unless there is a later one.
    pub fn again(&self, node: &NodeName, place: Place) -> bool {
        self.with(node, Instant::now(), |recent| {
            let again = recent.waiting.is_none() && !recent.attended;
            if again {
                (recent.waiting, recent.attended) = (Some(place), true);
            }
            again
        })
    }

    /// Waits for a node's turn: where it is by then, unless that is known already.
    pub async fn next(&self, node: &NodeName) -> Option<Place> {
        loop {
            match self.turn_at(node, Instant::now()) {
                Turn::At(then) => tokio::time::sleep_until(then).await,
                Turn::Now(place) => return place,
            }
        }
    }

    fn turn_at(&self, node: &NodeName, now: Instant) -> Turn {
        self.with(node, now, |recent| {
            if recent.waiting.is_some() && !recent.take(now) {
                return Turn::At(recent.allowed_at());
            }
            recent.attended = false;
            Turn::Now(recent.waiting.take())
        })
    }

    fn with<T>(&self, node: &NodeName, now: Instant, act: impl FnOnce(&mut Recent) -> T) -> T {
        let mut nodes = self.nodes();
        if nodes.all.len() >= nodes.forget_at {
            nodes.all.retain(|_, recent| recent.due > now || recent.attended);
            nodes.forget_at = (2 * nodes.all.len()).max(REMEMBERED);
        }
        act(nodes.all.entry(node.clone()).or_insert_with(|| Recent::new(now)))
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, Nodes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn place(last: u8) -> Place {
        Place { reported: vec![[192, 0, 2, last].into()], port: 4500, observed: None }
    }

    #[test]
    fn addresses_that_mean_something_else_elsewhere_are_not_passed_on() {
        let networks: Vec<IpNetwork> = ["10.77.0.0/16", "fd77::/64"].map(|network| network.parse().unwrap()).into();
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "169.254.1.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "10.77.3.4",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.77.0.1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "fd00:ec2::254",
            "fd77::1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::1",
        ] {
            assert!(!is_reachable(&ip(bad), networks.iter()), "{bad}");
        }
        for good in [
            "192.168.1.10",
            "10.0.0.1",
            "100.64.0.1",
            "203.0.113.7",
            "fd78::1",
            "2001:db8::1",
            "fc00::1",
            "64:ff9b::cb00:7107",
            "2002:cb00:7107::1",
        ] {
            assert!(is_reachable(&ip(good), networks.iter()), "{good}");
        }
    }

    #[test]
    fn of_many_addresses_the_first_are_passed_on_each_once() {
        let many = (0..40).flat_map(|n| [IpAddr::from([192, 0, 2, n]), ip("127.0.0.1"), ip("::ffff:192.0.2.0")]);
        let passed = passed_on(many, [].iter());
        assert_eq!(passed, (0..7).map(|n| IpAddr::from([192, 0, 2, n])).collect::<Vec<_>>());
    }

    #[test]
    fn a_node_that_changes_quickly_is_passed_on_a_few_times_and_then_slowly_with_its_latest_place() {
        let (changes, node) = (Changes::default(), "edge-1".parse().unwrap());
        let begin = Instant::now();
        let take = |now| changes.with(&node, now, |recent| recent.take(now));
        for n in 0..BURST {
            assert_eq!(changes.moved_at(&node, &place(n as u8), begin), Verdict::Now);
        }
        assert_eq!(changes.moved_at(&node, &place(100), begin), Verdict::Wait);
        assert_eq!(changes.moved_at(&node, &place(101), begin), Verdict::Waits, "one waits, however many come");
        assert!(!take(begin), "by whichever way");
        let other = "edge-2".parse().unwrap();
        assert_eq!(changes.moved_at(&other, &place(1), begin), Verdict::Now, "another node is another one");
        assert_eq!(changes.turn_at(&node, begin), Turn::At(begin + PERIOD));
        assert_eq!(changes.turn_at(&node, begin + PERIOD), Turn::Now(Some(place(101))));
        // In a long run no more than one a period.
        let passed = (0..100).filter(|n| take(begin + PERIOD + PERIOD / 10 * *n)).count();
        assert_eq!(passed, 9);
        // Where it is back before its turn, nothing waits any more.
        let now = begin + PERIOD * 11 - Duration::from_secs(1);
        assert_eq!(changes.moved_at(&node, &place(102), now), Verdict::Wait);
        changes.stays(&node);
        assert_eq!(changes.turn_at(&node, now), Turn::Now(None));
        // Whoever was quiet has all of it again.
        let late = now + PERIOD * (BURST + 1);
        assert!((0..BURST).all(|_| take(late)) && !take(late));
    }

    #[test]
    fn nodes_that_may_change_as_they_like_are_forgotten() {
        let (changes, begin) = (Changes::default(), Instant::now());
        for n in 0..3 * REMEMBERED as u32 {
            let now = begin + PERIOD / 100 * n;
            changes.with(&format!("edge-{n}").parse().unwrap(), now, |recent| recent.take(now));
        }
        assert!(changes.nodes().all.len() <= REMEMBERED);
    }
}
