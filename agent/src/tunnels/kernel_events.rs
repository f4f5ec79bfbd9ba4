//! Handles the kernel's notifications: connects to a peer when the kernel needs an SA for its
//! policy (ACQUIRE), rekeys SAs that expire or were deleted, and compares objects that other
//! programs changed.

use std::collections::BTreeSet;

use edge_xfrm::SaDirection;
use edge_xfrm::events::Event;

use super::driver::Driver;

/// Maximum number of changed objects that are compared one by one. If more objects change at the
/// same time, all objects are compared.
const MAX_SINGLE_CHECKS: usize = 256;

impl Driver {
    /// Handles the kernel's notifications. Notifications about the agent's own changes are not
    /// among them.
    pub(super) fn handle_kernel_events(&mut self, events: Vec<Event>) {
        let (mut all_policies, mut all) = (false, false);
        let (mut keys, mut changed_sas) = (BTreeSet::new(), BTreeSet::new());
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
                Event::Mapping { id, new, .. } => {
                    if let Some((peer, SaDirection::In)) = self.sas.usage(id) {
                        self.endpoint.esp_came_from(peer, id.spi, new, now, &mut self.environment);
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
                    keys.insert(policy.key());
                }
                Event::PolicyDeleted(policy) if policy.shares_key_space() => drop(keys.insert(policy.key())),
                Event::PoliciesFlushed => all_policies = true,
                Event::SasFlushed | Event::Overrun => all = true,
                Event::SaChanged(sa) if sa.is_ours() && !sa.is_larval() => drop(changed_sas.insert(sa.id)),
                _ => {}
            }
        }
        if all || keys.len() + changed_sas.len() > MAX_SINGLE_CHECKS {
            return self.check_kernel();
        }
        changed_sas.into_iter().for_each(|id| self.check_sa(id));
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
