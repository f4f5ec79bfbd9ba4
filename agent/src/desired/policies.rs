//! XFRM policies of one tunnel, derived from the tunnel and its state. If several tunnels have
//! policies with the same selector, `policy_table` decides which policy is installed.

use std::net::IpAddr;

use edge_ike::ChildConfig;
use edge_ike::config::{Mode, NextLayer};
use edge_types::network::overlap;
use edge_xfrm::policy::priority;
use edge_xfrm::{Direction, Policy, PortMask, Reqid, Selector};
use ipnetwork::IpNetwork;

use super::DesiredTunnel;

/// Traffic that may pass through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PermittedTraffic {
    /// Traffic that the view grants: between exactly these networks, in both directions.
    Granted {
        /// Networks of this node.
        local: Vec<IpNetwork>,
        /// Networks of the peer.
        remote: Vec<IpNetwork>,
    },
    /// Traffic between the selectors that IKE negotiates, for static peers.
    Negotiated,
}

/// The reqids of a peer's SAs and policies. Hubs have a common inbound reqid: the policies for
/// packets from a hub accept the SAs of each hub, because several hubs may front the same networks,
/// and nodes switch between them at different moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReqids {
    /// The reqid of outbound SAs and policies. No two peers share it.
    pub outbound: Reqid,
    /// The reqid of inbound SAs and policies: [`Reqid::FROM_HUBS`], or the same as `outbound`.
    pub inbound: Reqid,
}

/// The ends of a tunnel and the selectors that were negotiated last. Both are kept while the tunnel
/// is down, so that packets for the tunnel wait or are dropped, but never leave without encryption.
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
    /// The protocol and the ports of the selectors.
    pub next_layer: NextLayer,
    /// Tunnel or transport mode.
    pub mode: Mode,
    /// Whether there is an outbound SA.
    pub up: bool,
}

/// The input for the policies of one CHILD_SA of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildEnds {
    /// The reqids of the child's SAs and policies.
    pub reqids: PeerReqids,
    /// The ends and selectors; `None` before the CHILD_SA was ever up.
    pub ends: Option<TunnelEnds>,
}

/// Returns the policies that a tunnel to a peer needs, and the errors of the policies that are
/// impossible. `ranges` are the cluster ranges. `children` are the peer's CHILD_SAs; those that can
/// send come first. If two policies have the same selector, the first one takes precedence. Before
/// a CHILD_SA was ever up, no policy sends packets into it.
pub fn tunnel_policies(
    tunnel: &DesiredTunnel,
    ranges: &[IpNetwork],
    children: &[ChildEnds],
) -> (Vec<Policy>, Vec<String>) {
    let (mut policies, mut problems) = (Vec::new(), Vec::new());
    let of_children = children.iter().flat_map(|child| all_policies(tunnel, ranges, child.reqids, child.ends.as_ref()));
    let tunnels = children.iter().filter_map(|child| child.ends.as_ref()).filter(|ends| ends.mode == Mode::Tunnel);
    let of_site = tunnels.flat_map(|ends| match tunnel.permitted {
        PermittedTraffic::Granted { .. } => vec![],
        PermittedTraffic::Negotiated => own_site_policies(ends),
    });
    for policy in of_children.chain(of_site) {
        match policy {
            Ok(policy) => policies.push(policy),
            Err(error) => problems.push(format!("peer {}: {error}", tunnel.peer.name)),
        }
    }
    (policies, problems)
}

/// Priority of policies for packets to a peer from any other source. Policies that name a source
/// take precedence.
const ANY_SOURCE: u32 = 27_000;
/// Priority of the policies that block forged sources. Without them, policies with the priority
/// [`ANY_SOURCE`] would let such packets pass.
const FORGED_SOURCE: u32 = 26_000;
/// Priority of the policies for neighbour discovery with a peer in transport mode. They take
/// precedence over all policies of peers.
const DISCOVERY: u32 = 1_000;

fn all_policies(
    tunnel: &DesiredTunnel,
    ranges: &[IpNetwork],
    reqids: PeerReqids,
    ends: Option<&TunnelEnds>,
) -> Vec<edge_xfrm::Result<Policy>> {
    match (&tunnel.permitted, ends) {
        (PermittedTraffic::Granted { local, remote }, _) => {
            let mut policies = granted_policies(local, remote, NextLayer::ANY, reqids, ends);
            if let Some(ends) = ends {
                for remote in remote {
                    policies.extend(any_source_policies(ranges, *remote, reqids.outbound, ends));
                }
            }
            policies
        }
        (PermittedTraffic::Negotiated, Some(ends)) if ends.mode == Mode::Transport => transport_policies(reqids, ends),
        (PermittedTraffic::Negotiated, Some(ends)) => {
            granted_policies(&ends.local_selectors, &ends.remote_selectors, ends.next_layer, reqids, Some(ends))
        }
        (PermittedTraffic::Negotiated, None) if tunnel.on_demand => blocked(tunnel),
        (PermittedTraffic::Negotiated, None) => vec![],
    }
}

/// Returns policies that block packets to an on-demand peer whose address is not known yet. A
/// policy that reports packets requires an address.
fn blocked(tunnel: &DesiredTunnel) -> Vec<edge_xfrm::Result<Policy>> {
    let pairs_of = |child: &ChildConfig| -> Vec<(IpNetwork, IpNetwork)> {
        let remotes =
            |local: IpNetwork| child.remote.iter().copied().filter(move |remote| remote.is_ipv4() == local.is_ipv4());
        child.local.iter().flat_map(|local| remotes(*local).map(move |remote| (*local, remote))).collect()
    };
    let block = |(local, remote)| {
        let selector = Selector::new(local, remote)?;
        Ok(Policy { priority: priority::peer(&selector), ..Policy::block(Direction::Out, selector) })
    };
    tunnel.peer.children().flat_map(pairs_of).map(block).collect()
}

/// Link-local addresses. The hosts on a link use them as source and destination for neighbour
/// discovery (RFC 4861), mDNS and DHCP, no matter which other addresses the hosts have.
const LINK_LOCAL: [&str; 4] = ["fe80::/10", "ff02::/16", "224.0.0.0/24", "255.255.255.255/32"];

/// Returns policies that keep traffic within a site local if the peer's networks, such as
/// 10.0.0.0/8 or `::/0`, contain those of the site (RFC 4301 4.4.1: BYPASS). Policies with narrower
/// selectors have a stronger priority, so that packets to a network of the peer that lies within
/// our networks still go into the tunnel.
fn own_site_policies(ends: &TunnelEnds) -> Vec<edge_xfrm::Result<Policy>> {
    let within = |network: &IpNetwork| ends.remote_selectors.iter().any(|remote| overlap(remote, network));
    let own: Vec<IpNetwork> = ends.local_selectors.clone();
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
    for local in &own {
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

/// Types of the ICMPv6 messages with which the hosts on a link resolve each other's addresses (RFC
/// 4861 4.3, 4.4).
const NEIGHBOUR_DISCOVERY: [u16; 2] = [135, 136];
/// The IP protocol ICMPv6.
const ICMPV6: u8 = 58;

/// Returns the policies between this host and the peer in transport mode. They do not cover
/// forwarded packets.
fn transport_policies(reqids: PeerReqids, ends: &TunnelEnds) -> Vec<edge_xfrm::Result<Policy>> {
    let mut policies = Vec::new();
    for local in &ends.local_selectors {
        for remote in ends.remote_selectors.iter().filter(|remote| remote.is_ipv4() == local.is_ipv4()) {
            match (Selector::new(*local, *remote), Selector::new(*remote, *local)) {
                (Ok(outward), Ok(inward)) => {
                    policies.extend(transport_pair(outward, inward, reqids, ends).map(Ok));
                }
                (Err(error), _) | (_, Err(error)) => policies.push(Err(error.into())),
            }
        }
    }
    policies
}

fn transport_pair(
    outward: Selector,
    inward: Selector,
    reqids: PeerReqids,
    ends: &TunnelEnds,
) -> impl Iterator<Item = Policy> + use<> {
    let TunnelEnds { next_layer, up, .. } = *ends;
    let of_child = with_next_layer(outward, next_layer);
    let protect = [
        Policy::protect_transport(Direction::Out, of_child, reqids.outbound),
        Policy::protect_transport(Direction::In, of_child.reversed(), reqids.inbound),
    ];
    // A peer on the same link must be found before there is an SA with it, so neighbour discovery
    // is unencrypted without an SA. With an SA it is protected, since a peer may refuse unencrypted
    // messages. On arrival, encrypted and unencrypted messages are accepted: an allow policy also
    // accepts packets that arrived in transport mode. The kernel matches the ICMPv6 type as the
    // source port, in both directions.
    let holds_discovery = !outward.is_ipv4() && matches!(next_layer.protocol, 0 | ICMPV6);
    let types = NEIGHBOUR_DISCOVERY.into_iter().filter(move |_| holds_discovery);
    let clear = types.flat_map(move |icmp_type| {
        let allow = move |(direction, selector): (Direction, Selector)| {
            let selector = selector.with_protocol(ICMPV6, PortMask::exactly(icmp_type), PortMask::ANY);
            Policy { priority: DISCOVERY, ..Policy::allow(direction, selector) }
        };
        let out = (!up).then_some((Direction::Out, outward));
        out.into_iter().chain([(Direction::In, inward)]).map(allow)
    });
    protect.into_iter().chain(clear)
}

fn with_next_layer(selector: Selector, next_layer: NextLayer) -> Selector {
    selector.with_protocol(
        next_layer.protocol,
        next_layer.local_port.map_or(PortMask::ANY, PortMask::exactly),
        next_layer.remote_port.map_or(PortMask::ANY, PortMask::exactly),
    )
}

fn granted_policies(
    local: &[IpNetwork],
    remote: &[IpNetwork],
    next_layer: NextLayer,
    reqids: PeerReqids,
    ends: Option<&TunnelEnds>,
) -> Vec<edge_xfrm::Result<Policy>> {
    let mut policies = Vec::new();
    for local in local {
        for remote in remote.iter().filter(|remote| remote.is_ipv4() == local.is_ipv4()) {
            let outward = match Selector::new(*local, *remote) {
                Ok(selector) => with_next_layer(selector, next_layer),
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

/// Returns the policies for packets to a peer from sources that do not belong to this node. XFRM
/// processes a packet from a NodePort's client, or from a process that called a Service, after it
/// was redirected to a peer's pod and before its source is translated. So these policies send the
/// packet into the tunnel, and the firewall then translates its source to the bridge's address,
/// since the peer accepts no other. XFRM cannot distinguish such a packet from a LAN host's packet
/// that is only routed through this node; the firewall drops the LAN host's packet before
/// encryption. A source within the ranges that does not belong to this node is forged, and these
/// policies block it.
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

/// Returns `0.0.0.0/0` or `::/0`, depending on the family of `network`.
fn any_of_family(network: IpNetwork) -> IpNetwork {
    Selector::any(network.is_ipv4()).source()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use edge_xfrm::Action;
    use edge_xfrm::policy::PolicyKey;

    use super::*;
    use crate::config::Config;
    use crate::crl_files::CrlFiles;
    use crate::desired::{Desired, Origin};

    fn tunnel() -> DesiredTunnel {
        let text = "[[peer]]\nname = 'moon'\nremote = '192.0.2.1'\nlocal_id = 'sun'\nremote_id = 'moon'\npsk = 'secret'\n\
                    local_subnets = ['10.1.2.0/24']\nremote_subnets = ['10.2.0.0/24']\n";
        let config = Config::parse(text, Path::new("x")).unwrap();
        let peers = [config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap()];
        let desired = Desired::compute(&config, &peers, None);
        let tunnel = DesiredTunnel::clone(desired.tunnels.values().next().unwrap());
        assert_eq!(tunnel.origin, Origin::Configuration);
        tunnel
    }

    fn ends(number: u32, local: &[&str], remote: &[&str], next_layer: NextLayer) -> ChildEnds {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let reqid = Reqid::tunnel(number).unwrap();
        let ends = TunnelEnds {
            local: "192.0.2.7".parse().unwrap(),
            remote: "192.0.2.1".parse().unwrap(),
            local_selectors: networks(local),
            remote_selectors: networks(remote),
            next_layer,
            mode: Mode::Tunnel,
            up: true,
        };
        ChildEnds { reqids: PeerReqids { outbound: reqid, inbound: reqid }, ends: Some(ends) }
    }

    /// Returns the action that the kernel takes for a packet. The policy with the smallest priority
    /// decides.
    fn decides(policies: &[Policy], direction: Direction, from: &str, to: &str) -> Option<Action> {
        let packet = Selector::new(from.parse().unwrap(), to.parse().unwrap()).unwrap();
        let holds = |wide: IpNetwork, narrow: IpNetwork| wide.contains(narrow.ip());
        let matching = policies.iter().filter(|policy| {
            policy.direction == direction
                && holds(policy.selector.source(), packet.source())
                && holds(policy.selector.destination(), packet.destination())
        });
        matching.min_by_key(|policy| policy.priority).map(|policy| policy.action)
    }

    #[test]
    fn a_site_within_the_peers_networks_keeps_talking_to_itself() {
        for remote in [&["10.0.0.0/8", "fd00::/8"][..], &["0.0.0.0/0", "::/0"]] {
            let child = ends(1, &["10.1.2.0/24", "10.1.3.0/24", "fd01::/64"], remote, NextLayer::ANY);
            let (policies, problems) = tunnel_policies(&tunnel(), &[], &[child]);
            assert_eq!(problems, Vec::<String>::new());
            for (from, to) in [("10.1.2.1", "10.1.2.50"), ("10.1.3.9", "10.1.2.1"), ("fd01::1", "fd01::50")] {
                for (from, to) in [(from, to), (to, from)] {
                    for direction in [Direction::Out, Direction::In, Direction::Fwd] {
                        assert_eq!(
                            decides(&policies, direction, from, to),
                            Some(Action::Allow),
                            "{direction} {from} {to}"
                        );
                    }
                }
            }
            for (from, to) in [("10.1.2.1", "10.9.0.1"), ("fd01::1", "fd09::1")] {
                assert!(matches!(decides(&policies, Direction::Out, from, to), Some(Action::Protect(_))), "{to}");
                assert!(matches!(decides(&policies, Direction::In, to, from), Some(Action::Protect(_))), "{to}");
            }
        }
    }

    #[test]
    fn neighbour_discovery_stays_on_the_link_where_the_peer_has_every_network() {
        let child = ends(1, &["10.1.2.0/24", "fd01::/64"], &["0.0.0.0/0", "::/0"], NextLayer::ANY);
        let (policies, _) = tunnel_policies(&tunnel(), &[], &[child]);
        for (from, to) in [("fd01::1", "ff02::1:ff00:50"), ("fd01::1", "fe80::50"), ("10.1.2.1", "255.255.255.255")] {
            assert_eq!(decides(&policies, Direction::Out, from, to), Some(Action::Allow), "{from} {to}");
        }
        assert_eq!(decides(&policies, Direction::In, "fe80::50", "fd01::1"), Some(Action::Allow));
        let narrow = ends(1, &["10.1.2.0/24"], &["10.2.0.0/24"], NextLayer::ANY);
        let (policies, _) = tunnel_policies(&tunnel(), &[], &[narrow]);
        assert!(policies.iter().all(|policy| matches!(policy.action, Action::Protect(_))), "nothing more is allowed");
    }

    #[test]
    fn a_peers_network_within_ours_still_goes_into_the_tunnel() {
        let child = ends(1, &["10.0.0.0/8"], &["10.2.0.0/24"], NextLayer::ANY);
        let (policies, _) = tunnel_policies(&tunnel(), &[], &[child]);
        assert!(matches!(decides(&policies, Direction::Out, "10.1.0.1", "10.2.0.1"), Some(Action::Protect(_))));
    }

    #[test]
    fn transport_mode_protects_what_the_two_hosts_send_and_lets_neighbours_find_each_other_without_an_sa() {
        let addresses = [("192.0.2.7", "192.0.2.1"), ("2001:db8::7", "2001:db8::1")];
        for ((local, remote), up) in addresses.into_iter().flat_map(|pair| [(pair, true), (pair, false)]) {
            let mut child = ends(1, &[local], &[remote], NextLayer::ANY);
            let of_child = child.ends.as_mut().unwrap();
            (of_child.mode, of_child.up) = (Mode::Transport, up);
            let (policies, problems) = tunnel_policies(&tunnel(), &[], &[child]);
            assert_eq!(problems, Vec::<String>::new());
            assert!(policies.iter().all(|policy| policy.direction != Direction::Fwd));
            let any: Vec<&Policy> = policies.iter().filter(|policy| policy.selector.protocol() == 0).collect();
            for policy in &any {
                let Action::Protect(template) = policy.action else { panic!("{policy}") };
                assert_eq!((template.mode, template.outer), (edge_xfrm::Mode::Transport, None));
            }
            assert_eq!(any.len(), 2);
            let discovery: Vec<&Policy> = policies.iter().filter(|policy| policy.selector.protocol() == 58).collect();
            assert!(discovery.iter().all(|clear| clear.action == Action::Allow && clear.priority < any[0].priority));
            let types = |direction| {
                let of = discovery.iter().filter(|policy| policy.direction == direction);
                of.map(|policy| policy.selector.source_port().value).collect::<Vec<_>>()
            };
            let both = if local.contains(':') { vec![135, 136] } else { vec![] };
            let outward = if up { vec![] } else { both.clone() };
            assert_eq!((types(Direction::Out), types(Direction::In)), (outward, both));
        }
    }

    #[test]
    fn each_child_sends_with_its_own_reqid_and_of_two_for_the_same_the_first_counts() {
        let up = ends(1, &["10.1.0.0/24"], &["10.2.0.0/24"], NextLayer::ANY);
        let other = ends(2, &["10.1.0.0/24"], &["10.3.0.0/24"], NextLayer::ANY);
        let mut down = ends(3, &["10.1.0.0/24"], &["10.2.0.0/24", "10.4.0.0/24"], NextLayer::ANY);
        down.ends.as_mut().unwrap().up = false;
        let (policies, _) = tunnel_policies(&tunnel(), &[], &[up, other, down]);
        let mut table = crate::desired::PolicyTable::default();
        table.set_peer(&tunnel().peer.name, crate::desired::TunnelState::Up, &policies);
        let reqid = |remote: &str| {
            let selector = Selector::new("10.1.0.0/24".parse().unwrap(), remote.parse().unwrap()).unwrap();
            let key: PolicyKey = (Direction::Out, selector);
            match table.get(&key).unwrap().action {
                Action::Protect(template) => template.reqid,
                other => panic!("{other:?}"),
            }
        };
        let numbers = ["10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"].map(|remote| reqid(remote).tunnel_number());
        assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn a_child_of_one_port_takes_packets_of_that_port_from_a_child_of_any() {
        let any = ends(1, &["10.1.0.0/24"], &["10.2.0.0/24"], NextLayer::ANY);
        let ssh = NextLayer { protocol: 6, local_port: None, remote_port: Some(22) };
        let (policies, _) = tunnel_policies(&tunnel(), &[], &[any, ends(2, &["10.1.0.0/16"], &["10.2.0.0/16"], ssh)]);
        let of = |number| {
            let reqid = Reqid::tunnel(number).unwrap();
            let uses =
                move |policy: &&Policy| matches!(policy.action, Action::Protect(template) if template.reqid == reqid);
            *policies.iter().filter(|policy| policy.direction == Direction::Out).find(uses).unwrap()
        };
        assert_eq!(of(2).selector.protocol(), 6);
        assert_eq!(of(2).selector.destination_port(), PortMask::exactly(22));
        assert!(of(2).priority < of(1).priority);
    }
}
