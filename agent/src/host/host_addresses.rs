//! The part of the host's state that tunnels follow when an address changes. It is published before
//! the rest of the state is brought about, which takes longer.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::network_state::NetworkState;
use super::own_addresses::{InnerNetworks, RankedAddress};
use super::{HostState, internal_addresses, uplink};
use crate::membership::UplinkFacts;

/// The fields of [`HostState`] with the same names.
#[derive(Debug, Clone)]
pub(super) struct HostAddresses {
    local_addresses: Vec<IpAddr>,
    shared_addresses: Vec<IpAddr>,
    uplink_addresses: Vec<IpAddr>,
    ranked_addresses: Vec<RankedAddress>,
    source_rules: bool,
    on_link_networks: Vec<IpNetwork>,
}

impl HostAddresses {
    /// Returns the addresses that the kernel has.
    pub(super) fn of(observed: &NetworkState, bridge: &str, inner: &InnerNetworks, facts: &UplinkFacts) -> Self {
        Self {
            local_addresses: observed.links.iter().flat_map(|link| &link.addresses).copied().collect(),
            shared_addresses: uplink::shared_addresses(observed),
            uplink_addresses: facts.addresses.clone(),
            ranked_addresses: uplink::ranked_addresses(observed, bridge, inner),
            source_rules: observed.source_rules,
            on_link_networks: internal_addresses::on_link_networks(observed),
        }
    }

    /// Replaces the addresses in a state. Returns whether they differ.
    pub(super) fn replace_those_of(&self, state: &mut HostState) -> bool {
        let Self { local_addresses, shared_addresses, uplink_addresses, ranked_addresses, .. } = self.clone();
        let before = std::mem::take(state);
        *state = HostState {
            local_addresses,
            shared_addresses,
            uplink_addresses,
            ranked_addresses,
            source_rules: self.source_rules,
            on_link_networks: self.on_link_networks.clone(),
            ..before.clone()
        };
        *state != before
    }
}
