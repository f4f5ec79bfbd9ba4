//! Compares policies and SAs in the kernel with the desired ones and corrects differences: after
//! changes, after notifications, and every few seconds.

use std::collections::BTreeSet;

use edge_ike::PeerName;
use edge_ike::endpoint::Phase;
use edge_xfrm::events::Event;
use edge_xfrm::{Error, Reqid, SaId, reconcile};

use super::driver::Driver;
use super::environment::source_address;
use super::kernel_policies::Knowledge;
use super::sa_table::LostSa;
use crate::desired::TunnelEnds;
use crate::logging::peer_span;

/// Wait between two attempts to find a route.
const ROUTE_RETRY: std::time::Duration = std::time::Duration::from_millis(200);

impl Driver {
    /// Uses the ends of inherited SAs for the policies of a peer's tunnel.
    pub(super) fn assume_inherited_ends(&mut self, peer: &PeerName, reqid: Reqid) {
        let Some((local, remote)) = self.sas.inherited_ends(reqid) else { return };
        let Some(tunnel) = self.desired.tunnels.get(peer) else { return };
        let ends = TunnelEnds {
            local,
            remote,
            local_selectors: tunnel.peer.child.local.clone(),
            remote_selectors: tunnel.peer.child.remote.clone(),
            up: true,
        };
        self.sas.use_inherited(peer, reqid, ends);
    }

    /// Updates the policies of the peers whose tunnels changed.
    pub(super) fn update_policies(&mut self) {
        self.compute_changed_peers();
        self.policies.install_changes(&mut self.environment.xfrm, &self.environment.incidents);
    }

    fn compute_changed_peers(&mut self) {
        for peer in std::mem::take(&mut self.changed_peers) {
            let (reqid, ends) = (self.environment.reqid(&peer), self.sas.ends(&peer));
            self.policies.update_peer(&peer, &self.desired, reqid, ends.as_ref(), &self.environment.incidents);
        }
    }

    /// Compares all policies with the kernel's.
    pub(super) fn reconcile(&mut self) {
        self.compute_changed_peers();
        let knowledge = Knowledge { complete: self.desired.complete, settled: self.settled };
        let now = self.now();
        self.policies.reconcile(&mut self.environment.xfrm, &self.environment.incidents, knowledge, now);
    }

    /// Deletes SAs of an earlier run that belong to no peer any more.
    pub(super) fn delete_orphaned_sas(&mut self) {
        let held: BTreeSet<u32> =
            self.desired.tunnels.keys().filter_map(|name| self.environment.reqid(name)).map(Reqid::raw).collect();
        let sas = match self.environment.xfrm.sas() {
            Ok(sas) => sas,
            Err(error) => return self.environment.incidents.error(format!("SAs cannot be read: {error}")),
        };
        for sa in sas.iter().filter(|sa| sa.is_ours() && !held.contains(&sa.reqid)) {
            self.sas.lost(sa.id);
            match self.environment.xfrm.delete_sa(sa.id) {
                Ok(()) | Err(Error::NoSuchSa { .. }) => {
                    tracing::info!("deleted the SA to {} of a former peer", sa.id);
                }
                Err(error) => self.environment.incidents.error(error.to_string()),
            }
        }
    }

    /// Compares all policies and SAs.
    pub(super) fn check_kernel(&mut self) {
        if self.desired.complete {
            self.reconcile();
        }
        self.check_sas();
    }

    fn check_sas(&mut self) {
        let sas = match self.environment.xfrm.sas() {
            Ok(sas) => sas,
            Err(error) => return self.environment.incidents.error(format!("SAs cannot be read: {error}")),
        };
        let expected: Vec<_> = self.sas.installed().iter().map(|installed| installed.expected()).collect();
        let plan = reconcile::sas(&expected, &sas);
        for missing in &plan.missing {
            self.handle_missing_sa(missing.id, "was deleted by another program");
        }
        for (expected, found) in &plan.changed {
            self.environment
                .incidents
                .error(format!("SA to {} was changed by another program: {found:?}", expected.id));
        }
        if self.settled {
            for stray in &plan.stray {
                match self.environment.xfrm.delete_sa(stray.id) {
                    Ok(()) => self
                        .environment
                        .incidents
                        .repaired(format!("deleted an SA with our reqid that is not expected: {}", stray.id)),
                    Err(Error::NoSuchSa { .. }) => {}
                    Err(error) => self.environment.incidents.error(error.to_string()),
                }
            }
        }
    }

    /// Handles an SA that is gone from the kernel. It must not be installed again, since its nonces
    /// would repeat: the CHILD_SA is rekeyed.
    fn handle_missing_sa(&mut self, id: SaId, how: &str) {
        match self.sas.lost(id) {
            Some(LostSa::OfChild(peer)) => {
                let _span = peer_span(&peer).entered();
                self.environment.incidents.repaired(format!("SA to {id} of peer {peer} {how}; rekeying"));
                self.changed_peers.insert(peer.clone());
                if !self.to_rekey.contains(&peer) {
                    self.to_rekey.push(peer);
                }
            }
            Some(LostSa::Inherited(reqid)) => self.inherited_sa_gone(reqid),
            None => {}
        }
    }

    /// Another peer may now be the one that takes the packets.
    pub(super) fn inherited_sa_gone(&mut self, reqid: Reqid) {
        self.changed_peers.extend(self.environment.reqids.peer(reqid.raw()));
    }

    /// Handles the kernel's notifications, which exclude those of our own changes.
    pub(super) fn handle_kernel_events(&mut self, events: Vec<Event>) {
        let (mut policies, mut all) = (false, false);
        let now = self.now();
        for event in events {
            match event {
                Event::Acquire { reqid, .. } => {
                    if let Some(peer) = self.environment.reqids.peer(reqid) {
                        self.endpoint.connect(&peer, now, &mut self.environment);
                    }
                }
                Event::Expire { id, hard: false, .. } => {
                    if let Some(peer) = self.sas.owner(id).cloned() {
                        self.to_rekey.push(peer);
                    }
                }
                Event::Expire { id, hard: true, .. } => self.handle_missing_sa(id, "reached its limit"),
                Event::SaDeleted { id, .. } => self.handle_missing_sa(id, "was deleted by another program"),
                Event::PolicyChanged(policy) if policy.is_ours() || self.policies.wants(&policy.key()) => {
                    policies = true;
                }
                Event::PolicyDeleted(policy) => policies |= policy.shares_key_space(),
                Event::PoliciesFlushed => policies = true,
                Event::SasFlushed | Event::Overrun => all = true,
                Event::SaChanged(sa) => all |= sa.is_ours() && !sa.is_larval(),
                _ => {}
            }
        }
        if all {
            self.check_kernel();
        } else if policies && self.desired.complete {
            self.reconcile();
        }
    }

    /// This node's addresses changed: moves tunnels whose address is gone, and tries peers again
    /// that could not be reached.
    pub(super) fn host_changed(&mut self) {
        self.move_tunnels();
        let now = self.now();
        for peer in self.endpoint.snapshot() {
            if matches!(peer.phase, Phase::Waiting { .. } | Phase::Connecting) && peer.ike_sas.is_empty() {
                self.endpoint.connect(&peer.name, now, &mut self.environment);
            }
        }
    }

    /// Moves tunnels from an address that is gone to the one that the route now gives. If there is
    /// no route yet (an address comes before its default route), tries again soon, since there is
    /// no event for the route.
    pub(super) fn move_tunnels(&mut self) {
        let host = self.host.borrow_and_update().clone();
        let now = self.now();
        self.retry_move_at = None;
        for peer in self.endpoint.snapshot() {
            for ike in &peer.ike_sas {
                let old = ike.local.ip();
                if host.local_addresses.is_empty() || host.local_addresses.contains(&old) {
                    continue;
                }
                match source_address(ike.remote.ip()).filter(|new| *new != old) {
                    Some(new) => {
                        peer_span(&peer.name).in_scope(|| tracing::info!(%old, %new, "own address changed"));
                        self.endpoint.local_address_changed(old, new, now, &mut self.environment);
                    }
                    None => self.retry_move_at = Some(tokio::time::Instant::now() + ROUTE_RETRY),
                }
            }
        }
    }
}
