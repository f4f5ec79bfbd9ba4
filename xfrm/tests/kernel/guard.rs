//! Tests that the guard stops packets.

use edge_xfrm::guard::{self, Defect, GuardConfig};
use edge_xfrm::{Direction, Error, Policy, SaDirection, SaParams, Selector, Xfrm};

use crate::Needs::{Esp, Root};
use crate::Test;
use crate::namespace::{Namespace, receive, sa};

pub(crate) const TESTS: &[Test] = &[
    ("the_guard_is_installed_once_and_repaired_when_broken", Root, installed_and_repaired),
    ("two_install_the_guard_at_once", Root, two_at_once),
    ("the_guard_lets_pass_what_it_must_and_nothing_else", Root, packets),
    ("the_nodes_own_packets_take_the_bridges_address", Root, source_address),
    ("a_route_that_the_kernel_refuses_keeps_no_other_one_away", Root, refused_route),
    ("the_guard_of_a_node_that_owns_the_whole_range_blocks_nothing", Root, whole_range),
    ("the_guard_names_an_interface_or_policy_of_another_that_is_in_its_way", Root, in_the_way),
    ("a_bypassing_socket_speaks_in_clear_where_others_are_blocked", Root, bypass),
    ("pods_and_nodes_reach_each_other_through_tunnel_and_guards", Esp, tunnel),
    ("removing_the_guard_leaves_the_policies_of_others", Root, removed),
];

fn config(bridge: &[&str]) -> GuardConfig {
    GuardConfig {
        cluster_ranges: vec!["10.77.0.0/16".parse().unwrap(), "fd77::/32".parse().unwrap()],
        segments: vec!["10.77.0.0/26".parse().unwrap(), "fd77::/64".parse().unwrap()],
        networks: vec![],
        bridge_addresses: bridge.iter().map(|address| address.parse().unwrap()).collect(),
        sources: Vec::new(),
    }
}

fn installed_and_repaired() {
    let namespace = Namespace::new();
    namespace.run(|| {
        assert_eq!(guard::check(&config(&[])).unwrap().len(), 12 + 1 + 2);
        assert_eq!(guard::install(&config(&[])).unwrap().len(), 12 + 1 + 2);
        assert_eq!(guard::check(&config(&[])).unwrap(), []);
        assert_eq!(guard::install(&config(&[])).unwrap(), []);
    });
    namespace.ip("link add ecni0 type bridge");
    namespace.ip("addr add 10.77.0.1/26 dev ecni0");
    namespace.ip("addr add fd77::1/64 dev ecni0 nodad");
    namespace.ip("link set ecni0 up");
    let bridge = ["10.77.0.1", "fd77::1"];
    namespace.run(move || {
        assert_eq!(guard::install(&config(&bridge)).unwrap().len(), 2);
        assert_eq!(guard::check(&config(&bridge)).unwrap(), []);
    });
    // The kernel deletes routes whose source address is removed. The routes without a source stay.
    namespace.ip("link del ecni0");
    namespace.run(|| assert_eq!(guard::check(&config(&[])).unwrap(), []));
    namespace.ip("link set ecni-guard down");
    namespace.ip("xfrm policy delete src 0.0.0.0/0 dst 10.77.0.0/16 dir out");
    namespace.run(|| {
        let defects = guard::install(&config(&[])).unwrap();
        assert!(defects.contains(&Defect::Device), "{defects:?}");
        assert!(defects.iter().any(|defect| matches!(defect, Defect::Missing(_))), "{defects:?}");
        assert_eq!(guard::check(&config(&[])).unwrap(), []);
    });
    namespace.ip("link del ecni-guard");
    namespace.run(|| {
        assert_eq!(guard::install(&config(&[])).unwrap().len(), 3);
        assert_eq!(guard::check(&config(&[])).unwrap(), []);
    });
}

fn two_at_once() {
    let namespace = Namespace::new();
    namespace.run(|| {
        let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                    use std::os::fd::AsFd;
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                    guard::install(&config(&[])).unwrap();
                });
            }
        });
        assert_eq!(guard::check(&config(&[])).unwrap(), []);
    });
}

/// A node with two pods, each on its own veth pair, and an uplink with a neighbour that routes
/// everything to the node.
struct Site {
    node: Namespace,
    pods: [Namespace; 2],
    neighbour: Namespace,
}

fn site() -> Site {
    let (node, neighbour) = (Namespace::new(), Namespace::new());
    let pods = [Namespace::new(), Namespace::new()];
    node.wire(("up0", &["192.0.2.1/24", "2001:db8::1/64"]), &neighbour, ("eth0", &["192.0.2.2/24", "2001:db8::2/64"]));
    node.ip("route add default via 192.0.2.2");
    node.ip("-6 route add default via 2001:db8::2");
    node.ip("link add ecni0 type bridge");
    node.ip("addr add 10.77.0.1/26 dev ecni0");
    node.ip("addr add fd77::1/64 dev ecni0 nodad");
    node.ip("link set ecni0 up");
    // The neighbour accepts packets to every address that no other host has.
    neighbour.ip("addr add 198.51.100.1/32 dev lo");
    neighbour.ip("route add local 10.77.1.0/26 dev lo");
    neighbour.ip("route add 10.77.0.0/26 via 192.0.2.1");
    neighbour.ip("-6 route add local fd77:0:0:1::/64 dev lo");
    neighbour.ip("-6 route add fd77::/64 via 2001:db8::1");
    for (n, pod) in pods.iter().enumerate() {
        let (v4, v6) = (format!("10.77.0.{}/26", n + 2), format!("fd77::{}/64", n + 2));
        node.wire((&format!("veth{n}"), &[]), pod, ("eth0", &[&v4, &v6]));
        node.ip(&format!("link set veth{n} master ecni0"));
        pod.ip("route add default via 10.77.0.1");
        pod.ip("-6 route add default via fd77::1");
    }
    Site { node, pods, neighbour }
}

fn packets() {
    let Site { node, pods: [one, two], neighbour } = site();
    // This socket is bound to an address of the remote segment, which the neighbour accepts as its
    // own. Packets that leak in clear arrive at this socket.
    let leaked = neighbour.listen("10.77.1.2:7");
    let leaked6 = neighbour.listen("[fd77:0:0:1::2]:7");
    let internet = neighbour.listen("198.51.100.1:7");
    let (at_one, at_one6) = (one.listen("10.77.0.2:7"), one.listen("[fd77::2]:7"));
    let at_node = node.listen("10.77.0.1:7");

    // Without the guard all packets leak, which shows that the test detects leaks.
    one.send("10.77.0.2", "10.77.1.2:7", "leak");
    assert_eq!(receive(&leaked), "leak");
    one.send("fd77::2", "[fd77:0:0:1::2]:7", "leak");
    assert_eq!(receive(&leaked6), "leak");
    neighbour.send("10.77.1.2", "10.77.0.2:7", "forged");
    assert_eq!(receive(&at_one), "forged");

    let bridge = ["10.77.0.1", "fd77::1"];
    node.run(move || guard::install(&config(&bridge)).map(|_| ()).unwrap());

    // These packets must pass: from pod to pod, from pod to node and back, IPv6 after neighbour
    // discovery, and from a pod to the internet and back.
    two.ip("neigh flush all");
    node.ip("neigh flush all");
    two.send("10.77.0.3", "10.77.0.2:7", "pod");
    assert_eq!(receive(&at_one), "pod");
    two.send("fd77::3", "[fd77::2]:7", "pod");
    assert_eq!(receive(&at_one6), "pod");
    two.send("10.77.0.3", "10.77.0.1:7", "to node");
    assert_eq!(receive(&at_node), "to node");
    node.send("10.77.0.1", "10.77.0.2:7", "from node");
    assert_eq!(receive(&at_one), "from node");
    node.send("192.0.2.1", "10.77.0.2:7", "from uplink address");
    assert_eq!(receive(&at_one), "from uplink address");
    node.send("fd77::1", "[fd77::2]:7", "from node");
    assert_eq!(receive(&at_one6), "from node");
    node.send("10.77.0.1", "10.77.0.1:7", "to itself");
    assert_eq!(receive(&at_node), "to itself");
    one.send("10.77.0.2", "198.51.100.1:7", "internet");
    assert_eq!(receive(&internet), "internet");
    neighbour.send("198.51.100.1", "10.77.0.2:7", "answer");
    assert_eq!(receive(&at_one), "answer");

    // Packets from a pod or the node to a remote pod must not pass, even with the uplink's address
    // as source, as after masquerading by another program.
    let dropped = node.counter("XfrmOutPolBlock");
    one.send("10.77.0.2", "10.77.1.2:7", "refused");
    node.send("10.77.0.1", "10.77.1.2:7", "refused");
    node.send("192.0.2.1", "10.77.1.2:7", "refused");
    one.send("fd77::2", "[fd77:0:0:1::2]:7", "refused");
    node.await_counter("XfrmOutPolBlock", dropped + 4);

    // A pod with a forged remote source address sends to the internet, and a neighbour with a
    // forged address sends to a pod and to the node.
    one.ip("addr add 10.77.1.2/32 dev lo");
    let dropped = node.counter("XfrmInPolBlock");
    one.send("10.77.1.2", "198.51.100.1:7", "refused");
    neighbour.send("10.77.1.2", "10.77.0.2:7", "refused");
    neighbour.send("10.77.1.2", "10.77.0.1:7", "refused");
    neighbour.send("fd77:0:0:1::2", "[fd77::2]:7", "refused");
    node.await_counter("XfrmInPolBlock", dropped + 4);

    // Legitimate packets can still use the same paths. If a forged packet had passed, it would have
    // arrived first.
    one.send("10.77.0.2", "198.51.100.1:7", "granted");
    neighbour.send("198.51.100.1", "10.77.0.2:7", "granted");
    neighbour.send("198.51.100.1", "10.77.0.1:7", "granted");
    neighbour.send("2001:db8::2", "[fd77::2]:7", "granted");
    neighbour.send("10.77.1.2", "10.77.1.2:7", "granted");
    neighbour.send("fd77:0:0:1::2", "[fd77:0:0:1::2]:7", "granted");
    for socket in [&internet, &at_one, &at_node, &at_one6, &leaked, &leaked6] {
        assert_eq!(receive(socket), "granted");
    }

    // The device drops packets that no policy matches: even without the policies, no packet leaves
    // over the default route.
    node.ip("xfrm policy flush");
    one.ip("addr del 10.77.1.2/32 dev lo");
    // The device's own router solicitations would be counted as well.
    node.run(|| std::fs::write("/proc/sys/net/ipv6/conf/ecni-guard/disable_ipv6", "1").unwrap());
    let swallowed = node.transmitted("ecni-guard");
    one.send("10.77.0.2", "10.77.1.2:7", "refused");
    node.await_value("packets sent into ecni-guard", swallowed + 1, |node| node.transmitted("ecni-guard"));
    neighbour.send("10.77.1.2", "10.77.1.2:7", "granted");
    assert_eq!(receive(&leaked), "granted");
}

fn source_address() {
    let Site { node, .. } = site();
    let bridge = ["10.77.0.1", "fd77::1"];
    node.run(move || guard::install(&config(&bridge)).map(|_| ()).unwrap());
    assert!(node.ip("route get 10.77.1.2").contains("dev ecni-guard src 10.77.0.1"));
    assert!(node.ip("-6 route get fd77:0:0:1::2").contains("dev ecni-guard"));
    assert!(node.ip("-6 route get fd77:0:0:1::2").contains("src fd77::1"));
    assert!(node.ip("route get 10.77.0.2").contains("dev ecni0"));
    let error = node.run(|| guard::install(&config(&["10.77.0.9"])).unwrap_err().to_string());
    assert!(error.contains("no such address") && error.contains("10.77.0.9"), "{error}");
}

fn refused_route() {
    let namespace = Namespace::new();
    namespace.ip("link add ecni0 type bridge");
    namespace.ip("addr add fd77::1/64 dev ecni0 nodad");
    namespace.ip("link set ecni0 up");
    let config = || GuardConfig {
        cluster_ranges: ["10.77.0.0/16", "10.78.0.0/16", "fd77::/32"].map(|range| range.parse().unwrap()).to_vec(),
        // The host has the second address only.
        ..config(&["10.77.0.9", "fd77::1"])
    };
    let error = namespace.run(move || guard::install(&config()).unwrap_err().to_string());
    assert!(error.contains("10.78.0.0/16") && error.contains("10.77.0.9"), "a failure is returned: {error}");
    let missing = namespace.run(move || guard::check(&config()).unwrap());
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing.iter().all(|missing| missing.contains("src 10.77.0.9")), "{missing:?}");
}

fn whole_range() {
    let Site { node, pods: [one, two], .. } = site();
    node.run(|| {
        let range: Vec<_> = vec!["10.77.0.0/26".parse().unwrap()];
        let config = GuardConfig { cluster_ranges: range.clone(), segments: range, ..GuardConfig::default() };
        guard::install(&config).unwrap();
        assert_eq!(guard::check(&config).unwrap(), []);
    });
    // The bridge's route takes precedence over the guard's route to the range.
    assert!(node.ip("route get 10.77.0.2").contains("dev ecni0"));
    let at_one = one.listen("10.77.0.2:7");
    two.send("10.77.0.3", "10.77.0.2:7", "pod");
    assert_eq!(receive(&at_one), "pod");
    node.send("10.77.0.1", "10.77.0.2:7", "node");
    assert_eq!(receive(&at_one), "node");
}

fn in_the_way() {
    let namespace = Namespace::new();
    namespace.ip("xfrm policy add src 0.0.0.0/0 dst 10.77.0.0/16 dir out action allow");
    let error = namespace.run(|| guard::install(&config(&[])).unwrap_err());
    let Error::Guard { error: cause, .. } = &error else { panic!("{error}") };
    assert!(matches!(**cause, Error::OccupiedByOther { .. }), "{error}");
    // The other parts of the guard are installed nevertheless.
    let defects = namespace.run(|| guard::check(&config(&[])).unwrap());
    assert!(matches!(defects.as_slice(), [Defect::Occupied(..)]), "{defects:?}");

    let namespace = Namespace::new();
    namespace.ip("link add ecni-guard type veth peer name other");
    let error = namespace.run(|| guard::install(&config(&[])).unwrap_err().to_string());
    assert!(error.contains("not a dummy device"), "{error}");
}

fn removed() {
    let namespace = Namespace::new();
    namespace.ip("xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 30000 action block");
    namespace.run(|| {
        guard::install(&config(&[])).unwrap();
        guard::remove().unwrap();
        guard::remove().unwrap();
        let left = Xfrm::open().unwrap().policies().unwrap();
        assert_eq!(left.len(), 1);
        assert!(!left[0].is_ours());
    });
    assert!(!namespace.ip("link").contains("ecni-guard"));
}

fn bypass() {
    let (here, there) = (Namespace::new(), Namespace::new());
    here.wire(("eth0", &["192.0.2.1/24", "2001:db8::1/64"]), &there, ("eth0", &["192.0.2.2/24", "2001:db8::2/64"]));
    here.run(|| {
        let mut xfrm = Xfrm::open().unwrap();
        for ipv4 in [true, false] {
            for direction in [Direction::In, Direction::Out] {
                xfrm.install_policy(&Policy::block(direction, Selector::any(ipv4))).unwrap();
            }
        }
    });
    for (mine, theirs, ipv6) in
        [("192.0.2.1:500", "192.0.2.2:500", false), ("[2001:db8::1]:500", "[2001:db8::2]:500", true)]
    {
        let (ike, peer) = (here.listen(mine), there.listen(theirs));
        assert!(ike.send_to(b"blocked", theirs).is_err());
        edge_xfrm::socket::bypass(&ike, ipv6).unwrap();
        if ipv6 {
            // Neighbour discovery is blocked like all other traffic of this host, so the test sets
            // the peer's link-layer address.
            here.ip(&format!("neigh replace 2001:db8::2 lladdr {} dev eth0", mac(&there)));
            there.ip(&format!("neigh replace 2001:db8::1 lladdr {} dev eth0", mac(&here)));
        }
        ike.send_to(b"request", theirs).unwrap();
        assert_eq!(receive(&peer), "request");
        peer.send_to(b"response", mine).unwrap();
        assert_eq!(receive(&ike), "response");
    }
}

fn mac(namespace: &Namespace) -> String {
    let link = namespace.ip("link show eth0");
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

/// Sends packets between two guarded nodes with one pod each, through a tunnel between the nodes.
fn tunnel() {
    let nodes = [Namespace::new(), Namespace::new()];
    let pods = [Namespace::new(), Namespace::new()];
    nodes[0].wire(("up0", &["192.0.2.1/24"]), &nodes[1], ("up0", &["192.0.2.2/24"]));
    for n in 0..2 {
        let node = &nodes[n];
        node.ip("link add ecni0 type bridge");
        node.ip(&format!("addr add 10.77.{n}.1/26 dev ecni0"));
        node.ip(&format!("addr add fd77:0:0:{n}::1/64 dev ecni0 nodad"));
        node.ip("link set ecni0 up");
        let addresses = [format!("10.77.{n}.2/26"), format!("fd77:0:0:{n}::2/64")];
        node.wire(("veth0", &[]), &pods[n], ("eth0", &[&addresses[0], &addresses[1]]));
        node.ip("link set veth0 master ecni0");
        pods[n].ip(&format!("route add default via 10.77.{n}.1"));
        pods[n].ip(&format!("-6 route add default via fd77:0:0:{n}::1"));
        node.ip(&format!("route add default via 192.0.2.{}", 2 - n));
        node.run(move || {
            let mut config = config(&[]);
            config.segments =
                vec![format!("10.77.{n}.0/26").parse().unwrap(), format!("fd77:0:0:{n}::/64").parse().unwrap()];
            config.bridge_addresses =
                vec![format!("10.77.{n}.1").parse().unwrap(), format!("fd77:0:0:{n}::1").parse().unwrap()];
            guard::install(&config).unwrap();

            let (here, there) = (format!("192.0.2.{}", n + 1), format!("192.0.2.{}", 2 - n));
            let spi = |from: usize| 0x1000 + from as u32;
            let outbound = sa(SaDirection::Out, &here, &there, spi(n), 1);
            let inbound = SaParams { direction: SaDirection::In, ..sa(SaDirection::Out, &there, &here, spi(1 - n), 1) };
            let mut desired = guard::policies(&config).unwrap();
            for (segment, remote) in [
                (format!("10.77.{n}.0/26"), format!("10.77.{}.0/26", 1 - n)),
                (format!("fd77:0:0:{n}::/64"), format!("fd77:0:0:{}::/64", 1 - n)),
            ] {
                let out = Selector::new(segment.parse().unwrap(), remote.parse().unwrap()).unwrap();
                desired.push(Policy::protect_out(out, outbound.reqid, outbound.source, outbound.destination));
                desired.push(Policy::protect_in(Direction::In, out.reversed(), outbound.reqid));
                desired.push(Policy::protect_in(Direction::Fwd, out.reversed(), outbound.reqid));
            }
            let mut xfrm = Xfrm::open().unwrap();
            xfrm.install_inbound(&inbound).unwrap();
            xfrm.add_sa(&outbound).unwrap();
            let (plan, errors) = xfrm.reconcile_policies(&desired).unwrap();
            assert_eq!((plan.missing.len(), errors.len()), (6, 0), "{plan:?} {errors:?}");
            assert!(guard::check(&config).unwrap().is_empty());
        });
    }
    for (from, to) in [(0, 1), (1, 0)] {
        for (place, pod) in [(&nodes, 1), (&pods, 2)] {
            let at_pod = pods[to].listen(&format!("10.77.{to}.2:7"));
            place[from].send(&format!("10.77.{from}.{pod}"), &format!("10.77.{to}.2:7"), "through");
            assert_eq!(receive(&at_pod), "through", "{from}.{pod} to pod");
            let at_pod = pods[to].listen(&format!("[fd77:0:0:{to}::2]:7"));
            place[from].send(&format!("fd77:0:0:{from}::{pod}"), &format!("[fd77:0:0:{to}::2]:7"), "through");
            assert_eq!(receive(&at_pod), "through", "IPv6 {from}.{pod} to pod");
            let at_node = nodes[to].listen(&format!("10.77.{to}.1:7"));
            place[from].send(&format!("10.77.{from}.{pod}"), &format!("10.77.{to}.1:7"), "through");
            assert_eq!(receive(&at_node), "through", "{from}.{pod} to node");
        }
    }
    // All packets went in ESP, in each direction 4 to the pod (2 of the 4 are IPv6) and 2 to the
    // node.
    let id = sa(SaDirection::Out, "192.0.2.1", "192.0.2.2", 0x1000, 1).id();
    assert_eq!(nodes[1].run(move || Xfrm::open().unwrap().sa(id).unwrap().unwrap().counters.packets), 6);
}
