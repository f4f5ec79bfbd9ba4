//! The guard is installed before the first pod and outlives the agent. It prevents packets to and
//! from the cluster ranges from leaving or entering this node in clear.
//!
//! The guard's policies have lower precedence than peers' policies. They are allow policies for the
//! node's own segments and, with still lower precedence, block policies for the whole cluster
//! ranges: `out` to them, `in` and `fwd` from them. Pods of this node therefore reach each other,
//! the host and the internet, and the host reaches its own pods. A packet with a forged source of
//! another node, from a pod or from a neighbour on the uplink, is dropped and counted
//! (`XfrmInPolBlock`). A packet that would leave for another node's pods without a tunnel is also
//! dropped and counted (`XfrmOutPolBlock`). XFRM does not process bridged packets and ARP.
//! Neighbour discovery, loopback and the uplink's own addresses are outside the ranges or inside
//! the allowed segments.

use ipnetwork::IpNetwork;

use crate::database::Xfrm;
use crate::error::{Error, Result};
use crate::policy::{Direction, Policy, priority};
use crate::selector::{Selector, any_network};

mod config;
mod defect;
mod device;
mod route;
mod sysctls;

pub use config::GuardConfig;
pub use defect::Defect;
pub use route::{DEVICE, GuardRoute, ROUTE_PROTOCOL};
pub use sysctls::{Bypass, bypasses};

/// Installs the guard, and returns the parts that were missing or changed. Makes only the necessary
/// changes. Any number of processes may call it at the same time. It never removes anything:
/// [`crate::Xfrm::reconcile_policies`] or [`remove`] removes the policies of former segments and
/// ranges.
///
/// Allow policies are installed before block policies, so that the host can always reach its own
/// pods. If one part fails, the remaining parts are still installed, and one of the failures is
/// returned.
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
            failure.get_or_insert(Error::Guard { what: format!("policy {policy}"), error: Box::new(error) });
        }
    }
    let routes = device::Device::open()?.install(config)?;
    defects.extend(routes);
    failure.map_or(Ok(defects), Err)
}

/// Returns the parts of the guard that are missing or changed. Does not change anything.
pub fn check(config: &GuardConfig) -> Result<Vec<Defect>> {
    let config = &config.clone().for_this_kernel();
    let wanted = policies(config)?;
    let mut defects = policy_defects(&mut Xfrm::open()?, &wanted)?;
    defects.extend(device::Device::open()?.check(config)?);
    Ok(defects)
}

/// Installs only the device and its routes, for a caller that installs the [`policies`] as part of
/// a larger set.
pub fn install_routes(config: &GuardConfig) -> Result<Vec<Defect>> {
    device::Device::open()?.install(&config.clone().for_this_kernel())
}

/// Removes the guard: all our policies with its priorities, block policies first, then the device
/// with its routes. Any remaining pods may send in clear afterwards. Returns the number of policies
/// and devices removed.
pub fn remove() -> Result<usize> {
    let mut xfrm = Xfrm::open()?;
    let mut count = 0;
    let mut policies = xfrm.policies()?;
    policies.retain(|policy| policy.is_ours() && matches!(policy.priority, priority::ALLOW | priority::BLOCK));
    policies.sort_by_key(|policy| !policy.blocks);
    for policy in &policies {
        match xfrm.delete_policy(policy) {
            Ok(was_there) => count += usize::from(was_there),
            // Another program's policy has taken the index in the meantime.
            Err(Error::PolicyOfOther { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count + usize::from(device::Device::open()?.remove()?))
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

/// Returns the guard's policies. [`install`] installs them. They may also be part of a larger
/// desired set ([`crate::Xfrm::reconcile_policies`]).
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
        // If a node owns a whole range, the allow policy holds the selector, so a block policy is
        // neither possible nor needed.
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

/// Returns whether `inner` lies within `outer` or equals it.
fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

fn overlaps_any(ranges: &[IpNetwork], network: &IpNetwork) -> bool {
    ranges.iter().any(|range| contains(range, network) || contains(network, range))
}

#[cfg(test)]
mod tests;
