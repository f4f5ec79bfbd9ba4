mod on_demand;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use edge_ike::Secret;
use edge_types::view::{AddressSource, NodeAddress, SegmentPrefix};
use edge_xfrm::{Action, Direction, Reqid};

use super::full_computation::desired_policies;
use super::*;
use crate::crl_files::CrlFiles;
use crate::membership::{FormerNetwork, NodeCredentials};

pub(crate) fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(crate) fn peer(name: &str, role: Role, address: &str, segments: &[&str], networks: &[&str]) -> Peer {
    Peer {
        name: name.parse().unwrap(),
        role,
        endpoints: vec![NodeAddress { address: address.parse().unwrap(), source: AddressSource::Observed }],
        segments: segments.iter().map(|text| network(text)).collect(),
        networks: networks.iter().map(|text| network(text)).collect(),
        mapped: vec![],
        tcp_port: None,
        on_demand_in: Default::default(),
        certificates_from: 0,
    }
}

pub(crate) fn membership(role: Role, segments: &[&str], networks: &[&str], peers: Vec<Peer>) -> Membership {
    Membership {
        view: Arc::new(NodeView {
            version: 7,
            node: "edge-a1".parse().unwrap(),
            role,
            communities: Default::default(),
            cluster_ranges: vec![network("10.77.0.0/16"), network("fd77::/48")],
            segments: segments.iter().map(|text| network(text)).collect(),
            networks: networks.iter().map(|text| network(text)).collect(),
            peers: peers.into_iter().map(Into::into).collect(),
            trust_anchors: vec![],
            segment_prefix: SegmentPrefix::default(),
            certificate_grace_seconds: 0,
            unreached_from: Default::default(),
        }),
        credentials: Arc::new(NodeCredentials {
            chain: vec![vec![1]],
            key: Secret::new(vec![2]),
            trust_anchors: vec![vec![3]],
            not_after: 0,
        }),
        former_networks: Arc::default(),
    }
}

pub(crate) fn config(text: &str) -> Config {
    Config::parse(&format!("{text}\n[controller]\nurls = [\"https://c\"]"), Path::new("x")).unwrap()
}

fn reqid(name: &PeerName) -> Option<Reqid> {
    Reqid::tunnel(u32::from(name.as_str().as_bytes()[name.as_str().len() - 1]))
}

fn reqids(name: &PeerName) -> Option<PeerReqids> {
    let outbound = reqid(name)?;
    Some(PeerReqids { outbound, inbound: if name.as_str().starts_with("hub") { Reqid::FROM_HUBS } else { outbound } })
}

fn all_up(_: &PeerName) -> TunnelState {
    TunnelState::Up
}

fn up(_: &PeerName) -> Option<TunnelEnds> {
    Some(TunnelEnds {
        local: "192.0.2.1".parse().unwrap(),
        remote: "192.0.2.2".parse().unwrap(),
        local_selectors: any_networks(),
        remote_selectors: any_networks(),
        next_layer: NextLayer::ANY,
        mode: Mode::Tunnel,
        up: true,
    })
}

fn lines(policies: &BTreeMap<edge_xfrm::policy::PolicyKey, edge_xfrm::Policy>, what: &str) -> Vec<String> {
    policies
        .values()
        .filter(|policy| matches!(policy.action, Action::Protect(_)))
        .map(|policy| format!("{} {}", policy.direction, policy.selector))
        .filter(|line| line.starts_with(what))
        .collect()
}

pub(crate) fn edge_with_two_peers() -> Membership {
    membership(
        Role::Edge,
        &["10.77.1.0/26", "fd77::100/120"],
        &[],
        vec![
            peer("edge-a2", Role::Edge, "203.0.113.2:4500", &["10.77.2.0/26"], &[]),
            peer("cloud-1", Role::Hub, "203.0.113.1:4500", &["10.77.0.0/26"], &["10.244.0.0/16"]),
        ],
    )
}

fn change_peer(view: &mut NodeView, name: &str, change: impl FnOnce(&mut Peer)) {
    let mut peer = Peer::clone(view.peers.get(&name.parse().unwrap()).unwrap());
    change(&mut peer);
    view.peers.insert(peer.into());
}

#[test]
fn a_peer_is_not_looked_for_where_no_node_can_be_nor_at_more_than_eight_addresses() {
    let mut member = edge_with_two_peers();
    let view = Arc::make_mut(&mut member.view);
    let endpoint = |text: &str| NodeAddress { address: text.parse().unwrap(), source: AddressSource::Reported };
    let nowhere = [
        "127.0.0.1:4500",
        "[::1]:4500",
        "169.254.169.254:4500",
        "224.0.0.1:4500",
        "0.0.0.0:4500",
        "[fe80::1]:4500",
        "10.77.9.9:4500",
        "203.0.113.2:4500",
    ]
    .map(endpoint)
    .to_vec();
    change_peer(view, "edge-a2", |peer| peer.endpoints = nowhere);
    let many = (0..40).map(|n| endpoint(&format!("198.51.100.{n}:4500"))).collect();
    change_peer(view, "cloud-1", |peer| peer.endpoints = many);
    let desired = Desired::compute(&config(""), &[], Some(&member));
    let remotes = |name: &str| &desired.tunnels[&PeerName::new(name)].peer.remotes;
    assert_eq!(*remotes("edge-a2"), ["203.0.113.2:4500".parse().unwrap()]);
    assert_eq!(remotes("cloud-1").len(), 8);
    assert_eq!(remotes("cloud-1")[7], "198.51.100.7:4500".parse().unwrap());
}

#[test]
fn a_peer_is_looked_for_at_its_mapped_addresses_too_and_only_hubs_tell_them() {
    let mut member = edge_with_two_peers();
    let view = Arc::make_mut(&mut member.view);
    let mapped = ["203.0.113.2:61000", "10.77.9.9:4500"].map(|at| at.parse().unwrap()).into();
    change_peer(view, "edge-a2", |peer| peer.mapped = mapped);
    let desired = Desired::compute(&config(""), &[], Some(&member));
    let peer = &desired.tunnels[&PeerName::new("edge-a2")].peer;
    assert_eq!(peer.remotes, ["203.0.113.2:61000", "203.0.113.2:4500"].map(|at| at.parse().unwrap()));
    assert_eq!(peer.agent_notifications, AgentNotifications::Exchange);
    Arc::make_mut(&mut member.view).role = Role::Hub;
    let desired = Desired::compute(&config(""), &[], Some(&member));
    let peer = &desired.tunnels[&PeerName::new("edge-a2")].peer;
    assert_eq!(peer.agent_notifications, AgentNotifications::TellAddress);
}

#[test]
fn an_edge_alone_connects_to_hubs_alone_by_tcp_at_addresses_outside_the_cluster() {
    let mut member = edge_with_two_peers();
    let view = Arc::make_mut(&mut member.view);
    let inside = NodeAddress { address: "10.77.9.9:4500".parse().unwrap(), source: AddressSource::Reported };
    for name in ["edge-a2", "cloud-1"] {
        change_peer(view, name, |peer| {
            peer.tcp_port = Some(443);
            peer.endpoints.push(inside.clone());
        });
    }
    let tcp = |member: &Membership, keys: &str, peer: &str| {
        let desired = Desired::compute(&config(keys), &[], Some(member));
        desired.tunnels.get(&PeerName::new(peer)).map_or(vec![], |tunnel| tunnel.tcp.clone())
    };
    assert_eq!(tcp(&member, "", "cloud-1"), ["203.0.113.1:443".parse().unwrap()]);
    assert_eq!(tcp(&member, "", "edge-a2"), []);
    assert_eq!(tcp(&member, "[tcp]\nfallback = false", "cloud-1"), []);
    Arc::make_mut(&mut member.view).role = Role::Hub;
    assert_eq!(tcp(&member, "", "cloud-1"), []);
}

#[test]
fn the_view_becomes_one_tunnel_a_peer_with_open_selectors_and_exact_identities() {
    let desired = Desired::compute(&config(""), &[], Some(&edge_with_two_peers()));
    assert!(desired.complete && desired.problems.is_empty());
    let tunnel = &desired.tunnels[&PeerName::new("cloud-1")];
    assert_eq!(tunnel.peer.child.local, any_networks());
    assert_eq!(tunnel.peer.local_id, Identity::Fqdn("edge-a1".into()));
    assert_eq!(tunnel.peer.remotes, ["203.0.113.1:4500".parse().unwrap()]);
    assert!(tunnel.peer.initiate && tunnel.peer.force_encapsulation);
    let Auth::Certificate(auth) = &tunnel.peer.auth else { panic!("not by certificate") };
    assert_eq!((auth.remote_uri.as_deref(), auth.remote_not_before), (Some("edge-cni://hub/cloud-1"), 0));
    assert_eq!(desired.remote_networks.all().len(), 3);
    assert!(
        !Desired::compute(&config("encap = \"auto\""), &[], Some(&edge_with_two_peers())).tunnels
            [&PeerName::new("edge-a2")]
            .peer
            .force_encapsulation
    );
}

#[test]
fn the_first_tunnels_that_are_down_are_named_and_those_on_demand_are_not() {
    let first = |keys: &str, up: &[&str], most| {
        let tunnels = Desired::compute(&config(keys), &[], Some(&edge_with_two_peers())).tunnels;
        tunnels.first_down(|peer| up.contains(&peer.as_str()), most).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(first("", &[], 9), ["cloud-1", "edge-a2"]);
    assert_eq!(first("", &[], 1), ["cloud-1"]);
    assert_eq!(first("", &["cloud-1"], 9), ["edge-a2"]);
    assert_eq!(first("[on_demand]\neager = 1\n", &[], 9), ["cloud-1"]);
}

#[test]
fn certificates_that_the_view_revokes_are_not_accepted() {
    let mut membership = edge_with_two_peers();
    let mut view = (*membership.view).clone();
    change_peer(&mut view, "cloud-1", |peer| peer.certificates_from = 1_800_000_000);
    membership.view = Arc::new(view);
    let desired = Desired::compute(&config(""), &[], Some(&membership));
    let since = |name| match &desired.tunnels[&PeerName::new(name)].peer.auth {
        Auth::Certificate(auth) => auth.remote_not_before,
        Auth::Psk(_) => panic!("not by certificate"),
    };
    assert_eq!((since("cloud-1"), since("edge-a2")), (1_800_000_000, 0));
}

#[test]
fn policies_go_from_exactly_our_segments_to_exactly_the_peers_networks_and_back() {
    let desired = Desired::compute(&config(""), &[], Some(&edge_with_two_peers()));
    let (policies, problems) = desired_policies(&desired, reqids, up, all_up);
    assert!(problems.is_empty());
    assert_eq!(
        lines(&policies, "out 10.77.1"),
        ["out 10.77.1.0/26 -> 10.77.0.0/26", "out 10.77.1.0/26 -> 10.77.2.0/26", "out 10.77.1.0/26 -> 10.244.0.0/16",]
    );
    assert_eq!(lines(&policies, "fwd").len(), 3);
    assert_eq!(
        lines(&policies, "in"),
        ["in 10.77.0.0/26 -> 10.77.1.0/26", "in 10.77.2.0/26 -> 10.77.1.0/26", "in 10.244.0.0/16 -> 10.77.1.0/26",]
    );
    assert!(policies.values().any(|policy| policy.action == Action::Block), "the guard is among them");
}

#[test]
fn a_redirected_clients_packets_meet_the_tunnel_but_forged_sources_a_block_before_it() {
    let desired = Desired::compute(&config(""), &[], Some(&edge_with_two_peers()));
    let (policies, _) = desired_policies(&desired, reqids, up, all_up);
    let find = |source: &str| {
        let selector = edge_xfrm::Selector::new(network(source), network("10.77.2.0/26")).unwrap();
        policies[&(Direction::Out, selector)]
    };
    let (ours, forged, client) = (find("10.77.1.0/26"), find("10.77.0.0/16"), find("0.0.0.0/0"));
    assert!(ours.priority < forged.priority && forged.priority < client.priority);
    assert!(client.priority < edge_xfrm::policy::priority::BLOCK);
    assert_eq!(forged.action, Action::Block);
    assert_eq!(client.action, ours.action);
}

#[test]
fn before_a_tunnel_was_ever_up_nothing_but_the_guard_meets_outgoing_packets() {
    let desired = Desired::compute(&config(""), &[], Some(&edge_with_two_peers()));
    let (policies, _) = desired_policies(&desired, reqids, |_| None, |_| TunnelState::Down);
    assert!(lines(&policies, "out").is_empty());
    assert_eq!(lines(&policies, "in").len(), 3);
}

#[test]
fn of_two_hubs_with_the_same_networks_one_takes_the_packets_and_both_may_send() {
    let view = membership(
        Role::Edge,
        &["10.77.1.0/26"],
        &[],
        vec![
            peer("hub-1", Role::Hub, "203.0.113.1:4500", &[], &["10.244.0.0/16"]),
            peer("hub-2", Role::Hub, "203.0.113.2:4500", &[], &["10.244.0.0/16"]),
        ],
    );
    let desired = Desired::compute(&config(""), &[], Some(&view));
    assert!(desired.tunnels.values().all(|tunnel| tunnel.hub));
    let used = |states: [TunnelState; 2]| {
        let state = |name: &PeerName| states[usize::from(name.as_str() == "hub-2")];
        let (policies, _) = desired_policies(&desired, reqids, up, state);
        let reqids_of = |direction: Direction| {
            let of_direction = policies.values().filter(move |policy| policy.direction == direction);
            let reqids = of_direction.filter_map(|policy| match policy.action {
                Action::Protect(template) => Some(template.reqid),
                _ => None,
            });
            reqids.collect::<Vec<_>>()
        };
        for inward in [Direction::In, Direction::Fwd] {
            assert_eq!(reqids_of(inward), [Reqid::FROM_HUBS], "the SAs of either hub fit");
        }
        let outward = reqids_of(Direction::Out);
        assert_eq!(outward.len(), 2);
        assert_eq!(outward[0], outward[1]);
        outward[0]
    };
    let [first, second] = ["hub-1", "hub-2"].map(|name| reqid(&PeerName::new(name)).unwrap());
    assert_eq!(used([TunnelState::Up, TunnelState::Down]), first);
    assert_eq!(used([TunnelState::Down, TunnelState::Up]), second);
    assert_eq!(used([TunnelState::Down, TunnelState::Down]), first);
    assert_eq!(used([TunnelState::Returned, TunnelState::Up]), second);
    assert_eq!(used([TunnelState::Returned, TunnelState::Down]), first);
    assert_eq!(used([TunnelState::Up, TunnelState::Up]), first);
    assert_eq!(used([TunnelState::Down, TunnelState::Leaving]), second, "it still carries packets");
    assert_eq!(used([TunnelState::Leaving, TunnelState::Returned]), second);
    assert_eq!(used([TunnelState::Leaving, TunnelState::Leaving]), first);
}

#[test]
fn a_hub_grants_its_cloud_networks_too() {
    let view = membership(
        Role::Hub,
        &["10.77.0.0/26"],
        &["10.244.0.0/16"],
        vec![peer("edge-a2", Role::Edge, "203.0.113.2:4500", &["10.77.2.0/26"], &[])],
    );
    let desired = Desired::compute(&config(""), &[], Some(&view));
    let (policies, _) = desired_policies(&desired, reqids, up, all_up);
    assert_eq!(
        lines(&policies, "out"),
        ["out 0.0.0.0/0 -> 10.77.2.0/26", "out 10.77.0.0/26 -> 10.77.2.0/26", "out 10.244.0.0/16 -> 10.77.2.0/26"]
    );
}

#[test]
fn a_cloud_node_has_no_tunnels_and_routes_the_ranges_to_the_hubs_in_the_order_of_their_names() {
    let hub = |name, endpoint| peer(name, Role::Hub, endpoint, &["10.77.0.0/26"], &["10.244.0.0/16"]);
    let view = membership(
        Role::Cloud,
        &[],
        &[],
        vec![hub("hub-2", "203.0.113.1:4500"), hub("hub-10", "203.0.113.2:4500"), hub("hub-1", "203.0.113.3:4500")],
    );
    let desired = Desired::compute(&config(""), &[], Some(&view));
    assert!(desired.tunnels.is_empty());
    assert!(desired.guard.cluster_ranges.is_empty(), "packets from edges arrive here in clear, from the hub");
    assert_eq!(desired.hub_routes, [network("10.77.0.0/16"), network("fd77::/48")]);
    let gateways: Vec<String> =
        desired.hub_gateways.iter().map(|gateway| format!("{} {}", gateway.hub, gateway.address)).collect();
    assert_eq!(gateways, ["hub-1 203.0.113.3:4500", "hub-10 203.0.113.2:4500", "hub-2 203.0.113.1:4500"]);
}

#[test]
fn a_claimed_role_that_the_node_does_not_have_stops_all_negotiation_but_not_the_guard() {
    let desired = Desired::compute(&config("role = \"hub\""), &[], Some(&edge_with_two_peers()));
    assert!(desired.tunnels.is_empty());
    assert!(desired.problems[0].contains("joined as edge"), "{:?}", desired.problems);
    assert_eq!(desired.guard.cluster_ranges.len(), 2);
    // As on an edge, the networks behind tunnels are routed into the guard's device, and packets to
    // them are not masqueraded.
    let as_edge = Desired::compute(&config(""), &[], Some(&edge_with_two_peers()));
    assert_eq!(desired.remote_networks, as_edge.remote_networks);
    assert!(desired.remote_networks.all().get(&network("10.244.0.0/16")).is_some());
    assert_eq!(desired.remote_networks.outside_of_ranges(), [network("10.244.0.0/16")]);
}

#[test]
fn networks_of_a_hub_that_the_view_no_longer_names_are_held_and_named() {
    let mut membership = edge_with_two_peers();
    let former = |text: &str| FormerNetwork {
        hub: "cloud-2".parse().unwrap(),
        network: network(text),
        since: 1,
        boot_time: None,
    };
    membership.former_networks = Arc::new(vec![former("10.96.0.0/12"), former("10.77.1.0/24")]);
    for role in ["", "role = \"hub\""] {
        let desired = Desired::compute(&config(role), &[], Some(&membership));
        assert_eq!(desired.former_networks, [network("10.96.0.0/12")], "never our own segments");
        let named = |problem: &String| problem.contains("10.96.0.0/12 of cloud-2");
        assert!(desired.problems.iter().any(named), "{:?}", desired.problems);
    }
}

#[test]
fn a_peers_network_that_overlaps_ours_is_reported_and_left_out() {
    let view = membership(
        Role::Edge,
        &["10.77.1.0/26"],
        &[],
        vec![peer("cloud-1", Role::Hub, "203.0.113.1:4500", &[], &["10.0.0.0/8", "10.244.0.0/16"])],
    );
    let desired = Desired::compute(&config(""), &[], Some(&view));
    assert!(desired.problems[0].contains("10.0.0.0/8 overlaps 10.77.1.0/26"), "{:?}", desired.problems);
    assert_eq!(*desired.remote_networks.all(), [network("10.244.0.0/16")]);
}

#[test]
fn without_a_view_nothing_is_known_to_be_superfluous() {
    assert!(!Desired::compute(&config(""), &[], None).complete);
}

#[test]
fn a_static_peers_networks_are_routed_unless_esp_itself_would_go_there() {
    let networks = |remote: &str, subnets: &str| {
        let text = format!(
            "[[peer]]\nname = \"moon\"\n{remote}\nlocal_id = \"sun\"\nremote_id = \"moon\"\npsk = \"secret\"\n\
             local_subnets = [\"10.1.0.0/24\"]\nremote_subnets = [{subnets}]"
        );
        let config = Config::parse(&text, Path::new("x")).unwrap();
        let statics = [config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap()];
        Desired::compute(&config, &statics, None).static_networks
    };
    let here = "remote = \"192.0.2.7\"";
    assert_eq!(networks(here, "\"10.2.0.0/24\", \"fd02::/64\""), [network("10.2.0.0/24"), network("fd02::/64")]);
    assert_eq!(networks(here, "\"192.0.2.7/32\", \"192.0.2.0/24\", \"0.0.0.0/0\""), []);
    assert_eq!(networks(here, "\"10.1.0.0/16\""), [], "our own side is in it");
    let anywhere = "start = \"respond\"";
    assert_eq!(networks(anywhere, "\"198.51.100.1/32\", \"10.2.0.0/24\""), [network("10.2.0.0/24")]);
}

#[test]
fn a_pool_is_routed_into_the_guards_device_also_behind_a_gateway_for_everything() {
    let pool = |networks: &str| {
        let text = format!(
            "[[peer]]\nname = \"moon\"\nstart = \"respond\"\nlocal_id = \"sun\"\nremote_id = \"moon\"\npsk = \"secret\"\n\
             local_subnets = [\"0.0.0.0/0\"]\naddress_pool = [{networks}]"
        );
        let config = Config::parse(&text, Path::new("x")).unwrap();
        let statics = [config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap()];
        Desired::compute(&config, &statics, None).static_networks
    };
    assert_eq!(pool("\"10.9.0.0/24\""), [network("10.9.0.0/24")]);
    assert_eq!(pool("\"10.9.0.7/32\""), [network("10.9.0.7/32")], "the pool of one address");
}

#[test]
fn packets_of_pods_that_a_static_peer_takes_are_known_by_the_narrower_network() {
    let text = r#"
[[peer]]
name = "moon"
remote = "192.0.2.1"
local_id = "sun.example"
remote_id = "moon.example"
psk = "correct horse battery staple"
local_subnets = ["10.77.0.0/16", "10.77.1.8/29", "192.168.1.0/24"]
remote_subnets = ["10.2.0.0/16"]
"#;
    let config = Config::parse(text, Path::new("x")).unwrap();
    let statics = [config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap()];
    let desired = Desired::compute(&config, &statics, None);
    let pair = |local: &str| (network(local), network("10.2.0.0/16"));
    assert_eq!(desired.static_pairs(&[network("10.77.1.0/26")]), [pair("10.77.1.0/26"), pair("10.77.1.8/29")]);
    assert_eq!(desired.static_pairs(&[network("10.78.1.0/26")]), []);
}

#[test]
fn a_view_that_changes_one_of_a_thousand_peers_makes_one_tunnel_anew() {
    let number = |number: usize, network: &str| {
        peer(&format!("edge-{number:04}"), Role::Edge, "203.0.113.2:4500", &[network], &[])
    };
    let peers: Vec<Peer> = (0..1000).map(|n| number(n, &format!("10.77.{}.{}/30", 16 + n / 64, n % 64 * 4))).collect();
    let before = membership(Role::Edge, &["10.77.1.0/26"], &[], peers.clone());
    let with = |change: &dyn Fn(&mut NodeView)| {
        let mut view = NodeView::clone(&before.view);
        change(&mut view);
        Membership { view: Arc::new(view), ..before.clone() }
    };
    let config = config("");
    let desired = Arc::new(Desired::compute(&config, &[], Some(&before)));
    let all: Vec<PeerName> = desired.tunnels.keys().cloned().collect();
    let names = |names: &[&str]| names.iter().map(|name| PeerName::new(name)).collect::<Vec<_>>();
    let other_credentials = Membership {
        credentials: Arc::new(NodeCredentials { chain: vec![vec![9]], ..(*before.credentials).clone() }),
        ..before.clone()
    };
    for (what, now, set, gone) in [
        ("nothing", with(&|_| {}), vec![], vec![]),
        (
            "the same peers, read again",
            with(&|view| view.peers = view.peers.iter().map(|peer| Peer::clone(peer).into()).collect()),
            vec![],
            vec![],
        ),
        (
            "an address",
            with(&|view| change_peer(view, "edge-0007", |peer| peer.endpoints = vec![])),
            names(&["edge-0007"]),
            vec![],
        ),
        (
            "a segment",
            with(&|view| drop(view.peers.insert(number(7, "10.77.9.0/30").into()))),
            names(&["edge-0007"]),
            vec![],
        ),
        (
            "a revocation",
            with(&|view| change_peer(view, "edge-0007", |peer| peer.certificates_from = 5)),
            names(&["edge-0007"]),
            vec![],
        ),
        (
            "a peer less",
            with(&|view| drop(view.peers.remove(&"edge-0007".parse().unwrap()))),
            vec![],
            names(&["edge-0007"]),
        ),
        (
            "a peer more",
            with(&|view| view.peers.push(number(1000, "10.77.9.0/30").into())),
            names(&["edge-1000"]),
            vec![],
        ),
        ("another segment of ours", with(&|view| view.segments.push(network("10.77.2.0/26"))), all.clone(), vec![]),
        ("credentials", other_credentials, all.clone(), vec![]),
    ] {
        let updated = Desired::update(&config, &[], Some(&now), Some((&before, &desired)));
        assert_eq!(updated.tunnels, Desired::compute(&config, &[], Some(&now)).tunnels, "{what}");
        assert_eq!(updated.changes_since(&desired), PeerChanges { set: set.clone(), gone: gone.clone() }, "{what}");
        let shared = updated
            .tunnels
            .iter()
            .filter(|(name, tunnel)| desired.tunnels.get(name).is_some_and(|known| Arc::ptr_eq(known, tunnel)));
        assert_eq!(shared.count(), 1000 - gone.len() - set.iter().filter(|name| all.contains(name)).count(), "{what}");
    }
}

#[test]
fn hubs_are_asked_sooner_than_other_peers_unless_the_operator_says_so() {
    let peers = || {
        vec![
            peer("hub-1", Role::Hub, "203.0.113.1:4500", &[], &["10.244.0.0/16"]),
            peer("edge-a2", Role::Edge, "203.0.113.2:4500", &["10.77.2.0/26"], &[]),
        ]
    };
    let timings = |keys: &str| {
        let view = membership(Role::Edge, &["10.77.1.0/26"], &[], peers());
        let desired = Desired::compute(&config(keys), &[], Some(&view));
        ["hub-1", "edge-a2"].map(|name| {
            let timing = desired.tunnels[&PeerName::new(name)].peer.timing;
            (timing.liveness.as_secs(), timing.idle_liveness.as_secs())
        })
    };
    assert_eq!(timings(""), [(2, 20), (4, 120)]);
    assert_eq!(timings("[timing]\nliveness = \"7s\"\nidle_liveness = \"50s\"\n"), [(7, 50); 2]);
}

#[test]
fn packets_to_a_static_peer_on_demand_are_blocked_while_its_address_is_unknown_and_reported_from_then_on() {
    let text = "[[peer]]\nname = \"moon\"\nremote = \"moon.example\"\nlocal_id = \"sun\"\nremote_id = \"moon\"\npsk = \"secret\"\n\
                local_subnets = [\"10.1.0.0/24\", \"fd01::/64\"]\nremote_subnets = [\"10.2.0.0/24\", \"fd02::/64\"]\nstart = \"on-demand\"";
    let config = Config::parse(text, Path::new("x")).unwrap();
    let statics = [config.peers[0].resolve(&config, &mut CrlFiles::default()).unwrap()];
    let desired = Desired::compute(&config, &statics, None);
    let tunnel = &desired.tunnels[&PeerName::new("moon")];
    assert!(tunnel.on_demand && !tunnel.counts() && !tunnel.peer.initiate && tunnel.peer.remotes.is_empty());
    let reqid = Reqid::tunnel(7).unwrap();
    let reqids = PeerReqids { outbound: reqid, inbound: reqid };
    let outward = |ends: Option<&TunnelEnds>| {
        let child = ChildEnds { child: tunnel.peer.child.name.clone(), reqids, ends: ends.cloned() };
        let (policies, problems) = tunnel_policies(tunnel, &[], &[child]);
        assert!(problems.is_empty(), "{problems:?}");
        let out = policies.into_iter().filter(|policy| policy.direction == Direction::Out);
        out.map(|policy| policy.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        outward(None),
        ["out 10.1.0.0/24 -> 10.2.0.0/24 priority 10017 block", "out fd01::/64 -> fd02::/64 priority 10129 block"]
    );
    let ends = TunnelEnds {
        local: "192.0.2.1".parse().unwrap(),
        remote: "192.0.2.2".parse().unwrap(),
        local_selectors: tunnel.peer.child.local.clone(),
        remote_selectors: tunnel.peer.child.remote.clone(),
        next_layer: tunnel.peer.child.next_layer,
        mode: tunnel.peer.child.mode,
        up: false,
    };
    assert_eq!(
        outward(Some(&ends)),
        [
            "out 10.1.0.0/24 -> 10.2.0.0/24 priority 10016 esp reqid 0xec000007 192.0.2.1 -> 192.0.2.2",
            "out fd01::/64 -> fd02::/64 priority 10128 esp reqid 0xec000007 192.0.2.1 -> 192.0.2.2"
        ]
    );
}

#[test]
fn an_edge_that_stays_silent_is_tried_more_seldom_than_a_hub() {
    let longest = |keys: &str| {
        let desired = Desired::compute(&config(keys), &[], Some(&edge_with_two_peers()));
        ["edge-a2", "cloud-1"].map(|name| desired.tunnels[&PeerName::new(name)].peer.timing.retry_max.as_secs())
    };
    assert_eq!(longest(""), [120, 10]);
    assert_eq!(longest("[timing]\nretry_max = \"7s\"\n"), [7, 7]);
}
