//! Tests the effects of the keys in `[firewall]` and of a node's role.

use edge_agent::host::firewall::Firewall;

use super::Test;
use super::world::{BOTH, V4, V6, World};

pub(crate) const TESTS: &[Test] = &[
    ("lan_to_pods_and_lan_to_tunnels_let_their_sources_through_and_no_others", lan_keys),
    ("masquerade_is_left_out_where_it_is_not_wanted", masquerade),
    ("pod_sources_are_more_addresses_that_pods_may_send_from", pod_sources),
    ("a_hub_forwards_for_the_clouds_networks_and_for_nobody_else", hub),
    ("a_cloud_node_sends_for_the_clouds_networks_in_clear_and_for_nobody_else", cloud),
    ("what_a_bridge_of_the_hosts_only_bridges_goes_on", bridged),
    ("on_a_small_kernel_a_lan_host_is_kept_out_all_the_same", minimal),
    ("pods_of_a_second_network_of_the_plugin_are_pods_too", second_network),
    ("pods_with_addresses_of_former_segments_still_reach_the_outside_and_no_tunnel", former_segments),
    ("a_controller_in_the_clouds_networks_answers_and_errors_from_there_arrive", controller),
    ("pods_are_not_masqueraded_for_the_networks_of_a_hub_that_is_gone", former_networks),
    ("a_node_that_was_no_router_is_none_between_its_own_networks", isolated),
    ("a_host_on_the_lan_reaches_what_containers_of_others_publish_and_nothing_else_of_them", containers_of_others),
];

fn networks(list: &[&str]) -> Vec<ipnetwork::IpNetwork> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn lan_keys() {
    let world = World::new();
    world.serve("pod");
    world.serve("far");
    let lan = networks(&["192.168.1.0/24", "2001:db8:1::/64"]);
    world.apply(&Firewall { lan_to_pods: lan.clone(), ..World::edge() });
    for family in BOTH {
        assert_eq!(world.fetch("lan", family.pod, 80).as_deref(), Some(family.lan));
        world.cannot_fetch("lan", family.far, 80);
    }
    world.apply(&Firewall { lan_to_tunnels: lan, ..World::edge() });
    for family in BOTH {
        assert_eq!(world.fetch("lan", family.far, 80).as_deref(), Some(family.bridge));
        world.cannot_fetch("lan", family.pod, 80);
    }
    world.apply(&Firewall { lan_to_pods: networks(&["0.0.0.0/0", "::/0"]), ..World::edge() });
    for family in BOTH {
        assert!(world.fetch("lan", family.pod, 80).is_some());
        world.cannot_pose("lan", family.unused, "pod", family.pod);
    }
    world.apply(&Firewall { lan_to_pods: networks(&["192.168.1.67/32"]), ..World::edge() });
    world.cannot_fetch("lan", V4.pod, 80);
}

fn masquerade() {
    let world = World::new();
    world.serve("lan");
    for off in [
        Firewall { masquerade: false, ..World::edge() },
        Firewall { masquerade_except: networks(&["192.168.0.0/16", "2001:db8:1::/64"]), ..World::edge() },
    ] {
        world.apply(&off);
        for family in BOTH {
            // The LAN host answers to the pod's address, since it has a route back through the
            // edge.
            assert_eq!(world.fetch("pod", family.lan, 80).as_deref(), Some(family.pod));
        }
    }
}

fn pod_sources() {
    let world = World::new();
    world.apply(&Firewall { pod_sources: networks(&["172.31.0.0/16"]), masquerade: false, ..World::edge() });
    assert!(world.arrives("pod", "172.31.0.5", "outside", V4.outside));
    world.cannot_pose("pod", "172.30.0.5", "outside", V4.outside);
    world.cannot_pose("pod", "172.31.0.5", "far", V4.far);
}

fn hub() {
    let world = World::new();
    world.serve("far");
    world.serve("pod");
    world.apply(&Firewall { fronted: networks(&["10.244.0.0/16", "fd44::/64"]), masquerade: false, ..World::edge() });
    for family in BOTH {
        assert!(world.arrives("lan", family.cloud, "far", family.far), "{} is the cloud's", family.cloud);
        assert!(world.arrives("lan", family.cloud, "pod", family.pod));
        world.cannot_fetch("lan", family.far, 80);
        world.cannot_fetch("lan", family.pod, 80);
    }
}

/// The far network represents the hub, which sends the edges' packets unencrypted. The neighbour
/// represents a pod of the cloud's CNI on this node.
fn cloud() {
    let world = World::new();
    for name in ["far", "neighbour", "lan"] {
        world.serve(name);
    }
    world.sh(
        "edge",
        "set -e
         ip link del ecni0; ip link add cni0 type bridge mcast_snooping 0 forward_delay 0; ip link set cni0 up
         ip link set neighbour up master cni0
         ip addr add 10.244.1.1/24 dev cni0; ip addr add fd44:0:0:1::1/64 dev cni0 nodad
         ip route replace 10.77.2.0/24 via 10.0.0.2; ip -6 route replace fd77::2:0/112 via fd00::2",
    );
    world.sh(
        "neighbour",
        "set -e
         ip addr flush dev eth0 scope global
         ip addr add 10.244.1.3/24 dev eth0; ip addr add fd44:0:0:1::3/64 dev eth0 nodad
         ip route replace default via 10.244.1.1; ip -6 route replace default via fd44:0:0:1::1",
    );
    world.sh(
        "far",
        "ip route replace default via 10.0.0.1 src 10.77.2.2; ip -6 route replace default via fd00::1 src fd77::2:2",
    );
    world.masquerade_by_others();
    let edges = || networks(&["10.77.0.0/16", "fd77::/64"]);
    let uplinks = || ["lan", "wan", "far"].map(str::to_owned).to_vec();
    let (node, pods) = (["10.244.1.1", "fd44:0:0:1::1"], ["10.244.1.3", "fd44:0:0:1::3"]);
    let cloud = Firewall {
        own: vec![],
        fronted: networks(&["10.244.0.0/16", "fd44::/48"]),
        remote: edges().into(),
        ranges: edges(),
        addresses: node.map(|address| address.parse().unwrap()).to_vec(),
        masquerade: false,
        mtu: 0,
        ..World::edge()
    };
    for family in BOTH {
        assert!(world.fetch("lan", family.far, 80).is_some(), "without the table");
    }
    for isolated in [[vec![], vec![]], [uplinks(), uplinks()]] {
        world.apply(&Firewall { isolated, ..cloud.clone() });
        for ((family, node), pod) in BOTH.into_iter().zip(node).zip(pods) {
            assert_eq!(world.fetch("neighbour", family.far, 80).as_deref(), Some(pod), "a pod to an edge's");
            assert_eq!(world.fetch("far", pod, 80).as_deref(), Some(family.far), "an edge's pod to one here");
            assert!(world.arrives("lan", family.cloud, "far", family.far), "a pod of another cloud node");
            assert_eq!(world.fetch("edge", family.far, 80).as_deref(), Some(node), "the node itself");
            assert!(world.fetch("lan", pod, 80).is_some(), "the cloud's own CNI decides who reaches its pods");
            world.cannot_fetch("lan", family.far, 80);
            world.publish(30080, family.far);
            assert_eq!(world.fetch("lan", family.edge_lan, 30080).as_deref(), Some(node), "a NodePort");
            world.sh("edge", &format!("nft delete table {} publish", family.ip));
        }
        assert!(world.refused("to-tunnels") >= 2);
    }
}

/// A virtual machine is on a bridge that has the NIC as a port, with br_netfilter.
fn bridged() {
    let world = World::new();
    world.serve("lan");
    world.serve("outside");
    world.sh(
        "edge",
        "set -e
         ip link add br0 type bridge forward_delay 0 && ip link set br0 up
         ip link set lan master br0 && ip link set far nomaster && ip link set far master br0
         ip addr flush dev far; ip addr flush dev lan; ip addr add 192.168.1.10/24 dev br0; ip addr add 2001:db8:1::10/64 dev br0 nodad
         sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
    );
    world.sh("far", "ip addr add 192.168.1.77/24 dev eth0 && ip addr add 2001:db8:1::77/64 dev eth0 nodad && ip route replace default via 192.168.1.10 && ip -6 route replace default via 2001:db8:1::10");
    world.sh(
        "outside",
        "ip route add 192.168.1.0/24 via 203.0.113.10; ip -6 route add 2001:db8:1::/64 via 2001:db8:9::10",
    );
    let uplinks = || vec!["br0".to_owned(), "wan".to_owned()];
    let isolated = Firewall { isolated: [uplinks(), uplinks()], bridges: vec!["br0".into()], ..World::edge() };
    let machine = |family: &str| if family == "ip" { "192.168.1.77" } else { "2001:db8:1::77" };
    world.apply(&Firewall { bridges: vec![], ..isolated.clone() });
    world.cannot_fetch("far", V4.lan, 80);
    world.apply(&isolated);
    for family in BOTH {
        assert_eq!(world.fetch("far", family.lan, 80).as_deref(), Some(machine(family.ip)));
        world.cannot_fetch("far", family.outside, 80);
    }
}

/// Tests the minimal table, which has no masquerade and no fib.
fn minimal() {
    let world = World::new();
    world.serve("far");
    world.serve("pod");
    let minimal = Firewall { minimal: true, ..World::edge() };
    world.apply(&minimal);
    let listed = world.sh("edge", "nft list table inet edge-cni");
    assert!(!listed.contains("masquerade") && !listed.contains("fib "), "{listed}");
    for family in BOTH {
        for to in [family.far, family.pod] {
            world.cannot_fetch("lan", to, 80);
        }
        assert_eq!(world.fetch("pod", family.far, 80).as_deref(), Some(family.pod));
        assert_eq!(world.fetch("edge", family.far, 80).as_deref(), Some(family.bridge));
        world.publish(30080, family.far);
        assert_eq!(world.fetch("lan", family.edge_lan, 30080).as_deref(), Some(family.bridge));
    }
}

/// The neighbour pod is on the second bridge, with an address from another segment of this node.
fn second_network() {
    let world = World::new();
    for name in ["pod", "neighbour", "far", "outside"] {
        world.serve(name);
    }
    world.sh(
        "edge",
        "set -e
         ip link add ecni1 type bridge mcast_snooping 0 forward_delay 0 && ip link set ecni1 up
         ip link set neighbour nomaster && ip link set neighbour master ecni1
         ip addr add 10.77.3.1/24 dev ecni1; ip addr add fd77::3:1/112 dev ecni1 nodad",
    );
    world.sh(
        "neighbour",
        "set -e
         ip addr flush dev eth0 scope global
         ip addr add 10.77.3.3/24 dev eth0; ip addr add fd77::3:3/112 dev eth0 nodad
         ip route replace default via 10.77.3.1; ip -6 route replace default via fd77::3:1",
    );
    let mut edge = World::edge();
    edge.own.extend(networks(&["10.77.3.0/24", "fd77::3:0/112"]));
    edge.pod_bridges.push("ecni1".into());
    world.apply(&edge);
    for (family, second) in BOTH.into_iter().zip(["10.77.3.3", "fd77::3:3"]) {
        assert_eq!(world.fetch("neighbour", family.far, 80).as_deref(), Some(second));
        assert_eq!(world.fetch("neighbour", family.pod, 80).as_deref(), Some(second));
        assert_eq!(world.fetch("pod", second, 80).as_deref(), Some(family.pod));
        assert_eq!(world.fetch("neighbour", family.outside, 80).as_deref(), Some(family.edge_up));
        assert!(world.fetch("edge", second, 80).is_some());
        world.cannot_fetch("lan", second, 80);
        world.cannot_pose("lan", second, "pod", family.pod);
        let forged = if family.ip == "ip" { "192.168.1.200" } else { "2001:db8:1::200" };
        world.cannot_pose("neighbour", forged, "far", family.far);
    }
}

/// The pods have addresses from segments in the plugin's configuration, because they started before
/// the first view.
fn former_segments() {
    let world = World::new();
    world.serve("outside");
    world.serve("neighbour");
    world.sh("edge", "ip addr add 10.78.1.1/24 dev ecni0; ip addr add fd78::1:1/112 dev ecni0 nodad");
    world.sh(
        "pod",
        "set -e
         ip addr flush dev eth0 scope global
         ip addr add 10.78.1.2/24 dev eth0; ip addr add fd78::1:2/112 dev eth0 nodad
         ip route replace default via 10.78.1.1; ip -6 route replace default via fd78::1:1",
    );
    let former = Firewall { pod_networks: networks(&["10.78.1.0/24", "fd78::1:0/112"]), ..World::edge() };
    world.apply(&former);
    for (family, former) in BOTH.into_iter().zip(["10.78.1.2", "fd78::1:2"]) {
        assert_eq!(world.fetch("pod", family.outside, 80).as_deref(), Some(family.edge_up));
        assert_eq!(world.fetch("pod", family.neighbour, 80).as_deref(), Some(former));
        world.cannot_pose("pod", former, "far", family.far);
        // A LAN host sends a packet with an unused address of the pods' network as its source.
        let unused = if family.ip == "ip" { "10.78.1.9" } else { "fd78::1:9" };
        world.cannot_pose("lan", unused, "edge", family.edge_lan);
        let forged = if family.ip == "ip" { "10.79.1.2" } else { "fd79::1:2" };
        world.cannot_pose("pod", forged, "outside", family.outside);
    }
    // The former segments now belong to another node.
    let mut granted = former;
    granted.remote.extend(granted.pod_networks.clone());
    world.apply(&granted);
    for (family, source) in BOTH.into_iter().zip(["10.78.1.9", "fd78::1:9"]) {
        assert!(world.arrives("far", source, "edge", family.edge_lan), "{source} is a pod of another node");
    }
}

/// The controller is a LAN host with an address within the cloud's networks, which are behind a
/// tunnel.
fn controller() {
    let world = World::new();
    world.serve("lan");
    // Without this static neighbour entry, the host would send neighbour solicitations from that
    // address. In reality, a router between the two hosts sends them from its own address.
    let mac = world.sh("edge", "cat /sys/class/net/lan/address");
    world.sh("lan", &format!("ip neigh replace {} lladdr {} dev eth0 nud permanent", V6.edge_lan, mac.trim()));
    world.serve("edge");
    for family in BOTH {
        assert!(world.connects("lan", (family.cloud, 8443), (family.edge_lan, 80)), "without the table");
    }
    for minimal in [false, true] {
        let mut edge = Firewall { remote_in_clear: false, minimal, ..World::edge() };
        edge.remote.extend(networks(&["10.244.0.0/16", "fd44::/64"]));
        world.apply(&Firewall { controller_ports: vec![8443], ..edge.clone() });
        for family in BOTH {
            world.cannot_fetch("edge", family.cloud, 80);
        }
        world.apply(&Firewall { controller_ports: vec![80, 8443], ..edge });
        for family in BOTH {
            assert!(world.fetch("edge", family.cloud, 80).is_some(), "the controller answers");
            assert!(world.is_refused("edge", family.cloud), "an error arrives");
            world.cannot_fetch("pod", family.cloud, 80);
            world.cannot_pose("lan", family.cloud, "edge", family.edge_lan);
            let connects = world.connects("lan", (family.cloud, 8443), (family.edge_lan, 80));
            assert!(!connects, "a connection from the controller's port is no answer");
        }
    }
}

/// Another program's route matches packets to a hub's network while the hub is not in the view.
fn former_networks() {
    let world = World::new();
    world.serve("outside");
    let former = ["203.0.113.0/24", "2001:db8:9::/64"].map(|text| text.parse().unwrap()).to_vec();
    world.apply(&Firewall { former, ..World::edge() });
    for family in BOTH {
        world.cannot_fetch("pod", family.outside, 80);
        assert!(world.fetch("edge", family.outside, 80).is_some(), "the outside answers");
    }
    world.apply(&World::edge());
    for family in BOTH {
        assert_eq!(world.fetch("pod", family.outside, 80).as_deref(), Some(family.edge_up));
    }
}

fn isolated() {
    let world = World::new();
    world.serve("outside");
    world.serve("lan");
    // A container runtime has created a bridge, which is not an uplink, with a container behind it.
    world.sh(
        "edge",
        "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up && ip link set far nomaster master docker0 && ip addr flush dev far",
    );
    world.sh("far", "ip addr add 172.17.0.2/16 dev eth0 && ip route replace default via 172.17.0.1");
    world.sh("outside", "ip route add 192.168.1.0/24 via 203.0.113.10; ip route add 172.17.0.0/16 via 203.0.113.10; ip -6 route add 2001:db8:1::/64 via 2001:db8:9::10");
    for family in BOTH {
        assert!(world.fetch("lan", family.outside, 80).is_some());
    }
    let uplinks = || vec!["lan".to_owned(), "wan".to_owned()];
    world.apply(&Firewall { isolated: [uplinks(), uplinks()], ..World::edge() });
    for family in BOTH {
        world.cannot_fetch("lan", family.outside, 80);
        world.cannot_fetch("outside", family.lan, 80);
        assert_eq!(world.fetch("pod", family.outside, 80).as_deref(), Some(family.edge_up));
    }
    assert!(world.refused("between-uplinks") >= 4);
    assert_eq!(world.fetch("far", V4.outside, 80).as_deref(), Some("172.17.0.2"), "containers of others go on");
    world.publish(8080, V4.outside);
    assert!(world.fetch("lan", V4.edge_lan, 8080).is_some(), "what is redirected is wanted");
    // The agent turned on forwarding only for IPv6.
    world.apply(&Firewall { isolated: [vec![], uplinks()], ..World::edge() });
    assert!(world.fetch("lan", V4.outside, 80).is_some());
    world.cannot_fetch("lan", V6.outside, 80);
}

/// Docker blocks access from other hosts to its containers only if Docker turned forwarding on.
fn containers_of_others() {
    let world = World::new();
    for name in ["lan", "far", "outside", "neighbour"] {
        world.serve(name);
    }
    let (containers, others) = (["172.17.0.2", "fd17::2"], ["172.18.0.2", "fd18::2"]);
    // These hosts replace the far network and a pod.
    world.sh(
        "edge",
        "set -e
         ip route flush dev far; ip addr flush dev far; ip link set neighbour nomaster
         for bridge in docker0/far/17 virbr0/neighbour/18; do
             IFS=/ read name port number <<-END
		$bridge
		END
             ip link add $name type bridge mcast_snooping 0 forward_delay 0; ip link set $name up; ip link set $port up master $name
             ip addr add 172.$number.0.1/16 dev $name; ip addr add fd$number::1/64 dev $name nodad
         done",
    );
    for (name, number) in [("far", 17), ("neighbour", 18)] {
        world.sh(
            name,
            &format!(
                "ip addr flush dev eth0 scope global; ip addr add 172.{number}.0.2/16 dev eth0; ip addr add fd{number}::2/64 dev eth0 nodad
                 ip route replace default via 172.{number}.0.1; ip -6 route replace default via fd{number}::1"
            ),
        );
    }
    world.sh("outside", "ip route add default via 203.0.113.10; ip -6 route add default via 2001:db8:9::10");
    let uplinks = || vec!["lan".to_owned(), "wan".to_owned()];
    let edge = || Firewall { remote: Vec::new().into(), isolated: [uplinks(), uplinks()], ..World::edge() };
    for to in [containers, others].as_flattened() {
        assert!(world.fetch("lan", to, 80).is_some(), "without the table {to} is reached");
    }
    world.apply(&edge());
    for to in [containers, others].as_flattened() {
        world.cannot_fetch("lan", to, 80);
        world.cannot_fetch("outside", to, 80);
        assert!(world.fetch("pod", to, 80).is_some(), "a pod reaches {to} as before");
        assert!(world.fetch("edge", to, 80).is_some(), "the node itself reaches {to}");
    }
    assert!(world.refused("to-containers") >= 8);
    for (index, family) in BOTH.into_iter().enumerate() {
        assert_eq!(world.fetch("far", family.lan, 80).as_deref(), Some(containers[index]));
        assert_eq!(world.fetch("far", family.outside, 80).as_deref(), Some(containers[index]));
        assert_eq!(world.fetch("far", others[index], 80).as_deref(), Some(containers[index]));
        assert_eq!(world.fetch("neighbour", containers[index], 80).as_deref(), Some(others[index]));
        world.publish(8080, containers[index]);
        assert_eq!(world.fetch("lan", family.edge_lan, 8080).as_deref(), Some(family.lan), "what is published");
    }
    // On a hub or a cloud node, another CNI is responsible for the access to its own pods.
    world.apply(&Firewall { fronted: networks(&["172.17.0.0/16", "fd17::/64"]), ..edge() });
    for (container, other) in containers.into_iter().zip(others) {
        assert!(world.fetch("lan", container, 80).is_some(), "{container} is a pod of the cloud's own CNI");
        world.cannot_fetch("lan", other, 80);
    }
    world.apply(&Firewall { isolated: [vec![], uplinks()], ..edge() });
    assert!(world.fetch("lan", containers[0], 80).is_some(), "forwarding of IPv4 was on before");
    world.cannot_fetch("lan", containers[1], 80);
}
