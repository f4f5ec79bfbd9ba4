//! Relays. An edge requests them from hubs for peers to which it finds no direct path, and later
//! returns to a direct path. A hub answers the requests.

use std::net::SocketAddr;
use std::sync::Arc;

use edge_ike::config::PeerConfig;
use edge_ike::endpoint::Phase;
use edge_ike::wire::{AgentNotification, RelayToken};
use edge_ike::{Instant, PeerName, TcpConnectionId};
use edge_types::Role;
use ring::rand::SecureRandom;
use tokio::runtime::Handle;

use super::driver::Driver;
use super::event_log::{PeerEvent, info_if};
use crate::candidate_addresses::MAX_CANDIDATES;
use crate::clock::boot_time;
use crate::config::RelaySection;
use crate::desired::{Desired, DesiredTunnel, Origin};
use crate::relay::{AwaitedStreams, EndRandom, HubRelays, Opened, OpenedRelay, RelayEnd, RelayRequests};
use crate::tcp_encapsulation::is_tcp;

/// Maximum number of direct addresses of a peer that are tried, so that a relayed address can be
/// tried too.
const MAX_DIRECT: usize = MAX_CANDIDATES - 1;

/// The driver's state of relays.
#[derive(Debug)]
pub(super) struct Relays {
    enabled: bool,
    /// The hubs in the view, in the order of their names.
    hubs: Vec<PeerName>,
    /// On an edge: the peers whose tunnel is not up, or is relayed.
    pub(super) requests: RelayRequests,
    /// On a hub: the relays that it provides.
    pub(super) hub: HubRelays,
}

impl Relays {
    /// Creates the state without hubs and relays. On a hub, the connections of nodes to relays come
    /// from `streams`, and the tasks that copy datagrams run on `runtime`.
    pub(super) fn new(config: &RelaySection, streams: AwaitedStreams, runtime: Handle) -> Self {
        Self {
            enabled: config.enabled,
            hubs: Vec::new(),
            requests: RelayRequests::default(),
            hub: HubRelays::new(config.enabled, config.ports.clone(), streams, runtime, boot_time),
        }
    }

    /// Stores which peers are hubs.
    pub(super) fn set_hubs(&mut self, desired: &Desired) {
        let hubs = desired.tunnels.iter().filter(|(_, tunnel)| tunnel.hub);
        self.hubs = hubs.map(|(name, _)| name.clone()).collect();
    }

    /// Forgets a peer that no longer exists.
    pub(super) fn remove_peer(&mut self, name: &PeerName) {
        self.requests.forget(name);
        self.hub.remove_node(name);
    }
}

/// Returns whether a tunnel leads to a node in the view that is not a hub.
fn is_member(tunnel: &DesiredTunnel) -> bool {
    tunnel.origin == Origin::View && !tunnel.hub
}

/// Returns how a node whose IKE SA has these addresses reaches this hub.
fn relay_end(local: SocketAddr, remote: SocketAddr) -> RelayEnd {
    if is_tcp(remote) { RelayEnd::Tcp } else { RelayEnd::Udp { local: local.ip().to_canonical(), remote } }
}

impl Driver {
    /// Returns whether this node is an edge that may be relayed.
    fn may_be_relayed(&self) -> bool {
        self.relays.enabled && self.desired.role == Some(Role::Edge)
    }

    fn member(&self, name: &PeerName) -> Option<&Arc<DesiredTunnel>> {
        self.desired.tunnels.get(name).filter(|tunnel| is_member(tunnel))
    }

    /// Returns the connected hubs that understand requests for relays.
    pub(super) fn connected_hubs(&self) -> Vec<PeerName> {
        let can_relay = |hub: &&PeerName| self.endpoint.takes_agent_notifications(hub) && !self.hub_returns.leaves(hub);
        self.relays.hubs.iter().filter(can_relay).cloned().collect()
    }

    /// Returns the configuration of a peer. Its relayed address, if there is one, is the last of
    /// its addresses.
    pub(super) fn with_relayed_address(&self, name: &PeerName, tunnel: &DesiredTunnel) -> Arc<PeerConfig> {
        let mut peer = tunnel.peer.clone();
        if self.may_be_relayed() && is_member(tunnel) {
            let relay = self.relays.requests.relay(name);
            if relay.is_some() || peer.remotes.len() > MAX_DIRECT {
                let remotes = &mut Arc::make_mut(&mut peer).remotes;
                remotes.truncate(MAX_DIRECT);
                remotes.extend(relay.map(|relay| relay.address));
            }
        }
        peer
    }

    /// Returns the relay that the newest IKE SA with a peer uses; `None` if the path is direct.
    /// After a restart of the agent, a relay is recognized by the IP address of a hub with another
    /// port.
    pub(super) fn relay_in_use(&self, name: &PeerName) -> Option<OpenedRelay> {
        let tunnel = self.member(name).filter(|_| self.desired.role == Some(Role::Edge))?;
        let (_, remote) = self.endpoint.path(name)?;
        if let Some(relay) = self.relays.requests.relay(name).filter(|relay| relay.address == remote) {
            return Some(relay.clone());
        }
        if let Some(id) = TcpConnectionId::of(remote.ip()) {
            // The connection may have ended, and another one may be open.
            let hub = self.tcp.relay_connections.hub(name, id);
            let hub = hub.or_else(|| self.relays.requests.relay(name).map(|relay| &relay.hub));
            return hub.map(|hub| OpenedRelay { hub: hub.clone(), address: remote });
        }
        let is_at = |addresses: &[SocketAddr]| {
            addresses.iter().any(|address| address.ip() == remote.ip()) && !addresses.contains(&remote)
        };
        let hub = self.relays.hubs.iter().find(|hub| {
            self.desired.tunnels.get(hub).is_some_and(|tunnel| is_at(&tunnel.peer.remotes))
                || self.endpoint.path(hub).is_some_and(|(_, at)| is_at(&[at]))
        });
        // If the peer itself has an endpoint at the hub's IP address, the path may be direct.
        let hub = hub.filter(|_| !tunnel.peer.remotes.iter().any(|address| address.ip() == remote.ip()))?;
        Some(OpenedRelay { hub: hub.clone(), address: remote })
    }

    /// Handles a change of the path to a peer: the peer is up, down or has moved.
    pub(super) fn path_changed(&mut self, name: &PeerName) {
        self.tcp_path_changed(name);
        self.source_port_path_changed(name);
        let path = self.endpoint.path(name);
        if self.desired.role == Some(Role::Hub) {
            if let Some((local, remote)) = path {
                self.relays.hub.node_moved(name, relay_end(local, remote));
            }
            return;
        }
        if !self.may_be_relayed() {
            return;
        }
        if self.relays.hubs.contains(name) {
            match path {
                None => self.check_relayed(name),
                // The hub opened the ports of relays on the former address of its IKE SA, so relays
                // are requested again.
                Some(_) => self.hub_connected(name),
            }
        }
        if self.member(name).is_none() {
            return;
        }
        let now = self.now();
        match (path, self.relay_in_use(name)) {
            // A connection that has ended is no relay for later, though it is the path until
            // another one is used.
            (_, Some(relay)) if self.is_closed_connection(relay.address) => {}
            (_, Some(relay)) => self.relays.requests.relayed(name, relay, now),
            (None, None) if self.is_wanted(name) => self.relays.requests.watch(name, now),
            (Some(_), None) if self.may_need_relay(name, now) => {}
            _ => self.forget_relay(name),
        }
    }

    fn is_closed_connection(&self, address: SocketAddr) -> bool {
        TcpConnectionId::of(address.ip()).is_some_and(|id| !self.tcp.connections.is_open(id))
    }

    /// Handles a change of this node's address, from which it sent to these peers. Their NATs may
    /// let nothing in from the new address. So a hub is asked for a relay to those that are silent.
    pub(super) fn moved_away<'a>(&mut self, peers: impl IntoIterator<Item = &'a PeerName>) {
        let now = self.now();
        for peer in peers {
            if self.is_up_directly(peer) && !self.is_path_lost(peer) {
                self.relays.requests.moved(peer, now);
            }
            self.relays.requests.await_hub(now);
        }
    }

    /// Looks whether a hub has answered at the address to which this node has moved.
    pub(super) fn note_hub_answer(&mut self) {
        let now = self.now();
        let Some(moved) = self.relays.requests.awaits_hub_since(now) else { return };
        if self.relays.hubs.iter().any(|hub| self.endpoint.is_heard_since(hub, moved)) {
            self.relays.requests.hub_answered(now);
        }
    }

    /// Handles a peer that does not answer. Over a relay it may, before its tunnel is given up.
    pub(super) fn relayed_if_silent(&mut self, peer: &PeerName) {
        if self.is_up_directly(peer) {
            let now = self.now();
            self.relays.requests.silent(peer, now);
        }
    }

    /// Returns whether the tunnel to an edge that may be relayed is up without a relay.
    fn is_up_directly(&self, name: &PeerName) -> bool {
        self.may_be_relayed()
            && self.member(name).is_some()
            && self.endpoint.path(name).is_some_and(|(_, remote)| !is_tcp(remote))
            && self.relay_in_use(name).is_none()
    }

    /// Returns whether a peer on a direct path may need the relay that a hub opens.
    fn may_need_relay(&self, name: &PeerName, now: Instant) -> bool {
        let is_silent_since = |at| self.endpoint.is_silent_since(name, at);
        self.relays.requests.may_need_relay(name, is_silent_since, now)
    }

    /// Returns whether nothing has arrived from a peer since its path may have been lost.
    fn is_path_lost(&self, name: &PeerName) -> bool {
        self.relays.requests.lost_since(name).is_some_and(|lost| self.endpoint.is_silent_since(name, lost))
    }

    /// Handles a packet that waits for the tunnel to a peer.
    pub(super) fn packet_waits(&mut self, name: &PeerName) {
        if self.may_be_relayed() && self.member(name).is_some() && self.endpoint.path(name).is_none() {
            let now = self.now();
            self.relays.requests.watch(name, now);
        }
    }

    /// Handles a new IKE SA with a hub, which may have been restarted.
    pub(super) fn hub_connected(&mut self, hub: &PeerName) {
        if self.may_be_relayed() {
            let now = self.now();
            self.relays.requests.hub_connected(hub, now);
        }
    }

    /// Handles a hub that leaves: another hub is asked for the relays that this hub provides.
    pub(super) fn relays_leave(&mut self, hub: &PeerName) {
        let now = self.now();
        self.relays.requests.hub_leaving(hub, now);
    }

    /// Handles the loss of a hub: the liveness of the peers to which it relays is checked at once,
    /// even if they are idle.
    fn check_relayed(&mut self, hub: &PeerName) {
        let now = self.now();
        for peer in self.relays.requests.relayed_by(hub) {
            self.endpoint.check_liveness(&peer, now, &mut self.environment);
        }
    }

    /// Returns whether a tunnel should be up now.
    fn is_wanted(&self, name: &PeerName) -> bool {
        let on_demand = self.is_on_demand(name);
        self.member(name).is_some()
            && (!on_demand || self.endpoint.phase(name).is_some_and(|phase| phase != Phase::Idle))
    }

    fn forget_relay(&mut self, name: &PeerName) {
        if self.relays.requests.forget(name) {
            let now = self.now();
            self.set_peer(name, now);
        }
    }

    /// Requests relays from hubs for the peers that are due. If a peer is already relayed, the
    /// hub's answer makes both ends try their direct addresses at the same time, as NATs require.
    pub(super) fn ask_for_relays(&mut self, now: Instant) {
        let due = self.relays.requests.take_due(now);
        if due.is_empty() {
            return;
        }
        let hubs = self.connected_hubs();
        for name in due {
            let relayed = self.relay_in_use(&name).is_some();
            let direct = !relayed && self.endpoint.path(&name).is_some() && !self.is_path_lost(&name);
            if direct || !self.is_wanted(&name) {
                self.forget_relay(&name);
            } else if let Some(hub) = self.relays.requests.next_hub(&name, &hubs, now) {
                tracing::debug!(peer = %name, %hub, "asking the hub for a relay");
                self.notify(&hub, AgentNotification::RelayRequest { node: name.to_string() });
            } else if relayed {
                self.try_direct(&name, now);
            }
        }
    }

    /// Handles a notification about relays. A hub accepts only requests, and an edge accepts only
    /// notifications from hubs.
    pub(super) fn handle_relay_notification(&mut self, from: &PeerName, notification: &AgentNotification) {
        if self.desired.role == Some(Role::Hub) {
            if let AgentNotification::RelayRequest { node } = notification {
                self.answer_relay_request(from, &PeerName::new(node));
            }
            return;
        }
        if !self.may_be_relayed() || !self.relays.hubs.contains(from) {
            return;
        }
        let now = self.now();
        match notification {
            AgentNotification::RelayRequest { node } => {
                let peer = PeerName::new(node);
                // A node that is not in the view may not talk to this one.
                if self.member(&peer).is_some() {
                    self.relays.requests.agree(&peer, now);
                    self.notify(from, AgentNotification::RelayRequest { node: node.clone() });
                }
            }
            AgentNotification::RelayOpened { node, port } => {
                let at = self.endpoint.path(from).map(|(_, at)| at).filter(|at| !is_tcp(*at));
                if let Some(at) = at {
                    let relay = OpenedRelay { hub: from.clone(), address: SocketAddr::new(at.ip(), *port) };
                    self.relay_opened(relay, &PeerName::new(node), now);
                }
            }
            AgentNotification::RelayTcpOpened { node, token } => {
                self.relay_opened_in_tcp(from, &PeerName::new(node), *token, now);
            }
            AgentNotification::RelayRefused { node, reason } => {
                tracing::debug!(hub = %from, peer = node, "the hub does not relay: {reason}");
                let hubs = self.connected_hubs();
                self.relays.requests.refused(&PeerName::new(node), from, *reason, &hubs, now);
            }
            AgentNotification::MappedAddress(_) | AgentNotification::HubLeaving => {}
        }
    }

    /// Returns whether this node needs a relay to a peer. A request for it is recorded if the
    /// peer's tunnel is not up: while the pair is open, the hub does not pass the peer's requests
    /// on, but this node may have forgotten the relay, for example when the tunnel was idle.
    pub(super) fn is_relay_wanted(&mut self, peer: &PeerName, now: Instant) -> bool {
        if self.member(peer).is_none() {
            return false;
        }
        if self.endpoint.path(peer).is_none() {
            self.relays.requests.agree(peer, now);
        }
        self.relays.requests.contains(peer)
    }

    /// Handles a relay that is open.
    pub(super) fn relay_opened(&mut self, relay: OpenedRelay, peer: &PeerName, now: Instant) {
        if !self.is_relay_wanted(peer, now) {
            return;
        }
        let (hub, address) = (relay.hub.clone(), relay.address);
        let hubs = self.connected_hubs();
        let path = self.endpoint.path(peer).map(|(_, remote)| remote);
        if self.is_up_directly(peer) && !self.may_need_relay(peer, now) {
            // The peer has answered on the direct path meanwhile.
            return self.forget_relay(peer);
        }
        let opened = self.relays.requests.opened(peer, relay, &hubs, now);
        match (opened, path) {
            (Opened::Ignored, _) => return,
            (Opened::Known, Some(remote)) if remote == address => return self.try_direct(peer, now),
            (Opened::Known, _) => {}
            (Opened::New, _) => {
                let loud = self.event_log.record(PeerEvent::Relayed, peer, now);
                let at = self.tcp.connections.real(address);
                info_if!(loud, %peer, %hub, address = %at, tcp = is_tcp(address), "the hub relays to the peer");
                self.set_peer(peer, now);
            }
        }
        if path.is_some() {
            self.endpoint.try_addresses(peer, &[address], now, &mut self.environment);
            self.relays.requests.try_again(peer, now);
        } else {
            self.endpoint.connect(peer, now, &mut self.environment);
        }
    }

    /// Tries the direct addresses of a relayed peer. The relayed tunnel stays up until a direct one
    /// is up.
    fn try_direct(&mut self, peer: &PeerName, now: Instant) {
        let Some(tunnel) = self.member(peer) else { return };
        let direct: Vec<SocketAddr> = tunnel.peer.remotes.iter().copied().take(MAX_DIRECT).collect();
        if self.relays.requests.may_try_direct(peer, now) {
            self.endpoint.try_addresses(peer, &direct, now, &mut self.environment);
        }
    }

    fn answer_relay_request(&mut self, from: &PeerName, to: &PeerName) {
        let Some(random) = self.random_of_end().zip(self.random_of_end()) else { return };
        let (desired, endpoint) = (&self.desired, &self.endpoint);
        let end_of = |name: &PeerName| {
            desired.tunnels.get(name).filter(|tunnel| is_member(tunnel) && endpoint.takes_agent_notifications(name))?;
            endpoint.path(name).map(|(local, remote)| relay_end(local, remote))
        };
        for (node, answer) in self.relays.hub.request(from, to, end_of, random.into(), boot_time()) {
            self.notify(&node, answer);
        }
    }

    /// Returns random numbers for one end of a pair; `None` if the system has none, so that the
    /// request is not answered.
    fn random_of_end(&self) -> Option<EndRandom> {
        let (mut port, mut token) = ([0; 2], [0; RelayToken::LEN]);
        self.environment.random.fill(&mut port).ok()?;
        self.environment.random.fill(&mut token).ok()?;
        Some(EndRandom { port: u16::from_be_bytes(port), token: RelayToken::new(token) })
    }

    /// Sends a notification. If it cannot be sent, it is dropped: a node that gets no answer
    /// repeats its request.
    pub(super) fn notify(&mut self, peer: &PeerName, notification: AgentNotification) {
        self.endpoint.notify_agent(peer, notification, boot_time(), &mut self.environment);
    }
}
