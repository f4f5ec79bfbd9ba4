//! Selects which addresses of a node are passed on to its peers. A node's report makes hubs and
//! members of its communities send packets to the addresses in the report. So only usable addresses
//! are passed on, their number is limited, and they cannot change quickly.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_types::api::MOST_MAPPED;
use edge_types::{IpNetwork, NodeName};
use tokio::time::Instant;

/// Maximum number of addresses of one node that are passed on to its peers. Addresses that the
/// operator configures for a hub do not count.
pub const MOST: usize = 8;
/// Number of changes to a node's addresses that are passed on without delay.
const BURST: u32 = 8;
/// Length of the period in which, after the burst, one change is passed on, with the latest
/// addresses.
const PERIOD: Duration = Duration::from_secs(10);
/// Number of nodes above which the limits of nodes whose whole burst is available again are
/// dropped.
const REMEMBERED: usize = 1024;

/// Returns whether peers may get this address. The address must mean the same on every machine and
/// identify one machine (RFC 6890, RFC 4291), and it must not lie in a network that is reached
/// through a tunnel.
pub fn is_reachable<'a>(address: &IpAddr, mut networks: impl Iterator<Item = &'a IpNetwork>) -> bool {
    let address = address.to_canonical();
    let usable = match address {
        IpAddr::V4(ip) => is_usable_v4(&ip),
        IpAddr::V6(ip) => is_usable_v6(&ip),
    };
    usable && !networks.any(|network| network.contains(address))
}

/// Returns whether an address is of a kind that other hosts can reach: it is not a loopback,
/// multicast, broadcast or unspecified address.
pub fn is_of_a_host(address: &IpAddr) -> bool {
    let address = address.to_canonical();
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || address == Ipv4Addr::BROADCAST)
}

fn is_usable_v4(ip: &Ipv4Addr) -> bool {
    // 0.0.0.0/8 ("this network"), and 240.0.0.0/4, which contains the broadcast address.
    let reserved = ip.octets()[0] == 0 || ip.octets()[0] >= 240;
    // The metadata service in clouds has a link-local address, 169.254.169.254.
    !(reserved || ip.is_loopback() || ip.is_link_local() || ip.is_multicast())
}

fn is_usable_v6(ip: &Ipv6Addr) -> bool {
    let [first, second, third, ..] = ip.segments();
    // ::/96, formerly the IPv4-compatible addresses, which contains :: and ::1; 100::/64, the
    // discard prefix; 64:ff9b:1::/48, which each network translates in its own way.
    let reserved =
        ip.segments()[..6] == [0; 6] || (first, second) == (0x0100, 0) || [first, second, third] == [0x64, 0xff9b, 1];
    // fe80::/10, and the deprecated site-local fec0::/10.
    let local = first & 0xff80 == 0xfe80;
    // The IPv6 address of one cloud's metadata service.
    let metadata = *ip == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    !(reserved || local || metadata || ip.is_multicast()) && within(ip).is_none_or(|ip| is_usable_v4(&ip))
}

/// Returns the IPv4 address to which packets for this IPv6 address are translated or tunnelled:
/// 64:ff9b::/96 (RFC 6052 2.1), 2002::/16 (RFC 3056 2).
fn within(ip: &Ipv6Addr) -> Option<Ipv4Addr> {
    let [first, second, third, .., seventh, eighth] = ip.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(of(seventh, eighth)),
        _ if first == 0x2002 => Some(of(second, third)),
        _ => None,
    }
}

/// Returns the first addresses of a node that its peers may get, in the node's order. Returns at
/// most one fewer than [`MOST`], to leave room for the address at which the controller saw the
/// node. Behind a NAT only that address works.
pub fn usable_addresses<'a>(
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

/// Returns the first mapped addresses of a node that its peers may get, at most [`MOST_MAPPED`].
pub fn usable_mapped<'a>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    networks: impl Iterator<Item = &'a IpNetwork> + Clone,
) -> Vec<SocketAddr> {
    let mut passed = Vec::with_capacity(MOST_MAPPED);
    for address in addresses {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let usable = address.port() != 0 && is_reachable(&address.ip(), networks.clone());
        if passed.len() < MOST_MAPPED && usable && !passed.contains(&address) {
            passed.push(address);
        }
    }
    passed
}

/// The addresses from one report by a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedAddresses {
    /// Addresses, the most likely first.
    pub reported: Vec<IpAddr>,
    /// UDP port for IKE.
    pub port: u16,
    /// Source address of the report; `None` if peers cannot use it.
    pub observed: Option<IpAddr>,
    /// Addresses and ports from which the node's datagrams come to the hubs; `None` if the node
    /// does not know them.
    pub mapped: Option<Vec<SocketAddr>>,
    /// TCP port on which the node takes IKE and ESP.
    pub tcp_port: Option<u16>,
    /// The hubs to which an edge has no tunnel, while it has one to another hub; `None` if it does
    /// not know.
    pub unreached_hubs: Option<Vec<NodeName>>,
}

/// The limits on how often each node changes its addresses. Clones share the limits.
#[derive(Debug, Clone, Default)]
pub struct AddressChangeLimits(Arc<Mutex<Nodes>>);

#[derive(Debug)]
struct Nodes {
    all: HashMap<NodeName, NodeLimit>,
    forget_at: usize,
}

#[derive(Debug)]
struct NodeLimit {
    /// The theoretical arrival time of the generic cell rate algorithm: when the next change would
    /// be allowed without a burst.
    due: Instant,
    /// The latest addresses, while they wait to be passed on.
    waiting: Option<ReportedAddresses>,
    /// Whether a task waits to pass the addresses on.
    has_waiter: bool,
}

/// The action that the caller must take for a change.
#[derive(Debug, PartialEq, Eq)]
pub enum ChangeDecision {
    /// Pass the change on now.
    Apply,
    /// Wait until [`AddressChangeLimits::next`] returns the latest addresses, and pass those
    /// addresses on.
    Schedule,
    /// Do nothing: another task already waits and will pass the change on.
    AlreadyScheduled,
}

/// Whether a waiting change may be passed on.
#[derive(Debug, PartialEq, Eq)]
enum Readiness {
    At(Instant),
    Now(Option<ReportedAddresses>),
}

impl Default for Nodes {
    fn default() -> Self {
        Self { all: HashMap::new(), forget_at: REMEMBERED }
    }
}

impl NodeLimit {
    fn new(now: Instant) -> Self {
        Self { due: now, waiting: None, has_waiter: false }
    }

    /// Returns when the node's next change is allowed.
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

impl AddressChangeLimits {
    /// Returns whether a node may change its addresses now. Counts the change if it may.
    pub fn take(&self, node: &NodeName) -> bool {
        let now = Instant::now();
        self.with_limit(node, now, |limit| limit.take(now))
    }

    /// Handles a report whose addresses differ from the node's present ones. The new addresses are
    /// passed on now, or later unless the node reports different addresses before that time.
    pub fn moved(&self, node: &NodeName, addresses: &ReportedAddresses) -> ChangeDecision {
        self.moved_at(node, addresses, Instant::now())
    }

    fn moved_at(&self, node: &NodeName, addresses: &ReportedAddresses, now: Instant) -> ChangeDecision {
        self.with_limit(node, now, |limit| {
            if limit.waiting.is_none() && limit.take(now) {
                return ChangeDecision::Apply;
            }
            limit.waiting = Some(addresses.clone());
            match std::mem::replace(&mut limit.has_waiter, true) {
                false => ChangeDecision::Schedule,
                true => ChangeDecision::AlreadyScheduled,
            }
        })
    }

    /// Handles a report that repeats the node's present addresses: a waiting change is dropped.
    pub fn cancel_waiting(&self, node: &NodeName) {
        if let Some(limit) = self.nodes().all.get_mut(node) {
            limit.waiting = None;
        }
    }

    /// Queues a change that could not be stored again, unless a later change waits. Returns whether
    /// the caller must wait and pass the change on.
    pub fn wait_again(&self, node: &NodeName, addresses: ReportedAddresses) -> bool {
        self.with_limit(node, Instant::now(), |limit| {
            let again = limit.waiting.is_none() && !limit.has_waiter;
            if again {
                (limit.waiting, limit.has_waiter) = (Some(addresses), true);
            }
            again
        })
    }

    /// Waits until a change of the node is allowed. Returns the addresses to pass on; `None` if no
    /// change waits any more.
    pub async fn next(&self, node: &NodeName) -> Option<ReportedAddresses> {
        loop {
            match self.readiness_at(node, Instant::now()) {
                Readiness::At(then) => tokio::time::sleep_until(then).await,
                Readiness::Now(addresses) => return addresses,
            }
        }
    }

    fn readiness_at(&self, node: &NodeName, now: Instant) -> Readiness {
        self.with_limit(node, now, |limit| {
            if limit.waiting.is_some() && !limit.take(now) {
                return Readiness::At(limit.allowed_at());
            }
            limit.has_waiter = false;
            Readiness::Now(limit.waiting.take())
        })
    }

    fn with_limit<T>(&self, node: &NodeName, now: Instant, act: impl FnOnce(&mut NodeLimit) -> T) -> T {
        let mut nodes = self.nodes();
        if nodes.all.len() >= nodes.forget_at {
            nodes.all.retain(|_, limit| limit.due > now || limit.has_waiter);
            nodes.forget_at = (2 * nodes.all.len()).max(REMEMBERED);
        }
        act(nodes.all.entry(node.clone()).or_insert_with(|| NodeLimit::new(now)))
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

    fn addresses(last: u8) -> ReportedAddresses {
        let reported = vec![[192, 0, 2, last].into()];
        ReportedAddresses { reported, port: 4500, observed: None, mapped: None, tcp_port: None, unreached_hubs: None }
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
    fn of_many_addresses_the_first_usable_ones_are_passed_on_once_each() {
        let many = (0..40).flat_map(|n| [IpAddr::from([192, 0, 2, n]), ip("127.0.0.1"), ip("::ffff:192.0.2.0")]);
        let passed = usable_addresses(many, [].iter());
        assert_eq!(passed, (0..7).map(|n| IpAddr::from([192, 0, 2, n])).collect::<Vec<_>>());
    }

    #[test]
    fn of_many_mapped_addresses_the_first_two_usable_ones_are_passed_on() {
        let networks: Vec<IpNetwork> = vec!["10.77.0.0/16".parse().unwrap()];
        let reported = [
            "127.0.0.1:4500",
            "10.77.0.1:4500",
            "203.0.113.7:0",
            "169.254.169.254:80",
            "203.0.113.7:61000",
            "[::ffff:203.0.113.7]:61000",
            "[2001:db8::7]:61001",
            "203.0.113.8:61002",
        ];
        let passed = usable_mapped(reported.map(|address| address.parse().unwrap()), networks.iter());
        assert_eq!(passed, ["203.0.113.7:61000", "[2001:db8::7]:61001"].map(|address| address.parse().unwrap()));
    }

    #[test]
    fn a_node_that_changes_quickly_is_passed_on_a_few_times_and_then_slowly_with_its_latest_addresses() {
        let (changes, node) = (AddressChangeLimits::default(), "edge-1".parse().unwrap());
        let begin = Instant::now();
        let take = |now| changes.with_limit(&node, now, |limit| limit.take(now));
        for n in 0..BURST {
            assert_eq!(changes.moved_at(&node, &addresses(n as u8), begin), ChangeDecision::Apply);
        }
        assert_eq!(changes.moved_at(&node, &addresses(100), begin), ChangeDecision::Schedule);
        assert_eq!(
            changes.moved_at(&node, &addresses(101), begin),
            ChangeDecision::AlreadyScheduled,
            "one waits, however many come"
        );
        assert!(!take(begin), "take counts too");
        let other = "edge-2".parse().unwrap();
        assert_eq!(
            changes.moved_at(&other, &addresses(1), begin),
            ChangeDecision::Apply,
            "another node is another one"
        );
        assert_eq!(changes.readiness_at(&node, begin), Readiness::At(begin + PERIOD));
        assert_eq!(changes.readiness_at(&node, begin + PERIOD), Readiness::Now(Some(addresses(101))));
        // In the long run at most one change passes in each period.
        let passed = (0..100).filter(|n| take(begin + PERIOD + PERIOD / 10 * *n)).count();
        assert_eq!(passed, 9);
        // If the node reports its former addresses before the change is passed on, no change waits
        // any more.
        let now = begin + PERIOD * 11 - Duration::from_secs(1);
        assert_eq!(changes.moved_at(&node, &addresses(102), now), ChangeDecision::Schedule);
        changes.cancel_waiting(&node);
        assert_eq!(changes.readiness_at(&node, now), Readiness::Now(None));
        // The whole burst is available again to a node without recent changes.
        let late = now + PERIOD * (BURST + 1);
        assert!((0..BURST).all(|_| take(late)) && !take(late));
    }

    #[test]
    fn nodes_that_may_change_as_they_like_are_forgotten() {
        let (changes, begin) = (AddressChangeLimits::default(), Instant::now());
        for n in 0..3 * REMEMBERED as u32 {
            let now = begin + PERIOD / 100 * n;
            changes.with_limit(&format!("edge-{n}").parse().unwrap(), now, |limit| limit.take(now));
        }
        assert!(changes.nodes().all.len() <= REMEMBERED);
    }
}
