//! An edge's TCP connections to relays, where its network blocks UDP. Each carries IKE and ESP with
//! one peer. To the endpoint, it is one more address of the peer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use edge_ike::wire::RelayToken;
use edge_ike::{Instant, PeerName, TcpConnectionId};
use tracing::Instrument;

use super::driver::Driver;
use crate::clock::boot_time;
use crate::relay::OpenedRelay;
use crate::source_address::is_local;
use crate::tcp_encapsulation::{self, Connections, RelayTarget};

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
enum Needed {
    /// The connection is open.
    Is(TcpConnectionId),
    /// It must be established, in place of this one, if there is one.
    Dial(Option<TcpConnectionId>),
    /// It is being established.
    Nothing,
}

impl RelayConnections {
    /// Records that a hub relays to a peer. `is_open` says whether a connection is open.
    fn needs(&mut self, target: &RelayTarget, is_open: impl Fn(TcpConnectionId) -> bool) -> Needed {
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
    fn opened(&mut self, target: &RelayTarget, id: Option<TcpConnectionId>) -> bool {
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
    fn of(&self, id: TcpConnectionId) -> Option<(&PeerName, &PeerName)> {
        let found = self.of_peers.iter().find(|(_, known)| known.state == State::Opened(id));
        found.map(|(peer, known)| (peer, &known.hub))
    }

    /// Returns the hub that relays to a peer in a connection.
    pub(super) fn hub(&self, peer: &PeerName, id: TcpConnectionId) -> Option<&PeerName> {
        self.of_peers.get(peer).filter(|known| known.state == State::Opened(id)).map(|known| &known.hub)
    }

    /// Forgets a peer. Its connection is closed when it carries no IKE SA any more.
    pub(super) fn forget(&mut self, peer: &PeerName) {
        self.of_peers.remove(peer);
    }

    /// Forgets the connections that have ended. `uses` says whether the endpoint still uses one for
    /// a peer.
    fn clean(&mut self, connections: &Connections, uses: impl Fn(&PeerName, TcpConnectionId) -> bool) {
        self.of_peers.retain(|peer, known| match known.state {
            State::Dialing => true,
            State::Opened(id) => connections.is_open(id) || uses(peer, id),
        });
    }
}

impl Driver {
    /// Handles a hub's notification that it relays to a peer what arrives in a TCP connection that
    /// begins with this token.
    pub(super) fn relay_opened_in_tcp(&mut self, hub: &PeerName, peer: &PeerName, token: RelayToken, now: Instant) {
        // Only a node that reaches the hub by TCP needs the connection. It begins where that one
        // ends: not every address of the hub may be reached from here.
        let Some((_, at)) = self.endpoint.path(hub) else { return };
        let Some(ends) = TcpConnectionId::of(at.ip()).and_then(|id| self.tcp.connections.ends(id)) else { return };
        // Neither a peer that may not be talked to, nor one whose tunnel is up without a relay, or
        // uses that of another hub.
        if !self.is_relay_wanted(peer, now) || !self.relays.requests.takes(peer, hub, &self.connected_hubs(), now) {
            return;
        }
        let target = RelayTarget { peer: peer.clone(), hub: hub.clone(), token };
        let connections = self.tcp.connections.clone();
        match self.tcp.relay_connections.needs(&target, |id| connections.is_open(id)) {
            Needed::Is(id) => self.relay_opened(self.in_connection(hub, id), peer, now),
            Needed::Dial(before) => {
                // The endpoint goes on to use its connection until it has another one.
                let in_use = self.endpoint.path(peer).and_then(|(_, at)| TcpConnectionId::of(at.ip()));
                before.filter(|id| Some(*id) != in_use).into_iter().for_each(|id| connections.close(id));
                self.dial_relay(target, ends.remote);
            }
            Needed::Nothing => {}
        }
    }

    fn in_connection(&self, hub: &PeerName, id: TcpConnectionId) -> OpenedRelay {
        let (_, address) = self.tcp.connections.stand_ins(id);
        OpenedRelay { hub: hub.clone(), address }
    }

    fn dial_relay(&mut self, target: RelayTarget, address: SocketAddr) {
        let Some(messages) = self.tcp.messages.clone() else { return };
        let (connections, events) = (self.tcp.connections.clone(), self.tcp.to_events.clone());
        tracing::debug!(peer = %target.peer, hub = %target.hub, %address, "connecting to the relay by TCP");
        let connect = tcp_encapsulation::connect_to_relay(target, address, connections, boot_time, messages, events);
        self.tcp.tasks.spawn(connect.in_current_span());
    }

    /// Handles the outcome of an attempt to connect to a relay.
    pub(super) fn relay_connected(&mut self, target: &RelayTarget, outcome: Result<TcpConnectionId, String>) {
        let now = self.now();
        if let Err(why) = &outcome {
            // The hub is asked again for the relay, and says the token again.
            tracing::debug!(peer = %target.peer, hub = %target.hub, "the relay cannot be reached by TCP: {why}");
        }
        let id = outcome.ok();
        if !self.tcp.relay_connections.opened(target, id) {
            id.into_iter().for_each(|id| self.tcp.connections.close(id));
        } else if let Some(id) = id {
            self.relay_opened(self.in_connection(&target.hub, id), &target.peer, now);
        }
    }

    /// Handles the end of a connection. If it led to a relay, the hub is asked for the relay again.
    pub(super) fn relay_connection_ended(&mut self, id: TcpConnectionId, now: Instant) {
        if let Some((peer, _)) = self.tcp.relay_connections.of(id) {
            self.relays.requests.connection_ended(&peer.clone(), now);
        }
    }

    /// Closes the connections to relays from addresses that this node no longer has.
    pub(super) fn close_relay_connections_of_gone_addresses(&mut self, local_addresses: &[IpAddr], now: Instant) {
        let opened = self.tcp.relay_connections.of_peers.values().filter_map(|known| match known.state {
            State::Opened(id) => Some(id),
            State::Dialing => None,
        });
        let gone = |id: &TcpConnectionId| {
            let ends = self.tcp.connections.ends(*id).filter(|_| self.tcp.connections.is_open(*id));
            // The connection may be from a link-local address.
            ends.map(|ends| ends.local.ip().to_canonical())
                .is_some_and(|local| !local_addresses.contains(&local) && !is_local(local))
        };
        for id in opened.filter(gone).collect::<Vec<_>>() {
            self.tcp.connections.close(id);
            self.relay_connection_ended(id, now);
        }
    }

    /// Forgets the connections to relays that have ended and that the endpoint does not use.
    pub(super) fn clean_relay_connections(&mut self) {
        let (connections, endpoint) = (&self.tcp.connections, &self.endpoint);
        let uses = |peer: &PeerName, id: TcpConnectionId| {
            endpoint.path(peer).is_some_and(|(_, remote)| TcpConnectionId::of(remote.ip()) == Some(id))
        };
        self.tcp.relay_connections.clean(connections, uses);
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
