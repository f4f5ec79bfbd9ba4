//! Limits how often strangers may open TCP connections to a hub: for each host, for each network,
//! and in all. The numbers of open connections have limits of their own ([`super::Connections`]).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::Instant;

/// Number of connections that one source (an IPv4 address, or an IPv6 network with a 64-bit prefix)
/// may open at once, and one more in each [`SOURCE_INTERVAL`]. Several edges may be behind one NAT,
/// and all of them connect again when the hub has restarted. Further ones are closed at once. An
/// edge tries again later.
const SOURCE_BURST: u32 = 64;
const SOURCE_INTERVAL: Duration = Duration::from_millis(250);

/// The same for all sources of one network together (an IPv4 network with a 24-bit prefix, or an
/// IPv6 network with a 48-bit prefix): a quarter of what is accepted in all. Whoever has such a
/// network has many sources, and would otherwise leave nothing to other networks.
const NETWORK_BURST: u32 = BURST / 4;
const NETWORK_INTERVAL: Duration = Duration::from_millis(20);

/// Number of connections that are accepted at once from all sources, and one more in each
/// [`INTERVAL`]: 200 in a second. Further ones wait in the kernel's queue, which drops more than it
/// can hold; their hosts try again.
const BURST: u32 = 512;
const INTERVAL: Duration = Duration::from_millis(5);

/// Maximum number of sources, and of networks, whose connections are counted. Beyond it, those that
/// have not used their whole burst are forgotten one after the other, the ones with the fewest
/// connections first.
const MAX_SOURCES: usize = 1024;

/// Minimum time between two log lines about a limit.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The number of connections that may be opened at once now.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    /// Time at which the whole burst is available again.
    full_at: Instant,
}

impl Allowance {
    /// Takes one. Returns the time until the next one is available if there is none.
    fn take(&mut self, burst: u32, interval: Duration, now: Instant) -> Result<(), Duration> {
        let used_up = self.full_at.max(now) + interval;
        let latest = now + interval.saturating_mul(burst);
        if used_up > latest {
            return Err(used_up.saturating_since(latest));
        }
        self.full_at = used_up;
        Ok(())
    }
}

/// The allowances of up to [`MAX_SOURCES`] addresses, or networks.
#[derive(Debug, Default)]
struct Allowances(HashMap<IpAddr, Allowance>);

impl Allowances {
    /// Takes one from the allowance of `source`. Returns whether there was one.
    fn take(&mut self, source: IpAddr, burst: u32, interval: Duration, now: Instant) -> bool {
        if self.0.len() >= MAX_SOURCES && !self.0.contains_key(&source) {
            self.make_room(now);
        }
        self.0.entry(source).or_insert(Allowance { full_at: now }).take(burst, interval, now).is_ok()
    }

    /// Forgets the sources that have their whole burst again, or else the one that is closest to
    /// it.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, allowance| allowance.full_at > now);
        while self.0.len() >= MAX_SOURCES {
            let next = self.0.iter().min_by_key(|(source, allowance)| (allowance.full_at, **source));
            let Some(next) = next.map(|(source, _)| *source) else { return };
            self.0.remove(&next);
        }
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The address and port.
    pub(super) remote: SocketAddr,
    /// The address, or the network, that counts as one host.
    pub(super) source: IpAddr,
    /// The network, by its first address.
    pub(super) network: IpAddr,
}

/// The connections that were opened recently.
#[derive(Debug, Default)]
pub(super) struct AcceptRate {
    all: Option<Allowance>,
    sources: Allowances,
    networks: Allowances,
    refusals: LimitLog,
    delays: LimitLog,
}

/// What happens to a new connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is used.
    Accept,
    /// It is closed, since its source, or its network, has opened too many.
    Refuse,
    /// It is used after this time. Until then, no other one is accepted.
    After(Duration),
}

impl AcceptRate {
    /// Decides about a connection. Returns a log line, too, if a limit is reached and there was
    /// none for a while.
    pub(super) fn admit(&mut self, origin: Origin, now: Instant) -> (Admission, Option<String>) {
        let Origin { remote, source, network } = origin;
        let refused = if !self.sources.take(source, SOURCE_BURST, SOURCE_INTERVAL, now) {
            Some(("one host", SOURCE_BURST, SOURCE_INTERVAL))
        } else if !self.networks.take(network, NETWORK_BURST, NETWORK_INTERVAL, now) {
            Some(("one network", NETWORK_BURST, NETWORK_INTERVAL))
        } else {
            None
        };
        if let Some((who, burst, interval)) = refused {
            let rate = 1000 / interval.as_millis();
            let limit = format!("refused: {who} may open {burst} at once and then {rate} in a second");
            return (Admission::Refuse, self.refusals.record(&limit, remote, now));
        }
        match self.all.get_or_insert(Allowance { full_at: now }).take(BURST, INTERVAL, now) {
            Ok(()) => (Admission::Accept, None),
            Err(wait) => {
                let rate = 1000 / INTERVAL.as_millis();
                let limit = format!("delayed: all hosts may open {BURST} at once and then {rate} in a second");
                // The one that waits is counted, so the next one waits longer.
                if let Some(all) = &mut self.all {
                    all.full_at = all.full_at + INTERVAL;
                }
                (Admission::After(wait), self.delays.record(&limit, remote, now))
            }
        }
    }
}

/// Counts what happens at a limit, for a log line at most once in each [`LOG_INTERVAL`].
#[derive(Debug, Default)]
struct LimitLog {
    last: Option<Instant>,
    /// Number since the last line.
    since: u64,
}

impl LimitLog {
    /// Returns a line about this connection and those since the last line, if one is due.
    fn record(&mut self, limit: &str, remote: SocketAddr, now: Instant) -> Option<String> {
        self.since = self.since.saturating_add(1);
        if self.last.is_some_and(|last| now < last + LOG_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        let number = std::mem::take(&mut self.since);
        Some(format!("{number} TCP connections were {limit}; the latest came from {remote}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::new(Duration::from_millis(1_000_000 + milliseconds))
    }

    /// Admits a connection from a host of a network of its own.
    fn admit(rate: &mut AcceptRate, source: u32, now: Instant) -> (Admission, Option<String>) {
        admit_from(rate, source, source, now)
    }

    fn admit_from(rate: &mut AcceptRate, source: u32, network: u32, now: Instant) -> (Admission, Option<String>) {
        let [source, network] = [source, network].map(|number| IpAddr::from(number.to_be_bytes()));
        rate.admit(Origin { remote: SocketAddr::new(source, 1234), source, network }, now)
    }

    #[test]
    fn one_host_gets_its_burst_and_then_four_a_second_and_others_do_not_notice() {
        let mut rate = AcceptRate::default();
        let mut lines = Vec::new();
        let mut accepted = 0;
        for milliseconds in 0..10_000 {
            let (admission, line) = admit(&mut rate, 1, at(milliseconds));
            accepted += u32::from(admission == Admission::Accept);
            lines.extend(line);
        }
        assert_eq!(accepted, SOURCE_BURST + 39);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("1 TCP connections were refused: one host may open 64"), "{lines:?}");
        assert_eq!(admit(&mut rate, 2, at(10_000)).0, Admission::Accept);
        let (_, line) = admit(&mut rate, 1, at(10_001));
        assert_eq!(line, None);
        let mut after = (0..100).filter_map(|_| admit(&mut rate, 1, at(70_000)).1);
        assert!(after.next().is_some_and(|line| line.starts_with("98")), "the others are counted");
    }

    #[test]
    fn many_hosts_together_get_two_hundred_a_second_and_wait_for_more() {
        let mut rate = AcceptRate::default();
        let mut now = Duration::ZERO;
        let mut lines = 0;
        // One connection from each host, as soon as the one before was accepted.
        for source in 0..3000 {
            let (admission, line) = admit(&mut rate, source, Instant::new(now));
            lines += usize::from(line.is_some());
            match admission {
                Admission::Accept => {}
                Admission::After(wait) => now += wait,
                Admission::Refuse => panic!("no host has opened more than one"),
            }
        }
        let expected = INTERVAL * (3000 - BURST);
        assert!(now >= expected - INTERVAL && now <= expected + INTERVAL, "{now:?}");
        assert_eq!(lines, 1);
        assert!(rate.sources.0.len() <= MAX_SOURCES && rate.networks.0.len() <= MAX_SOURCES);
    }

    #[test]
    fn a_network_of_many_hosts_gets_a_quarter_and_the_hosts_of_others_do_not_wait() {
        let mut rate = AcceptRate::default();
        let (mut accepted, mut lines) = (0, Vec::new());
        // A thousand hosts of one network connect once a second each, for ten seconds.
        for milliseconds in 0..10_000 {
            let (admission, line) = admit_from(&mut rate, 1_000 + milliseconds % 1000, 7, at(milliseconds.into()));
            assert!(!matches!(admission, Admission::After(_)), "{milliseconds}");
            accepted += u32::from(admission == Admission::Accept);
            lines.extend(line);
        }
        assert_eq!(accepted, NETWORK_BURST + 499);
        assert!(lines[0].starts_with("1 TCP connections were refused: one network may open 128 at once and then 50"));
        // Meanwhile three quarters are left to others.
        for other in 0..BURST - NETWORK_BURST {
            assert_eq!(admit(&mut rate, 10_000 + other, at(10_000)).0, Admission::Accept, "{other}");
        }
    }

    #[test]
    fn a_host_that_is_refused_stays_refused_whatever_others_connect_and_takes_nothing_from_them() {
        let mut rate = AcceptRate::default();
        (0..SOURCE_BURST + 1000).for_each(|_| drop(admit(&mut rate, 0, at(0))));
        // Its refused connections do not count for all.
        for source in 1..=BURST - SOURCE_BURST {
            assert_eq!(admit(&mut rate, source, at(0)).0, Admission::Accept, "{source}");
        }
        for source in 1..2000 {
            admit(&mut rate, 10_000 + source, at(1));
        }
        assert_eq!(admit(&mut rate, 0, at(2)).0, Admission::Refuse);
    }

    #[test]
    fn a_clock_that_stands_still_refuses_no_first_connection() {
        let mut rate = AcceptRate::default();
        assert_eq!(admit(&mut rate, 1, Instant::new(Duration::ZERO)).0, Admission::Accept);
    }
}
