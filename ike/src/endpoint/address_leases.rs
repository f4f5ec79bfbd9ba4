//! The internal addresses that peers have from our pools (RFC 7296 2.19).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::address_assignment::is_assignable;
use crate::config::PeerName;
use crate::sa::WantedAddresses;
use crate::time::Instant;

/// The addresses that peers have or had. A peer has at most one address of each family, so there
/// are at most two leases for each configured peer. A peer keeps its lease while it has no IKE SA,
/// until another peer needs the address because the pool has no other one.
#[derive(Debug, Default)]
pub(super) struct AddressLeases {
    by_address: BTreeMap<IpAddr, Lease>,
    /// The lease of each peer and family (whether it is IPv4).
    by_peer: BTreeMap<(PeerName, bool), IpAddr>,
    /// The number in a network of the address after the one that was leased last, so that a search
    /// need not pass all leases. There is one entry for each network that has been in a pool since
    /// the endpoint was created.
    next: BTreeMap<IpNetwork, u128>,
}

#[derive(Debug)]
struct Lease {
    peer: PeerName,
    /// When the peer asked for the address last.
    asked: Instant,
}

/// The request of a peer for an address of one family.
#[derive(Debug, Clone, Copy)]
struct LeaseRequest<'a> {
    peer: &'a PeerName,
    pool: &'a [IpNetwork],
    ipv4: bool,
    /// The address that the peer would like to have.
    wish: Option<IpAddr>,
}

impl AddressLeases {
    /// Leases a peer an address of each family that it wants. The result lacks the families of
    /// which there is none. See [`Self::lease`].
    pub(super) fn lease_wanted(
        &mut self,
        peer: &PeerName,
        pool: &[IpNetwork],
        wanted: &WantedAddresses,
        now: Instant,
        is_up: impl Fn(&PeerName) -> bool,
        mut is_own: impl FnMut(IpAddr) -> bool,
    ) -> Vec<IpAddr> {
        let families = [(true, wanted.ipv4), (false, wanted.ipv6)].into_iter().filter(|(_, wanted)| *wanted);
        let lease = |(ipv4, _)| {
            let wish = wanted.wishes.iter().copied().find(|wish| wish.is_ipv4() == ipv4);
            self.lease(LeaseRequest { peer, pool, ipv4, wish }, now, &is_up, &mut is_own)
        };
        families.filter_map(lease).collect()
    }

    /// Leases an address to a peer: the one that it had last; or the one that it asks for, if no
    /// other peer has had it; or one that no peer has had; or the one that has not been asked for
    /// longest among those of peers without an IKE SA. Returns `None` if there is none. `is_up`
    /// returns whether a peer has an IKE SA, and `is_own` whether an address belongs to this node.
    fn lease(
        &mut self,
        request: LeaseRequest<'_>,
        now: Instant,
        is_up: impl Fn(&PeerName) -> bool,
        mut is_own: impl FnMut(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let LeaseRequest { peer, pool, ipv4, wish } = request;
        let networks = || pool.iter().filter(|network| network.is_ipv4() == ipv4);
        let key = (peer.clone(), ipv4);
        let in_pool = |address: &IpAddr| networks().any(|network| can_be_leased(*network, *address));
        let mut usable = |address: &IpAddr| in_pool(address) && !is_own(*address);
        if let Some(before) = self.by_peer.get(&key).copied() {
            if usable(&before) {
                self.set(before, key, now);
                return Some(before);
            }
            self.release(&key);
        }
        let wish = wish.filter(|wish| wish.is_ipv4() == ipv4 && self.is_free(*wish) && usable(wish));
        let found = wish
            .or_else(|| networks().find_map(|network| self.find_free(*network, &mut usable)))
            .or_else(|| self.find_unused(usable, is_up))?;
        self.set(found, key, now);
        Some(found)
    }

    /// Releases the addresses of a peer that is no longer configured.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        for ipv4 in [true, false] {
            self.release(&(peer.clone(), ipv4));
        }
    }

    fn release(&mut self, key: &(PeerName, bool)) {
        if let Some(address) = self.by_peer.remove(key) {
            self.by_address.remove(&address);
        }
    }

    fn set(&mut self, address: IpAddr, key: (PeerName, bool), asked: Instant) {
        if let Some(before) = self.by_address.insert(address, Lease { peer: key.0.clone(), asked })
            && before.peer != key.0
        {
            self.by_peer.remove(&(before.peer, key.1));
        }
        self.by_peer.insert(key, address);
    }

    fn is_free(&self, address: IpAddr) -> bool {
        !self.by_address.contains_key(&address) || mutation!("address_given_twice")
    }

    /// Finds an address of a network that no peer has had. Of the addresses that follow each other,
    /// at most as many as there are leases and own addresses are not free.
    fn find_free(&mut self, network: IpNetwork, usable: &mut impl FnMut(&IpAddr) -> bool) -> Option<IpAddr> {
        let size = number_of_addresses(network);
        let begin = self.next.get(&network).copied().unwrap_or_default();
        let tries = size.min(u128::try_from(self.by_address.len()).unwrap_or(u128::MAX).saturating_add(MOST_PASSED));
        for step in 0..tries {
            let number = begin.checked_add(step)?.checked_rem(size)?;
            let address = nth(network, number)?;
            if self.is_free(address) && usable(&address) {
                let next = if mutation!("address_given_twice") { number } else { number.saturating_add(1) };
                self.next.insert(network, next);
                return Some(address);
            }
        }
        None
    }

    /// Finds the address that has not been asked for longest, among those of peers without an IKE
    /// SA. `usable` may ask the kernel, so it is called for as few addresses as possible.
    fn find_unused(
        &self,
        mut usable: impl FnMut(&IpAddr) -> bool,
        is_up: impl Fn(&PeerName) -> bool,
    ) -> Option<IpAddr> {
        let unused = self.by_address.iter().filter(|(_, lease)| !is_up(&lease.peer));
        let mut unused: Vec<(Instant, IpAddr)> = unused.map(|(address, lease)| (lease.asked, *address)).collect();
        unused.sort_unstable();
        unused.into_iter().map(|(_, address)| address).find(|address| usable(address))
    }
}

/// How many addresses of a network a search passes because they belong to this node or to no host,
/// in addition to those that are leased.
const MOST_PASSED: u128 = 256;

/// Returns whether an address of a network may be leased. The network's own address and the
/// broadcast address (IPv4), and the address of all its routers (IPv6, RFC 4291 2.6.1), are left
/// out if the network has more than two addresses.
fn can_be_leased(network: IpNetwork, address: IpAddr) -> bool {
    let small = number_of_addresses(network) <= 2;
    let reserved = address == network.network() || (address.is_ipv4() && address == network.broadcast());
    network.contains(address) && (small || !reserved) && is_assignable(address)
}

fn number_of_addresses(network: IpNetwork) -> u128 {
    let width: u32 = if network.is_ipv4() { 32 } else { 128 };
    1_u128.checked_shl(width.saturating_sub(u32::from(network.prefix()))).unwrap_or(u128::MAX)
}

/// Returns the address of a network with this number.
fn nth(network: IpNetwork, number: u128) -> Option<IpAddr> {
    match network.network() {
        IpAddr::V4(first) => {
            first.to_bits().checked_add(u32::try_from(number).ok()?).map(|bits| IpAddr::V4(bits.into()))
        }
        IpAddr::V6(first) => first.to_bits().checked_add(number).map(|bits| IpAddr::V6(bits.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A pool, its leases, and the peers that have an IKE SA.
    struct Pool {
        leases: AddressLeases,
        networks: Vec<IpNetwork>,
        up: Vec<String>,
        now: u64,
    }

    impl Pool {
        fn new(networks: &[&str]) -> Self {
            let networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            Self { leases: AddressLeases::default(), networks, up: Vec::new(), now: 0 }
        }

        /// A peer asks, with or without a wish, and has an IKE SA from then on.
        fn ask(&mut self, peer: &str, ipv4: bool, wish: Option<&str>) -> Option<String> {
            self.now += 1;
            let wish = wish.map(|wish| wish.parse().unwrap());
            let request = LeaseRequest { peer: &PeerName::new(peer), pool: &self.networks, ipv4, wish };
            let is_up = |peer: &PeerName| self.up.iter().any(|up| up == peer.as_str());
            let is_own = |address: IpAddr| address.to_string() == "10.9.0.1";
            let leased = self.leases.lease(request, Instant::new(Duration::from_secs(self.now)), is_up, is_own);
            if leased.is_some() {
                self.up.push(peer.to_owned());
            }
            leased.map(|address| address.to_string())
        }

        fn down(&mut self, peer: &str) {
            self.up.retain(|up| up != peer);
        }
    }

    #[test]
    fn each_peer_gets_an_address_of_its_own_and_keeps_it_over_reconnects() {
        let mut pool = Pool::new(&["10.9.0.0/29", "fd09::/64"]);
        // .0 is the network, .1 is ours, .7 is broadcast.
        let leased: Vec<_> = ["a", "b", "c", "d", "e"].map(|peer| pool.ask(peer, true, None).unwrap()).into();
        assert_eq!(leased, ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]);
        assert_eq!(pool.ask("b", true, Some("10.9.0.6")).as_deref(), Some("10.9.0.3"));
        assert_eq!(pool.ask("a", false, None).as_deref(), Some("fd09::1"));
        assert_eq!(pool.ask("b", false, Some("fd09::77")).as_deref(), Some("fd09::77"));
        assert_eq!(pool.ask("c", false, Some("fd09::77")).as_deref(), Some("fd09::2"));
        assert_eq!(pool.ask("c", false, Some("fd0a::9")).as_deref(), Some("fd09::2"));
    }

    #[test]
    fn an_empty_pool_gives_nothing_until_a_peer_is_down_and_takes_the_address_asked_for_longest_ago() {
        let mut pool = Pool::new(&["10.9.0.0/29"]);
        for peer in ["a", "b", "c", "d", "e"] {
            pool.ask(peer, true, None).unwrap();
        }
        assert_eq!(pool.ask("f", true, None), None);
        pool.ask("b", true, None).unwrap();
        pool.down("b");
        pool.up.retain(|up| up != "b");
        pool.down("d");
        assert_eq!(pool.ask("f", true, None).as_deref(), Some("10.9.0.5"), "that of d, which asked before b did");
        assert_eq!(pool.ask("d", true, None).as_deref(), Some("10.9.0.3"), "that of b");
        assert_eq!(pool.ask("b", true, None), None);
        pool.leases.forget(&PeerName::new("d"));
        assert_eq!(pool.ask("b", true, None).as_deref(), Some("10.9.0.3"));
    }

    #[test]
    fn an_address_outside_of_the_pool_or_of_no_host_is_never_given() {
        let mut pool = Pool::new(&["10.9.0.0/30", "192.0.2.9/32"]);
        for wish in ["10.9.0.0", "10.9.0.1", "10.9.0.3", "10.8.0.2", "255.255.255.255"] {
            assert_eq!(pool.ask("a", true, Some(wish)).as_deref(), Some("10.9.0.2"), "{wish}");
        }
        assert_eq!(pool.ask("b", true, None).as_deref(), Some("192.0.2.9"), "a network of one address has no others");
        assert_eq!(pool.ask("c", true, None), None);
        assert_eq!(Pool::new(&["127.0.0.0/8", "224.0.0.0/24"]).ask("a", true, None), None);
        assert_eq!(Pool::new(&[]).ask("a", true, None), None);
        // A changed pool takes the address away.
        pool.networks = vec!["10.10.0.0/24".parse().unwrap()];
        assert_eq!(pool.ask("a", true, None).as_deref(), Some("10.10.0.1"));
    }

    #[test]
    fn a_full_pool_asks_the_kernel_about_one_address_only() {
        let networks: Vec<IpNetwork> = vec!["10.9.0.0/24".parse().unwrap()];
        let mut leases = AddressLeases::default();
        let asked = std::cell::Cell::new(0);
        let mut lease = |peer: &str, now: u64| {
            asked.set(0);
            let peer = PeerName::new(peer);
            let request = LeaseRequest { peer: &peer, pool: &networks, ipv4: true, wish: None };
            let is_own = |address: IpAddr| {
                asked.set(asked.get() + 1);
                address.to_string() == "10.9.0.1"
            };
            leases.lease(request, Instant::new(Duration::from_secs(now)), |_| false, is_own)
        };
        for number in 0..253 {
            assert!(lease(&format!("peer-{number}"), number).is_some());
        }
        let found = lease("one more", 1000).unwrap();
        assert_eq!(found.to_string(), "10.9.0.2", "that of the first peer");
        assert!(asked.get() <= 2, "{} times", asked.get());
    }

    #[test]
    fn ten_thousand_peers_get_ten_thousand_addresses() {
        let mut pool = Pool::new(&["10.9.0.0/16"]);
        let peers = |number: u32| format!("peer-{number}");
        pool.up = Vec::new();
        let mut addresses = std::collections::BTreeSet::new();
        for number in 0..10_000 {
            addresses.insert(pool.ask(&peers(number), true, None).unwrap());
            pool.up.clear();
        }
        assert_eq!(addresses.len(), 10_000);
        assert_eq!(pool.ask(&peers(0), true, None).as_deref(), Some("10.9.0.2"));
    }

    #[test]
    fn a_used_up_pool_costs_few_looks_at_the_addresses_of_the_node() {
        let mut leases = AddressLeases::default();
        let pool = ["10.9.0.0/20".parse().unwrap()];
        let mut ask = |number: usize, down: Option<usize>| {
            let looks = std::cell::Cell::new(0);
            let down = down.map(|number| PeerName::new(&format!("peer-{number}")));
            let is_own = |_| {
                looks.set(looks.get() + 1);
                false
            };
            let name = PeerName::new(&format!("peer-{number}"));
            let request = LeaseRequest { peer: &name, pool: &pool, ipv4: true, wish: None };
            let now = Instant::new(Duration::from_secs(1 + number as u64));
            let leased = leases.lease(request, now, |peer| Some(peer) != down.as_ref(), is_own);
            (leased.is_some(), looks.get())
        };
        for number in 0..4094 {
            assert_eq!(ask(number, None), (true, 1));
        }
        assert_eq!(ask(5000, None), (false, 0));
        assert_eq!(ask(5000, Some(3000)), (true, 1));
    }
}
