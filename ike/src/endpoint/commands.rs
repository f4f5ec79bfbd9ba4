//! Commands and reports from the owner. Commands: connect, rekey, terminate, check a peer. Reports:
//! ESP was sent or received, a local address changed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::peer::Peer;
use super::state::{Endpoint, SaState, context, peer_span};
use crate::child_sas::Spi;
use crate::config::{PeerConfig, PeerName};
use crate::environment::Environment;
use crate::event::{ChildId, ChildSa};
use crate::purpose::ChildName;
use crate::sa::{IkeSa, Lifecycle, LocalMove, Profile, QueuedRequest};
use crate::time::Instant;
use crate::wire::AgentNotification;

impl Endpoint {
    /// Starts an attempt now, even if `initiate` is not set in the peer's configuration. Ends a
    /// delay after a failure. If the peer has an IKE SA that lacks CHILD_SAs, they are created on
    /// that IKE SA. Returns false if there is no such peer.
    pub fn connect(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        peer.terminated = false;
        peer.forgive();
        if peer.sas.is_empty() {
            self.start_attempt(name, now, env);
        }
        self.want_children(name, now, env);
        self.schedule_peer(name);
        true
    }

    /// Starts a new attempt now with each peer that is not up and whose attempt is running or
    /// scheduled after a failure. Call this when the route to peers may have changed.
    pub fn retry_unreached(&mut self, now: Instant, env: &mut dyn Environment) {
        let unreached = |peer: &&Peer| {
            peer.sas.is_empty()
                && !peer.child_sas.sends()
                && (peer.attempt.is_some() || (peer.retry_at.is_some() && peer.should_initiate(now)))
        };
        let names: Vec<PeerName> = self.peers.values().filter(unreached).map(|peer| peer.name().clone()).collect();
        for name in names {
            let _span = peer_span(&name).entered();
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.forgive();
            }
            self.start_or_queue_attempt(&name, now, env);
            self.schedule_peer(&name);
        }
    }

    pub(super) fn want_children(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) {
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.missing_child().is_some()) else {
            return;
        };
        let Some(spi) = peer.sas.last().copied() else {
            return;
        };
        if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) {
            sa.want_children(&peer.child_sas, &mut context!(self, now, env));
        }
        self.schedule(spi);
    }

    /// Rekeys the peer's CHILD_SAs now. Returns false if it has none.
    pub fn rekey_children(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let ids = self.peers.get(name).into_iter().flat_map(|peer| peer.child_sas.all_outbound()).collect();
        self.rekey_each(name, ids, now, env)
    }

    /// Rekeys the peer's CHILD_SAs of this configured child now: the one for all of its traffic, or
    /// those for parts of its traffic. Returns false if there are none.
    pub fn rekey_children_named(
        &mut self,
        name: &PeerName,
        child: &ChildName,
        now: Instant,
        env: &mut dyn Environment,
    ) -> bool {
        let ids = self.peers.get(name).into_iter().flat_map(|peer| peer.child_sas.outbound_named(child)).collect();
        self.rekey_each(name, ids, now, env)
    }

    fn rekey_each(&mut self, name: &PeerName, ids: Vec<ChildId>, now: Instant, env: &mut dyn Environment) -> bool {
        let mut any = false;
        for id in ids {
            any |= self.rekey_child(name, id, now, env);
        }
        any
    }

    /// Rekeys a CHILD_SA of the peer now. Returns false if it is gone.
    pub fn rekey_child(&mut self, name: &PeerName, id: ChildId, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        let Some(child) = peer.child_sas.live_mut(id) else {
            return false;
        };
        // `rekey` is `None` while a replacement is being created: one replacement is enough.
        if child.rekey.take().is_some() {
            let owner = child.owner;
            self.queue_request(owner, QueuedRequest::RekeyChild(id), now, env);
        }
        true
    }

    /// Rekeys the peer's IKE SA now (RFC 7296 1.3.2). If the peer refuses, IKE_SA_INIT and IKE_AUTH
    /// create a new IKE SA. Returns false if the peer has no IKE SA.
    pub fn rekey_ike(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let Some(spi) = self.peers.get(name).and_then(|peer| peer.sas.last().copied()) else {
            return false;
        };
        self.queue_request(spi, QueuedRequest::RekeyIke, now, env);
        true
    }

    /// Replaces the peer's IKE SA now, without interrupting traffic, by a new one in which both
    /// ends authenticate again (RFC 7296 2.8.3). Returns false if the peer has no IKE SA, or has an
    /// address from a pool: then only the peer can begin.
    pub fn reauthenticate(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let can = |peer: &&mut Peer| !peer.sas.is_empty() && !peer.gives_addresses();
        let Some(peer) = self.peers.get_mut(name).filter(can) else {
            return false;
        };
        (peer.reauthenticate, peer.only_for_child) = (true, false);
        self.start_attempt(name, now, env);
        true
    }

    /// Deletes the peer's IKE SAs. No attempt starts automatically until the owner calls
    /// [`Self::connect`] or changes the configuration. Returns false if there is no such peer.
    pub fn terminate(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        peer.terminated = true;
        peer.retry_at = None;
        self.cancel_attempt(name, now, env);
        self.leave_queues(name);
        self.delete_all_sas(name, now, env);
        self.schedule_peer(name);
        true
    }

    /// Sends a notification for private use to a peer that is an agent of ours. Returns false if
    /// there is no IKE SA, if the peer has not announced that it understands such notifications, if
    /// 32 notifications already wait, or if the notification is not valid.
    pub fn notify_agent(
        &mut self,
        name: &PeerName,
        notification: AgentNotification,
        now: Instant,
        env: &mut dyn Environment,
    ) -> bool {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else { return false };
        let Some(spi) = peer.sas.last().copied() else { return false };
        let mut queued = false;
        if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi) {
            queued = sa.queue_notification(notification);
            sa.send_requests(&mut peer.child_sas, &mut context!(self, now, env));
        }
        self.schedule(spi);
        queued
    }

    /// Returns whether the peer has an IKE SA and understands the notifications of
    /// [`Self::notify_agent`].
    pub fn takes_agent_notifications(&self, name: &PeerName) -> bool {
        self.newest_sa(name).is_some_and(IkeSa::takes_agent_notifications)
    }

    /// The address and port from which our datagrams come to the peer, as the peer has told us last
    /// on one of its IKE SAs: on a new one it may only be about to tell us. Whether to believe it
    /// depends on who the peer is.
    pub fn mapped_address(&self, name: &PeerName) -> Option<SocketAddr> {
        self.peers.get(name)?.sas.iter().rev().find_map(|spi| match self.sas.get(spi)? {
            SaState::Established(_, sa) => sa.mapped_address(),
            _ => None,
        })
    }

    pub(super) fn newest_sa(&self, name: &PeerName) -> Option<&IkeSa> {
        match self.sas.get(self.peers.get(name)?.sas.last()?) {
            Some(SaState::Established(_, sa)) => Some(sa),
            _ => None,
        }
    }

    /// Starts a liveness check of the peer now (RFC 7296 2.4). Returns false if there is no IKE SA.
    pub fn check_liveness(&mut self, name: &PeerName, now: Instant, env: &mut dyn Environment) -> bool {
        let _span = peer_span(name).entered();
        let spi = self.peers.get(name).and_then(|peer| peer.sas.last().copied());
        if let Some(spi) = spi {
            self.queue_request(spi, QueuedRequest::Liveness, now, env);
        }
        spi.is_some()
    }

    /// Reports that authentic ESP of the peer's CHILD_SA with this inbound SPI has been received
    /// since the last report. `now` is the time of the report, which may be up to a second late.
    /// See [`crate::EndpointConfig::esp_reported`].
    pub fn esp_received(&mut self, name: &PeerName, inbound_spi: u32, now: Instant) {
        self.esp_reported(name, |child| child.inbound_spi == inbound_spi, |sa| sa.esp_received(now));
    }

    /// Reports that ESP was sent on the peer's CHILD_SA with this outbound SPI since the last
    /// report.
    pub fn esp_sent(&mut self, name: &PeerName, outbound_spi: u32, now: Instant) {
        self.esp_reported(name, |child| child.outbound_spi == outbound_spi, |sa| sa.esp_sent(now));
    }

    /// Reports that authentic ESP of the peer's CHILD_SA with this inbound SPI arrives from
    /// `remote`, an address to which we do not send. Either a NAT in front of the peer has changed
    /// its mapping, or an attacker has copied a packet. Sends a request to that address, and moves
    /// the SAs when the peer responds ([`crate::Event::PeerMoved`]). Call this at most once a
    /// second for each CHILD_SA, since each call may send a datagram to that address.
    pub fn esp_came_from(
        &mut self,
        name: &PeerName,
        inbound_spi: u32,
        remote: SocketAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let _span = peer_span(name).entered();
        let Some(owner) = self.owner_of_child(name, |child| child.inbound_spi == inbound_spi) else {
            return;
        };
        if let (Some(SaState::Established(_, sa)), Some(peer)) = (self.sas.get_mut(&owner), self.peers.get_mut(name))
            && peer.sas.contains(&owner)
        {
            sa.esp_came_from(remote, &mut peer.child_sas, &mut context!(self, now, env));
        }
        self.schedule(owner);
    }

    /// Returns our SPI of the IKE SA of a CHILD_SA, whether the CHILD_SA is live or lingers.
    fn owner_of_child(&self, name: &PeerName, is: impl Fn(&ChildSa) -> bool) -> Option<Spi> {
        let child_sas = &self.peers.get(name)?.child_sas;
        child_sas.all().find(|(_, child)| is(&child.sa)).map(|(_, child)| child.owner)
    }

    /// Passes a report of ESP to the IKE SA of the CHILD_SA. Ignores the report if that IKE SA is
    /// gone and the CHILD_SA only lingers, since the ESP is no evidence about other IKE SAs.
    fn esp_reported(&mut self, name: &PeerName, is: impl Fn(&ChildSa) -> bool, report: impl FnOnce(&mut IkeSa)) {
        let Some(owner) = self.owner_of_child(name, is) else {
            return;
        };
        if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&owner) {
            report(sa);
        }
        self.schedule(owner);
    }

    /// Sets the addresses of this node ([`crate::EndpointConfig::addresses`]), and announces them
    /// to peers that support MOBIKE (RFC 4555 3.6). If the tunnel of a peer uses none of these
    /// addresses, [`Self::local_address_changed`] informs that peer. Call that function after this
    /// one.
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>, now: Instant, env: &mut dyn Environment) {
        if self.config.addresses == addresses {
            return;
        }
        self.config.addresses = addresses;
        for name in self.peers.keys().cloned().collect::<Vec<_>>() {
            let _span = peer_span(&name).entered();
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            for spi in peer.sas.clone() {
                if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi)
                    && self.config.addresses.contains(&sa.addresses().0.ip())
                {
                    sa.additional_addresses_changed(&mut peer.child_sas, &mut context!(self, now, env));
                }
            }
            peer.sas.clone().into_iter().for_each(|spi| self.schedule(spi));
        }
    }

    /// Reports that our address `old` is gone. `source` returns our address towards an address of a
    /// peer, since the routes to two peers may differ. If it returns `None`, there is no route yet,
    /// and `old` is used for that peer until the next call. We notify a peer that supports MOBIKE.
    /// A peer without MOBIKE that detected a NAT in front of us sends a request to the source of
    /// our next authentic message, and moves the SAs when we respond. For all other peers, a new
    /// IKE SA replaces the old one immediately. No peer has to wait for a timeout.
    pub fn local_address_changed(
        &mut self,
        old: IpAddr,
        mut source: impl FnMut(IpAddr) -> Option<IpAddr>,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let sending = |peer: &&Peer| peer.sas.iter().any(|spi| self.sends_from(*spi, old));
        let reached = |peer: &Peer| self.address_reached_from(peer, old);
        let mut affected = self.peers.values().filter(sending).filter_map(reached).peekable();
        // Peers of which no address is known get the same address as another one.
        let other = match affected.peek() {
            Some(_) => affected.find_map(&mut source),
            None => self.peers.values().filter_map(reached).find_map(&mut source),
        };
        let Some(other) = other else { return };
        for name in self.peers.keys().cloned().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get(&name) else {
                continue;
            };
            let new = self.address_reached_from(peer, old).map_or(Some(other), &mut source);
            let Some(new) = new.filter(|new| *new != old) else { continue };
            if peer.config().local == Some(old)
                && let Ok(profile) = Profile::new(Arc::new(PeerConfig { local: Some(new), ..peer.config().clone() }))
            {
                self.set_profile(&name, Arc::new(profile), now, env);
            }
            self.move_local_address(&name, old, new, now, env);
        }
    }

    /// Moves the SAs of a peer to our address `local` while the present address still works, for
    /// example to a better uplink. No packet is lost: ESP moves after the peer has answered at the
    /// new address. If the peer does not answer there, the SAs stay at the present address.
    pub fn move_to_local_address(
        &mut self,
        name: &PeerName,
        local: IpAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) -> LocalMove {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else { return LocalMove::Impossible };
        let Some(spi) = peer.sas.last().copied() else { return LocalMove::Impossible };
        let moved = match self.sas.get_mut(&spi) {
            Some(SaState::Established(_, sa)) => {
                sa.move_to_local_address(local, &mut peer.child_sas, &mut context!(self, now, env))
            }
            _ => LocalMove::Impossible,
        };
        self.schedule(spi);
        moved
    }

    fn sends_from(&self, spi: Spi, local: IpAddr) -> bool {
        matches!(self.sas.get(&spi), Some(SaState::Established(_, sa)) if sa.sends_from(local))
    }

    /// Returns the address of a peer that is reached from this address of ours, or would be.
    fn address_reached_from(&self, peer: &Peer, local: IpAddr) -> Option<IpAddr> {
        let established = peer.sas.iter().find_map(|spi| match self.sas.get(spi) {
            Some(SaState::Established(_, sa)) => Some(sa.message_addresses().1.ip()).filter(|_| sa.sends_from(local)),
            _ => None,
        });
        let configured = || peer.config().remotes.iter().map(SocketAddr::ip);
        established.or_else(|| configured().find(|remote| remote.is_ipv4() == local.is_ipv4()))
    }

    fn move_local_address(
        &mut self,
        name: &PeerName,
        old: IpAddr,
        new: IpAddr,
        now: Instant,
        env: &mut dyn Environment,
    ) {
        let _span = peer_span(name).entered();
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        let mut replace = false;
        for spi in peer.sas.clone() {
            if let Some(SaState::Established(_, sa)) = self.sas.get_mut(&spi)
                && sa.sends_from(old)
            {
                let mut cx = context!(self, now, env);
                replace |= !sa.change_local_address(old, new, &mut peer.child_sas, &mut cx)
                    && sa.lifecycle() == Lifecycle::Active;
            }
        }
        peer.reauthenticate |= replace;
        peer.only_for_child &= !replace;
        let begin = replace || (peer.sas.is_empty() && (peer.should_initiate(now) || peer.attempt.is_some()));
        for spi in peer.sas.clone() {
            self.schedule(spi);
        }
        if begin {
            if let Some(peer) = self.peers.get_mut(name) {
                peer.forgive();
            }
            self.cancel_attempt(name, now, env);
            // An attempt that the owner commanded does not wait.
            if self.peers.get(name).is_some_and(|peer| peer.needs_attempt(now)) {
                self.start_or_queue_attempt(name, now, env);
            } else {
                self.start_attempt(name, now, env);
            }
        }
    }

    pub(super) fn queue_request(&mut self, spi: Spi, request: QueuedRequest, now: Instant, env: &mut dyn Environment) {
        if let Some(SaState::Established(name, sa)) = self.sas.get_mut(&spi)
            && let Some(peer) = self.peers.get_mut(name)
        {
            let mut cx = context!(self, now, env);
            sa.begin(request, &mut peer.child_sas, &mut cx);
        }
        self.schedule(spi);
    }
}
