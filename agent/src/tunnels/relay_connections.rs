//! An edge's TCP connections to relays, where its network blocks UDP. Each carries IKE and ESP with
//! one peer. To the endpoint, it is one more address of the peer.

use std::collections::BTreeMap;

use edge_ike::wire::RelayToken;
use edge_ike::{PeerName, TcpConnectionId};

use crate::tcp_encapsulation::{Connections, RelayTarget};

/// The connections to relays, by the peer with which IKE and ESP travel in each. There is at most
/// one entry for each peer in the view.
#[derive(Debug, Default)]
pub(super) struct RelayConnections {
    of_peers: BTreeMap<PeerName, RelayConnection>,
}

#[derive(Debug)]
struct RelayConnection {
    hub: PeerName,
    token: RelayToken,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is being established.
    Dialing,
    /// It is open, or has ended while the endpoint may still use its address.
    Opened(TcpConnectionId),
}

/// What to do about a hub's notification that it relays to a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Needed {
    /// The connection is open.
    Is(TcpConnectionId),
    /// It must be established, in place of this one, if there is one.
    Dial(Option<TcpConnectionId>),
    /// It is being established.
    Nothing,
}

impl RelayConnections {
    /// Records that a hub relays to a peer. `is_open` says whether a connection is open.
    pub(super) fn needs(&mut self, target: &RelayTarget, is_open: impl Fn(TcpConnectionId) -> bool) -> Needed {
        let known = self.of_peers.get(&target.peer);
        match known.filter(|known| known.token == target.token && known.hub == target.hub).map(|known| known.state) {
            Some(State::Dialing) => return Needed::Nothing,
            Some(State::Opened(id)) if is_open(id) => return Needed::Is(id),
            _ => {}
        }
        // A hub that says another token each time gets one connection after the other.
        if known.is_some_and(|known| known.state == State::Dialing) {
            return Needed::Nothing;
        }
        let dialing = RelayConnection { hub: target.hub.clone(), token: target.token, state: State::Dialing };
        Needed::Dial(match self.of_peers.insert(target.peer.clone(), dialing).map(|before| before.state) {
            Some(State::Opened(id)) => Some(id),
            Some(State::Dialing) | None => None,
        })
    }

    /// Records the outcome of an attempt. Returns whether the connection is needed.
    pub(super) fn opened(&mut self, target: &RelayTarget, id: Option<TcpConnectionId>) -> bool {
        let Some(known) = self.of_peers.get_mut(&target.peer) else { return false };
        if known.state != State::Dialing || known.token != target.token {
            return false;
        }
        match id {
            Some(id) => known.state = State::Opened(id),
            None => drop(self.of_peers.remove(&target.peer)),
        }
        id.is_some()
    }

    /// Returns the peer and the hub of a connection.
    pub(super) fn of(&self, id: TcpConnectionId) -> Option<(&PeerName, &PeerName)> {
        let found = self.of_peers.iter().find(|(_, known)| known.state == State::Opened(id));
        found.map(|(peer, known)| (peer, &known.hub))
    }

    /// Returns the hub that relays to a peer in a connection.
    pub(super) fn hub(&self, peer: &PeerName, id: TcpConnectionId) -> Option<&PeerName> {
        self.of_peers.get(peer).filter(|known| known.state == State::Opened(id)).map(|known| &known.hub)
    }

    /// Returns the connections, of which some may have ended.
    pub(super) fn connections(&self) -> impl Iterator<Item = TcpConnectionId> {
        self.of_peers.values().filter_map(|known| match known.state {
            State::Opened(id) => Some(id),
            State::Dialing => None,
        })
    }

    /// Forgets a peer. Its connection is closed when it carries no IKE SA any more.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        self.of_peers.remove(peer);
    }

    /// Forgets the connections that have ended. `uses` says whether the endpoint still uses one for
    /// a peer.
    pub(super) fn clean(&mut self, connections: &Connections, uses: impl Fn(&PeerName, TcpConnectionId) -> bool) {
        self.of_peers.retain(|peer, known| match known.state {
            State::Dialing => true,
            State::Opened(id) => connections.is_open(id) || uses(peer, id),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TcpConnectionId = TcpConnectionId::new(1);
    const TWO: TcpConnectionId = TcpConnectionId::new(2);

    fn target(hub: &str, token: u8) -> RelayTarget {
        let (peer, hub) = (PeerName::new("b"), PeerName::new(hub));
        RelayTarget { peer, hub, token: RelayToken::new([token; 16]) }
    }

    #[test]
    fn a_relay_is_dialed_once_and_again_when_its_connection_has_ended() {
        let mut relays = RelayConnections::default();
        let open = |_| true;
        assert_eq!(relays.needs(&target("hub", 1), open), Needed::Dial(None));
        assert_eq!(relays.needs(&target("hub", 1), open), Needed::Nothing);
        assert!(relays.opened(&target("hub", 1), Some(ONE)));
        assert_eq!(relays.needs(&target("hub", 1), open), Needed::Is(ONE));
        assert_eq!(relays.hub(&PeerName::new("b"), ONE), Some(&PeerName::new("hub")));
        assert_eq!(relays.needs(&target("hub", 1), |_| false), Needed::Dial(Some(ONE)));
        assert!(relays.opened(&target("hub", 1), Some(TWO)));
        assert_eq!((relays.of(ONE), relays.of(TWO).is_some()), (None, true));
    }

    #[test]
    fn a_hub_that_says_another_token_each_time_causes_no_second_attempt_at_the_same_time() {
        let mut relays = RelayConnections::default();
        assert_eq!(relays.needs(&target("hub", 1), |_| true), Needed::Dial(None));
        for token in 2..100 {
            assert_eq!(relays.needs(&target("hub", token), |_| true), Needed::Nothing);
        }
        assert!(relays.opened(&target("hub", 1), Some(ONE)));
        assert_eq!(relays.needs(&target("other", 1), |_| true), Needed::Dial(Some(ONE)), "which is closed");
    }

    #[test]
    fn an_attempt_that_fails_or_is_not_needed_any_more_leaves_nothing() {
        let mut relays = RelayConnections::default();
        relays.needs(&target("hub", 1), |_| true);
        assert!(!relays.opened(&target("hub", 1), None));
        assert!(relays.of_peers.is_empty());
        relays.needs(&target("hub", 2), |_| true);
        relays.forget(&PeerName::new("b"));
        assert!(!relays.opened(&target("hub", 2), Some(ONE)), "the peer is gone, so it is closed");
        relays.needs(&target("hub", 3), |_| true);
        relays.opened(&target("hub", 3), Some(TWO));
        relays.clean(&Connections::new(4500), |_, id| id == TWO);
        assert_eq!(relays.of_peers.len(), 1, "the endpoint still uses it");
        relays.clean(&Connections::new(4500), |_, _| false);
        assert!(relays.of_peers.is_empty());
    }
}
