//! Handles the events of the IKE endpoint: logs them, and installs and deletes SAs and policies.

use std::sync::Arc;

use edge_ike::event::DownReason;
use edge_ike::{ChildId, ChildSa, Event, OutboundSwitch, PeerName};
use edge_xfrm::{Reqid, Xfrm};

use super::driver::Driver;
use super::sa_table::{INHERITED_LINGER, OutboundSwitchOutcome, SaTable};
use crate::logging::peer_span;

impl Driver {
    pub(super) fn handle_event(&mut self, event: Event) {
        let _span = peer_of(&event).map(|peer| peer_span(peer).entered());
        match event {
            Event::IkeUp { peer, ike, local, remote, initiator, details } => {
                tracing::info!(
                    ike = format_args!("{:016x}_{:016x}", ike.initiator, ike.responder),
                    %local, %remote, initiator,
                    proposal = details.proposal,
                    authentication = details.authentication,
                    "IKE SA established"
                );
                self.peer_heard(&peer);
                // This node has its network again, or the hub's part of it is there again.
                let hub = self.desired.tunnels.get(&peer).is_some_and(|tunnel| tunnel.hub);
                self.retry_unreached |= hub && !self.sas.sends(&peer);
            }
            Event::IkeReplaced { old, new, .. } => tracing::info!(
                old = format_args!("{:016x}_{:016x}", old.initiator, old.responder),
                new = format_args!("{:016x}_{:016x}", new.initiator, new.responder),
                "IKE SA replaced"
            ),
            Event::IkeDown { ike, reason, .. } => {
                let ike = format!("{:016x}_{:016x}", ike.initiator, ike.responder);
                tracing::info!(ike, reason = why(reason), "IKE SA gone");
            }
            Event::ChildUp { peer, child, replaces } => {
                tracing::info!(
                    inbound = format_args!("{:08x}", child.inbound_spi),
                    outbound = format_args!("{:08x}", child.outbound_spi),
                    cipher = %child.cipher,
                    replaces = replaces.map(|id| format!("{:08x}", id.0)),
                    "CHILD_SA established"
                );
                self.install(&peer, &child);
                if !self.defer_switch(&peer, &child, self.now()) {
                    self.switch_outbound(&peer, child.id);
                }
            }
            Event::ChildRekeyed { peer, old, new, switch } => {
                tracing::info!(
                    inbound = format_args!("{:08x}", new.inbound_spi),
                    outbound = format_args!("{:08x}", new.outbound_spi),
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
                tracing::info!(inbound = format_args!("{:08x}", child.0), reason = why(reason), "CHILD_SA gone");
                self.changed_peers.insert(peer.clone());
                if let Err(error) = self.sas.remove(&mut self.environment.xfrm, child) {
                    self.environment.incidents.error(format!("peer {peer}: {error}"));
                }
                self.cancel_deferral(&peer, child);
                if !self.sas.sends(&peer) {
                    self.idle_tunnels.forget(&peer);
                }
            }
            Event::PeerMoved { peer, children, local, remote } => {
                tracing::info!(%local, %remote, "peer moved");
                for id in children {
                    self.move_child(&peer, id, local, remote);
                }
            }
            Event::PeerSilent { peer } => {
                if self.hub_returns.silent(self.desired.tunnels.get(&peer), &peer) {
                    tracing::info!("the hub does not answer: another one is used if there is one");
                    self.changed_peers.insert(peer);
                }
            }
            Event::PeerHeard { peer } => self.peer_heard(&peer),
            Event::PeerFailed { peer, error } => {
                if self.failures.record(&peer, &error, self.now()) {
                    tracing::warn!("peer {peer}: {error}");
                } else {
                    tracing::debug!("peer {peer}: {error}");
                }
            }
            Event::Refused { from, identity, error } => {
                tracing::warn!(%from, identity = identity.map(|identity| identity.to_string()), "refused: {error}");
            }
        }
    }

    /// A peer that did not answer is there again.
    pub(super) fn peer_heard(&mut self, peer: &PeerName) {
        if self.hub_returns.heard(peer) {
            self.changed_peers.insert(peer.clone());
        }
    }

    fn install(&mut self, peer: &PeerName, child: &Arc<ChildSa>) {
        let Some(reqids) = self.environment.reqids_of_sas(peer) else { return };
        if let Err(error) = self.sas.install_inbound(&mut self.environment.xfrm, peer, reqids, child) {
            self.environment.incidents.error(format!("peer {peer}: {error}"));
        }
    }

    pub(super) fn switch_outbound(&mut self, peer: &PeerName, child: ChildId) {
        self.deferred_switches.remove(peer);
        let begins = self.is_on_demand(peer) && !self.sas.sends(peer);
        let out_policies = self.policies.outbound_of(peer);
        let (desired, incidents) = (&self.desired, &self.environment.incidents);
        let (held, reqids) = (&mut self.policies, self.environment.reqids_of_sas(peer));
        let now = crate::clock::boot_time();
        let state = self.hub_returns.state(self.desired.tunnels.get(peer), peer, true, now);
        let mut refused = false;
        let update_policies = |xfrm: &mut Xfrm, sas: &SaTable| {
            held.update_peer(peer, desired, reqids, sas.ends(peer).as_ref(), state, incidents);
            refused = held.install_changes(xfrm, incidents);
        };
        let outcome = self.sas.switch_outbound(&mut self.environment.xfrm, child, now, &out_policies, update_policies);
        if refused {
            self.check_soon();
        }
        match outcome {
            Ok(OutboundSwitchOutcome::Switched) => {}
            Ok(OutboundSwitchOutcome::NeedsRekey) => self.to_rekey.push(peer.clone()),
            Err(error) => self.environment.incidents.error(format!("peer {peer}: {error}")),
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

    /// Lets packets go that waited for the tunnel. Otherwise the kernel tries them again after a
    /// while, and later each time.
    fn send_held_packets(&mut self, peer: &PeerName, reqid: Reqid) {
        let policies = self.policies.outbound_of(peer);
        if let Err(error) = self.environment.xfrm.send_held_packets(reqid, &policies) {
            self.environment.incidents.error(format!("peer {peer}: {error}"));
        }
    }

    fn move_child(&mut self, peer: &PeerName, id: ChildId, local: std::net::SocketAddr, remote: std::net::SocketAddr) {
        let Some(old) = self.sas.child(id) else { return };
        let moved = Arc::new(ChildSa { local, remote, ..(**old).clone() });
        match self.sas.update_ports(&mut self.environment.xfrm, id, &moved) {
            Ok(true) => {}
            // The sequence number of an SA cannot be carried over to another address. A rekey takes
            // one exchange.
            Ok(false) => self.to_rekey.push(peer.clone()),
            Err(error) => {
                self.environment.incidents.error(format!("peer {peer}: {error}"));
                self.to_rekey.push(peer.clone());
            }
        }
    }
}

/// The peer that an event concerns.
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
        | Event::PeerSilent { peer }
        | Event::PeerHeard { peer }
        | Event::PeerFailed { peer, .. } => Some(peer),
        Event::Refused { .. } => None,
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
