//! Computes all desired policies from scratch, as the oracle for [`super::PolicyTable`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use edge_ike::PeerName;
use edge_xfrm::policy::PolicyKey;
use edge_xfrm::{Policy, guard};

use super::{ChildEnds, Desired, DesiredTunnel, PeerReqids, TunnelEnds, TunnelState, tunnel_policies};

/// Returns the desired policies of the guard and the tunnels, and the errors of the policies that
/// are impossible. If the policies of two peers match the same packets (two hubs that front the
/// same networks), the peer with the best state receives them. Among peers with the same state, the
/// peer whose name sorts first does.
pub(super) fn desired_policies(
    desired: &Desired,
    reqids: impl Fn(&PeerName) -> Option<PeerReqids>,
    ends: impl Fn(&PeerName) -> Option<TunnelEnds>,
    state: impl Fn(&PeerName) -> TunnelState,
) -> (BTreeMap<PolicyKey, Policy>, Vec<String>) {
    let mut policies = BTreeMap::new();
    let mut problems = Vec::new();
    match guard::policies(&desired.guard) {
        Ok(guards) => policies.extend(guards.into_iter().map(|policy| (policy.key(), policy))),
        Err(error) => problems.push(error.to_string()),
    }
    let child = |name: &PeerName, tunnel: &DesiredTunnel| {
        Some(ChildEnds { child: tunnel.peer.child.name.clone(), reqids: reqids(name)?, ends: ends(name) })
    };
    let mut tunnels: Vec<(&DesiredTunnel, ChildEnds)> =
        desired.tunnels.iter().filter_map(|(name, tunnel)| Some((&**tunnel, child(name, tunnel)?))).collect();
    tunnels.sort_by_key(|(tunnel, ..)| state(&tunnel.peer.name));
    for (tunnel, child) in &tunnels {
        let (of_tunnel, refused) = tunnel_policies(tunnel, &desired.guard.cluster_ranges, std::slice::from_ref(child));
        for policy in of_tunnel {
            match policies.entry(policy.key()) {
                Entry::Vacant(free) => drop(free.insert(policy)),
                Entry::Occupied(held) if held.get().priority > policy.priority => *held.into_mut() = policy,
                Entry::Occupied(_) => {}
            }
        }
        problems.extend(refused);
    }
    (policies, problems)
}
