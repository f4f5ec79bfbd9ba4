//! Carries out the difference between two desired states.

use std::sync::Arc;

use edge_ike::config::ChildConfig;
use edge_ike::{AddressAssignment, Instant, PeerName, Purpose};
use edge_xfrm::Reqid;

use super::driver::Driver;
use super::enforced_revocations::valid_from;
use super::environment::KernelEnvironment;
use super::esp_key::{kernel_has, report_missing};
use super::former_policies::FormerPolicies;
use crate::clock::boot_time;
use crate::desired::{Desired, DesiredTunnel, PeerChanges};
use crate::logging::peer_span;

impl Driver {
    /// Replaces the desired state: configures the peers that differ, and updates their policies.
    /// The first complete state is also compared with the whole kernel.
    pub(super) fn apply_desired(&mut self, desired: Arc<Desired>) {
        self.environment.desired = Arc::clone(&desired);
        let before = std::mem::replace(&mut self.desired, desired);
        let changes = self.desired.changes_since(&before);
        let now = boot_time();
        for problem in &self.desired.problems {
            self.environment.incidents.error(problem.as_str());
        }
        let of_changes = |desired: &Desired, is: fn(&DesiredTunnel) -> bool| {
            let changed = changes.set.iter().chain(&changes.gone);
            changed.filter(|name| desired.tunnels.get(name).is_some_and(|tunnel| is(tunnel))).count()
        };
        let is_hub = |tunnel: &DesiredTunnel| tunnel.hub;
        if of_changes(&before, is_hub) + of_changes(&self.desired, is_hub) > 0 {
            self.relays.set_hubs(&self.desired);
        }
        let (no_longer, now_wanted) =
            (of_changes(&before, DesiredTunnel::counts), of_changes(&self.desired, DesiredTunnel::counts));
        self.wanted_from_view = self.wanted_from_view.saturating_sub(no_longer).saturating_add(now_wanted);
        for name in &changes.gone {
            self.relays.remove_peer(name);
            self.tcp.relay_connections.forget(name);
            self.forget_tcp(name, now);
            self.source_port_path_changed(name);
            self.endpoint.remove_peer(name, now, &mut self.environment);
        }
        while let Some(event) = self.endpoint.poll_event() {
            self.handle_event(event);
        }
        for name in &changes.gone {
            let reqids = self.environment.reqids.all_of(name);
            self.environment.revocations.forget(name);
            self.kernel_refusals.forget(name);
            self.environment.internal_addresses.forget(name);
            if let Err(error) = self.sas.forget(&mut self.environment.xfrm, name, &reqids) {
                let _span = peer_span(name).entered();
                self.environment.incidents.error(format!("peer {name}: {error}"));
            }
        }
        self.assign_reqids(&changes, now);
        for name in &changes.set {
            let hub = self.desired.tunnels.get(name).is_some_and(|tunnel| tunnel.hub);
            if self.environment.reqids.set_hub(name, hub) {
                // The inbound SAs of a node that has become a hub, or is no longer a hub, do not
                // match the policies any more.
                self.to_rekey.insert(name.clone());
            }
        }
        for name in &changes.gone {
            self.environment.reqids.set_hub(name, false);
        }
        for name in &changes.set {
            self.set_peer(name, now);
            self.watch_if_on_demand(name, now);
            self.forget_unwanted(name);
            self.relays.requests.addresses_changed(name, now);
            self.path_changed(name);
        }
        self.hold_packets_if_on_demand(&changes.set);
        // A node that has lost its view keeps the guard.
        if self.desired.complete {
            self.policies.update_guard(&self.desired.guard, &self.environment.incidents);
        }
        if before.guard.cluster_ranges != self.desired.guard.cluster_ranges {
            // The policies of all peers depend on the ranges.
            self.changed_peers.extend(self.desired.tunnels.keys().cloned());
        }
        self.update_path_mtus(&changes);
        self.changed_peers.extend(changes.gone.into_iter().chain(changes.set));
        if self.settled {
            return self.update_policies();
        }
        if self.reconcile() {
            self.check_soon();
        }
        if self.desired.complete {
            self.settled = true;
            let tunnels = &self.desired.tunnels;
            self.environment.internal_addresses.retain(|peer| tunnels.contains_key(peer));
            self.former_policies = FormerPolicies::default();
            self.delete_orphaned_sas();
        }
    }

    fn assign_reqids(&mut self, changes: &PeerChanges, now: Instant) {
        let reqids = &mut self.environment.reqids;
        let outcome = if self.desired.complete && !self.settled {
            let tunnels = self.desired.tunnels.iter();
            let children =
                tunnels.flat_map(|(name, tunnel)| tunnel.peer.children().map(move |child| (name, &child.name)));
            reqids.assign(children)
        } else {
            let set = changes.set.iter().filter_map(|name| Some((name, self.desired.tunnels.get(name)?)));
            let children = set.flat_map(|(name, tunnel)| tunnel.peer.children().map(move |child| (name, &child.name)));
            // Until the desired state is complete, reqids stay assigned, since a later view may
            // name their peers.
            let gone: &[PeerName] = if self.desired.complete { &changes.gone } else { &[] };
            reqids.assign_changes(children, gone, now)
        };
        if let Err(error) = outcome {
            self.environment.incidents.error(format!("reqids cannot be written to disk: {error}"));
        }
    }

    /// Configures a peer from the desired state in the endpoint.
    pub(super) fn set_peer(&mut self, name: &PeerName, now: Instant) {
        let Some(tunnel) = self.desired.tunnels.get(name) else { return };
        // Inherited SAs have internal addresses of IKE SAs that no longer exist. The policies for
        // an address that the peer gave this node stay while the tunnel is down; see
        // `forget_unwanted`.
        let assignment = &tunnel.peer.address_assignment;
        let inherits = *assignment == AddressAssignment::Off;
        let keeps_policies = !matches!(assignment, AddressAssignment::Pool(_));
        let peer = self.with_relayed_address(name, tunnel);
        let peer = self.with_tcp_address(name, peer);
        let KernelEnvironment { xfrm, random, incidents, .. } = &mut self.environment;
        let has = |cipher| kernel_has(cipher, xfrm, random, incidents);
        let known = self.kernel_refusals.missing_ciphers().len();
        let mut peer = self.kernel_refusals.without_missing_ciphers(peer, has);
        report_missing(self.kernel_refusals.missing_ciphers().get(known..).unwrap_or_default(), incidents);
        let children: Vec<ChildConfig> = peer.children().cloned().collect();
        let reqids = &self.environment.reqids;
        let purposes: Vec<(&ChildConfig, (Purpose, Reqid))> = children
            .iter()
            .filter(|_| keeps_policies)
            .flat_map(|child| reqids.of_child(name, &child.name).into_iter().map(move |of| (child, of)))
            .collect();
        let mut enforced = true;
        for (child, (purpose, reqid)) in purposes {
            // The configuration has changed in the meantime.
            if !peer.may_have(&purpose) {
                continue;
            }
            if !inherits {
                self.assume_former_ends(name, child, purpose, reqid);
                continue;
            }
            enforced &= self.forget_revoked_sas(&peer, reqid);
            // The peer may not notice that this node has restarted, as long as its ESP packets are
            // answered, and then its next rekey fails. And while there are inherited SAs, no packet
            // triggers the setup of a tunnel. Whatever is configured, this node therefore
            // initiates, also to the address to which the inherited SAs send.
            if self.sas.has_inherited(reqid) {
                let peer = Arc::make_mut(&mut peer);
                peer.keep_existing = true;
                peer.initiate = true;
                peer.remotes.splice(0..0, self.sas.inherited_remote(reqid, &peer.remotes));
            }
            self.assume_inherited_ends(name, child, purpose.clone(), reqid);
            self.assume_former_ends(name, child, purpose, reqid);
        }
        if !inherits {
            self.endpoint.restore_internal_addresses(name, self.environment.internal_addresses.of(name));
        }
        let from = valid_from(&peer);
        match self.endpoint.set_peer(peer, now, &mut self.environment) {
            Ok(()) if enforced => self.environment.revocations.enforced(name, from),
            Ok(()) => {}
            Err(error) => {
                let _span = peer_span(name).entered();
                self.environment.incidents.error(format!("peer {name}: its credentials cannot be used: {error}"));
            }
        }
    }
}
