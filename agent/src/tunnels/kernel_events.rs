//! Handles the kernel's notifications: connects to a peer when the kernel needs an SA for its
//! policy (ACQUIRE), rekeys SAs that expire or were deleted, and compares objects that other
//! programs changed.

use std::collections::{BTreeMap, BTreeSet};

use edge_xfrm::SaDirection;
use edge_xfrm::events::Event;

use super::driver::Driver;
use super::reconcile::SA_DELETED;
use super::sa_params::is_in_tcp;

/// Maximum number of changed objects that are compared one by one. If more objects change at the
/// same time, all objects are compared.
const MAX_SINGLE_CHECKS: usize = 256;

impl Driver {
    /// Handles the kernel's notifications. Notifications about the agent's own changes are not
    /// among them.
    pub(super) fn handle_kernel_events(&mut self, events: Vec<Event>) {
        let (mut all_policies, mut all) = (false, false);
        // The value says how an SA that is missing disappeared.
        let (mut keys, mut changed_sas) = (BTreeSet::new(), BTreeMap::new());
        let now = self.now();
        for event in events {
            match event {
                Event::Acquire { reqid, .. } => {
                    if let Some(peer) = self.environment.reqids.peer(reqid) {
                        let until = now + self.acquire_lifetime;
                        self.endpoint.acquire(&peer, until, now, &mut self.environment);
                        self.packet_waits(&peer);
                    }
                }
                // The addresses of a TCP connection do not change.
                Event::Mapping { id, .. } if self.sas.find(id).is_some_and(|sa| is_in_tcp(sa.encap)) => {}
                Event::Mapping { id, new, .. } => {
                    if let Some((peer, SaDirection::In)) = self.sas.usage(id) {
                        self.endpoint.esp_came_from(peer, id.spi, new, now, &mut self.environment);
                    }
                }
                Event::Expire { id, hard: false, .. } => {
                    if let Some(peer) = self.sas.owner(id).cloned() {
                        self.to_rekey.insert(peer);
                    }
                }
                // Whether the SA is gone is read from the kernel.
                Event::Expire { id, hard: true, .. } if self.sas.find(id).is_some() => {
                    changed_sas.insert(id, "reached its limit");
                }
                Event::SaDeleted { id, .. } if self.sas.find(id).is_some() => {
                    changed_sas.entry(id).or_insert(SA_DELETED);
                }
                Event::PolicyChanged(policy) if policy.is_ours() || self.policies.wants(&policy.key()) => {
                    keys.insert(policy.key());
                }
                Event::PolicyDeleted(policy) if policy.shares_key_space() => drop(keys.insert(policy.key())),
                Event::PoliciesFlushed => all_policies = true,
                Event::SasFlushed | Event::Overrun => all = true,
                Event::SaChanged(sa) if sa.is_ours() && !sa.is_larval() => {
                    changed_sas.entry(sa.id).or_insert(SA_DELETED);
                }
                _ => {}
            }
        }
        if all || keys.len() + changed_sas.len() > MAX_SINGLE_CHECKS {
            return self.check_kernel();
        }
        changed_sas.into_iter().for_each(|(id, how)| self.check_sa(id, how));
        if !self.desired.complete {
            return;
        }
        if all_policies {
            if self.reconcile() {
                self.check_soon();
            }
        } else if !keys.is_empty() {
            self.reconcile_keys(&keys);
        }
    }
}
