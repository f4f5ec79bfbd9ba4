//! Never in clear: what stands before the first pod and outlives the agent, so that no packet to or from a cluster range leaves or enters this
//! node other than through a tunnel.
//!
//! Policies, from the strongest down: those of peers (not of the guard), allows for the node's own segments, and blocks for the whole
//! cluster ranges: `out` to them, `in` and `fwd` from them. So pods of this node reach each other, the host reaches its own pods and they
//! the host and the internet, while a pod that forges another node's source, or a neighbour on the uplink that does, is stopped and counted
//! (`XfrmInPolBlock`), and so is whatever would leave for another node's pods without a tunnel (`XfrmOutPolBlock`). Bridged packets and
//! ARP never meet XFRM; neighbour discovery, loopback and the uplink's own addresses are outside the ranges or inside the allows.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::error::{Error, Result};
use crate::policy::{Direction, Policy};
use crate::selector::{Selector, any_network};

/// What the guard is to keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardConfig {
    /// The cluster's ranges: nothing to or from them may travel in clear.
    pub cluster_ranges: Vec<IpNetwork>,
    /// This node's own segments.
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that it fronts. Those outside the ranges need no allow and get none.
    pub networks: Vec<IpNetwork>,
    /// The bridge's addresses, one a family, which the node's own traffic to remote pods takes as source. Empty until the bridge is there.
    pub bridge_addresses: Vec<IpAddr>,
}

/// The guard's policies, to be installed by [`install`](crate::guard) or as part of a larger desired set ([`crate::reconcile`]).
pub fn policies(config: &GuardConfig) -> Result<Vec<Policy>> {
    let mut policies = Vec::new();
    for network in config.networks.iter().filter(|network| overlaps_any(&config.cluster_ranges, network)) {
        if let Some(range) = config.cluster_ranges.iter().find(|range| contains(network, range)) {
            return Err(Error::GuardTooWide { network: *network, what: "a network of the cloud", range: *range });
        }
        allow(network, &mut policies)?;
    }
    for segment in config.segments.iter().filter(|segment| overlaps_any(&config.cluster_ranges, segment)) {
        allow(segment, &mut policies)?;
    }
    for range in &config.cluster_ranges {
        // A node that owns a whole range: the allow holds the selector, and there is nothing left to block.
        if config.segments.iter().any(|segment| contains(segment, range)) {
            continue;
        }
        let any = any_network(range.is_ipv4());
        policies.push(Policy::block(Direction::Out, Selector::new(any, *range)?));
        policies.push(Policy::block(Direction::In, Selector::new(*range, any)?));
        policies.push(Policy::block(Direction::Fwd, Selector::new(*range, any)?));
    }
    Ok(policies)
}

fn allow(network: &IpNetwork, policies: &mut Vec<Policy>) -> Result<()> {
    let any = any_network(network.is_ipv4());
    policies.push(Policy::allow(Direction::Out, Selector::new(any, *network)?));
    policies.push(Policy::allow(Direction::In, Selector::new(*network, any)?));
    policies.push(Policy::allow(Direction::Fwd, Selector::new(*network, any)?));
    Ok(())
}

/// Whether `inner` lies within `outer`, or is the same.
fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

fn overlaps_any(ranges: &[IpNetwork], network: &IpNetwork) -> bool {
    ranges.iter().any(|range| contains(range, network) || contains(network, range))
}
