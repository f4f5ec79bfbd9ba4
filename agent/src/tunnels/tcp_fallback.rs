//! Tunnels to hubs in TCP connections, for edges whose network blocks UDP.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use edge_ike::config::PeerConfig;
use edge_ike::{Instant, PeerName, TcpConnectionId};
use tracing::Instrument;

use super::driver::Driver;
use crate::candidate_addresses::MAX_CANDIDATES;
use crate::clock::boot_time;
use crate::desired::DesiredTunnel;
use crate::source_address::is_local;
use crate::tcp_encapsulation::{self, Action, TcpEvent, is_tcp};

/// Maximum number of UDP addresses of a hub that are tried, so that a TCP connection can be tried
/// too.
const MAX_UDP: usize = MAX_CANDIDATES - 1;

impl Driver {
    /// Returns the configuration of a peer. The address that stands for the TCP connection to it,
    /// if there is one, is the last of its addresses.
    pub(super) fn with_tcp_address(&self, name: &PeerName, mut peer: Arc<PeerConfig>) -> Arc<PeerConfig> {
        if let Some(id) = self.tcp.fallback.connection(name) {
            let (_, remote) = self.tcp.connections.stand_ins(id);
            let remotes = &mut Arc::make_mut(&mut peer).remotes;
            remotes.truncate(MAX_UDP);
            remotes.push(remote);
        }
        peer
    }

    /// Returns whether the newest IKE SA with a peer uses a TCP connection.
    pub(super) fn is_up_by_tcp(&self, name: &PeerName) -> bool {
        self.endpoint.path(name).is_some_and(|(_, remote)| is_tcp(remote))
    }

    fn tcp_tunnel(&self, name: &PeerName) -> Option<&Arc<DesiredTunnel>> {
        self.desired.tunnels.get(name).filter(|tunnel| !tunnel.tcp.is_empty())
    }

    /// Handles a change of the path to a peer: the peer is up, down or has moved.
    pub(super) fn tcp_path_changed(&mut self, name: &PeerName) {
        let path = self.endpoint.path(name);
        let now = self.now();
        if self.tcp_tunnel(name).is_none() {
            self.forget_tcp(name, now);
            return;
        }
        match path {
            None => self.tcp.fallback.unreached(name, now),
            Some((_, remote)) => match TcpConnectionId::of(remote.ip()) {
                Some(id) => self.tcp.fallback.up_by_tcp(name, id, now),
                None => self.up_by_udp(name, now),
            },
        }
    }

    /// Handles a hub that does not answer. If it is up by UDP, the network may block UDP now.
    pub(super) fn tcp_peer_silent(&mut self, name: &PeerName) {
        if self.tcp_tunnel(name).is_some() && !self.is_up_by_tcp(name) {
            let now = self.now();
            self.tcp.fallback.unreached(name, now);
        }
    }

    /// Handles a hub that answers again.
    pub(super) fn tcp_peer_heard(&mut self, name: &PeerName) {
        if self.endpoint.path(name).is_some() && !self.is_up_by_tcp(name) {
            let now = self.now();
            self.up_by_udp(name, now);
        }
    }

    fn up_by_udp(&mut self, name: &PeerName, now: Instant) {
        let before = self.tcp.fallback.connection(name);
        self.tcp.fallback.up_by_udp(name, now);
        if before != self.tcp.fallback.connection(name) {
            before.into_iter().for_each(|id| self.tcp.connections.close(id));
            self.set_peer(name, now);
        }
    }

    /// Forgets a peer that is no hub with a TCP port any more, and closes the connection to it.
    pub(super) fn forget_tcp(&mut self, name: &PeerName, now: Instant) {
        if let Some(id) = self.tcp.fallback.forget(name) {
            self.tcp.connections.close(id);
            self.set_peer(name, now);
        }
    }

    /// Connects to hubs, tries UDP again, and closes connections, as far as this is due.
    pub(super) fn tcp_timeout(&mut self, now: Instant) {
        for action in self.tcp.fallback.take_due(now) {
            match action {
                Action::Dial(name) => self.dial(name, now),
                Action::TryUdp(name) => self.try_udp(&name, now),
                Action::Close(name, id) => {
                    let why = self.tcp.fallback.error(&name).unwrap_or("it is no longer needed");
                    tracing::debug!(peer = %name, "closing the TCP connection: {why}");
                    self.tcp.connections.close(id);
                    self.set_peer(&name, now);
                }
            }
        }
    }

    /// Closes the connections to hubs from addresses that this node no longer has. Connects again
    /// at once, and tries UDP, since the network may be another one.
    pub(super) fn replace_tcp_of_gone_addresses(&mut self, local_addresses: &[IpAddr]) {
        let now = self.now();
        for id in self.tcp.fallback.connections() {
            let ends = self.tcp.connections.ends(id).filter(|_| self.tcp.connections.is_open(id));
            let Some(local) = ends.map(|ends| ends.local.ip().to_canonical()) else { continue };
            // The connection may be from a link-local address.
            if local_addresses.contains(&local) || is_local(local) {
                continue;
            }
            self.tcp.connections.close(id);
            if let Some(name) = self.tcp.fallback.address_gone(id, now) {
                tracing::info!(peer = %name, %local, "the address of the TCP connection to the hub is gone; connecting again");
                self.try_udp(&name, now);
            }
        }
        self.close_relay_connections_of_gone_addresses(local_addresses, now);
        self.tcp_timeout(now);
    }

    fn try_udp(&mut self, name: &PeerName, now: Instant) {
        let udp = self.desired.tunnels.get(name).map(|tunnel| tunnel.peer.remotes.clone());
        let udp: Vec<SocketAddr> = udp.into_iter().flatten().take(MAX_UDP).collect();
        if self.is_up_by_tcp(name) {
            self.other_ports.tried(name, now);
            self.endpoint.try_addresses(name, &udp, now, &mut self.environment);
        }
    }

    fn dial(&mut self, name: PeerName, now: Instant) {
        let addresses = self.tcp_tunnel(&name).map(|tunnel| tunnel.tcp.clone()).unwrap_or_default();
        let Some(messages) = self.tcp.messages.clone() else { return };
        if let Err(why) = tcp_encapsulation::support() {
            return self.tcp_failed(&name, why, now);
        }
        tracing::debug!(peer = %name, ?addresses, "the hub does not answer by UDP; connecting by TCP");
        let events = self.tcp.to_events.clone();
        let addresses = self.tcp.fallback.dial_order(&name, &addresses);
        let connect =
            tcp_encapsulation::connect(name, addresses, self.tcp.connections.clone(), boot_time, messages, events);
        self.tcp.tasks.spawn(connect.in_current_span());
    }

    /// Records why a hub cannot be reached by TCP. A new reason is logged.
    fn tcp_failed(&mut self, name: &PeerName, why: String, now: Instant) {
        if self.tcp.fallback.error(name) != Some(why.as_str()) {
            tracing::warn!(peer = %name, "the hub does not answer by UDP, and cannot be reached by TCP: {why}");
        }
        self.tcp.fallback.failed(name, why, now);
    }

    fn tcp_opened(&mut self, name: &PeerName, id: TcpConnectionId, now: Instant) {
        let address = self.tcp.connections.ends(id).map(|ends| ends.remote);
        if !self.tcp.fallback.opened(name, id, address, now) {
            return self.tcp.connections.close(id);
        }
        tracing::info!(peer = %name, remote = ?address, "a TCP connection to the hub is open");
        self.set_peer(name, now);
        if self.endpoint.path(name).is_some() {
            let (_, remote) = self.tcp.connections.stand_ins(id);
            self.endpoint.try_addresses(name, &[remote], now, &mut self.environment);
        } else {
            self.endpoint.connect(name, now, &mut self.environment);
        }
    }

    /// Handles the outcome of an attempt to connect, or the end of a connection.
    pub(super) fn handle_tcp_event(&mut self, event: TcpEvent) {
        let now = self.now();
        // The tasks that have ended are not kept.
        while self.tcp.tasks.try_join_next().is_some() {}
        match event {
            TcpEvent::Opened(name, id) => self.tcp_opened(&name, id, now),
            TcpEvent::Failed(name, why) => self.tcp_failed(&name, why, now),
            TcpEvent::Ended(id) => {
                self.tcp.fallback.ended(id, now);
                self.relay_connection_ended(id, now);
            }
            TcpEvent::Relay(target, outcome) => self.relay_connected(&target, outcome),
        }
    }

    /// Closes the connections of peers that have carried no IKE SA for a while.
    pub(super) fn close_unused_tcp(&mut self) {
        self.clean_relay_connections();
        if self.tcp.connections.is_empty() {
            return;
        }
        let used = self.endpoint.ike_addresses().filter_map(|(_, _, remote)| TcpConnectionId::of(remote.ip()));
        let used: BTreeSet<TcpConnectionId> = used.collect();
        self.tcp.connections.close_unused(&used, self.now());
    }
}
