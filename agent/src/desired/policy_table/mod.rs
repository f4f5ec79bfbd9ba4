//! Keeps the desired policies up to date peer by peer: a change of one peer affects only that
//! peer's policies and the policies that compete with them. This module does no I/O.

use std::collections::{BTreeMap, HashMap};

use edge_ike::PeerName;
use edge_xfrm::Policy;
use edge_xfrm::policy::PolicyKey;

/// The desired policies of the guard and of all tunnels.
///
/// The kernel keeps one policy for each direction and selector. If the policies of two peers match
/// the same packets (two hubs that front the same networks), the policy with the stronger priority
/// is the desired one. Among policies with the same priority, the guard's policy is desired, then
/// the policy of the peer with the best [`TunnelState`], then the policy of the peer whose name
/// sorts first.
///
/// The size of the table is proportional to the number of policies.
#[derive(Debug, Default)]
pub struct PolicyTable {
    by_key: BTreeMap<PolicyKey, PoliciesOfKey>,
    /// The keys of each peer's policies.
    keys: HashMap<PeerName, Box<[PolicyKey]>>,
    guard: Vec<PolicyKey>,
    /// Keys whose desired policy may have changed since the last [`Self::take_changes`], each with
    /// the policy that was desired then.
    changed: BTreeMap<PolicyKey, Option<Policy>>,
}

/// The state of a peer's tunnel, for the comparison with other tunnels whose policies match the
/// same packets. Better states come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelState {
    /// The tunnel can send.
    Up,
    /// The tunnel can send again, but has been able to only for a short time.
    Returned,
    /// The tunnel can send, but the peer has announced that it ends soon.
    Leaving,
    /// The tunnel cannot send.
    Down,
}

/// A key whose desired policy changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyChange {
    /// Direction and selector.
    pub key: PolicyKey,
    /// The policy that was desired at the last [`PolicyTable::take_changes`].
    pub before: Option<Policy>,
    /// The policy that is desired now.
    pub now: Option<Policy>,
}

/// All policies with the same key. The best one is the desired policy.
#[derive(Debug)]
struct PoliciesOfKey {
    best: SourcedPolicy,
    /// The other policies, strongest first. This is nearly always empty.
    others: Vec<SourcedPolicy>,
}

#[derive(Debug, Clone)]
struct SourcedPolicy {
    policy: Policy,
    source: PolicySource,
}

/// The source of a policy. Of two policies with the same priority, the one with the smaller source
/// is desired.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum PolicySource {
    Guard,
    Peer(TunnelState, PeerName),
}

impl PolicySource {
    fn is(&self, peer: Option<&PeerName>) -> bool {
        match self {
            Self::Guard => peer.is_none(),
            Self::Peer(_, name) => peer == Some(name),
        }
    }
}

impl SourcedPolicy {
    fn rank(&self) -> (u32, &PolicySource) {
        (self.policy.priority, &self.source)
    }
}

impl PolicyTable {
    /// Replaces the policies of a peer.
    pub fn set_peer(&mut self, peer: &PeerName, state: TunnelState, policies: &[Policy]) {
        let source = PolicySource::Peer(state, peer.clone());
        let before = self.keys.remove(peer).unwrap_or_default();
        let keys = self.replace(&before, &source, policies);
        if !keys.is_empty() {
            self.keys.insert(peer.clone(), keys.into());
        }
    }

    /// Replaces the policies of the guard.
    pub fn set_guard(&mut self, policies: &[Policy]) {
        let before = std::mem::take(&mut self.guard);
        self.guard = self.replace(&before, &PolicySource::Guard, policies);
    }

    /// Returns whether the guard has policies.
    pub fn has_guard(&self) -> bool {
        !self.guard.is_empty()
    }

    /// Removes the policies of a former peer.
    pub fn remove_peer(&mut self, peer: &PeerName) {
        self.set_peer(peer, TunnelState::Down, &[]);
    }

    /// Returns the desired policy with this key.
    pub fn get(&self, key: &PolicyKey) -> Option<&Policy> {
        self.by_key.get(key).map(|of_key| &of_key.best.policy)
    }

    /// Returns all desired policies, ordered by key.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.by_key.values().map(|of_key| &of_key.best.policy)
    }

    /// Returns the desired policies with the keys of a peer, including policies of other peers that
    /// take precedence.
    pub fn policies_of(&self, peer: &PeerName) -> impl Iterator<Item = &Policy> {
        self.keys.get(peer).into_iter().flatten().filter_map(|key| self.get(key))
    }

    /// Returns whether [`Self::take_changes`] may return any changes.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns the keys whose desired policy has changed since the previous call.
    pub fn take_changes(&mut self) -> Vec<PolicyChange> {
        std::mem::take(&mut self.changed)
            .into_iter()
            .map(|(key, before)| PolicyChange { key, before, now: self.get(&key).copied() })
            .filter(|change| change.before != change.now)
            .collect()
    }

    /// Replaces the policies from a source, whose previous keys were `before`. Returns the new
    /// keys.
    fn replace(&mut self, before: &[PolicyKey], source: &PolicySource, policies: &[Policy]) -> Vec<PolicyKey> {
        // Of two policies from a source with the same key, the one with the stronger priority is
        // used. If the priorities are equal, the first one is used.
        let mut new: BTreeMap<PolicyKey, Policy> = BTreeMap::new();
        for policy in policies {
            let held = new.entry(policy.key()).or_insert(*policy);
            if policy.priority < held.priority {
                *held = *policy;
            }
        }
        for key in before.iter().filter(|key| !new.contains_key(*key)) {
            self.set_policy(*key, source, None);
        }
        for (key, policy) in &new {
            self.set_policy(*key, source, Some(*policy));
        }
        new.into_keys().collect()
    }

    /// Replaces the policy from a source for one key.
    fn set_policy(&mut self, key: PolicyKey, source: &PolicySource, policy: Option<Policy>) {
        let peer = match source {
            PolicySource::Guard => None,
            PolicySource::Peer(_, name) => Some(name),
        };
        let (before, mut all) = match self.by_key.remove(&key) {
            None => (None, vec![]),
            Some(PoliciesOfKey { best, mut others }) => {
                let before = best.policy;
                others.insert(0, best);
                (Some(before), others)
            }
        };
        all.retain(|one| !one.source.is(peer));
        if let Some(policy) = policy {
            let new = SourcedPolicy { policy, source: source.clone() };
            let at = all.partition_point(|other| other.rank() < new.rank());
            all.insert(at, new);
        }
        let mut all = all.into_iter();
        let best = all.next();
        let now = best.as_ref().map(|best| best.policy);
        if let Some(best) = best {
            self.by_key.insert(key, PoliciesOfKey { best, others: all.collect() });
        }
        if before != now {
            self.changed.entry(key).or_insert(before);
        }
    }
}

#[cfg(test)]
mod tests;
