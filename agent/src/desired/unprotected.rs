//! Policies without SAs: those that keep traffic within a site local, those for neighbour
//! discovery, and those that block packets while the tunnel that should carry them was never up.

use edge_ike::ChildConfig;
use edge_ike::config::{Mode, NextLayer};
use edge_types::network::overlap;
use edge_xfrm::policy::priority;
use edge_xfrm::{Direction, Policy, PortMask, Selector};
use ipnetwork::IpNetwork;

type Policies = Vec<edge_xfrm::Result<Policy>>;

/// Link-local addresses. The hosts on a link use them as source and destination for neighbour
/// discovery (RFC 4861), mDNS and DHCP, no matter which other addresses the hosts have.
const LINK_LOCAL: [&str; 4] = ["fe80::/10", "ff02::/16", "224.0.0.0/24", "255.255.255.255/32"];
/// Priority of the policies for neighbour discovery with a peer in transport mode. They take
/// precedence over all policies of peers.
const DISCOVERY: u32 = 1_000;
/// Types of the ICMPv6 messages with which the hosts on a link resolve each other's addresses (RFC
/// 4861 4.3, 4.4).
const NEIGHBOUR_DISCOVERY: [u16; 2] = [135, 136];
/// The IP protocol ICMPv6.
const ICMPV6: u8 = 58;

/// Returns policies that block packets to the networks of a static peer's child that was never up.
/// They stand aside for every other policy with the same selector, such as that of another peer
/// that has the same networks. Traffic within the site stays local, and neighbour discovery with a
/// peer in transport mode stays possible.
pub(super) fn blocks(child: &ChildConfig) -> Policies {
    let pairs = child.local.iter().flat_map(|local| same_family(*local, &child.remote));
    let mut policies = Vec::new();
    for (local, remote) in pairs {
        let selector = match Selector::new(local, remote) {
            Ok(selector) => selector,
            Err(error) => {
                policies.push(Err(error.into()));
                continue;
            }
        };
        policies.push(Ok(block(with_next_layer(selector, child.next_layer))));
        if child.mode == Mode::Transport {
            policies.extend(discovery(Direction::Out, selector, child.next_layer).map(Ok));
        }
    }
    if child.mode == Mode::Tunnel {
        policies.extend(own_site(&child.local, &child.remote));
    }
    policies
}

/// Returns policies that block packets to a node's networks outside of the cluster `ranges`, such
/// as those that a hub fronts. The guard blocks those within the ranges.
pub(super) fn blocks_outside(ranges: &[IpNetwork], local: &[IpNetwork], remote: &[IpNetwork]) -> Policies {
    let within = |network: &IpNetwork| {
        ranges.iter().any(|range| range.prefix() <= network.prefix() && range.contains(network.network()))
    };
    let outside: Vec<IpNetwork> = remote.iter().filter(|network| !within(network)).copied().collect();
    let pairs = local.iter().flat_map(|local| same_family(*local, &outside));
    pairs.map(|(local, remote)| Ok(block(Selector::new(local, remote)?))).collect()
}

fn same_family(local: IpNetwork, remote: &[IpNetwork]) -> impl Iterator<Item = (IpNetwork, IpNetwork)> {
    let remote = remote.iter().copied().filter(move |remote| remote.is_ipv4() == local.is_ipv4());
    remote.map(move |remote| (local, remote))
}

fn block(selector: Selector) -> Policy {
    Policy { priority: priority::peer(&selector) + 1, ..Policy::block(Direction::Out, selector) }
}

/// Returns policies that keep traffic within a site local if the peer's networks, such as
/// 10.0.0.0/8 or `::/0`, contain those of the site (RFC 4301 4.4.1: BYPASS). Policies with narrower
/// selectors have a stronger priority, so that packets to a network of the peer that lies within
/// our networks still go into the tunnel.
pub(super) fn own_site(own: &[IpNetwork], remote: &[IpNetwork]) -> Policies {
    let within = |network: &IpNetwork| remote.iter().any(|remote| overlap(remote, network));
    let link_local = LINK_LOCAL.iter().filter_map(|network| network.parse().ok());
    let peers_of = |local: &IpNetwork| -> Vec<IpNetwork> {
        let same_family = |network: &IpNetwork| network.is_ipv4() == local.is_ipv4();
        own.iter()
            .copied()
            .chain(link_local.clone())
            .filter(|network| same_family(network) && within(network))
            .collect()
    };
    let mut policies = Vec::new();
    for local in own {
        for other in peers_of(local) {
            let selector = match Selector::new(*local, other) {
                Ok(selector) => selector,
                Err(error) => {
                    policies.push(Err(error.into()));
                    continue;
                }
            };
            let allow = |direction, selector: Selector| {
                Ok(Policy { priority: priority::peer(&selector), ..Policy::allow(direction, selector) })
            };
            policies.push(allow(Direction::Out, selector));
            policies.push(allow(Direction::In, selector.reversed()));
            policies.push(allow(Direction::Fwd, selector.reversed()));
            if other != *local {
                policies.push(allow(Direction::Out, selector.reversed()));
                policies.push(allow(Direction::In, selector));
                policies.push(allow(Direction::Fwd, selector));
            }
        }
    }
    policies
}

/// Returns policies that allow neighbour discovery between the two hosts of `selector` in clear, if
/// the traffic `next_layer` of a child in transport mode contains it.
pub(super) fn discovery(
    direction: Direction,
    selector: Selector,
    next_layer: NextLayer,
) -> impl Iterator<Item = Policy> + use<> {
    let holds_discovery = !selector.is_ipv4() && matches!(next_layer.protocol, 0 | ICMPV6);
    let types = NEIGHBOUR_DISCOVERY.into_iter().filter(move |_| holds_discovery);
    types.map(move |icmp_type| {
        // The kernel matches the ICMPv6 type as the source port, in both directions.
        let selector = selector.with_protocol(ICMPV6, PortMask::exactly(icmp_type), PortMask::ANY);
        Policy { priority: DISCOVERY, ..Policy::allow(direction, selector) }
    })
}

/// Narrows a selector for packets from this node to the protocol and the ports of a child.
pub(super) fn with_next_layer(selector: Selector, next_layer: NextLayer) -> Selector {
    selector.with_protocol(
        next_layer.protocol,
        next_layer.local_port.map_or(PortMask::ANY, PortMask::exactly),
        next_layer.remote_port.map_or(PortMask::ANY, PortMask::exactly),
    )
}
