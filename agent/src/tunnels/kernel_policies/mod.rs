//! Maintains the policies in the kernel. A change to one peer causes requests only about that
//! peer's policies. All policies are compared periodically, and after some notifications.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_ike::{Instant, PeerName};
use edge_xfrm::guard::{self, GuardConfig};
use edge_xfrm::policy::{PolicyKey, priority};
use edge_xfrm::reconcile::{self, PolicyDiff};
use edge_xfrm::{Action, Direction, Error, InstalledPolicy, Policy, Reqid, SaParams, Xfrm};

use crate::desired::{ChildEnds, Desired, PolicyTable, TunnelState, tunnel_policies};
use crate::incidents::Incidents;

/// Time for which a guard policy that is not desired stays. The plugin installs the guard of a new
/// segment before the view names that segment.
const STRAY_GUARD_LINGER: Duration = Duration::from_secs(10);

/// Maximum number of policies that are replaced or deleted without being read once more just
/// before, because reading them takes one request and no time.
const MAX_JUST_READ: usize = 32;

/// Whether the desired state is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DesiredCompleteness {
    /// Whether all peers are known, so that any other policies of the agent are deleted.
    pub(super) complete: bool,
    /// Whether a complete desired state has been applied. If so, a policy of the agent that is not
    /// desired was not left by an earlier run, and is recorded as an incident.
    pub(super) settled: bool,
}

/// How to change the kernel's policies.
struct PlannedChanges {
    /// The changes; empty after a failure.
    plan: PolicyDiff,
    /// The policies that the kernel should have afterwards, of those that change.
    installed: Vec<Policy>,
    /// Whether so few policies were read for the plan that they need not be read again.
    few: bool,
    /// Why the policies could not be read.
    failure: Option<Error>,
}

/// The desired policies, and which of them are in the kernel.
#[derive(Debug, Default)]
pub(super) struct KernelPolicies {
    desired: PolicyTable,
    /// Desired policies that are not in the kernel: another program's policy has the selector, or
    /// the kernel refused them.
    unmet: BTreeSet<PolicyKey>,
    /// Guard policies that are not desired: their index, and the time since which they are not
    /// desired.
    stray_guards: BTreeMap<u32, Instant>,
}

impl KernelPolicies {
    /// Computes the policies of a peer again. `children` and `state` are the current values for the
    /// peer.
    pub(super) fn update_peer(
        &mut self,
        peer: &PeerName,
        desired: &Desired,
        children: &[ChildEnds],
        state: TunnelState,
        incidents: &Incidents,
    ) {
        let Some(tunnel) = desired.tunnels.get(peer) else {
            return self.desired.remove_peer(peer);
        };
        let (policies, problems) = tunnel_policies(tunnel, &desired.guard.cluster_ranges, children);
        self.desired.set_peer(peer, state, &policies);
        problems.into_iter().for_each(|problem| incidents.error(problem));
    }

    /// Computes the guard's policies again. If they are impossible, the previous ones stay. If
    /// there are none, those without the cloud's networks are used: they allow less than the
    /// configuration, and no network is too wide for them.
    pub(super) fn update_guard(&mut self, config: &GuardConfig, incidents: &Incidents) {
        let policies = guard::policies(config).or_else(|error| {
            incidents.error(error.to_string());
            if self.desired.has_guard() {
                return Err(error);
            }
            guard::policies(&GuardConfig { networks: vec![], ..config.clone() })
        });
        if let Ok(policies) = policies {
            self.desired.set_guard(&policies);
        }
    }

    /// Returns whether a policy with this direction and selector is desired.
    pub(super) fn wants(&self, key: &PolicyKey) -> bool {
        self.desired.get(key).is_some()
    }

    /// Returns the policies that send packets with a peer's SAs of this reqid.
    pub(super) fn outbound_of(&self, peer: &PeerName, reqid: Reqid) -> Vec<Policy> {
        let sends = |policy: &&Policy| match policy.action {
            Action::Protect(template) => policy.direction == Direction::Out && template.reqid == reqid,
            Action::Allow | Action::Block => false,
        };
        self.desired.policies_of(peer).filter(sends).copied().collect()
    }

    /// Returns the policies that the kernel should have, except those whose selector another
    /// program occupies and those that the kernel refused.
    pub(super) fn installed(&self) -> impl Iterator<Item = &Policy> {
        self.desired.policies().filter(|policy| !self.unmet.contains(&policy.key()))
    }

    /// Installs and deletes the policies that changed since the last call, assuming that the kernel
    /// has all others. The number of batches is small, no matter how many policies there are.
    /// Returns `true` if the kernel refused a change.
    pub(super) fn install_changes(&mut self, xfrm: &mut Xfrm, incidents: &Incidents) -> bool {
        if !self.desired.has_changes() {
            return false;
        }
        let changes = self.plan_changes(xfrm);
        let plan = &changes.plan;
        let outcome = match changes.failure {
            Some(failure) => Err(failure),
            None if changes.few => xfrm.apply_just_read(plan),
            None => xfrm.apply(plan),
        };
        self.record(outcome, &changes.installed, xfrm, incidents)
    }

    /// Does the same as [`Self::install_changes`], and before that installs the SAs of a new
    /// tunnel, all with one datagram. Returns the outcomes for the inbound and the outbound SA, and
    /// whether the kernel refused a change of a policy.
    pub(super) fn install_changes_with_sas(
        &mut self,
        xfrm: &mut Xfrm,
        inbound: &SaParams,
        outbound: &SaParams,
        incidents: &Incidents,
    ) -> edge_xfrm::Result<(edge_xfrm::Result<()>, edge_xfrm::Result<()>, bool)> {
        let changes = self.plan_changes(xfrm);
        let outcome = match xfrm.install_tunnel(inbound, outbound, &changes.plan, changes.few) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.unmet.extend(changes.installed.iter().map(Policy::key));
                return Err(error);
            }
        };
        let failures = changes.failure.into_iter().chain(outcome.policies).collect();
        let refused = self.record(Ok(failures), &changes.installed, xfrm, incidents);
        Ok((outcome.inbound, outcome.outbound, refused))
    }

    /// Returns how to make the changes since the last call. Reads the policies that they replace or
    /// delete.
    fn plan_changes(&mut self, xfrm: &mut Xfrm) -> PlannedChanges {
        let changes = self.desired.take_changes();
        let mut plan = PolicyDiff::default();
        let mut known: Vec<Policy> = Vec::new();
        let mut wanted: Vec<Policy> = Vec::new();
        for change in &changes {
            let unmet = self.unmet.remove(&change.key);
            match (change.before, change.now) {
                (Some(_), Some(now)) if !unmet => {
                    known.push(now);
                    wanted.push(now);
                }
                (Some(before), None) => known.push(before),
                (_, Some(now)) => plan.missing.push(now),
                (None, None) => {}
            }
        }
        let installed: Vec<Policy> = changes.iter().filter_map(|change| change.now).collect();
        let failure = match xfrm.holders(&known) {
            Ok(holders) => {
                let holders: Vec<InstalledPolicy> = holders.into_iter().flatten().collect();
                let replacements = reconcile::policies(&wanted, &holders);
                plan.missing.extend(replacements.missing);
                plan.changed = replacements.changed;
                plan.stray = replacements.stray;
                plan.occupied = replacements.occupied;
                None
            }
            Err(error) => {
                plan = PolicyDiff::default();
                Some(error)
            }
        };
        PlannedChanges { plan, installed, few: known.len() <= MAX_JUST_READ, failure }
    }

    /// Reads all policies in the kernel and changes the agent's policies to the desired ones. A
    /// policy that was in the kernel and is missing or changed is recorded as an incident. Returns
    /// `true` if a difference remains, for example because the kernel refused a change.
    pub(super) fn reconcile(
        &mut self,
        xfrm: &mut Xfrm,
        incidents: &Incidents,
        completeness: DesiredCompleteness,
        now: Instant,
    ) -> bool {
        let before: BTreeMap<PolicyKey, Option<Policy>> =
            self.desired.take_changes().into_iter().map(|change| (change.key, change.before)).collect();
        let plan = match xfrm.policies() {
            Ok(observed) => reconcile::policies(self.desired.policies(), &observed),
            Err(error) => {
                self.unmet.extend(before.into_keys());
                incidents.error(format!("policies cannot be read: {error}"));
                return true;
            }
        };
        let stray: BTreeSet<u32> = plan.stray.iter().map(|policy| policy.index).collect();
        self.stray_guards.retain(|index, _| stray.contains(index));
        let was_unmet = std::mem::take(&mut self.unmet);
        self.correct(plan, &before, &was_unmet, xfrm, incidents, completeness, now)
    }

    /// Compares as [`Self::reconcile`] does, but only the policies with these keys, about which the
    /// kernel sent notifications.
    pub(super) fn reconcile_keys(
        &mut self,
        keys: &BTreeSet<PolicyKey>,
        xfrm: &mut Xfrm,
        incidents: &Incidents,
        completeness: DesiredCompleteness,
        now: Instant,
    ) -> bool {
        self.install_changes(xfrm, incidents);
        let wanted = keys.iter().filter_map(|key| self.desired.get(key));
        // Only the direction and the selector matter in this query.
        let questions: Vec<Policy> =
            keys.iter().map(|(direction, selector)| Policy::block(*direction, *selector)).collect();
        let plan = match xfrm.holders(&questions) {
            Ok(holders) => {
                let observed: Vec<InstalledPolicy> = holders.into_iter().flatten().collect();
                reconcile::policies(wanted, &observed)
            }
            Err(error) => {
                incidents.error(format!("policies cannot be read: {error}"));
                return true;
            }
        };
        let was_unmet = keys.iter().filter(|key| self.unmet.remove(*key)).copied().collect();
        self.correct(plan, &BTreeMap::new(), &was_unmet, xfrm, incidents, completeness, now)
    }

    /// Carries out a plan. `before` contains the previously desired policies of the changed keys.
    /// `was_unmet` contains the policies that the kernel lacked at the last comparison.
    #[expect(clippy::too_many_arguments, reason = "what both comparisons know")]
    fn correct(
        &mut self,
        mut plan: PolicyDiff,
        before: &BTreeMap<PolicyKey, Option<Policy>>,
        was_unmet: &BTreeSet<PolicyKey>,
        xfrm: &mut Xfrm,
        incidents: &Incidents,
        completeness: DesiredCompleteness,
        now: Instant,
    ) -> bool {
        let was_there = |key: &PolicyKey| !before.contains_key(key) && !was_unmet.contains(key);
        for policy in plan.missing.iter().filter(|policy| was_there(&policy.key())) {
            incidents.repaired(format!("policy was deleted by another program: {policy}"));
        }
        for (policy, found) in plan.changed.iter().filter(|(policy, _)| was_there(&policy.key())) {
            incidents.repaired(format!("policy was changed by another program: {policy}, found {found}"));
        }
        let desired_before = |key: &PolicyKey| before.get(key).is_some_and(Option::is_some);
        select_stray(&mut self.stray_guards, &mut plan.stray, desired_before, incidents, completeness, now);
        // Policies of other programs are not replaced. Each comparison tries again.
        self.unmet.extend(plan.occupied.iter().map(|(policy, _)| policy.key()));
        let installed: Vec<Policy> =
            plan.missing.iter().chain(plan.changed.iter().map(|(policy, _)| policy)).copied().collect();
        let outcome = xfrm.apply(&plan);
        self.record(outcome, &installed, xfrm, incidents) || !self.stray_guards.is_empty()
    }

    /// Records the failures for the policies `installed`. Returns `true` if the kernel refused a
    /// change.
    fn record(
        &mut self,
        outcome: edge_xfrm::Result<Vec<Error>>,
        installed: &[Policy],
        xfrm: &mut Xfrm,
        incidents: &Incidents,
    ) -> bool {
        let errors = outcome.unwrap_or_else(|error| vec![error]);
        let mut unclear = false;
        for error in &errors {
            match error {
                Error::OccupiedByOther { wanted, .. } => {
                    self.unmet.insert(wanted.key());
                    incidents.foreign(error.to_string());
                }
                _ => {
                    unclear = true;
                    incidents.error(error.to_string());
                }
            }
        }
        if unclear {
            // The policies are queried, since the error does not show which of them exist.
            let holders = xfrm.holders(installed).unwrap_or_else(|_| vec![None; installed.len()]);
            let absent = installed.iter().zip(holders);
            let absent =
                absent.filter(|(policy, holder)| !holder.as_ref().is_some_and(|holder| holder.matches(policy)));
            self.unmet.extend(absent.map(|(policy, _)| policy.key()));
        }
        unclear
    }
}

/// Reduces `stray`, the agent's policies that are not desired, to those that are deleted now.
/// `stray` may be a part of these policies: those that are not in it keep their time in
/// `stray_guards`. `desired_before` returns whether a policy was desired until now.
fn select_stray(
    stray_guards: &mut BTreeMap<u32, Instant>,
    stray: &mut Vec<InstalledPolicy>,
    desired_before: impl Fn(&PolicyKey) -> bool,
    incidents: &Incidents,
    completeness: DesiredCompleteness,
    now: Instant,
) {
    if !completeness.complete {
        stray.clear();
        return;
    }
    let guards = |policy: &InstalledPolicy| matches!(policy.priority, priority::ALLOW | priority::BLOCK);
    stray.retain(|policy| {
        if desired_before(&policy.key()) || !guards(policy) {
            return true;
        }
        let since = *stray_guards.entry(policy.index).or_insert(now);
        now.saturating_since(since) >= STRAY_GUARD_LINGER
    });
    for policy in stray.iter().filter(|policy| completeness.settled && !desired_before(&policy.key())) {
        if guards(policy) {
            tracing::info!("deleted a policy of the guard that is no longer needed: {policy}");
        } else {
            incidents.repaired(format!("deleted a policy with our reqid or index that is not desired: {policy}"));
        }
    }
}

#[cfg(test)]
mod tests;
