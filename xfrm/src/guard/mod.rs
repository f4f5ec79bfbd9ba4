//! Never in clear: what stands before the first pod and outlives the agent, so that no packet to or
//! from a cluster range leaves or enters this node other than through a tunnel.
//!
//! Policies, from the strongest down: those of peers (not of the guard), allows for the node's own
//! segments, and blocks for the whole cluster ranges: `out` to them, `in` and `fwd` from them. So
//! pods of this node reach each other, the host reaches its own pods and they the host and the
//! internet, while a pod that forges another node's source, or a neighbour on the uplink that does,
//! is stopped and counted (`XfrmInPolBlock`), and so is whatever would leave for another node's
//! pods without a tunnel (`XfrmOutPolBlock`). Bridged packets and ARP never meet XFRM; neighbour
//! discovery, loopback and the uplink's own addresses are outside the ranges or inside the allows.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::database::Xfrm;
use crate::error::{Error, Result};
use crate::policy::{Direction, InstalledPolicy, Policy, priority};
use crate::selector::{Selector, any_network};

mod device;
mod sysctls;

pub use device::{DEVICE, GuardRoute, ROUTE_PROTOCOL};
pub use sysctls::{Bypass, bypasses};

/// What the guard is to keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardConfig {
    /// The cluster's ranges: nothing to or from them may travel in clear.
    pub cluster_ranges: Vec<IpNetwork>,
    /// This node's own segments.
    pub segments: Vec<IpNetwork>,
    /// On a hub: the cloud's networks that it fronts. Those outside the ranges need no allow and
    /// get none.
    pub networks: Vec<IpNetwork>,
    /// The bridge's addresses, one a family, which the node's own traffic to remote pods takes as
    /// source. Empty until the bridge has them; an address that the host does not have is refused
    /// by the kernel.
    pub bridge_addresses: Vec<IpAddr>,
}

impl GuardConfig {
    /// Without what this kernel cannot do: where it has no IPv6 (`ipv6.disable=1`), nothing needs
    /// to be guarded there.
    #[must_use]
    pub fn for_this_kernel(mut self) -> Self {
        if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
            for networks in [&mut self.cluster_ranges, &mut self.segments, &mut self.networks] {
                networks.retain(IpNetwork::is_ipv4);
            }
        }
        self
    }
}

/// Something that was not as the guard wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Defect {
    /// The device is missing or down.
    Device,
    /// A route is missing.
    Route(GuardRoute),
    /// A policy is missing.
    Missing(Policy),
    /// A policy of ours was changed.
    Changed(Policy, Box<InstalledPolicy>),
    /// Another program holds the policy's selector: [`install`] cannot repair this.
    Occupied(Policy, Box<InstalledPolicy>),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Device => write!(f, "device {DEVICE} is missing or down"),
            Defect::Route(route) => write!(f, "route {route} is missing"),
            Defect::Missing(policy) => write!(f, "policy {policy} is missing"),
            Defect::Changed(policy, found) => write!(f, "policy {policy} was changed to {found}"),
            Defect::Occupied(policy, found) => {
                write!(f, "policy {policy}: another program holds the selector with {found}")
            }
        }
    }
}

/// Makes the guard stand, and says what was amiss. Does only what is missing; any number may run at
/// once. Adds and repairs, never takes away: what a segment or range left behind is for
/// [`crate::Xfrm::reconcile_policies`] or [`remove`].
///
/// Allows come before blocks, so that the host is never cut from its own pods. What can be done is
/// done even where another part fails; the first failure is returned.
pub fn install(config: &GuardConfig) -> Result<Vec<Defect>> {
    let config = &config.clone().for_this_kernel();
    let wanted = policies(config)?;
    let mut xfrm = Xfrm::open()?;
    let mut defects = policy_defects(&mut xfrm, &wanted)?;
    let mut failure = None;
    for defect in &defects {
        let (Defect::Missing(policy) | Defect::Changed(policy, _) | Defect::Occupied(policy, _)) = defect else {
            continue;
        };
        if let Err(error) = xfrm.install_policy(policy) {
            failure.get_or_insert(Error::Guard { what: format!("policy {policy}"), source: Box::new(error) });
        }
    }
    let routes = device::Device::open()?.install(config)?;
    defects.extend(routes);
    failure.map_or(Ok(defects), Err)
}

/// What of the guard is not as it should be. Changes nothing.
pub fn check(config: &GuardConfig) -> Result<Vec<Defect>> {
    let config = &config.clone().for_this_kernel();
    let wanted = policies(config)?;
    let mut defects = policy_defects(&mut Xfrm::open()?, &wanted)?;
    defects.extend(device::Device::open()?.check(config)?);
    Ok(defects)
}

/// The device and its routes alone: for whoever installs the [`policies`] as part of a larger set.
pub fn install_routes(config: &GuardConfig) -> Result<Vec<Defect>> {
    device::Device::open()?.install(&config.clone().for_this_kernel())
}

/// Takes the guard away: all policies of ours with its priorities, blocks first, then the device
/// with its routes. Whatever pods are left may speak in clear from then on.
pub fn remove() -> Result<()> {
    let mut xfrm = Xfrm::open()?;
    let mut policies = xfrm.policies()?;
    policies.retain(|policy| policy.is_ours() && matches!(policy.priority, priority::ALLOW | priority::BLOCK));
    policies.sort_by_key(|policy| !policy.blocks);
    for policy in &policies {
        match xfrm.delete_policy(policy) {
            // Another took the place meanwhile.
            Ok(_) | Err(Error::PolicyOfOther { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    device::Device::open()?.remove()
}

fn policy_defects(xfrm: &mut Xfrm, wanted: &[Policy]) -> Result<Vec<Defect>> {
    let holders = xfrm.holders(wanted)?;
    Ok(wanted
        .iter()
        .zip(holders)
        .filter_map(|(policy, holder)| match holder {
            None => Some(Defect::Missing(*policy)),
            Some(holder) if holder.matches(policy) => None,
            Some(holder) if holder.is_ours() => Some(Defect::Changed(*policy, Box::new(holder))),
            Some(holder) => Some(Defect::Occupied(*policy, Box::new(holder))),
        })
        .collect())
}

/// The guard's policies, as [`install`] installs them, or to be part of a larger desired set
/// ([`crate::Xfrm::reconcile_policies`]).
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
        // A node that owns a whole range: the allow holds the selector, and there is nothing left
        // to block.
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

#[cfg(test)]
mod tests;
