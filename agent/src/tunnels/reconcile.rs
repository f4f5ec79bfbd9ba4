//! The kernel against what is wanted: after changes, after notifications, and every few seconds.

use std::collections::BTreeSet;

use edge_ike::PeerName;
use edge_ike::endpoint::Phase;
use edge_xfrm::events::Event;
use edge_xfrm::policy::priority;
use edge_xfrm::{Error, InstalledPolicy, Policy, Reqid, SaId, reconcile};

use super::driver::Driver;
use super::environment::source_address;
use crate::desired::{self, Ends};

/// How long after a look for a route the next one comes.
const NO_ROUTE_YET: std::time::Duration = std::time::Duration::from_millis(200);

impl Driver {
    /// A tunnel of a former run goes on: its policies name its ends.
    pub(super) fn assume_kept_ends(&mut self, peer: &PeerName, reqid: Reqid) {
        let Some((local, remote)) = self.sas.kept_ends(reqid) else { return };
        let Some(tunnel) = self.desired.tunnels.get(peer) else { return };
        let ends = Ends {
            local,
            remote,
            local_selectors: tunnel.peer.child.local.clone(),
            remote_selectors: tunnel.peer.child.remote.clone(),
            up: true,
        };
        self.sas.assume_ends(peer, ends);
    }

    /// Brings policies in line after tunnel state changed; the kernel is taken to have what we
    /// installed.
    pub(super) fn update_policies(&mut self) {
        self.policies_dirty = false;
        let desired = self.desired_policies();
        let gone: Vec<Policy> =
            self.policies.iter().filter(|(key, _)| !desired.contains_key(*key)).map(|(_, policy)| *policy).collect();
        for policy in gone {
            self.policies.remove(&policy.key());
            let outcome = match self.machine.xfrm.policy(&policy) {
                Ok(Some(installed)) if installed.is_ours() => self.machine.xfrm.delete_policy(&installed).map(drop),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                self.machine.journal.error(error.to_string());
            }
        }
        for (key, policy) in desired {
            if self.policies.get(&key) != Some(&policy) {
                match self.machine.xfrm.install_policy(&policy) {
                    Ok(_) => drop(self.policies.insert(key, policy)),
                    Err(error) => self.policy_error(&error),
                }
            }
        }
    }

    fn desired_policies(&self) -> std::collections::BTreeMap<edge_xfrm::policy::PolicyKey, Policy> {
        let bridge = self.host.borrow().bridge_addresses.clone();
        let (desired, problems) = desired::desired_policies(
            &self.desired,
            &bridge,
            |peer| self.machine.reqids.of(peer),
            |peer| self.sas.ends(peer),
        );
        for problem in problems {
            self.machine.journal.error(problem);
        }
        desired
    }

    /// Makes the kernel's policies those desired. What we had installed and is not there was
    /// removed by somebody: that is told.
    pub(super) fn reconcile(&mut self) {
        let desired = self.desired_policies();
        let list: Vec<Policy> = desired.values().copied().collect();
        let mut plan = match self.machine.xfrm.policies() {
            Ok(observed) => reconcile::policies(&list, &observed),
            Err(error) => return self.machine.journal.error(format!("policies cannot be read: {error}")),
        };
        for policy in plan.missing.iter().filter(|policy| self.policies.get(&policy.key()) == Some(policy)) {
            self.machine.journal.repaired(format!("policy was deleted by another program: {policy}"));
        }
        for (policy, found) in &plan.changed {
            if self.policies.get(&policy.key()) == Some(policy) {
                self.machine
                    .journal
                    .repaired(format!("policy was changed by another program: {policy}, found {found}"));
            }
        }
        self.judge_stray(&mut plan.stray);
        match self.machine.xfrm.apply(&plan) {
            Ok(errors) => errors.iter().for_each(|error| self.policy_error(error)),
            Err(error) => self.machine.journal.error(error.to_string()),
        }
        // What another program holds is not ours to have; it is tried again at every check.
        let occupied: BTreeSet<_> = plan.occupied.iter().map(|(policy, _)| policy.key()).collect();
        self.policies = desired.into_iter().filter(|(key, _)| !occupied.contains(key)).collect();
    }

    /// Which of our policies that nobody wants are to go. The plugin installs the guard of a new
    /// segment before the view has come that names it: the guard's own are given until the next
    /// check.
    fn judge_stray(&mut self, stray: &mut Vec<InstalledPolicy>) {
        if !self.desired.complete {
            stray.clear();
            return;
        }
        let guards = |policy: &InstalledPolicy| matches!(policy.priority, priority::ALLOW | priority::BLOCK);
        let suspects: BTreeSet<u32> = stray.iter().filter(|policy| guards(policy)).map(|policy| policy.index).collect();
        stray.retain(|policy| {
            self.policies.contains_key(&policy.key()) || !guards(policy) || self.suspects.contains(&policy.index)
        });
        for policy in stray.iter().filter(|policy| self.settled && !self.policies.contains_key(&policy.key())) {
            if guards(policy) {
                tracing::info!("deleted a policy of the guard for what is no longer this node's: {policy}");
            } else {
                self.machine.journal.repaired(format!("policy with our mark that is not wanted: {policy}"));
            }
        }
        self.next_suspects = suspects;
    }

    fn policy_error(&self, error: &Error) {
        match error {
            Error::OccupiedByOther { .. } => self.machine.journal.foreign(error.to_string()),
            _ => self.machine.journal.error(error.to_string()),
        }
    }

    /// Deletes SAs of a former run whose peer is none any more.
    pub(super) fn remove_orphans(&mut self) {
        let held: BTreeSet<u32> =
            self.desired.tunnels.keys().filter_map(|name| self.machine.reqid(name)).map(Reqid::raw).collect();
        let sas = match self.machine.xfrm.sas() {
            Ok(sas) => sas,
            Err(error) => return self.machine.journal.error(format!("SAs cannot be read: {error}")),
        };
        for sa in sas.iter().filter(|sa| sa.is_ours() && !held.contains(&sa.reqid)) {
            self.sas.lost(sa.id);
            match self.machine.xfrm.delete_sa(sa.id) {
                Ok(()) | Err(Error::NoSuchSa { .. }) => {
                    tracing::info!("deleted the SA to {} of a peer that is none any more", sa.id);
                }
                Err(error) => self.machine.journal.error(error.to_string()),
            }
        }
    }

    /// Compares everything.
    pub(super) fn check_all(&mut self) {
        self.suspects = std::mem::take(&mut self.next_suspects);
        if self.desired.complete {
            self.reconcile();
        }
        self.check_sas();
    }

    fn check_sas(&mut self) {
        let sas = match self.machine.xfrm.sas() {
            Ok(sas) => sas,
            Err(error) => return self.machine.journal.error(format!("SAs cannot be read: {error}")),
        };
        let expected: Vec<_> = self.sas.installed().iter().map(|installed| installed.expected()).collect();
        let plan = reconcile::sas(&expected, &sas);
        for missing in &plan.missing {
            self.sa_gone(missing.id, "was deleted by another program");
        }
        for (expected, found) in &plan.changed {
            self.machine.journal.error(format!("SA to {} was changed by another program: {found:?}", expected.id));
        }
        if self.settled {
            for stray in &plan.stray {
                match self.machine.xfrm.delete_sa(stray.id) {
                    Ok(()) => {
                        self.machine.journal.repaired(format!("SA with our mark that is not wanted: {}", stray.id))
                    }
                    Err(Error::NoSuchSa { .. }) => {}
                    Err(error) => self.machine.journal.error(error.to_string()),
                }
            }
        }
    }

    /// An SA of ours is gone. It must never come back with the same key (its nonces would be used
    /// twice): a rekey makes a new pair.
    fn sa_gone(&mut self, id: SaId, how: &str) {
        if let Some((peer, _)) = self.sas.lost(id) {
            self.machine.journal.repaired(format!("SA to {id} of peer {peer} {how}; rekeying"));
            if !self.to_rekey.contains(&peer) {
                self.to_rekey.push(peer);
            }
        }
    }

    /// The kernel's notifications, without those of our own changes.
    pub(super) fn kernel_changed(&mut self, events: Vec<Event>) {
        let (mut policies, mut all) = (false, false);
        let now = self.now();
        for event in events {
            match event {
                Event::Acquire { reqid, .. } => {
                    if let Some(peer) = self.machine.reqids.peer(reqid) {
                        self.endpoint.connect(&peer, now, &mut self.machine);
                    }
                }
                Event::Expire { id, hard: false, .. } => {
                    if let Some(peer) = self.sas.owner(id).cloned() {
                        self.to_rekey.push(peer);
                    }
                }
                Event::Expire { id, hard: true, .. } => self.sa_gone(id, "reached its limit"),
                Event::SaDeleted { id, .. } => self.sa_gone(id, "was deleted by another program"),
                Event::PolicyChanged(policy) if policy.is_ours() || self.policies.contains_key(&policy.key()) => {
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
            self.check_all();
        } else if policies && self.desired.complete {
            self.reconcile();
        }
    }

    /// Addresses changed: tunnels from an address that is gone move, and peers that could not be
    /// reached are tried anew.
    pub(super) fn host_changed(&mut self) {
        self.move_tunnels();
        let now = self.now();
        for peer in self.endpoint.snapshot() {
            if matches!(peer.phase, Phase::Waiting { .. } | Phase::Connecting) && peer.ike_sas.is_empty() {
                self.endpoint.connect(&peer.name, now, &mut self.machine);
            }
        }
    }

    /// Moves tunnels from an address that is gone to the one that the route now gives. Where there
    /// is no route yet (an address comes before its default route), tries again soon: of the route
    /// alone nobody tells us.
    pub(super) fn move_tunnels(&mut self) {
        let host = self.host.borrow_and_update().clone();
        let now = self.now();
        self.move_again_at = None;
        for peer in self.endpoint.snapshot() {
            for ike in &peer.ike_sas {
                let old = ike.local.ip();
                if host.local_addresses.is_empty() || host.local_addresses.contains(&old) {
                    continue;
                }
                match source_address(ike.remote.ip()).filter(|new| *new != old) {
                    Some(new) => {
                        tracing::info!(peer = %peer.name, %old, %new, "own address changed");
                        self.endpoint.local_address_changed(old, new, now, &mut self.machine);
                    }
                    None => self.move_again_at = Some(tokio::time::Instant::now() + NO_ROUTE_YET),
                }
            }
        }
        self.policies_dirty = true;
    }
}
