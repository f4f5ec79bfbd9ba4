//! What is wanted against what is there. Pure functions of one dump each, linear in its size.

use std::collections::HashMap;

use crate::policy::{InstalledPolicy, Policy, PolicyKey};
use crate::sa::{Encap, Sa, SaId};

/// What must be done so that the kernel's policies are those wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Wanted, not there. If they had been installed before, somebody deleted them.
    pub missing: Vec<Policy>,
    /// Wanted, and something of ours holds the selector, but another priority, action or template.
    /// If they had been installed so before, somebody changed them.
    pub changed: Vec<(Policy, InstalledPolicy)>,
    /// Ours and no longer wanted.
    pub stray: Vec<InstalledPolicy>,
    /// Wanted, but another program holds the selector: reported, never replaced.
    pub occupied: Vec<(Policy, InstalledPolicy)>,
}

impl Plan {
    /// Whether nothing is to be done and nothing to be reported.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stray.is_empty() && self.occupied.is_empty()
    }
}

/// Compares policies. Two wanted ones of the same direction and selector are one to the kernel: the
/// stronger priority is taken, as the weaker could never be asked.
pub fn policies(desired: &[Policy], observed: &[InstalledPolicy]) -> Plan {
    let mut wanted: HashMap<PolicyKey, Policy> = HashMap::with_capacity(desired.len());
    for policy in desired {
        wanted
            .entry(policy.key())
            .and_modify(|held| {
                if policy.priority < held.priority {
                    *held = *policy;
                }
            })
            .or_insert(*policy);
    }
    let mut plan = Plan::default();
    for holder in observed.iter().filter(|holder| holder.shares_key_space()) {
        match wanted.get(&holder.key()) {
            Some(policy) if holder.matches(policy) => {}
            Some(policy) if holder.is_ours() => plan.changed.push((*policy, holder.clone())),
            Some(policy) => plan.occupied.push((*policy, holder.clone())),
            None if holder.is_ours() => plan.stray.push(holder.clone()),
            None => continue,
        }
        wanted.remove(&holder.key());
    }
    // In the caller's order, so that logs and tests read the same each time.
    for policy in desired {
        if wanted.get(&policy.key()) == Some(policy) {
            wanted.remove(&policy.key());
            plan.missing.push(*policy);
        }
    }
    plan
}

/// An SA that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpectedSa {
    /// What it is known by.
    pub id: SaId,
    /// Its reqid, raw.
    pub reqid: u32,
    /// Its UDP ports.
    pub encap: Option<Encap>,
}

/// How the kernel's SAs differ from those expected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaPlan {
    /// Not there any more. Do not install them again, even with their keys at hand: the outbound
    /// one would begin again at sequence number 1, which the peer takes for a replay, and the
    /// inbound one would take replays. Negotiate new ones.
    pub missing: Vec<ExpectedSa>,
    /// There with another reqid or other UDP ports.
    pub changed: Vec<(ExpectedSa, Sa)>,
    /// Ours, complete, and not expected: what a former run left behind, or a key that has leaked
    /// into the wrong hands. Reservations and acquires are left to the kernel, which drops them by
    /// itself.
    pub stray: Vec<Sa>,
}

impl SaPlan {
    /// Whether all is as expected.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stray.is_empty()
    }
}

/// Compares SAs.
pub fn sas(expected: &[ExpectedSa], observed: &[Sa]) -> SaPlan {
    let mut wanted: HashMap<SaId, ExpectedSa> = expected.iter().map(|sa| (sa.id, *sa)).collect();
    let mut plan = SaPlan::default();
    for sa in observed.iter().filter(|sa| !sa.is_larval()) {
        match wanted.remove(&sa.id) {
            Some(want) if want.reqid == sa.reqid && want.encap == sa.encap => {}
            Some(want) => plan.changed.push((want, sa.clone())),
            None if sa.is_ours() => plan.stray.push(sa.clone()),
            None => {}
        }
    }
    plan.missing = expected.iter().filter(|sa| wanted.contains_key(&sa.id)).copied().collect();
    plan
}

#[cfg(test)]
mod tests;
