//! XFRM policies of one tunnel, derived from the tunnel and its state. If several tunnels have
//! policies with the same selector, `policy_table` decides which policy is installed.

use std::net::IpAddr;

use edge_ike::ChildName;
use edge_ike::config::{Mode, NextLayer};
use edge_types::network::outermost;
use edge_xfrm::{Direction, Policy, Reqid, Selector};
use ipnetwork::IpNetwork;

use super::tunnel::DesiredTunnel;
use super::unprotected::{self, discovery, with_next_layer};

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
    /// The name of the configured child.
    pub child: ChildName,
    /// The reqids of the child's SAs and policies.
    pub reqids: PeerReqids,
    /// The ends and selectors; `None` before the CHILD_SA was ever up.
    pub ends: Option<TunnelEnds>,
}

/// Returns the policies that a tunnel to a peer needs, and the errors of the policies that are
/// impossible. `ranges` are the cluster ranges. `children` are the peer's CHILD_SAs; those that can
/// send come first. If two policies have the same selector, the first one takes precedence. Before
/// a CHILD_SA was ever up, no policy sends packets into it, and blocks keep packets that this node
/// means for it from leaving in clear.
///
/// A hub may front a network that lies within another of its networks: that of its own pods. While
/// it has no tunnel, such a network has no `out` policy of its own, so that another hub that fronts
/// the wider network gets the packets. The policies for the wider network cover it.
pub fn tunnel_policies(
    tunnel: &DesiredTunnel,
    ranges: &[IpNetwork],
    children: &[ChildEnds],
) -> (Vec<Policy>, Vec<String>) {
    let (mut policies, mut problems) = (Vec::new(), Vec::new());
    let of_children = children.iter().flat_map(|child| all_policies(tunnel, ranges, child));
    let tunnels = children.iter().filter_map(|child| child.ends.as_ref()).filter(|ends| ends.mode == Mode::Tunnel);
    let of_site = tunnels.flat_map(|ends| match tunnel.permitted {
        PermittedTraffic::Granted { .. } => vec![],
        PermittedTraffic::Negotiated => unprotected::own_site(&ends.local_selectors, &ends.remote_selectors),
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
/// take precedence. Of two networks, the narrower one does: its prefix length is subtracted.
const ANY_SOURCE: u32 = 27_000;
/// Priority of the policies that block forged sources. Without them, policies with the priority
/// [`ANY_SOURCE`] would let such packets pass.
const FORGED_SOURCE: u32 = 26_000;
fn all_policies(
    tunnel: &DesiredTunnel,
    ranges: &[IpNetwork],
    ChildEnds { child, reqids, ends }: &ChildEnds,
) -> Vec<edge_xfrm::Result<Policy>> {
    let reqids = *reqids;
    match (&tunnel.permitted, ends) {
        (PermittedTraffic::Granted { local, remote }, None) => {
            let local = outermost(local);
            let mut policies = granted_policies(&local, remote, NextLayer::ANY, reqids, None);
            policies.extend(unprotected::blocks_outside(ranges, &local, &outermost(remote)));
            policies
        }
        (PermittedTraffic::Granted { local, remote }, Some(ends)) => {
            let mut policies = granted_policies(&outermost(local), remote, NextLayer::ANY, reqids, Some(ends));
            let sends_to = if ends.up { remote.clone() } else { outermost(remote) };
            let sends = |policy: &Policy| {
                policy.direction != Direction::Out || sends_to.contains(&policy.selector.destination())
            };
            policies.retain(|policy| policy.as_ref().map_or(true, sends));
            for remote in &sends_to {
                policies.extend(any_source_policies(ranges, *remote, reqids.outbound, ends));
            }
            policies
        }
        (PermittedTraffic::Negotiated, Some(ends)) if ends.mode == Mode::Transport => transport_policies(reqids, ends),
        (PermittedTraffic::Negotiated, Some(ends)) => {
            granted_policies(&ends.local_selectors, &ends.remote_selectors, ends.next_layer, reqids, Some(ends))
        }
        (PermittedTraffic::Negotiated, None) => match tunnel.peer.child_named(child) {
            Some(child) if tunnel.blocks_before_up() => unprotected::blocks(child),
            _ => vec![],
        },
    }
}

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
    // accepts packets that arrived in transport mode.
    let out = (!up).then_some((Direction::Out, outward));
    let places = out.into_iter().chain([(Direction::In, inward)]);
    let clear = places.flat_map(move |(direction, selector)| discovery(direction, selector, next_layer));
    protect.into_iter().chain(clear)
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
        priority: ANY_SOURCE - u32::from(remote.prefix()),
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

    use edge_xfrm::policy::PolicyKey;
    use edge_xfrm::{Action, PortMask};

    use super::*;
    use crate::config::Config;
    use crate::crl_files::CrlFiles;
    use crate::desired::{Desired, Origin};

    fn tunnel() -> DesiredTunnel {
        tunnel_between("local_subnets = ['10.1.2.0/24']\nremote_subnets = ['10.2.0.0/24']\n")
    }

    /// Returns the tunnel to a peer with these keys, which end with the children.
    fn tunnel_between(keys: &str) -> DesiredTunnel {
        let text =
            "[[peer]]\nname = 'moon'\nremote = '192.0.2.1'\nlocal_id = 'sun'\nremote_id = 'moon'\npsk = 'secret'\n";
        let config = Config::parse(&format!("{text}{keys}"), Path::new("x")).unwrap();
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
        ChildEnds {
            child: ChildName::new("net"),
            reqids: PeerReqids { outbound: reqid, inbound: reqid },
            ends: Some(ends),
        }
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

    /// Returns the policies of a tunnel none of whose children was ever up.
    fn before_up(tunnel: &DesiredTunnel) -> Vec<Policy> {
        let reqid = Reqid::tunnel(1).unwrap();
        let reqids = PeerReqids { outbound: reqid, inbound: reqid };
        let child = |name: &ChildName| ChildEnds { child: name.clone(), reqids, ends: None };
        let children: Vec<ChildEnds> = tunnel.peer.children().map(|config| child(&config.name)).collect();
        let (policies, problems) = tunnel_policies(tunnel, &[], &children);
        assert_eq!(problems, Vec::<String>::new());
        policies
    }

    #[test]
    fn nothing_leaves_in_clear_before_a_tunnel_that_this_node_initiates_was_ever_up() {
        let everything = "local_subnets = ['10.1.2.0/24', 'fd01::/64']\nremote_subnets = ['0.0.0.0/0', '::/0']\n";
        let policies = before_up(&tunnel_between(everything));
        for (from, to) in [("10.1.2.1", "10.9.0.1"), ("10.1.2.1", "203.0.113.9"), ("fd01::1", "2001:db8::9")] {
            assert_eq!(decides(&policies, Direction::Out, from, to), Some(Action::Block), "{from} {to}");
        }
        // The site itself goes on as it does while a tunnel is down.
        for (from, to) in [("10.1.2.1", "10.1.2.50"), ("fd01::1", "fd01::50"), ("fd01::1", "ff02::1:ff00:50")] {
            assert_eq!(decides(&policies, Direction::Out, from, to), Some(Action::Allow), "{from} {to}");
        }
        assert_eq!(decides(&policies, Direction::Out, "192.0.2.7", "203.0.113.9"), None, "the node's own packets");
    }

    #[test]
    fn before_a_tunnel_was_up_only_what_this_node_means_for_it_is_blocked() {
        let networks = "local_subnets = ['10.1.2.0/24']\nremote_subnets = ['10.2.0.0/24']\n";
        // The peer of a tunnel that it initiates may ask for a part of the networks.
        assert_eq!(before_up(&tunnel_between(&format!("{networks}start = 'respond'"))), []);
        // This node does not know its address yet.
        let asks = "remote_subnets = ['10.2.0.0/24']\nrequest_address = true\n";
        assert_eq!(before_up(&tunnel_between(asks)), []);
        let any = "local_subnets = ['0.0.0.0/0']\nremote_subnets = ['0.0.0.0/0']\n";
        let policies = before_up(&tunnel_between(any));
        assert_eq!(
            decides(&policies, Direction::Out, "192.0.2.7", "203.0.113.9"),
            Some(Action::Allow),
            "this node is not cut off by a peer that narrows everything"
        );
        let child = |keys: &str| format!("[[peer.child]]\nname = 'some'\n{networks}{keys}\n");
        let policies = before_up(&tunnel_between(&child("protocol = 'tcp'\nremote_port = 22")));
        let selectors: Vec<String> = policies.iter().map(ToString::to_string).collect();
        assert_eq!(selectors.len(), 1, "{selectors:?}");
        let selector = policies[0].selector;
        assert_eq!((selector.protocol(), selector.destination_port()), (6, PortMask::exactly(22)));
    }

    #[test]
    fn before_transport_mode_was_up_the_hosts_find_each_other_and_say_nothing_else_in_clear() {
        let child = "[[peer.child]]\nname = 'hosts'\nlocal_subnets = ['2001:db8::7']\nremote_subnets = ['2001:db8::1']\n\
                     mode = 'transport'\n";
        let policies = before_up(&tunnel_between(child));
        let blocks: Vec<&Policy> = policies.iter().filter(|policy| policy.action == Action::Block).collect();
        let clear: Vec<&Policy> = policies.iter().filter(|policy| policy.action == Action::Allow).collect();
        assert_eq!((blocks.len(), clear.len(), policies.len()), (1, 2, 3));
        assert!(clear.iter().all(|clear| clear.selector.protocol() == 58 && clear.priority < blocks[0].priority));
    }

    #[test]
    fn of_several_children_those_that_were_never_up_are_blocked_and_give_way_to_a_tunnel_that_is_up() {
        let children = "[[peer.child]]\nname = 'net'\nlocal_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.2.0.0/24']\n\
                        [[peer.child]]\nname = 'voice'\nlocal_subnets = ['10.1.0.0/24']\nremote_subnets = ['10.3.0.0/24']\n";
        let tunnel = tunnel_between(children);
        let up = ends(1, &["10.1.0.0/24"], &["10.2.0.0/24"], NextLayer::ANY);
        let voice = ChildEnds { child: ChildName::new("voice"), ends: None, ..up.clone() };
        let (policies, _) = tunnel_policies(&tunnel, &[], &[up.clone(), voice]);
        assert!(matches!(decides(&policies, Direction::Out, "10.1.0.1", "10.2.0.1"), Some(Action::Protect(_))));
        assert_eq!(decides(&policies, Direction::Out, "10.1.0.1", "10.3.0.1"), Some(Action::Block));
        // Another peer with the same networks, whose name sorts later, is not in the way.
        let mut table = crate::desired::PolicyTable::default();
        let [first, second] = ["a", "b"].map(edge_ike::PeerName::new);
        table.set_peer(&first, crate::desired::TunnelState::Down, &before_up(&tunnel));
        let mut down = up;
        down.ends.as_mut().unwrap().up = false;
        table.set_peer(&second, crate::desired::TunnelState::Down, &tunnel_policies(&tunnel, &[], &[down]).0);
        let out = Selector::new("10.1.0.0/24".parse().unwrap(), "10.2.0.0/24".parse().unwrap()).unwrap();
        assert!(matches!(table.get(&(Direction::Out, out)).unwrap().action, Action::Protect(_)));
    }
}
