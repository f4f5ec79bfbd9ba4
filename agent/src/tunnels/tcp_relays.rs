//! Relays for an edge whose network blocks UDP: dials the connections to them, and follows these.

use std::net::{IpAddr, SocketAddr};

use edge_ike::wire::RelayToken;
use edge_ike::{Instant, PeerName, TcpConnectionId};
use tracing::Instrument;

use super::driver::Driver;
use super::relay_connections::Needed;
use crate::clock::boot_time;
use crate::relay::OpenedRelay;
use crate::source_address::is_local;
use crate::tcp_encapsulation::{self, RelayTarget};

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
        let opened = self.tcp.relay_connections.connections();
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
