//! Which XFRM policies follow from tunnels and their state.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use edge_ike::PeerName;
use edge_xfrm::guard::{self, GuardConfig};
use edge_xfrm::policy::PolicyKey;
use edge_xfrm::{Direction, Policy, Reqid, Selector};
use ipnetwork::IpNetwork;

use super::{Desired, Tunnel};

/// What may pass through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// What the view grants: from exactly our networks to the peer's, and back.
    Granted {
        /// Ours.
        local: Vec<IpNetwork>,
        /// The peer's.
        remote: Vec<IpNetwork>,
    },
    /// What was negotiated (peers that are not ours).
    Negotiated,
}

/// Where a tunnel's ends are, and what was negotiated last. Kept while the tunnel is down: its
/// packets wait or die, but never leave in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// Our outer address.
    pub local: IpAddr,
    /// The peer's outer address.
    pub remote: IpAddr,
    /// Negotiated selectors of our side.
    pub local_selectors: Vec<IpNetwork>,
    /// Negotiated selectors of the peer's side.
    pub remote_selectors: Vec<IpNetwork>,
    /// An outbound SA is there.
    pub up: bool,
}

/// All policies that this node wants: the guard's and the tunnels'. Where two peers may take the
/// same packets (two hubs that front the same networks), the one whose tunnel is up does, then the
/// one whose name comes first.
pub fn desired_policies(
    desired: &Desired,
    bridge: &[IpAddr],
    reqids: impl Fn(&PeerName) -> Option<Reqid>,
    ends: impl Fn(&PeerName) -> Option<Ends>,
) -> (BTreeMap<PolicyKey, Policy>, Vec<String>) {
    let mut policies = BTreeMap::new();
    let mut problems = Vec::new();
    let guard_config = GuardConfig { bridge_addresses: bridge.to_vec(), ..desired.guard.clone() };
    match guard::policies(&guard_config) {
        Ok(guards) => policies.extend(guards.into_iter().map(|policy| (policy.key(), policy))),
        Err(error) => problems.push(error.to_string()),
    }
    let mut tunnels: Vec<(&Tunnel, Reqid, Option<Ends>)> =
        desired.tunnels.iter().filter_map(|(name, tunnel)| Some((tunnel, reqids(name)?, ends(name)))).collect();
    tunnels.sort_by_key(|(_, _, ends)| !ends.as_ref().is_some_and(|ends| ends.up));
    for (tunnel, reqid, ends) in &tunnels {
        for policy in of_tunnel(tunnel, &desired.guard.cluster_ranges, *reqid, ends.as_ref()) {
            match policy {
                Ok(policy) => match policies.entry(policy.key()) {
                    Entry::Vacant(free) => drop(free.insert(policy)),
                    Entry::Occupied(held) if held.get().priority > policy.priority => {
                        *held.into_mut() = policy;
                    }
                    Entry::Occupied(_) => {}
                },
                Err(error) => problems.push(format!("peer {}: {error}", tunnel.peer.name)),
            }
        }
    }
    (policies, problems)
}

/// Of packets to a peer that come neither from our segments nor from any range: below all that
/// names its source.
const ANY_SOURCE: u32 = 27_000;
/// What keeps forged sources out of [`ANY_SOURCE`].
const FORGED_SOURCE: u32 = 26_000;

fn of_tunnel(
    tunnel: &Tunnel,
    ranges: &[IpNetwork],
    reqid: Reqid,
    ends: Option<&Ends>,
) -> Vec<edge_xfrm::Result<Policy>> {
    match (&tunnel.reach, ends) {
        (Reach::Granted { local, remote }, _) => {
            let mut policies = between(local, remote, reqid, ends);
            if let Some(ends) = ends {
                for remote in remote {
                    policies.extend(from_elsewhere(ranges, *remote, reqid, ends));
                }
            }
            policies
        }
        (Reach::Negotiated, Some(ends)) => between(&ends.local_selectors, &ends.remote_selectors, reqid, Some(ends)),
        (Reach::Negotiated, None) => vec![],
    }
}

fn between(
    local: &[IpNetwork],
    remote: &[IpNetwork],
    reqid: Reqid,
    ends: Option<&Ends>,
) -> Vec<edge_xfrm::Result<Policy>> {
    let mut policies = Vec::new();
    for local in local {
        for remote in remote.iter().filter(|remote| remote.is_ipv4() == local.is_ipv4()) {
            let outward = match Selector::new(*local, *remote) {
                Ok(selector) => selector,
                Err(error) => {
                    policies.push(Err(error.into()));
                    continue;
                }
            };
            let inward = outward.reversed();
            policies.push(Ok(Policy::protect_in(Direction::In, inward, reqid)));
            policies.push(Ok(Policy::protect_in(Direction::Fwd, inward, reqid)));
            if let Some(ends) = ends {
                policies.push(Ok(Policy::protect_out(outward, reqid, ends.local, ends.remote)));
            }
        }
    }
    policies
}

/// A packet that was redirected to a peer's pod (a NodePort's client, a process that spoke to a
/// service) meets XFRM before its source can be translated, so the tunnel takes it, and the
/// firewall then gives it the bridge's address: the peer lets nothing else pass. XFRM cannot tell
/// it from a LAN host's packet that was merely routed here; the firewall drops that one before it
/// is encrypted. A source within the ranges that is not ours is forged, and blocked here.
fn from_elsewhere(
    ranges: &[IpNetwork],
    remote: IpNetwork,
    reqid: Reqid,
    ends: &Ends,
) -> Vec<edge_xfrm::Result<Policy>> {
    let protect = Selector::new(any(remote), remote).map(|selector| Policy {
        priority: ANY_SOURCE,
        ..Policy::protect_out(selector, reqid, ends.local, ends.remote)
    });
    let protect = protect.map_err(edge_xfrm::Error::from);
    let forged = ranges.iter().filter(|range| range.is_ipv4() == remote.is_ipv4()).map(|range| {
        let block = Policy::block(Direction::Out, Selector::new(*range, remote)?);
        Ok(Policy { priority: FORGED_SOURCE, ..block })
    });
    forged.chain([protect]).collect()
}

/// `0.0.0.0/0` or `::/0`, whichever is of the same family.
fn any(network: IpNetwork) -> IpNetwork {
    Selector::any(network.is_ipv4()).source()
}
