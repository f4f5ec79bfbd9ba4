//! Divides a limited resource fairly among unknown sources. If the whole resource is in use,
//! decides which source loses a share to a new one.
//!
//! One customer has a /64 of IPv6, and often a /48 (RFC 6177, RFC 7934); neighbours in IPv4 share a
//! /24. So shares are compared at two levels. The network that holds the most loses a share, and
//! within that network the source that holds the most loses its oldest share. If a host takes the
//! whole resource, further requests cost only its own shares, and a host with many addresses costs
//! only its own network. A host with a single address loses nothing to either of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// The shares of a limited resource, such as connections or bytes, that each source holds.
#[derive(Debug, Default)]
pub struct SourceShares {
    networks: HashMap<IpAddr, Network>,
    total: usize,
    next: u64,
}

#[derive(Debug, Default)]
struct Network {
    total: usize,
    sources: HashMap<IpAddr, Source>,
}

/// All shares of one source, the oldest first.
#[derive(Debug, Default)]
struct Source {
    total: usize,
    held: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    amount: usize,
    since: Instant,
    displaced: CancellationToken,
}

/// Identifier of one share of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    source: IpAddr,
    number: u64,
}

impl SourceShares {
    /// Returns the amount that all sources hold together.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Gives `from` a share. The token is cancelled if the share is displaced, which means that a
    /// newer share takes its place.
    pub fn enter(&mut self, from: IpAddr, amount: usize, now: Instant) -> (Share, CancellationToken) {
        let share = Share { source: source(from), number: self.next };
        self.next += 1;
        let displaced = CancellationToken::new();
        let network = self.networks.entry(network(share.source)).or_default();
        let of_source = network.sources.entry(share.source).or_default();
        of_source.held.insert(share.number, Held { amount, since: now, displaced: displaced.clone() });
        of_source.total += amount;
        network.total += amount;
        self.total += amount;
        (share, displaced)
    }

    /// Increases a share; `false` if the share was displaced.
    pub fn grow(&mut self, share: Share, by: usize) -> bool {
        let Some(network) = self.networks.get_mut(&network(share.source)) else { return false };
        let Some(of_source) = network.sources.get_mut(&share.source) else { return false };
        let Some(held) = of_source.held.get_mut(&share.number) else { return false };
        held.amount += by;
        of_source.total += by;
        network.total += by;
        self.total += by;
        true
    }

    /// Gives a share back. Does nothing if the share was displaced.
    pub fn leave(&mut self, share: Share) {
        self.remove(share);
    }

    /// Displaces the oldest share of the source that holds the most, to make room for one more
    /// share of `from`. If that source would hold no more than `from`, only a share older than
    /// `patience` is displaced: otherwise many new sources would cut every handshake short, and no
    /// handshake would ever finish.
    ///
    /// Returns the source that lost its share; `None` if no source lost one.
    pub fn displace_for(&mut self, from: IpAddr, amount: usize, patience: Duration, now: Instant) -> Option<IpAddr> {
        let newcomer = source(from);
        let (address, greediest) = most(self.networks.iter(), |network| network.total, |network| network.oldest())?;
        let (victim, theirs) = most(greediest.sources.iter(), |source| source.total, Source::oldest)?;
        let own_network = self.networks.get(&network(newcomer));
        let more = if *address == network(newcomer) {
            let own = own_network.and_then(|network| network.sources.get(&newcomer)).map_or(0, |source| source.total);
            theirs.total > own + amount
        } else {
            greediest.total > own_network.map_or(0, |network| network.total) + amount
        };
        let (number, held) = theirs.held.first_key_value()?;
        if !more && now.saturating_duration_since(held.since) < patience {
            return None;
        }
        let share = Share { source: *victim, number: *number };
        self.remove(share)?.displaced.cancel();
        Some(share.source)
    }

    fn remove(&mut self, share: Share) -> Option<Held> {
        let address = network(share.source);
        let network = self.networks.get_mut(&address)?;
        let of_source = network.sources.get_mut(&share.source)?;
        let held = of_source.held.remove(&share.number)?;
        of_source.total -= held.amount;
        network.total -= held.amount;
        self.total -= held.amount;
        if of_source.held.is_empty() {
            network.sources.remove(&share.source);
        }
        if network.sources.is_empty() {
            self.networks.remove(&address);
        }
        Some(held)
    }
}

impl Network {
    fn oldest(&self) -> Option<u64> {
        self.sources.values().filter_map(Source::oldest).min()
    }
}

impl Source {
    fn oldest(&self) -> Option<u64> {
        self.held.keys().next().copied()
    }
}

/// Returns the entry that holds the most; of several, the one with the oldest share.
fn most<'a, T: 'a>(
    all: impl Iterator<Item = (&'a IpAddr, &'a T)>,
    total: impl Fn(&T) -> usize,
    oldest: impl Fn(&T) -> Option<u64>,
) -> Option<(&'a IpAddr, &'a T)> {
    all.max_by_key(|(_, one)| (total(one), Reverse(oldest(one))))
}

/// Returns the source to which an address counts: the IPv4 address itself, or the /64 of an IPv6
/// address.
pub fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

/// Returns the network to which a source counts: a /24 in IPv4, or a /48 in IPv6.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() >> 8 << 8).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_with_a_large_ipv6_network_loses_to_whoever_has_one_address() {
        let (mut shares, now) = (SourceShares::default(), Instant::now());
        let few: Vec<_> = (1..=4).map(|nth| shares.enter(address(&format!("192.0.2.{nth}")), 1, now)).collect();
        for nth in 0..100u16 {
            shares.enter(address(&format!("2001:db8:0:{nth:x}::1")), 1, now);
        }
        for _ in 0..100 {
            let displaced = shares.displace_for(address("198.51.100.1"), 1, PATIENCE, now).unwrap();
            assert!(displaced.is_ipv6(), "{displaced}");
            if shares.total() <= 8 {
                break;
            }
        }
        assert!(few.iter().all(|(_, displaced)| !displaced.is_cancelled()));
    }

    #[test]
    fn of_one_network_the_greediest_address_makes_room_for_its_neighbour() {
        let (mut shares, now) = (SourceShares::default(), Instant::now());
        let neighbours: Vec<_> = (1..=50).map(|nth| shares.enter(address(&format!("192.0.2.{nth}")), 1, now)).collect();
        let greedy: Vec<_> = (0..10).map(|_| shares.enter(address("192.0.2.200"), 1, now)).collect();
        for _ in 0..9 {
            assert_eq!(shares.displace_for(address("192.0.2.60"), 1, PATIENCE, now), Some(address("192.0.2.200")));
        }
        assert_eq!(shares.displace_for(address("192.0.2.60"), 1, PATIENCE, now), None, "all have as few");
        assert!(greedy[..9].iter().all(|(_, displaced)| displaced.is_cancelled()));
        assert!(neighbours.iter().all(|(_, displaced)| !displaced.is_cancelled()));
        assert!(shares.displace_for(address("192.0.2.60"), 1, PATIENCE, now + PATIENCE).is_some());
    }

    #[test]
    fn what_a_share_grew_to_counts_and_goes_with_it() {
        let (mut shares, now) = (SourceShares::default(), Instant::now());
        let (large, displaced) = shares.enter(address("192.0.2.1"), 1, now);
        let (small, _) = shares.enter(address("198.51.100.1"), 2, now);
        assert!(shares.grow(large, 9));
        assert_eq!(shares.total(), 12);
        assert_eq!(shares.displace_for(address("203.0.113.1"), 1, PATIENCE, now), Some(address("192.0.2.1")));
        assert!(displaced.is_cancelled() && shares.total() == 2);
        assert!(!shares.grow(large, 1), "it is gone");
        shares.leave(large);
        shares.leave(small);
        assert!(shares.total() == 0 && shares.networks.is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        assert_eq!(source(address("2001:db8:1:2:3::4")), address("2001:db8:1:2::"));
        assert_eq!(source(address("::ffff:192.0.2.1")), address("192.0.2.1"));
        assert_eq!(network(address("2001:db8:1:2::")), address("2001:db8:1::"));
        assert_eq!(network(address("192.0.2.1")), address("192.0.2.0"));
    }
}
