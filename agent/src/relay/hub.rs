//! The relays of a hub: the notifications that answer a request, and the open pairs.

use std::ops::RangeInclusive;

use edge_ike::wire::{AgentNotification, RelayRefusal};
use edge_ike::{Instant, PeerName};
use tokio::runtime::Handle;

use super::awaited_streams::AwaitedStreams;
use super::ends::{EndRandom, RelayAccess, RelayEnd};
use super::open_pairs::OpenPairs;
use super::table::{RelayAnswer, RelayTable, ordered};

/// The relays of a hub.
#[derive(Debug)]
pub struct HubRelays {
    enabled: bool,
    table: RelayTable,
    pairs: OpenPairs,
}

/// A notification and the node to which it goes.
pub type Outgoing = (PeerName, AgentNotification);

impl HubRelays {
    /// Creates a hub without open pairs. The UDP ports are taken from `ports`, the nodes'
    /// connections come from `streams`, the tasks that copy run on `runtime`, and `now` is their
    /// clock. If `enabled` is false, every request is refused.
    pub fn new(
        enabled: bool,
        ports: RangeInclusive<u16>,
        streams: AwaitedStreams,
        runtime: Handle,
        now: fn() -> Instant,
    ) -> Self {
        Self { enabled, table: RelayTable::default(), pairs: OpenPairs::new(runtime, ports, streams, now) }
    }

    /// Handles a request by `from` for a relay to `to`, and returns the notifications that answer
    /// it. `end_of` returns how a node's IKE SA reaches this hub; `None` if there is no such node,
    /// if it is not connected, or if its agent does not understand relays. `random` is for a new
    /// pair.
    pub fn request(
        &mut self,
        from: &PeerName,
        to: &PeerName,
        end_of: impl Fn(&PeerName) -> Option<RelayEnd>,
        random: [EndRandom; 2],
        now: Instant,
    ) -> Vec<Outgoing> {
        if !self.enabled {
            return vec![refuse(from, to, RelayRefusal::SwitchedOff)];
        }
        let nodes = ordered(from, to);
        let ends = end_of(&nodes.0).zip(end_of(&nodes.1)).map(|(one, other)| [one, other]);
        // The pair's ports, if there are any, are on addresses that the nodes' IKE SAs no longer
        // use, or one of the nodes has changed between UDP and TCP.
        if ends.is_some_and(|ends| !self.pairs.is_at(&nodes, ends)) {
            self.pairs.close(&nodes);
            self.table.moved_away(from, to);
        }
        match self.table.request(from, to, ends.is_some(), now) {
            RelayAnswer::Ask => vec![(to.clone(), AgentNotification::RelayRequest { node: from.to_string() })],
            RelayAnswer::Ignore => vec![],
            RelayAnswer::IsOpen { access, other } => opened(from, to, access, other),
            RelayAnswer::Refuse(reason) => vec![refuse(from, to, reason)],
            RelayAnswer::Open => self.open(from, to, ends, random),
        }
    }

    fn open(
        &mut self,
        from: &PeerName,
        to: &PeerName,
        ends: Option<[RelayEnd; 2]>,
        random: [EndRandom; 2],
    ) -> Vec<Outgoing> {
        let nodes = ordered(from, to);
        let accesses = match ends.map(|ends| self.pairs.open(nodes.clone(), ends, random)) {
            Some(Ok(accesses)) => accesses,
            failed => {
                if let Some(Err(error)) = failed {
                    tracing::warn!(%from, %to, "no ports can be opened for a relay: {error}");
                }
                self.table.closed(from, to);
                return vec![refuse(from, to, RelayRefusal::NoPort), refuse(to, from, RelayRefusal::NoPort)];
            }
        };
        let [first, second] = accesses;
        let (access, other) = if nodes.0 == *from { (first, second) } else { (second, first) };
        self.table.opened(from, to, access, other);
        let port = |access| match access {
            RelayAccess::Port(port) => Some(port),
            RelayAccess::Connection(_) => None,
        };
        tracing::info!(
            %from, port = port(access), %to, other_port = port(other),
            "a relay between two nodes is open; a node without a port reaches it by TCP"
        );
        opened(from, to, access, other)
    }

    /// Updates the pairs of a node if its IKE SA with this hub is new, or has another remote
    /// address or port. Closes them if it has changed between UDP and TCP.
    pub fn node_moved(&mut self, node: &PeerName, to: RelayEnd) {
        let partners: Vec<PeerName> = self.table.partners_of(node).cloned().collect();
        for partner in partners {
            let nodes = ordered(node, &partner);
            if !self.pairs.move_end(&nodes, *node < partner, to) {
                self.pairs.close(&nodes);
                self.table.closed(node, &partner);
            }
        }
    }

    /// Closes the relays of a node that is no longer a peer.
    pub fn remove_node(&mut self, node: &PeerName) {
        for partner in self.table.remove_node(node) {
            self.pairs.close(&ordered(node, &partner));
        }
    }

    /// Waits until a pair ends because one of its nodes no longer sends, and removes the pair. This
    /// method is cancel safe.
    pub async fn end_next(&mut self) {
        let (one, other) = self.pairs.next_ended().await;
        self.table.closed(&one, &other);
    }

    /// Returns the number of open pairs.
    pub fn pairs(&self) -> usize {
        self.table.pairs()
    }
}

fn opened(from: &PeerName, to: &PeerName, access: RelayAccess, other: RelayAccess) -> Vec<Outgoing> {
    let notification = |node: &PeerName, access| {
        let node = node.to_string();
        match access {
            RelayAccess::Port(port) => AgentNotification::RelayOpened { node, port },
            RelayAccess::Connection(token) => AgentNotification::RelayTcpOpened { node, token },
        }
    };
    vec![(from.clone(), notification(to, access)), (to.clone(), notification(from, other))]
}

fn refuse(from: &PeerName, to: &PeerName, reason: RelayRefusal) -> Outgoing {
    (from.clone(), AgentNotification::RelayRefused { node: to.to_string(), reason })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::time::Duration;

    use edge_ike::wire::RelayToken;
    use interop_tests::netns::is_root_or_skips;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::new(Duration::from_secs(seconds))
    }

    fn hub(ports: RangeInclusive<u16>) -> HubRelays {
        HubRelays::new(true, ports, AwaitedStreams::default(), Handle::current(), || at(0))
    }

    /// Returns the addresses of a node that is connected to the hub's address `127.0.0.LAST`.
    fn end(last: u8, node: &PeerName) -> Option<RelayEnd> {
        let remote = match node.as_str() {
            "a" => [127, 0, 0, 11],
            "b" => [127, 0, 0, 12],
            _ => return None,
        };
        Some(RelayEnd::Udp { local: IpAddr::from([127, 0, 0, last]), remote: (remote, 4500).into() })
    }

    fn random(ports: [u16; 2]) -> [EndRandom; 2] {
        ports.map(|port| EndRandom { port, token: RelayToken::new(u128::from(port).to_be_bytes()) })
    }

    fn ask(hub: &mut HubRelays, from: &str, to: &str) -> Vec<Outgoing> {
        hub.request(&PeerName::new(from), &PeerName::new(to), |node| end(1, node), random([3, 5]), at(0))
    }

    /// Returns each node to which the hub reports an open port, with that port.
    fn opened(answers: &[Outgoing]) -> Vec<(String, u16)> {
        let ports = answers.iter().map(|(to, notification)| match notification {
            AgentNotification::RelayOpened { port, .. } => (to.to_string(), *port),
            other => panic!("{to} gets {other:?}"),
        });
        ports.collect()
    }

    #[tokio::test]
    async fn the_other_node_is_asked_and_both_learn_their_ports_when_it_agrees() {
        if !is_root_or_skips() {
            return;
        }
        let mut hub = hub(24_100..=24_199);
        let asked = (PeerName::new("b"), AgentNotification::RelayRequest { node: "a".into() });
        assert_eq!(ask(&mut hub, "a", "b"), [asked]);
        assert_eq!(hub.pairs(), 0, "a node that does not agree is not relayed to");
        let first = opened(&ask(&mut hub, "b", "a"));
        let again = opened(&ask(&mut hub, "a", "b"));
        assert_eq!((&first[0].0, &first[1].0), (&"b".to_owned(), &"a".to_owned()));
        assert_eq!(again, [first[1].clone(), first[0].clone()]);
        for (_, port) in first {
            UdpSocket::bind(("127.0.0.1", port)).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_node_that_is_not_connected_or_not_known_is_refused() {
        let mut hub = hub(24_200..=24_299);
        for to in ["c", "a", ""] {
            let refused = AgentNotification::RelayRefused { node: to.into(), reason: RelayRefusal::NotReachable };
            assert_eq!(ask(&mut hub, "a", to), [(PeerName::new("a"), refused)]);
        }
        let mut off = HubRelays::new(false, 24_200..=24_299, AwaitedStreams::default(), Handle::current(), || at(0));
        let refused = AgentNotification::RelayRefused { node: "b".into(), reason: RelayRefusal::SwitchedOff };
        assert_eq!(ask(&mut off, "a", "b"), [(PeerName::new("a"), refused)]);
    }

    #[tokio::test]
    async fn a_hub_without_free_ports_refuses_both_and_opens_the_pair_when_there_are_some() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut hub = hub(port..=port);
        ask(&mut hub, "a", "b");
        let refused = ask(&mut hub, "b", "a");
        assert_eq!(refused.len(), 2);
        for (to, notification) in refused {
            let node = if to.as_str() == "a" { "b" } else { "a" }.into();
            assert_eq!(notification, AgentNotification::RelayRefused { node, reason: RelayRefusal::NoPort });
        }
        assert_eq!(hub.pairs(), 0);
    }

    #[tokio::test]
    async fn a_pair_on_an_address_that_the_nodes_left_is_opened_anew_and_one_of_a_removed_node_closes() {
        if !is_root_or_skips() {
            return;
        }
        let mut hub = hub(24_300..=24_399);
        ask(&mut hub, "a", "b");
        let before = opened(&ask(&mut hub, "b", "a"));
        let (a, b) = (PeerName::new("a"), PeerName::new("b"));
        let elsewhere = |hub: &mut HubRelays, from: &PeerName, to: &PeerName| {
            hub.request(from, to, |node| end(2, node), random([40, 50]), at(1))
        };
        let asked = AgentNotification::RelayRequest { node: "a".into() };
        assert_eq!(elsewhere(&mut hub, &a, &b), [(b.clone(), asked)]);
        let after = opened(&elsewhere(&mut hub, &b, &a));
        assert_ne!(before, after);
        hub.remove_node(&a);
        assert_eq!(hub.pairs(), 0);
        // The task closes its sockets when it runs the next time.
        tokio::task::yield_now().await;
        for (_, port) in after {
            UdpSocket::bind(("127.0.0.2", port)).unwrap();
        }
    }

    #[tokio::test]
    async fn a_node_that_comes_by_tcp_gets_a_token_and_one_that_changes_to_udp_loses_its_pair() {
        if !is_root_or_skips() {
            return;
        }
        let mut hub = hub(24_400..=24_499);
        let (a, b) = (PeerName::new("a"), PeerName::new("b"));
        let by_tcp = |node: &PeerName| if *node == b { Some(RelayEnd::Tcp) } else { end(1, node) };
        hub.request(&a, &b, by_tcp, random([3, 5]), at(0));
        let answers = hub.request(&b, &a, by_tcp, random([3, 5]), at(0));
        let token = RelayToken::new(u128::to_be_bytes(5));
        assert_eq!(answers[0], (b.clone(), AgentNotification::RelayTcpOpened { node: "a".into(), token }));
        assert!(matches!(&answers[1], (node, AgentNotification::RelayOpened { .. }) if *node == a), "{answers:?}");
        // It asks again, for example after a restart, and gets the same token.
        assert_eq!(hub.request(&b, &a, by_tcp, random([6, 7]), at(1))[0], answers[0]);
        hub.node_moved(&b, RelayEnd::Tcp);
        assert_eq!(hub.pairs(), 1, "another connection of its IKE SA changes nothing");
        hub.node_moved(&b, end(1, &b).unwrap());
        assert_eq!(hub.pairs(), 0);
    }
}
