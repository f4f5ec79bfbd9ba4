//! Handles the events from the IKE endpoint: logs them, and installs and deletes SAs and policies.

use std::sync::Arc;

use edge_ike::event::DownReason;
use edge_ike::wire::AgentNotification;
use edge_ike::{AddressAssignment, ChildId, ChildSa, Event, OutboundSwitch, PeerName, Purpose, TcpConnectionId};
use edge_xfrm::{Reqid, Xfrm};
use time::OffsetDateTime;

use super::driver::Driver;
use super::environment::KernelEnvironment;
use super::event_log::{PeerEvent, info_if};
use super::on_demand::acquire_ends;
use super::reqids::Reqids;
use super::sa_table::{FirstSas, INHERITED_LINGER, OutboundSwitchOutcome, SaTable};
use crate::desired::{ChildEnds, Desired, DesiredTunnel, TunnelEnds};
use crate::logging::peer_span;

impl Driver {
    pub(super) fn handle_event(&mut self, event: Event) {
        let _span = peer_of(&event).map(|peer| peer_span(peer).entered());
        self.ike_counts.count(&event);
        if let Event::IkeUp { peer, .. } | Event::IkeReplaced { peer, .. } | Event::IkeDown { peer, .. } = &event {
            self.publish_internal_addresses(peer);
        }
        let moved = path_of(&event).cloned();
        let now = self.now();
        match event {
            Event::IkeUp { peer, ike, local, remote, initiator, details } => {
                let tcp = TcpConnectionId::of(remote.ip());
                tcp.into_iter().for_each(|id| self.tcp.connections.authenticated(id, &peer));
                let (local, remote) = self.real_ends(local, remote);
                let loud = self.event_log.record(PeerEvent::IkeUp, &peer, now);
                info_if!(
                    loud,
                    ike = format_args!("{:016x}_{:016x}", ike.initiator, ike.responder),
                    %local, %remote, tcp = tcp.is_some(), initiator,
                    proposal = %details.proposal,
                    authentication = details.authentication,
                    "IKE SA established"
                );
                details.not_served.sentences().filter(|_| loud).for_each(|sentence| tracing::warn!("{sentence}"));
                self.environment.internal_addresses.record(&peer, &details.internal_addresses);
                if self.hub_returns.connected(&peer) {
                    self.changed_peers.insert(peer.clone());
                }
                self.peer_heard(&peer);
                self.tell_late_edge(&peer);
                // An IKE SA with a hub shows that this node or the hub is connected to its network
                // again.
                let hub = self.desired.tunnels.get(&peer).is_some_and(|tunnel| tunnel.hub);
                self.retry_unreached |= hub && !self.sas.sends(&peer);
                self.mapped_changed |= hub;
                if hub {
                    self.hub_connected(&peer);
                }
            }
            Event::IkeReplaced { peer, old, new } => {
                info_if!(
                    self.event_log.record(PeerEvent::IkeReplaced, &peer, now),
                    old = format_args!("{:016x}_{:016x}", old.initiator, old.responder),
                    new = format_args!("{:016x}_{:016x}", new.initiator, new.responder),
                    "IKE SA replaced"
                );
                self.mapped_changed |= self.desired.tunnels.get(&peer).is_some_and(|tunnel| tunnel.hub);
            }
            Event::IkeDown { peer, ike, reason } => {
                let ike = format!("{:016x}_{:016x}", ike.initiator, ike.responder);
                let loud = self.event_log.record(PeerEvent::IkeDown, &peer, now);
                info_if!(loud, ike, reason = why(reason), "IKE SA gone");
                self.mapped_changed |= self.desired.tunnels.get(&peer).is_none_or(|tunnel| tunnel.hub);
            }
            Event::ChildUp { peer, child, replaces } => {
                info_if!(
                    self.event_log.record(PeerEvent::ChildUp, &peer, now),
                    inbound = format_args!("{:08x}", child.inbound_spi),
                    outbound = format_args!("{:08x}", child.outbound_spi),
                    cipher = %child.cipher,
                    child = %child.purpose,
                    replaces = replaces.map(|id| format!("{:08x}", id.0)),
                    "CHILD_SA established"
                );
                if !self.install_first(&peer, &child) {
                    self.install(&peer, &child);
                    if !self.defer_switch(&peer, &child, self.now()) {
                        self.switch_outbound(&peer, child.id);
                    }
                }
            }
            Event::ChildRekeyed { peer, old, new, switch } => {
                info_if!(
                    self.event_log.record(PeerEvent::ChildRekeyed, &peer, now),
                    inbound = format_args!("{:08x}", new.inbound_spi),
                    outbound = format_args!("{:08x}", new.outbound_spi),
                    child = %new.purpose,
                    old = format_args!("{:08x}", old.0),
                    "CHILD_SA rekeyed"
                );
                self.install(&peer, &new);
                if switch == OutboundSwitch::Now {
                    self.switch_outbound(&peer, new.id);
                }
            }
            Event::OutboundSwitch { peer, new, .. } => self.switch_outbound(&peer, new.id),
            Event::ChildDown { peer, child, reason } => {
                let loud = self.event_log.record(PeerEvent::ChildDown, &peer, now);
                info_if!(loud, inbound = format_args!("{:08x}", child.0), reason = why(reason), "CHILD_SA gone");
                self.changed_peers.insert(peer.clone());
                if let Err(error) = self.sas.remove(&mut self.environment.xfrm, child) {
                    self.environment.incidents.error(format!("peer {peer}: {error}"));
                }
                self.deferred_switches.remove(&child);
                if !self.sas.sends(&peer) {
                    self.idle_tunnels.forget(&peer);
                }
                self.forget_unwanted(&peer);
            }
            Event::PeerMoved { peer, children, local, remote, encapsulated } => {
                let loud = self.event_log.record(PeerEvent::Moved, &peer, now);
                info_if!(loud, %local, %remote, encapsulated, "peer moved");
                for id in children {
                    let Some(old) = self.sas.child(id) else { continue };
                    let moved = Arc::new(ChildSa { local, remote, encapsulated, ..(**old).clone() });
                    self.move_child(&peer, id, &moved);
                }
            }
            Event::PeerSilent { peer } => {
                self.tcp_peer_silent(&peer);
                self.relayed_if_silent(&peer);
                if self.hub_returns.silent(self.desired.tunnels.get(&peer), &peer) {
                    tracing::info!("the hub does not answer; using another hub if one is available");
                    self.changed_peers.insert(peer);
                }
            }
            Event::PeerHeard { peer } => {
                self.tcp_peer_heard(&peer);
                self.peer_heard(&peer);
            }
            Event::AgentNotification { peer, notification } => self.handle_notification(&peer, &notification),
            Event::PeerFailed { peer, error } => {
                if self.failures.record(&peer, &error, self.now()) {
                    tracing::warn!("peer {peer}: {error}");
                } else {
                    tracing::debug!("peer {peer}: {error}");
                }
            }
            Event::Refused { from, identity, error } => {
                let from = self.tcp.connections.real(from);
                let identity = identity.map(|identity| identity.to_string());
                let stranger = PeerName::new(&from.ip().to_string());
                if self.event_log.record(PeerEvent::Refused, &stranger, now) {
                    tracing::warn!(%from, identity, "refused: {error}");
                } else {
                    tracing::debug!(%from, identity, "refused: {error}");
                }
                self.refusals.record(from, identity, error.to_string(), OffsetDateTime::now_utc());
            }
        }
        if let Some(peer) = moved {
            self.path_changed(&peer);
        }
    }

    /// Publishes the addresses that a peer has given this node, if they have changed.
    fn publish_internal_addresses(&self, peer: &PeerName) {
        let addresses = self.endpoint.received_addresses(peer);
        self.internal.send_if_modified(|published| {
            let before = published.get(peer).map(Vec::as_slice).unwrap_or_default();
            let changed = before != addresses;
            if addresses.is_empty() {
                published.remove(peer);
            } else if changed {
                published.insert(peer.clone(), addresses);
            }
            changed
        });
    }

    /// Drops the tunnels of a peer that are down and no longer desired, and releases their reqids.
    pub(super) fn forget_unwanted(&mut self, peer: &PeerName) {
        let tunnel = self.desired.tunnels.get(peer);
        // The peer's address from a pool goes with the IKE SA: another peer may get it. Our own one
        // stays ours as far as policies go, since sockets that are bound to it must not send in
        // clear while the tunnel is down.
        let stays = |tunnel: &DesiredTunnel| !matches!(tunnel.peer.address_assignment, AddressAssignment::Pool(_));
        let tunnel = tunnel.filter(|tunnel| stays(tunnel));
        let wanted = |purpose: &Purpose| tunnel.is_some_and(|tunnel| tunnel.peer.child_named(&purpose.child).is_some());
        let left = self.sas.forget_unwanted(peer, wanted);
        let now = self.now();
        self.environment.reqids.retain_parts(peer, &left, now);
    }

    /// Handles a notification of a peer that is an agent of ours.
    fn handle_notification(&mut self, peer: &PeerName, notification: &AgentNotification) {
        tracing::debug!(?notification, "the peer's agent has sent a notification");
        let hub = self.desired.tunnels.get(peer).is_some_and(|tunnel| tunnel.hub);
        match notification {
            AgentNotification::MappedAddress(_) => self.mapped_changed |= hub,
            AgentNotification::HubLeaving => self.hub_leaving(peer),
            _ => self.handle_relay_notification(peer, notification),
        }
    }

    /// Handles a peer that answers again after it did not answer.
    pub(super) fn peer_heard(&mut self, peer: &PeerName) {
        if self.hub_returns.heard(peer) {
            self.changed_peers.insert(peer.clone());
        }
    }

    /// Installs both SAs and the policies of a tunnel that comes up, with one datagram to the
    /// kernel. Returns `false`, and has done nothing, if the SAs must be installed one after the
    /// other: other SAs have this purpose, or packets wait for the tunnel.
    fn install_first(&mut self, peer: &PeerName, child: &Arc<ChildSa>) -> bool {
        let now = self.now();
        if self.is_on_demand(peer) {
            return false;
        }
        self.environment.reqids.assign_part(peer, &child.purpose, now);
        let Some(reqids) = self.environment.reqids_of_sas(peer, &child.purpose) else { return false };
        let first = match self.sas.begin_first(peer, reqids, child) {
            Ok(Some(first)) => first,
            Ok(None) => return false,
            Err(error) => {
                self.sa_refused(peer, &error);
                return true;
            }
        };
        let state = self.hub_returns.state(self.desired.tunnels.get(peer), peer, true, now);
        let children = children_of(peer, &self.desired, &self.sas, &self.environment.reqids);
        let KernelEnvironment { xfrm, incidents, .. } = &mut self.environment;
        self.policies.update_peer(peer, &self.desired, &children, state, incidents);
        let outcome = self.policies.install_changes_with_sas(xfrm, &first.inbound, &first.outbound, incidents);
        self.cancel_deferrals(peer, &child.purpose);
        match outcome {
            Ok((inbound, outbound, refused)) => {
                if refused {
                    self.check_soon();
                }
                self.first_installed(peer, child.id, first, inbound, outbound);
            }
            // What the kernel has is compared at once: a rekey between the same ends changes no
            // policy.
            Err(error) => {
                self.check_at = tokio::time::Instant::now();
                self.sa_refused(peer, &error);
            }
        }
        self.sas.limit_inherited(reqids.outbound, now + INHERITED_LINGER);
        self.changed_peers.insert(peer.clone());
        true
    }

    /// Records the outcomes of the SAs of a tunnel that comes up.
    fn first_installed(
        &mut self,
        peer: &PeerName,
        child: ChildId,
        first: FirstSas,
        inbound: edge_xfrm::Result<()>,
        outbound: edge_xfrm::Result<()>,
    ) {
        match (inbound, outbound) {
            (Ok(()), Ok(())) => {
                // An SA of another tunnel of the peer may have been refused.
                if self.sas.all_stand(peer) {
                    self.kernel_refusals.sas_stand(peer);
                }
            }
            (Ok(()), Err(error)) => {
                self.sas.first_refused(child, first, true);
                self.sa_refused(peer, &error);
            }
            (Err(error), outbound) => {
                let id = first.outbound.id();
                self.sas.first_refused(child, first, false);
                // Without the inbound SA the tunnel carries nothing.
                if outbound.is_ok()
                    && let Err(error) = self.environment.xfrm.delete_sa(id)
                {
                    self.environment.incidents.error(format!("peer {peer}: {error}"));
                }
                self.sa_refused(peer, &error);
            }
        }
    }

    fn install(&mut self, peer: &PeerName, child: &Arc<ChildSa>) {
        let now = self.now();
        self.environment.reqids.assign_part(peer, &child.purpose, now);
        let Some(reqids) = self.environment.reqids_of_sas(peer, &child.purpose) else { return };
        if let Err(error) = self.sas.install_inbound(&mut self.environment.xfrm, peer, reqids, child) {
            self.sa_refused(peer, &error);
        }
    }

    /// Handles an SA that the kernel refused. A rekey replaces its CHILD_SA, with other SPIs. A
    /// peer whose SAs are refused again and again is rekeyed at each comparison with the kernel.
    fn sa_refused(&mut self, peer: &PeerName, error: &edge_xfrm::Error) {
        self.environment.incidents.error(format!("peer {peer}: {error}"));
        let now = self.now();
        if self.kernel_refusals.sa_refused(peer, error, now) {
            self.to_rekey.insert(peer.clone());
        } else {
            self.rekey_at_check(peer);
        }
        self.changed_peers.insert(peer.clone());
    }

    /// Schedules a rekey for the next comparison with the kernel, because the kernel refused an SA
    /// of the peer, or another program changed one. If this happens to every SA, there is one
    /// attempt at each comparison.
    pub(super) fn rekey_at_check(&mut self, peer: &PeerName) {
        self.to_rekey_at_check.insert(peer.clone());
        self.check_soon();
    }

    pub(super) fn switch_outbound(&mut self, peer: &PeerName, child: ChildId) {
        let purpose = self.sas.child(child).map(|sa| sa.purpose.clone());
        let begins = self.is_on_demand(peer) && purpose.as_ref().is_some_and(|purpose| !self.is_up(peer, purpose));
        if let Some(purpose) = &purpose {
            self.cancel_deferrals(peer, purpose);
        }
        let reqids = purpose.as_ref().and_then(|purpose| self.environment.reqids_of_sas(peer, purpose));
        let out_policies = reqids.map(|reqids| self.policies.outbound_of(peer, reqids.outbound)).unwrap_or_default();
        let (desired, incidents) = (&self.desired, &self.environment.incidents);
        let (held, all_reqids) = (&mut self.policies, &self.environment.reqids);
        let now = crate::clock::boot_time();
        let state = self.hub_returns.state(self.desired.tunnels.get(peer), peer, true, now);
        let mut refused = false;
        let update_policies = |xfrm: &mut Xfrm, sas: &SaTable| {
            held.update_peer(peer, desired, &children_of(peer, desired, sas, all_reqids), state, incidents);
            refused = held.install_changes(xfrm, incidents);
        };
        let outcome = self.sas.switch_outbound(&mut self.environment.xfrm, child, now, &out_policies, update_policies);
        if refused {
            self.check_soon();
        }
        match outcome {
            Ok(OutboundSwitchOutcome::Switched) => {
                // The inbound SA, or one of another tunnel of the peer, may have been refused.
                if self.sas.is_complete(child) && self.sas.all_stand(peer) {
                    self.kernel_refusals.sas_stand(peer);
                }
            }
            Ok(OutboundSwitchOutcome::NeedsRekey) => drop(self.to_rekey.insert(peer.clone())),
            Err(error) => self.sa_refused(peer, &error),
        }
        if let Some(reqids) = reqids {
            let until = self.now() + INHERITED_LINGER;
            self.sas.limit_inherited(reqids.outbound, until);
            if begins {
                self.watch_if_on_demand(peer, now);
                self.send_held_packets(peer, reqids.outbound);
            }
        }
        self.changed_peers.insert(peer.clone());
    }

    /// Makes the kernel send the packets that waited for the tunnel. Otherwise the kernel would
    /// retry them only after a delay that increases each time.
    fn send_held_packets(&mut self, peer: &PeerName, reqid: Reqid) {
        let policies = self.policies.outbound_of(peer, reqid);
        if let Err(error) = self.environment.xfrm.send_held_packets(reqid, &policies) {
            self.environment.incidents.error(format!("peer {peer}: {error}"));
        }
    }

    fn move_child(&mut self, peer: &PeerName, id: ChildId, moved: &Arc<ChildSa>) {
        match self.sas.update_ports(&mut self.environment.xfrm, id, moved) {
            Ok(true) => {}
            // Packets under way to an address that still works must not be lost, so the SAs stay
            // until a rekey has made others (docs/decisions/0024). It takes only one exchange.
            Ok(false) => drop(self.to_rekey.insert(peer.clone())),
            Err(error) => {
                self.environment.incidents.error(format!("peer {peer}: {error}"));
                self.to_rekey.insert(peer.clone());
            }
        }
    }
}

/// Returns the input for the policies of a peer.
pub(super) fn children_of(peer: &PeerName, desired: &Desired, sas: &SaTable, reqids: &Reqids) -> Vec<ChildEnds> {
    let tunnel = desired.tunnels.get(peer);
    let mut ends = sas.ends(peer);
    let waiting: Vec<(Purpose, TunnelEnds)> = tunnel
        .filter(|tunnel| tunnel.on_demand)
        .into_iter()
        .flat_map(|tunnel| tunnel.peer.children().map(move |child| (tunnel, child)))
        .filter_map(|(tunnel, child)| Some((Purpose::whole(&child.name), acquire_ends(tunnel, child)?)))
        .filter(|(purpose, _)| !ends.iter().any(|(of, ends)| *of == purpose && ends.up))
        .collect();
    // For a purpose that waits for the first packet, the configured selectors are used again.
    ends.retain(|(of, _)| !waiting.iter().any(|(purpose, _)| *of == purpose));
    ends.extend(waiting.iter().map(|(purpose, ends)| (purpose, ends.clone())));
    let child = |purpose: &Purpose, ends: Option<TunnelEnds>| {
        Some(ChildEnds { child: purpose.child.clone(), reqids: reqids.of_sas(peer, purpose)?, ends })
    };
    let mut children: Vec<ChildEnds> =
        ends.into_iter().filter_map(|(purpose, ends)| child(purpose, Some(ends))).collect();
    // Children that were never up have policies too: packets that a view grants are accepted only
    // through the tunnel, and packets for the tunnel do not leave in clear.
    for configured in tunnel.into_iter().flat_map(|tunnel| tunnel.peer.children()) {
        if !children.iter().any(|known| known.child == configured.name) {
            children.extend(child(&Purpose::whole(&configured.name), None));
        }
    }
    children
}

/// Returns the peer that an event concerns.
fn peer_of(event: &Event) -> Option<&PeerName> {
    match event {
        Event::IkeUp { peer, .. }
        | Event::IkeReplaced { peer, .. }
        | Event::IkeDown { peer, .. }
        | Event::ChildUp { peer, .. }
        | Event::ChildRekeyed { peer, .. }
        | Event::OutboundSwitch { peer, .. }
        | Event::ChildDown { peer, .. }
        | Event::PeerMoved { peer, .. }
        | Event::AgentNotification { peer, .. }
        | Event::PeerSilent { peer }
        | Event::PeerHeard { peer }
        | Event::PeerFailed { peer, .. } => Some(peer),
        Event::Refused { .. } => None,
    }
}

/// Returns the peer whose path may have changed with an event.
fn path_of(event: &Event) -> Option<&PeerName> {
    match event {
        Event::IkeUp { peer, .. }
        | Event::IkeReplaced { peer, .. }
        | Event::IkeDown { peer, .. }
        | Event::PeerMoved { peer, .. } => Some(peer),
        _ => None,
    }
}

pub(super) fn why(reason: DownReason) -> &'static str {
    match reason {
        DownReason::DeletedByPeer => "deleted by the peer",
        DownReason::DeletedByUs => "deleted by us",
        DownReason::Timeout => "the peer does not answer",
        DownReason::Replaced => "replaced",
        DownReason::Failed => "failed",
        DownReason::Expired => "expired",
    }
}
