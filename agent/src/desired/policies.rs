//! XFRM policies of one tunnel, derived from the tunnel and its state. `policy_table` decides which
//! of them is installed if several tunnels want the same selector.

use std::net::IpAddr;

use edge_xfrm::policy::priority;
use edge_xfrm::{Direction, Policy, Reqid, Selector};
use ipnetwork::IpNetwork;

use super::DesiredTunnel;

/// Traffic that may pass through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermittedTraffic {
    /// As the view grants: between exactly these networks, in both directions.
    Granted {
        /// Networks of this node.
        local: Vec<IpNetwork>,
        /// Networks of the peer.
        remote: Vec<IpNetwork>,
    },
    /// As negotiated, with static peers.
    Negotiated,
}

/// The reqids of a peer's SAs and policies. They differ for hubs: the policies for what comes from
/// a hub accept the SAs of each hub, because several may front the same networks, and nodes switch
/// between them at different moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReqids {
    /// Of outbound SAs and policies. No two peers share it.
    pub outbound: Reqid,
    /// Of inbound SAs and policies: [`Reqid::FROM_HUBS`], or that of the outbound ones.
    pub inbound: Reqid,
}

/// The ends of a tunnel, and the selectors that were negotiated last. They are kept while the
/// tunnel is down, so that its packets wait or are dropped, but never leave in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelEnds {
    /// This node's address, outside of the tunnel.
    pub local: IpAddr,
    /// The peer's address, outside of the tunnel.
    pub remote: IpAddr,
    /// Negotiated selectors of this node.
    pub local_selectors: Vec<IpNetwork>,
    /// Negotiated selectors of the peer.
    pub remote_selectors: Vec<IpNetwork>,
    /// Whether there is an outbound SA.
    pub up: bool,
}

/// The policies that a tunnel to a peer needs, and the errors of those that are impossible.
/// `ranges` are the cluster's ranges. `ends` is `None` before the tunnel was ever up: then no
/// policy sends packets into it.
pub fn tunnel_policies(
    tunnel: &DesiredTunnel,
    ranges: &[IpNetwork],
    reqids: PeerReqids,
    ends: Option<&TunnelEnds>,
) -> (Vec<Policy>, Vec<String>) {
    let (mut policies, mut problems) = (Vec::new(), Vec::new());
    for policy in all_policies(tunnel, ranges, reqids, ends) {
        match policy {
            Ok(policy) => policies.push(policy),
            Err(error) => problems.push(format!("peer {}: {error}", tunnel.peer.name)),
        }
    }
    (policies, problems)
}

/// Priority of policies for packets to a peer from any other source: below all policies that name a
/// source.
const ANY_SOURCE: u32 = 27_000;
/// Priority of the policies that block forged sources, which policies with the priority
/// [`ANY_SOURCE`] would otherwise let through.
const FORGED_SOURCE: u32 = 26_000;

fn all_policies(
    tunnel: &DesiredTunnel,
    ranges: &[IpNetwork],
    reqids: PeerReqids,
    ends: Option<&TunnelEnds>,
) -> Vec<edge_xfrm::Result<Policy>> {
    match (&tunnel.permitted, ends) {
        (PermittedTraffic::Granted { local, remote }, _) => {
            let mut policies = granted_policies(local, remote, reqids, ends);
            if let Some(ends) = ends {
                for remote in remote {
                    policies.extend(any_source_policies(ranges, *remote, reqids.outbound, ends));
                }
            }
            policies
        }
        (PermittedTraffic::Negotiated, Some(ends)) => {
            granted_policies(&ends.local_selectors, &ends.remote_selectors, reqids, Some(ends))
        }
        (PermittedTraffic::Negotiated, None) if tunnel.on_demand => blocked(tunnel),
        (PermittedTraffic::Negotiated, None) => vec![],
    }
}

/// Blocks for packets to a peer on demand whose address is not known yet. A policy that reports
/// packets needs an address.
fn blocked(tunnel: &DesiredTunnel) -> Vec<edge_xfrm::Result<Policy>> {
    let child = &tunnel.peer.child;
    let remotes = |local: &IpNetwork| {
        let family = local.is_ipv4();
        child.remote.iter().filter(move |remote| remote.is_ipv4() == family)
    };
    let pairs = child.local.iter().flat_map(|local| remotes(local).map(move |remote| (*local, *remote)));
    let block = |(local, remote)| {
        let selector = Selector::new(local, remote)?;
        Ok(Policy { priority: priority::peer(&selector), ..Policy::block(Direction::Out, selector) })
    };
    pairs.map(block).collect()
}

fn granted_policies(
    local: &[IpNetwork],
    remote: &[IpNetwork],
    reqids: PeerReqids,
    ends: Option<&TunnelEnds>,
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
            policies.push(Ok(Policy::protect_in(Direction::In, inward, reqids.inbound)));
            policies.push(Ok(Policy::protect_in(Direction::Fwd, inward, reqids.inbound)));
            if let Some(ends) = ends {
                policies.push(Ok(Policy::protect_out(outward, reqids.outbound, ends.local, ends.remote)));
            }
        }
    }
    policies
}

/// Policies for packets to a peer from sources that are not ours. A packet from a NodePort's client
/// or from a process that called a Service, redirected to a peer's pod, meets XFRM before its
/// source is translated. So the tunnel takes it, and the firewall then gives it the bridge's
/// address, since the peer accepts no other. XFRM cannot distinguish it from a LAN host's packet
/// that was merely routed here; the firewall drops that one before encryption. A source within the
/// ranges that is not ours is forged, and blocked here.
fn any_source_policies(
    ranges: &[IpNetwork],
    remote: IpNetwork,
    reqid: Reqid,
    ends: &TunnelEnds,
) -> Vec<edge_xfrm::Result<Policy>> {
    let protect = Selector::new(any_of_family(remote), remote).map(|selector| Policy {
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

/// `0.0.0.0/0` or `::/0`, of the same family as `network`.
fn any_of_family(network: IpNetwork) -> IpNetwork {
    Selector::any(network.is_ipv4()).source()
}
