//! Compares what is wanted with what is there. The functions are pure, and linear in the size of
//! the dump.

use std::collections::HashMap;

use crate::policy::{InstalledPolicy, Policy, PolicyKey};
use crate::sa::{Sa, SaId, UdpEncap};

/// What must be done so that the kernel's policies are those wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyDiff {
    /// Wanted, but not there. If they were installed before, another program deleted them.
    pub missing: Vec<Policy>,
    /// Wanted, but our policy there has another priority, action or template. If it was installed
    /// correctly before, another program changed it.
    pub changed: Vec<(Policy, InstalledPolicy)>,
    /// Ours and no longer wanted.
    pub stray: Vec<InstalledPolicy>,
    /// Wanted, but another program holds the selector: reported, never replaced.
    pub occupied: Vec<(Policy, InstalledPolicy)>,
}

impl PolicyDiff {
    /// Whether there is nothing to do and nothing to report.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stray.is_empty() && self.occupied.is_empty()
    }
}

/// Compares policies. The kernel keeps one policy for a direction and selector, so of two wanted
/// ones the stronger is taken.
pub fn policies(desired: &[Policy], observed: &[InstalledPolicy]) -> PolicyDiff {
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
    let mut plan = PolicyDiff::default();
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
    // In the caller's order, so that logs and tests are the same each time.
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
    /// Destination and SPI.
    pub id: SaId,
    /// Its reqid, raw.
    pub reqid: u32,
    /// Its UDP ports.
    pub encap: Option<UdpEncap>,
}

/// How the kernel's SAs differ from those expected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaDiff {
    /// Not there any more. Do not install them again, even if their keys are at hand: the outbound
    /// one would start again at sequence number 1, which the peer takes for a replay, and the
    /// inbound one would accept replays. Negotiate new ones.
    pub missing: Vec<ExpectedSa>,
    /// There, but with another reqid or other UDP ports.
    pub changed: Vec<(ExpectedSa, Sa)>,
    /// Ours, complete, and not expected: a former run left them behind. Reservations and acquires
    /// are left to the kernel, which drops them by itself.
    pub stray: Vec<Sa>,
}

impl SaDiff {
    /// Whether all is as expected.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stray.is_empty()
    }
}

/// Compares SAs.
pub fn sas(expected: &[ExpectedSa], observed: &[Sa]) -> SaDiff {
    let mut wanted: HashMap<SaId, ExpectedSa> = expected.iter().map(|sa| (sa.id, *sa)).collect();
    let mut plan = SaDiff::default();
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
