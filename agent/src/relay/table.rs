//! The hub's table of relays: who has asked for whom, and the open pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_ike::wire::RelayRefusal;
use edge_ike::{Instant, PeerName};

/// Maximum number of open pairs of one hub. At the limit, requests are refused with
/// [`RelayRefusal::HubLimit`].
const MAX_PAIRS: usize = 512;
/// Maximum number of pairs and waiting requests that one node has asked for. At the limit, requests
/// are refused with [`RelayRefusal::NodeLimit`].
const MAX_PER_NODE: usize = 32;
/// How long a request waits for that of the other node. The other node asks as soon as it hears of
/// the request, or when it finds no path itself.
const REQUEST_LIFETIME: Duration = Duration::from_secs(30);

/// What the hub does about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayAnswer {
    /// Tell the other node of the request: it has not asked for a relay itself.
    Ask,
    /// Nothing: the other node was told of an earlier request a moment ago.
    Wait,
    /// Both nodes have asked: open two ports, call [`RelayTable::opened`], and tell both nodes.
    Open,
    /// The pair is open. Tell the asking node again to which port it sends.
    IsOpen {
        /// The hub's UDP port for the asking node.
        port: u16,
    },
    /// Refuse.
    Refuse(RelayRefusal),
}

/// The hub's UDP ports of an open pair, in the order of the nodes' names.
type Ports = [u16; 2];

/// The requests and pairs of a hub.
#[derive(Debug, Default)]
pub struct RelayTable {
    /// Requests that wait, by the asking and the other node, and when each ends.
    waiting: BTreeMap<(PeerName, PeerName), Instant>,
    /// Open pairs; the first name is the smaller one.
    open: BTreeMap<(PeerName, PeerName), Ports>,
    /// The open pairs once more, by both of their nodes.
    partners: BTreeSet<(PeerName, PeerName)>,
}

impl RelayTable {
    /// Handles a request by `from` for a relay to `to`. The caller has checked that both are
    /// connected nodes whose agents understand relays.
    pub fn request(&mut self, from: &PeerName, to: &PeerName, now: Instant) -> RelayAnswer {
        if from == to {
            return RelayAnswer::Refuse(RelayRefusal::NotReachable);
        }
        self.waiting.retain(|_, until| *until > now);
        if let Some(port) = self.port_of(from, to) {
            return RelayAnswer::IsOpen { port };
        }
        let request = (from.clone(), to.clone());
        if self.waiting.contains_key(&request) && !self.has_asked(to, from) {
            return RelayAnswer::Wait;
        }
        if !self.waiting.contains_key(&request) && self.count(from) >= MAX_PER_NODE {
            return RelayAnswer::Refuse(RelayRefusal::NodeLimit);
        }
        if !self.has_asked(to, from) {
            self.waiting.insert(request, now + REQUEST_LIFETIME);
            return RelayAnswer::Ask;
        }
        if self.open.len() >= MAX_PAIRS {
            return RelayAnswer::Refuse(RelayRefusal::HubLimit);
        }
        self.waiting.insert(request, now + REQUEST_LIFETIME);
        RelayAnswer::Open
    }

    /// Records that the pair is open: `from` sends to `port`, and `to` to `other_port`. Their
    /// requests end.
    pub fn opened(&mut self, from: &PeerName, to: &PeerName, port: u16, other_port: u16) {
        for (one, other) in [(from, to), (to, from)] {
            self.waiting.remove(&(one.clone(), other.clone()));
            self.partners.insert((one.clone(), other.clone()));
        }
        let ports = if from < to { [port, other_port] } else { [other_port, port] };
        self.open.insert(ordered(from, to), ports);
    }

    /// Removes a pair whose ports were closed, or could not be opened.
    pub fn closed(&mut self, one: &PeerName, other: &PeerName) {
        for (from, to) in [(one, other), (other, one)] {
            self.waiting.remove(&(from.clone(), to.clone()));
            self.partners.remove(&(from.clone(), to.clone()));
        }
        self.open.remove(&ordered(one, other));
    }

    /// Removes a node that is no longer a peer, with its requests. Returns the nodes of its open
    /// pairs, whose ports the caller closes.
    pub fn remove_node(&mut self, node: &PeerName) -> Vec<PeerName> {
        self.waiting.retain(|(from, to), _| from != node && to != node);
        let partners: Vec<PeerName> = self.partners_of(node).cloned().collect();
        for partner in &partners {
            self.closed(node, partner);
        }
        partners
    }

    /// The nodes to which `node` is relayed.
    pub fn partners_of<'a>(&'a self, node: &'a PeerName) -> impl Iterator<Item = &'a PeerName> {
        let first = (node.clone(), PeerName::new(""));
        self.partners.range(first..).take_while(move |(from, _)| from == node).map(|(_, to)| to)
    }

    /// The number of open pairs.
    pub fn pairs(&self) -> usize {
        self.open.len()
    }

    fn port_of(&self, from: &PeerName, to: &PeerName) -> Option<u16> {
        let [first, second] = *self.open.get(&ordered(from, to))?;
        Some(if from < to { first } else { second })
    }

    fn has_asked(&self, from: &PeerName, to: &PeerName) -> bool {
        self.waiting.contains_key(&(from.clone(), to.clone()))
    }

    /// Returns the number of the node's pairs and waiting requests. A pair counts for both nodes,
    /// since both have asked for it.
    fn count(&self, node: &PeerName) -> usize {
        let first = (node.clone(), PeerName::new(""));
        let waiting = self.waiting.range(first..).take_while(|((from, _), _)| from == node).count();
        waiting + self.partners_of(node).count()
    }
}

fn ordered(one: &PeerName, other: &PeerName) -> (PeerName, PeerName) {
    let (first, second) = if one < other { (one, other) } else { (other, one) };
    (first.clone(), second.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PeerName {
        PeerName::new(text)
    }

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    /// Lets both nodes ask, and opens the pair.
    fn open(table: &mut RelayTable, one: &PeerName, other: &PeerName, port: u16) {
        assert_eq!(table.request(one, other, at(0)), RelayAnswer::Ask);
        assert_eq!(table.request(other, one, at(0)), RelayAnswer::Open);
        table.opened(other, one, port + 1, port);
    }

    #[test]
    fn a_pair_opens_when_both_nodes_have_asked_and_each_has_a_port_of_its_own() {
        let (mut table, a, b) = (RelayTable::default(), name("a"), name("b"));
        assert_eq!(table.request(&a, &b, at(0)), RelayAnswer::Ask);
        assert_eq!(table.request(&a, &b, at(1)), RelayAnswer::Wait);
        assert_eq!(table.request(&b, &a, at(2)), RelayAnswer::Open);
        table.opened(&b, &a, 45_001, 45_000);
        assert_eq!(table.request(&a, &b, at(3)), RelayAnswer::IsOpen { port: 45_000 });
        assert_eq!(table.request(&b, &a, at(3)), RelayAnswer::IsOpen { port: 45_001 });
        table.closed(&a, &b);
        assert_eq!((table.pairs(), table.request(&a, &b, at(4))), (0, RelayAnswer::Ask));
    }

    #[test]
    fn a_request_that_the_other_node_does_not_answer_opens_nothing_and_ends() {
        let (mut table, a, b) = (RelayTable::default(), name("a"), name("b"));
        for moment in [0, 30, 60] {
            assert_eq!(table.request(&a, &b, at(moment)), RelayAnswer::Ask, "told again, but not more often");
            assert_eq!(table.request(&a, &b, at(moment + 29)), RelayAnswer::Wait);
        }
        assert_eq!(table.request(&b, &a, at(200)), RelayAnswer::Ask, "the old request is forgotten");
        assert_eq!(table.request(&a, &a, at(200)), RelayAnswer::Refuse(RelayRefusal::NotReachable));
        assert_eq!(table.pairs(), 0);
    }

    #[test]
    fn a_node_that_asks_for_thousands_is_refused_and_takes_nothing_from_others() {
        let (mut table, greedy) = (RelayTable::default(), name("greedy"));
        let answers: Vec<_> = (0..5000).map(|n| table.request(&greedy, &name(&format!("n{n}")), at(0))).collect();
        assert!(answers[..32].iter().all(|answer| *answer == RelayAnswer::Ask));
        assert!(answers[32..].iter().all(|answer| *answer == RelayAnswer::Refuse(RelayRefusal::NodeLimit)));
        assert_eq!(table.waiting.len(), 32);
        // A node that it has asked for has its whole quota.
        let asked = name("n0");
        for n in 0..32 {
            open(&mut table, &asked, &name(&format!("other-{n}")), 45_000 + 2 * n);
        }
        assert_eq!(table.request(&asked, &greedy, at(0)), RelayAnswer::Refuse(RelayRefusal::NodeLimit));
        assert_eq!(table.request(&greedy, &name("n99"), at(31)), RelayAnswer::Ask, "its requests have ended");
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
        assert_eq!(table.request(&a, &b, at(0)), RelayAnswer::Ask);
        assert_eq!(table.request(&b, &a, at(0)), RelayAnswer::Refuse(RelayRefusal::HubLimit));
        table.closed(&pair(7).1, &pair(7).0);
        assert_eq!(table.request(&b, &a, at(1)), RelayAnswer::Open);
    }

    #[test]
    fn a_node_that_is_no_longer_a_peer_loses_its_pairs_and_requests() {
        let (mut table, a) = (RelayTable::default(), name("a"));
        for (n, other) in ["aa", "b", "Z"].into_iter().enumerate() {
            open(&mut table, &a, &name(other), 45_000 + 2 * n as u16);
        }
        open(&mut table, &name("aa"), &name("b"), 46_000);
        assert_eq!(table.request(&name("c"), &a, at(0)), RelayAnswer::Ask);
        assert_eq!(table.remove_node(&a), [name("Z"), name("aa"), name("b")]);
        assert_eq!((table.pairs(), table.partners_of(&a).count()), (1, 0));
        assert_eq!(table.request(&a, &name("c"), at(0)), RelayAnswer::Ask, "the request for it is gone too");
    }
}
