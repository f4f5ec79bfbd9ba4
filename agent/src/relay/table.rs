//! The hub's table of relays: the requests that wait for the other node, and the open pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_ike::wire::RelayRefusal;
use edge_ike::{Instant, PeerName};

use super::ends::RelayAccess;

/// Maximum number of open pairs of one hub. At the limit, requests are refused with
/// [`RelayRefusal::HubLimit`].
pub(super) const MAX_PAIRS: usize = 512;
/// Maximum number of open pairs and waiting requests of one node. At the limit, its requests are
/// refused with [`RelayRefusal::NodeLimit`].
const MAX_PER_NODE: usize = 32;
/// Maximum number of requests of one node in [`REQUESTS_PERIOD`]. The first one beyond the limit is
/// refused with [`RelayRefusal::TooOften`], the others are ignored.
const MAX_REQUESTS: u32 = 120;
/// The time in which requests are counted.
const REQUESTS_PERIOD: Duration = Duration::from_secs(60);
/// Interval at which requests that have ended are removed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);
/// How long a request waits for the other node's request. The other node sends it when the hub
/// passes the first request on, or when it finds no direct path itself.
const REQUEST_LIFETIME: Duration = Duration::from_secs(30);

/// The hub's reaction to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelayAnswer {
    /// Pass the request on to the other node, which has not requested the relay yet.
    Ask,
    /// Do nothing: an earlier request of this node was passed on and still waits, or the node asks
    /// too often.
    Ignore,
    /// Both nodes have requested the relay: open a pair, call [`RelayTable::opened`], and tell each
    /// node how to reach it.
    Open,
    /// The pair is open already: tell each node again.
    IsOpen {
        /// How the asking node reaches it.
        access: RelayAccess,
        /// How the other node reaches it.
        other: RelayAccess,
    },
    /// Refuse the request with this reason.
    Refuse(RelayRefusal),
}

/// How the nodes of an open pair reach it, in the order of their names.
type Accesses = [RelayAccess; 2];

/// The requests and pairs of a hub.
#[derive(Debug, Default)]
pub(super) struct RelayTable {
    /// The time at which each waiting request ends, by the asking node and the other node.
    waiting: BTreeMap<(PeerName, PeerName), Instant>,
    /// The open pairs. The nodes are in the order of their names.
    open: BTreeMap<(PeerName, PeerName), Accesses>,
    /// The open pairs, each in both orders of its nodes.
    partners: BTreeSet<(PeerName, PeerName)>,
    /// The beginning of each node's current period, and the number of its requests since then.
    /// There is at most one entry for each of the hub's peers.
    counts: BTreeMap<PeerName, (Instant, u32)>,
    cleaned_at: Instant,
}

impl RelayTable {
    /// Handles a request by `from` for a relay to `to`. `reachable` says whether both nodes are
    /// connected and their agents understand relays.
    pub(super) fn request(&mut self, from: &PeerName, to: &PeerName, reachable: bool, now: Instant) -> RelayAnswer {
        self.clean(now);
        // A request that answers the other node's request does not count. Otherwise, a node could
        // use up the requests of another.
        let answers = self.has_asked(to, from, now);
        let (since, count) = self.counts.entry(from.clone()).or_insert((now, 0));
        if now >= *since + REQUESTS_PERIOD {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(u32::from(!answers));
        if !answers && *count > MAX_REQUESTS {
            let first = *count == MAX_REQUESTS + 1;
            return if first { RelayAnswer::Refuse(RelayRefusal::TooOften) } else { RelayAnswer::Ignore };
        }
        if from == to || !reachable {
            return RelayAnswer::Refuse(RelayRefusal::NotReachable);
        }
        if let Some([access, other]) = self.accesses_of(from, to) {
            return RelayAnswer::IsOpen { access, other };
        }
        let request = (from.clone(), to.clone());
        let (asks_again, other_asks) = (self.has_asked(from, to, now), self.has_asked(to, from, now));
        if asks_again && !other_asks {
            return RelayAnswer::Ignore;
        }
        if !asks_again && self.count(from, now) >= MAX_PER_NODE {
            return RelayAnswer::Refuse(RelayRefusal::NodeLimit);
        }
        if !other_asks {
            self.waiting.insert(request, now + REQUEST_LIFETIME);
            return RelayAnswer::Ask;
        }
        if self.open.len() >= MAX_PAIRS {
            return RelayAnswer::Refuse(RelayRefusal::HubLimit);
        }
        self.waiting.insert(request, now + REQUEST_LIFETIME);
        RelayAnswer::Open
    }

    /// Records that a pair is open, how `from` reaches it, and how `to` does. Removes their waiting
    /// requests.
    pub(super) fn opened(&mut self, from: &PeerName, to: &PeerName, access: RelayAccess, other: RelayAccess) {
        for (one, partner) in [(from, to), (to, from)] {
            self.waiting.remove(&(one.clone(), partner.clone()));
            self.partners.insert((one.clone(), partner.clone()));
        }
        let accesses = if from < to { [access, other] } else { [other, access] };
        self.open.insert(ordered(from, to), accesses);
    }

    /// Removes a pair because the nodes must reach it in another way. Waiting requests stay.
    pub(super) fn moved_away(&mut self, one: &PeerName, other: &PeerName) {
        for (from, to) in [(one, other), (other, one)] {
            self.partners.remove(&(from.clone(), to.clone()));
        }
        self.open.remove(&ordered(one, other));
    }

    /// Removes a pair whose ports were closed or could not be opened, with its waiting requests.
    pub(super) fn closed(&mut self, one: &PeerName, other: &PeerName) {
        for (from, to) in [(one, other), (other, one)] {
            self.waiting.remove(&(from.clone(), to.clone()));
        }
        self.moved_away(one, other);
    }

    /// Removes a node that is no longer a peer, with its requests and pairs. Returns the other node
    /// of each of its open pairs. The caller must close the ports of these pairs.
    pub(super) fn remove_node(&mut self, node: &PeerName) -> Vec<PeerName> {
        self.waiting.retain(|(from, to), _| from != node && to != node);
        let partners: Vec<PeerName> = self.partners_of(node).cloned().collect();
        for partner in &partners {
            self.closed(node, partner);
        }
        partners
    }

    /// Returns the nodes to which `node` is relayed.
    pub(super) fn partners_of<'a>(&'a self, node: &'a PeerName) -> impl Iterator<Item = &'a PeerName> {
        let first = (node.clone(), PeerName::new(""));
        self.partners.range(first..).take_while(move |(from, _)| from == node).map(|(_, to)| to)
    }

    /// Returns the number of open pairs.
    pub(super) fn pairs(&self) -> usize {
        self.open.len()
    }

    /// Returns how `from` and `to` reach their pair; `None` if it is not open.
    fn accesses_of(&self, from: &PeerName, to: &PeerName) -> Option<[RelayAccess; 2]> {
        let [first, second] = *self.open.get(&ordered(from, to))?;
        Some(if from < to { [first, second] } else { [second, first] })
    }

    fn has_asked(&self, from: &PeerName, to: &PeerName, now: Instant) -> bool {
        self.waiting.get(&(from.clone(), to.clone())).is_some_and(|until| *until > now)
    }

    fn clean(&mut self, now: Instant) {
        if now >= self.cleaned_at + CLEANUP_INTERVAL {
            self.cleaned_at = now;
            self.waiting.retain(|_, until| *until > now);
            self.counts.retain(|_, (since, _)| now < *since + REQUESTS_PERIOD);
        }
    }

    /// Returns the number of the node's open pairs and waiting requests. A pair counts for both
    /// nodes, since both have requested it.
    fn count(&self, node: &PeerName, now: Instant) -> usize {
        let first = (node.clone(), PeerName::new(""));
        let waiting = self.waiting.range(first..).take_while(|((from, _), _)| from == node);
        waiting.filter(|(_, until)| **until > now).count() + self.partners_of(node).count()
    }
}

/// Returns two nodes in the order of their names.
pub(super) fn ordered(one: &PeerName, other: &PeerName) -> (PeerName, PeerName) {
    let (first, second) = if one < other { (one, other) } else { (other, one) };
    (first.clone(), second.clone())
}

#[cfg(test)]
mod tests {
    use super::RelayAccess::Port;
    use super::*;

    fn name(text: &str) -> PeerName {
        PeerName::new(text)
    }

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    /// Makes both nodes request the relay, and opens the pair.
    fn open(table: &mut RelayTable, one: &PeerName, other: &PeerName, port: u16) {
        assert_eq!(table.request(one, other, true, at(0)), RelayAnswer::Ask);
        assert_eq!(table.request(other, one, true, at(0)), RelayAnswer::Open);
        table.opened(other, one, Port(port + 1), Port(port));
    }

    #[test]
    fn a_pair_opens_when_both_nodes_have_asked_and_each_has_a_port_of_its_own() {
        let (mut table, a, b) = (RelayTable::default(), name("a"), name("b"));
        assert_eq!(table.request(&a, &b, true, at(0)), RelayAnswer::Ask);
        assert_eq!(table.request(&a, &b, true, at(1)), RelayAnswer::Ignore);
        assert_eq!(table.request(&b, &a, true, at(2)), RelayAnswer::Open);
        table.opened(&b, &a, Port(45_001), Port(45_000));
        assert_eq!(
            table.request(&a, &b, true, at(3)),
            RelayAnswer::IsOpen { access: Port(45_000), other: Port(45_001) }
        );
        assert_eq!(
            table.request(&b, &a, true, at(3)),
            RelayAnswer::IsOpen { access: Port(45_001), other: Port(45_000) }
        );
        table.closed(&a, &b);
        assert_eq!((table.pairs(), table.request(&a, &b, true, at(4))), (0, RelayAnswer::Ask));
    }

    #[test]
    fn a_request_that_the_other_node_does_not_answer_opens_nothing_and_ends() {
        let (mut table, a, b) = (RelayTable::default(), name("a"), name("b"));
        for moment in [0, 30, 60] {
            assert_eq!(table.request(&a, &b, true, at(moment)), RelayAnswer::Ask, "told again, but not more often");
            assert_eq!(table.request(&a, &b, true, at(moment + 29)), RelayAnswer::Ignore);
        }
        assert_eq!(table.request(&b, &a, true, at(200)), RelayAnswer::Ask, "the old request is forgotten");
        for (to, reachable) in [(&a, true), (&b, false)] {
            let answer = table.request(&a, to, reachable, at(200));
            assert_eq!(answer, RelayAnswer::Refuse(RelayRefusal::NotReachable));
        }
        assert_eq!(table.pairs(), 0);
    }

    #[test]
    fn a_node_that_asks_for_thousands_is_refused_and_takes_nothing_from_others() {
        let (mut table, greedy) = (RelayTable::default(), name("greedy"));
        let answers: Vec<_> = (0..5000).map(|n| table.request(&greedy, &name(&format!("n{n}")), true, at(0))).collect();
        assert!(answers[..32].iter().all(|answer| *answer == RelayAnswer::Ask));
        assert!(answers[32..120].iter().all(|answer| *answer == RelayAnswer::Refuse(RelayRefusal::NodeLimit)));
        assert_eq!(answers[120], RelayAnswer::Refuse(RelayRefusal::TooOften));
        assert!(answers[121..].iter().all(|answer| *answer == RelayAnswer::Ignore), "no answer for each request");
        assert_eq!(table.waiting.len(), 32);
        // The node to which it has requested a relay still has its whole quota.
        let asked = name("n0");
        for n in 0..32 {
            open(&mut table, &asked, &name(&format!("other-{n}")), 45_000 + 2 * n);
        }
        assert_eq!(table.request(&asked, &greedy, true, at(0)), RelayAnswer::Refuse(RelayRefusal::NodeLimit));
        assert_eq!(table.request(&greedy, &name("n99"), true, at(61)), RelayAnswer::Ask, "its requests have ended");
    }

    #[test]
    fn the_answer_to_another_nodes_request_does_not_count() {
        let (mut table, a, b) = (RelayTable::default(), name("a"), name("b"));
        for _ in 0..MAX_REQUESTS {
            assert_eq!(table.request(&a, &b, true, at(0)), RelayAnswer::Ask);
            assert_eq!(table.request(&b, &a, true, at(0)), RelayAnswer::Open);
            table.closed(&a, &b);
        }
        assert_eq!(table.request(&a, &b, true, at(1)), RelayAnswer::Refuse(RelayRefusal::TooOften));
        assert_eq!(table.request(&b, &name("c"), true, at(1)), RelayAnswer::Ask);
        // A node that asks too often still answers.
        assert_eq!(table.request(&b, &a, true, at(1)), RelayAnswer::Ask);
        assert_eq!(table.request(&a, &b, true, at(1)), RelayAnswer::Open);
    }

    #[test]
    fn a_hub_with_as_many_pairs_as_it_may_have_refuses_until_one_closes() {
        let mut table = RelayTable::default();
        let pair = |n: u16| (name(&format!("a{n}")), name(&format!("b{n}")));
        for n in 0..512 {
            let (a, b) = pair(n);
            open(&mut table, &a, &b, 40_000 + 2 * n);
        }
        let (a, b) = pair(512);
        assert_eq!(table.request(&a, &b, true, at(0)), RelayAnswer::Ask);
        assert_eq!(table.request(&b, &a, true, at(0)), RelayAnswer::Refuse(RelayRefusal::HubLimit));
        table.closed(&pair(7).1, &pair(7).0);
        assert_eq!(table.request(&b, &a, true, at(1)), RelayAnswer::Open);
    }

    #[test]
    fn a_node_that_is_no_longer_a_peer_loses_its_pairs_and_requests() {
        let (mut table, a) = (RelayTable::default(), name("a"));
        for (n, other) in ["aa", "b", "Z"].into_iter().enumerate() {
            open(&mut table, &a, &name(other), 45_000 + 2 * n as u16);
        }
        open(&mut table, &name("aa"), &name("b"), 46_000);
        assert_eq!(table.request(&name("c"), &a, true, at(0)), RelayAnswer::Ask);
        assert_eq!(table.remove_node(&a), [name("Z"), name("aa"), name("b")]);
        assert_eq!((table.pairs(), table.partners_of(&a).count()), (1, 0));
        assert_eq!(table.request(&a, &name("c"), true, at(0)), RelayAnswer::Ask, "the request for it is gone too");
    }
}
