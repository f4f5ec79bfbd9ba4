//! Decides which networks of their own pods hubs front.
//!
//! A packet for a pod on a hub must go to that hub: another hub would forward it in clear, and a
//! hub drops a packet from a remote network that did not come out of a tunnel.
//!
//! A kubelet writes the networks into its Node object. If the networks of two hubs overlap, the hub
//! that joined first has its network, and the other one does not: a hub cannot take what a hub has
//! that joined before it.

use edge_types::network::overlap;
use edge_types::{IpNetwork, NodeName, Role};

use crate::networks::ClusterNetworks;
use crate::state::{NodeRecord, State};

/// Returns the networks of its own pods that a hub fronts, in addition to those that are
/// configured.
pub(super) fn own_pod_networks(networks: &ClusterNetworks, state: &State, hub: &NodeRecord) -> Vec<IpNetwork> {
    if hub.pod_networks().is_empty() {
        return Vec::new();
    }
    // The hub and those that take precedence over it. Few nodes are hubs.
    let mut hubs: Vec<&NodeRecord> = state
        .nodes_of_role(Role::Hub)
        .filter(|other| !other.pod_networks().is_empty() && other.seniority() <= hub.seniority())
        .collect();
    hubs.sort_unstable_by_key(|hub| hub.seniority());
    let mut taken: Vec<(&NodeName, IpNetwork)> = Vec::new();
    for hub in hubs {
        for network in hub.pod_networks().iter().filter(|network| networks.admits_pod_network(&hub.name, network)) {
            if !taken.iter().any(|(_, taken)| overlap(taken, network)) {
                taken.push((&hub.name, *network));
            }
        }
    }
    taken.into_iter().filter(|(name, _)| **name == hub.name).map(|(_, network)| network).collect()
}
