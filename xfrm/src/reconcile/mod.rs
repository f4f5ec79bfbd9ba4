//! Compares desired with existing policies and SAs. The functions do no I/O. Their running time is
//! proportional to the number of SAs, and grows little faster than the number of policies.

use std::collections::HashMap;

use netlink_packet_xfrm as nl;

use crate::policy::{InstalledPolicy, Policy};
use crate::sa::{Encap, Sa, SaId};

/// The changes that make the kernel's policies equal to the desired ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyDiff {
    /// Desired policies that do not exist. If they were installed before, another program deleted
    /// them.
    pub missing: Vec<Policy>,
    /// Desired policies for whose selector we have a policy with another priority, action or
    /// template. If that policy was installed correctly before, another program changed it.
    pub changed: Vec<(Policy, InstalledPolicy)>,
    /// Our policies that are no longer desired.
    pub stray: Vec<InstalledPolicy>,
    /// Desired policies whose selector another program holds. They are only reported: the other
    /// program's policy is never replaced.
    pub occupied: Vec<(Policy, InstalledPolicy)>,
}

impl PolicyDiff {
    /// Returns whether there is nothing to change and nothing to report.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stray.is_empty() && self.occupied.is_empty()
    }
}

/// Compares policies. The kernel keeps one policy for each direction and selector. If two desired
/// policies have the same key, the one with higher precedence is used.
///
/// Besides the result, the comparison takes three words for each desired policy. A map with copies
/// of them would take 360 bytes for each, which is much with ten thousand peers.
pub fn policies<'a>(desired: impl IntoIterator<Item = &'a Policy>, observed: &[InstalledPolicy]) -> PolicyDiff {
    // The desired policies in the order of their keys, each with its place in `desired`.
    let mut wanted: Vec<(usize, &Policy)> = desired.into_iter().enumerate().collect();
    let precedence = |(place, policy): &(usize, &Policy)| (policy.key(), policy.priority, *place);
    wanted.sort_unstable_by_key(precedence);
    wanted.dedup_by_key(|(_, policy)| policy.key());
    let mut found = vec![false; wanted.len()];
    let mut plan = PolicyDiff::default();
    for holder in observed.iter().filter(|holder| holder.shares_key_space()) {
        let key = holder.key();
        let place = wanted.binary_search_by_key(&key, |(_, policy)| policy.key()).ok();
        let policy = place.and_then(|place| Some((wanted.get(place)?.1, found.get_mut(place)?)));
        match policy.filter(|(_, found)| !**found) {
            Some((policy, found)) => {
                *found = true;
                if holder.matches(policy) {
                    continue;
                }
                let differing = if holder.is_ours() { &mut plan.changed } else { &mut plan.occupied };
                differing.push((*policy, holder.clone()));
            }
            None if holder.is_ours() => plan.stray.push(holder.clone()),
            None => {}
        }
    }
    // The result has the order of `desired`, so that logs and tests are reproducible.
    let absent = wanted.into_iter().zip(found).filter(|(_, found)| !found);
    let mut missing: Vec<(usize, &Policy)> = absent.map(|(wanted, _)| wanted).collect();
    missing.sort_unstable_by_key(|(place, _)| *place);
    plan.missing = missing.into_iter().map(|(_, policy)| *policy).collect();
    plan
}

/// An SA that should exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpectedSa {
    /// Destination and SPI.
    pub id: SaId,
    /// The reqid.
    pub reqid: u32,
    /// The UDP ports, if ESP travels in UDP.
    pub encap: Option<Encap>,
}

/// The differences between the kernel's SAs and the expected ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaDiff {
    /// SAs that no longer exist. Do not install them again, even if their keys are available: the
    /// outbound SA would start again at sequence number 1, which the peer would reject as a replay,
    /// and the inbound SA would accept replays. Negotiate new SAs.
    pub missing: Vec<ExpectedSa>,
    /// SAs that exist, but with another reqid or other UDP ports.
    pub changed: Vec<(ExpectedSa, Sa)>,
    /// Complete SAs of ours that are not expected, for example from a former run. Reservations and
    /// acquires are not listed, since the kernel removes them without a request.
    pub stray: Vec<Sa>,
}

impl SaDiff {
    /// Returns whether all SAs are as expected.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.stray.is_empty()
    }
}

/// Compares SAs. Only those of ESP count: one of another protocol may have the destination and the
/// SPI of one of ours.
pub fn sas(expected: &[ExpectedSa], observed: &[Sa]) -> SaDiff {
    let mut wanted: HashMap<SaId, &ExpectedSa> = expected.iter().map(|sa| (sa.id, sa)).collect();
    let mut plan = SaDiff::default();
    for sa in observed.iter().filter(|sa| !sa.is_larval() && sa.protocol == nl::IPPROTO_ESP) {
        match wanted.remove(&sa.id) {
            Some(want) if want.reqid == sa.reqid && want.encap == sa.encap => {}
            Some(want) => plan.changed.push((*want, sa.clone())),
            None if sa.is_ours() => plan.stray.push(sa.clone()),
            None => {}
        }
    }
    plan.missing = expected.iter().filter(|sa| wanted.contains_key(&sa.id)).copied().collect();
    plan
}

#[cfg(test)]
mod tests;
