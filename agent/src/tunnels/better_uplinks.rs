//! Tunnels that use another uplink than the best one, for example LTE while the cable works again.
//! They move to the best one by MOBIKE when it has stood for a while.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use edge_ike::{Instant, PeerName};

use crate::host::RankedAddress;

/// Time for which the kernel must choose the better address without interruption before a tunnel
/// moves to it. Hubs that come back wait for the same time.
pub(super) const STABLE: Duration = Duration::from_secs(30);
/// The same time if the destination alone decides through which link packets leave. Those of the
/// tunnel then leave through the better link already, with an address of another one, which the
/// network behind that link may drop.
pub(super) const STABLE_WITHOUT_SOURCE_RULES: Duration = Duration::from_secs(1);
/// Maximum time between two attempts to move a tunnel to an address at which the peer does not
/// answer. The time doubles after each attempt.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The tunnels for which there is a better address. There is at most one entry for each peer.
#[derive(Debug, Default)]
pub(super) struct BetterUplinks {
    waiting: BTreeMap<PeerName, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    from: IpAddr,
    to: IpAddr,
    due: Instant,
    /// The delay after the next attempt.
    wait: Duration,
}

impl BetterUplinks {
    /// Replaces the tunnels for which there is a better address: peer, present address, better
    /// address. The time `stable` of a tunnel begins when it is new or either address is another
    /// one.
    pub(super) fn update(
        &mut self,
        better: impl IntoIterator<Item = (PeerName, IpAddr, IpAddr)>,
        stable: Duration,
        now: Instant,
    ) {
        let mut known = std::mem::take(&mut self.waiting);
        for (peer, from, to) in better {
            let fresh = || Waiting { from, to, due: now + stable, wait: STABLE };
            let waiting = known.remove(&peer).filter(|known| (known.from, known.to) == (from, to));
            self.waiting.insert(peer, waiting.unwrap_or_else(fresh));
        }
    }

    /// Returns the time at which to call [`Self::take_due`].
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// Returns the peers whose tunnels should move now, each with the address.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(PeerName, IpAddr)> {
        let due = self.waiting.iter_mut().filter(|(_, waiting)| waiting.due <= now);
        let taken = due.map(|(peer, waiting)| {
            waiting.wait = (waiting.wait * 2).min(MAX_WAIT);
            waiting.due = now + waiting.wait;
            (peer.clone(), waiting.to)
        });
        taken.collect()
    }
}

/// Returns whether one address is a better end of a tunnel than another one.
pub(super) fn is_better(ranks: &[RankedAddress], to: IpAddr, from: IpAddr) -> bool {
    let rank = |address| ranks.iter().find(|rank| rank.address == address);
    matches!((rank(to), rank(from)), (Some(to), Some(from)) if to.is_better_than(from))
}

/// Returns whether there may be a better address than this one. It needs no system call.
pub(super) fn may_be_worse(ranks: &[RankedAddress], from: IpAddr) -> bool {
    ranks.iter().any(|rank| is_better(ranks, rank.address, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CABLE: &str = "192.0.2.10";
    const LTE: &str = "100.64.0.2";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn hub() -> PeerName {
        PeerName::new("hub")
    }

    fn update(uplinks: &mut BetterUplinks, to: Option<&str>, seconds: u64) {
        uplinks.update(to.map(|to| (hub(), ip(LTE), ip(to))), STABLE, at(seconds));
    }

    #[test]
    fn a_tunnel_moves_when_the_better_address_has_stood_for_thirty_seconds() {
        let mut uplinks = BetterUplinks::default();
        update(&mut uplinks, Some(CABLE), 0);
        update(&mut uplinks, Some(CABLE), 20);
        assert_eq!(uplinks.take_due(at(29)), []);
        // The cable is away for a moment.
        update(&mut uplinks, None, 29);
        assert_eq!(uplinks.next_due(), None);
        update(&mut uplinks, Some(CABLE), 30);
        assert_eq!(uplinks.next_due(), Some(at(60)));
        // It has another address.
        update(&mut uplinks, Some("192.0.2.77"), 50);
        assert_eq!(uplinks.take_due(at(79)), []);
        assert_eq!(uplinks.take_due(at(80)), [(hub(), ip("192.0.2.77"))]);
        // The tunnel has moved.
        update(&mut uplinks, None, 81);
        assert_eq!(uplinks.next_due(), None);
    }

    #[test]
    fn an_address_at_which_the_peer_does_not_answer_is_tried_less_and_less_often() {
        let mut uplinks = BetterUplinks::default();
        let mut waits = Vec::new();
        let mut now = at(0);
        for _ in 0..8 {
            uplinks.update([(hub(), ip(LTE), ip(CABLE))], STABLE, now);
            let due = uplinks.next_due().unwrap();
            waits.push(due.saturating_since(now).as_secs());
            now = due;
            assert_eq!(uplinks.take_due(now).len(), 1);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600, 600]);
    }

    #[test]
    fn only_addresses_on_links_with_a_default_route_are_compared() {
        let rank = |address, metric| RankedAddress { address: ip(address), short_lived: false, metric };
        let ranks = [rank(CABLE, 100), rank(LTE, 200), rank("192.0.2.11", 100), rank("2001:db8::1", 1)];
        assert!(is_better(&ranks, ip(CABLE), ip(LTE)) && may_be_worse(&ranks, ip(LTE)));
        assert!(!is_better(&ranks, ip(LTE), ip(CABLE)) && !may_be_worse(&ranks, ip(CABLE)));
        assert!(!is_better(&ranks, ip("192.0.2.11"), ip(CABLE)), "two addresses of one uplink");
        assert!(!is_better(&ranks, ip(CABLE), ip("10.9.9.9")) && !may_be_worse(&ranks, ip("10.9.9.9")));
        assert!(!may_be_worse(&[], ip(LTE)));
    }
}
