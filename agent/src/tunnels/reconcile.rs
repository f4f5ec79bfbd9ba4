//! Compares policies and SAs in the kernel with the desired ones, and corrects differences. This is
//! done after changes, after notifications, and at intervals that increase with the number of
//! objects.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use edge_ike::config::ChildConfig;
use edge_ike::{PeerConfig, PeerName, Purpose};
use edge_xfrm::policy::PolicyKey;
use edge_xfrm::reconcile::{ExpectedSa, SaDiff};
use edge_xfrm::{Error, Reqid, Sa, SaId, reconcile};

use super::check_interval;
use super::driver::Driver;
use super::endpoint_events::children_of;
use super::enforced_revocations::valid_from;
use super::environment::KernelEnvironment;
use super::installed_sa::InstalledSa;
use super::kernel_policies::DesiredCompleteness;
use super::sa_table::LostSa;
use crate::clock::thread_cpu_time;
use crate::desired::TunnelEnds;
use crate::logging::peer_span;
use crate::source_address::source_address;

/// How an SA disappeared, unless the kernel reported another reason.
pub(super) const SA_DELETED: &str = "was deleted by another program";

impl Driver {
    /// Uses the ends of inherited SAs for the policies of a peer's configured child, or of a part
    /// of this child.
    pub(super) fn assume_inherited_ends(
        &mut self,
        peer: &PeerName,
        child: &ChildConfig,
        purpose: Purpose,
        reqid: Reqid,
    ) {
        let Some((local, remote)) = self.sas.inherited_ends(reqid) else { return };
        let (local_selectors, remote_selectors) = match &purpose.part {
            None => (child.local.clone(), child.remote.clone()),
            Some(part) => (part.local.clone(), part.remote.clone()),
        };
        let ends = TunnelEnds {
            local,
            remote,
            local_selectors,
            remote_selectors,
            next_layer: child.next_layer,
            mode: child.mode,
            up: true,
        };
        self.sas.use_former_ends(peer, purpose, Some(reqid), ends);
    }

    /// Uses the ends of a tunnel that was down when an earlier run ended, and of which only
    /// policies are left, so that these policies stay.
    pub(super) fn assume_former_ends(&mut self, peer: &PeerName, child: &ChildConfig, purpose: Purpose, reqid: Reqid) {
        if let Some(ends) = self.former_policies.ends(reqid, child) {
            self.sas.use_former_ends(peer, purpose, None, ends);
        }
    }

    /// Updates the policies of the peers whose tunnels changed.
    pub(super) fn update_policies(&mut self) {
        self.compute_changed_peers();
        if self.policies.install_changes(&mut self.environment.xfrm, &self.environment.incidents) {
            self.check_soon();
        }
    }

    fn compute_changed_peers(&mut self) {
        let now = self.now();
        for peer in std::mem::take(&mut self.changed_peers) {
            let tunnel = self.desired.tunnels.get(&peer);
            if tunnel.is_some_and(|tunnel| tunnel.counts()) && self.sas.stands(&peer) {
                self.up_from_view.insert(peer.clone());
            } else {
                self.up_from_view.remove(&peer);
            }
            let children = children_of(&peer, &self.desired, &self.sas, &self.environment.reqids);
            let up = children.iter().any(|child| child.ends.as_ref().is_some_and(|ends| ends.up));
            let state = self.hub_returns.state(self.desired.tunnels.get(&peer), &peer, up, now);
            let incidents = &self.environment.incidents;
            self.policies.update_peer(&peer, &self.desired, &children, state, incidents);
        }
    }

    fn completeness(&self) -> DesiredCompleteness {
        DesiredCompleteness { complete: self.desired.complete, settled: self.settled }
    }

    /// Compares all policies with those in the kernel. Returns `true` if a difference remains.
    pub(super) fn reconcile(&mut self) -> bool {
        self.compute_changed_peers();
        let (completeness, now) = (self.completeness(), self.now());
        self.policies.reconcile(&mut self.environment.xfrm, &self.environment.incidents, completeness, now)
    }

    /// Compares the policies with these keys with those in the kernel.
    pub(super) fn reconcile_keys(&mut self, keys: &BTreeSet<PolicyKey>) {
        self.compute_changed_peers();
        let (completeness, now) = (self.completeness(), self.now());
        let KernelEnvironment { xfrm, incidents, .. } = &mut self.environment;
        if self.policies.reconcile_keys(keys, xfrm, incidents, completeness, now) {
            self.check_soon();
        }
    }

    /// Schedules another comparison soon, because a difference remains that must be corrected.
    pub(super) fn check_soon(&mut self) {
        self.check_at = self.check_at.min(tokio::time::Instant::now() + check_interval::SHORTEST);
    }

    /// Deletes SAs of an earlier run that no longer belong to any peer.
    pub(super) fn delete_orphaned_sas(&mut self) {
        let held: BTreeSet<u32> =
            self.desired.tunnels.keys().flat_map(|name| self.environment.reqids.all_of(name)).map(Reqid::raw).collect();
        let sas = match self.environment.xfrm.sas() {
            Ok(sas) => sas,
            Err(error) => return self.environment.incidents.error(format!("SAs cannot be read: {error}")),
        };
        // All inbound SAs of hubs have the same reqid, so the source address determines to which
        // hub an SA belongs.
        let remotes: HashSet<IpAddr> =
            sas.iter().filter(|sa| held.contains(&sa.reqid)).map(|sa| sa.id.destination).collect();
        let is_held =
            |sa: &Sa| held.contains(&sa.reqid) || (sa.reqid == Reqid::FROM_HUBS.raw() && remotes.contains(&sa.source));
        for sa in sas.iter().filter(|sa| sa.is_ours() && !is_held(sa)) {
            self.sas.lost(sa.id);
            match self.environment.xfrm.delete_sa(sa.id) {
                Ok(()) | Err(Error::NoSuchSa { .. }) => {
                    tracing::info!("deleted the SA to {} of a former peer", sa.id);
                }
                Err(error) => self.environment.incidents.error(error.to_string()),
            }
        }
    }

    /// Deletes inherited SAs that were negotiated with a revoked certificate. The SAs of this run
    /// are ended by the endpoint. Returns `false` if an SA could not be deleted.
    pub(super) fn forget_revoked_sas(&mut self, peer: &PeerConfig, reqid: Reqid) -> bool {
        let from = valid_from(peer);
        if from == 0 || self.environment.revocations.is_enforced(&peer.name, from) {
            return true;
        }
        let moment = self.environment.clock.to_system_clock(from);
        let outcome = self.sas.forget_older_than(&mut self.environment.xfrm, reqid, moment);
        if let Err(error) = &outcome {
            let _span = peer_span(&peer.name).entered();
            self.environment.incidents.error(format!("peer {}: {error}", peer.name));
        }
        outcome.is_ok()
    }

    /// Compares all policies and SAs with those in the kernel, and sets the time of the next
    /// comparison.
    pub(super) fn check_kernel(&mut self) {
        let began = thread_cpu_time();
        let mut undone = self.desired.complete && self.reconcile();
        undone |= self.check_sas();
        self.to_rekey.extend(std::mem::take(&mut self.to_rekey_at_check));
        let cost = thread_cpu_time().saturating_sub(began);
        self.check_at = tokio::time::Instant::now() + check_interval::until_next_check(cost, undone);
    }

    /// Compares all SAs with those in the kernel. Returns `true` if the kernel refused a change.
    fn check_sas(&mut self) -> bool {
        let sas = match self.environment.xfrm.sas() {
            Ok(sas) => sas,
            Err(error) => {
                self.environment.incidents.error(format!("SAs cannot be read: {error}"));
                return true;
            }
        };
        let installed = self.sas.installed();
        self.traffic.count(&installed, &sas);
        let expected: Vec<_> = installed.iter().map(InstalledSa::expected).collect();
        self.correct_sas(&reconcile::sas(&expected, &sas), SA_DELETED)
    }

    /// Compares one SA with the SA in the kernel. `how` says how the SA disappeared if it is
    /// missing.
    pub(super) fn check_sa(&mut self, id: SaId, how: &str) {
        let found = match self.environment.xfrm.sa(id) {
            Ok(found) => found,
            Err(error) => {
                self.environment.incidents.error(format!("the SA to {id} cannot be read: {error}"));
                return self.check_soon();
            }
        };
        let expected: Vec<_> = self.sas.find(id).iter().map(InstalledSa::expected).collect();
        if self.correct_sas(&reconcile::sas(&expected, found.as_slice()), how) {
            self.check_soon();
        }
    }

    pub(super) fn correct_sas(&mut self, plan: &SaDiff, how: &str) -> bool {
        let mut undone = false;
        for missing in &plan.missing {
            self.handle_missing_sa(missing.id, how);
        }
        for (expected, found) in &plan.changed {
            self.handle_changed_sa(expected, found);
        }
        for stray in plan.stray.iter().filter(|_| self.settled) {
            match self.environment.xfrm.delete_sa(stray.id) {
                Ok(()) => self
                    .environment
                    .incidents
                    .repaired(format!("deleted an SA with our reqid that is not expected: {}", stray.id)),
                Err(Error::NoSuchSa { .. }) => {}
                Err(error) => {
                    undone = true;
                    self.environment.incidents.error(error.to_string());
                }
            }
        }
        undone
    }

    /// Handles an SA that is no longer in the kernel. The SA must not be installed again, since its
    /// nonces would repeat, so the CHILD_SA is rekeyed.
    pub(super) fn handle_missing_sa(&mut self, id: SaId, how: &str) {
        match self.sas.lost(id) {
            Some(LostSa::OfChild(peer)) => {
                let _span = peer_span(&peer).entered();
                self.environment.incidents.repaired(format!("SA to {id} of peer {peer} {how}; rekeying"));
                self.changed_peers.insert(peer.clone());
                self.to_rekey.insert(peer);
            }
            Some(LostSa::Inherited(reqid)) => self.inherited_sa_gone(reqid),
            None => {}
        }
    }

    /// Handles an SA whose reqid or UDP ports another program changed. It is not changed back,
    /// since a change of the reqid would need the key, and the SA may be in use elsewhere. The
    /// CHILD_SA is rekeyed at the next comparison, so that a program that changes every new SA
    /// causes no more than one rekey for each comparison. The peer of an inherited SA sets up a new
    /// CHILD_SA anyway.
    fn handle_changed_sa(&mut self, expected: &ExpectedSa, found: &Sa) {
        let incidents = &self.environment.incidents;
        match self.sas.owner(expected.id).cloned() {
            Some(peer) => {
                let _span = peer_span(&peer).entered();
                incidents.repaired(format!(
                    "SA to {} of peer {peer} was changed by another program; rekeying: {found:?}",
                    expected.id
                ));
                self.rekey_at_check(&peer);
            }
            None => {
                incidents.error(format!("SA to {} was changed by another program: {found:?}", expected.id));
            }
        }
    }

    /// Handles the deletion of an inherited SA. The policies are computed again, since another peer
    /// may now receive the packets. When a peer has no inherited SAs any more, the peer is
    /// configured again, so that INITIAL_CONTACT may be sent to it: there is nothing left that the
    /// peer should keep.
    pub(super) fn inherited_sa_gone(&mut self, reqid: Reqid) {
        let Some(peer) = self.environment.reqids.peer(reqid.raw()) else { return };
        if !self.sas.has_inherited(reqid) {
            self.set_peer(&peer, self.now());
        }
        self.changed_peers.insert(peer);
    }

    /// Handles a change of this node's addresses: informs peers that use MOBIKE, moves tunnels
    /// whose address was removed, looks for better uplinks, and makes another attempt to reach the
    /// unreached peers.
    pub(super) fn host_changed(&mut self) {
        let now = self.now();
        let addresses = self.host.borrow().uplink_addresses.clone();
        self.endpoint.set_addresses(addresses, now, &mut self.environment);
        self.route_retry.begin();
        self.move_tunnels();
        self.find_better_uplinks();
        self.endpoint.retry_unreached(now, &mut self.environment);
    }

    /// Moves tunnels from an address that was removed to the source address of the current route.
    /// If there is no route yet (an address appears before its default route), tries again soon,
    /// since the route causes no event.
    pub(super) fn move_tunnels(&mut self) {
        let host = self.host.borrow_and_update().clone();
        let now = self.now();
        let retries = self.route_retry.take();
        if host.local_addresses.is_empty() {
            return;
        }
        self.replace_tcp_of_gone_addresses(&host.local_addresses);
        // A tunnel may use an address that is not in `local_addresses`, such as a link-local one.
        let is_gone = |local: SocketAddr, remote: SocketAddr| {
            !host.local_addresses.contains(&local.ip()) && source_address(remote.ip()) != Some(local.ip())
        };
        let uses_gone = |(peer, local, remote): (&PeerName, SocketAddr, SocketAddr)| {
            is_gone(local, remote).then(|| (local.ip(), peer.clone()))
        };
        let (all_gone, peers): (BTreeSet<IpAddr>, BTreeSet<PeerName>) =
            self.endpoint.ike_addresses().filter_map(uses_gone).unzip();
        for old in all_gone {
            // While there is no route, this code runs many times a second. Only the first attempt
            // is logged.
            if !retries {
                tracing::info!(%old, "own address is gone; tunnels move to another one");
            }
            self.endpoint.local_address_changed(old, source_address, now, &mut self.environment);
        }
        // There may be no route to some peers yet. Nothing was sent to them from another address.
        let uses_gone = |(peer, local, remote): (&PeerName, _, _)| is_gone(local, remote).then(|| peer.clone());
        let waiting: BTreeSet<PeerName> = self.endpoint.ike_addresses().filter_map(uses_gone).collect();
        if !waiting.is_empty() {
            self.route_retry.schedule(tokio::time::Instant::now());
        }
        self.moved_away(peers.difference(&waiting));
    }
}
