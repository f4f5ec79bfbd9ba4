//! Tests what ADD configures for a pod and what DEL removes.

use std::process::Command;

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::node::up;
use crate::world::{Pod, World, addresses, ip, path, pings, sysctl, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_pod_reaches_gateway_host_and_neighbour_in_both_families",
        a_pod_reaches_gateway_host_and_neighbour_in_both_families,
    ),
    ("a_pod_has_only_the_families_that_the_node_has", a_pod_has_only_the_families_that_the_node_has),
    ("the_first_versions_have_one_address_of_each_family", the_first_versions_have_one_address_of_each_family),
    ("the_result_has_the_shape_of_the_version_asked_for", the_result_has_the_shape_of_the_version_asked_for),
    (
        "ipv6_is_usable_at_once_where_the_runtime_has_turned_it_off",
        ipv6_is_usable_at_once_where_the_runtime_has_turned_it_off,
    ),
    ("neighbours_learn_of_a_new_owner_without_asking", neighbours_learn_of_a_new_owner_without_asking),
    ("the_bridge_keeps_its_mac_address_as_ports_come_and_go", the_bridge_keeps_its_mac_address_as_ports_come_and_go),
    ("the_guard_stands_before_the_first_pod", the_guard_stands_before_the_first_pod),
    ("without_the_guard_no_pod_is_attached", without_the_guard_no_pod_is_attached),
    (
        "pods_get_the_mtu_of_the_agent_unless_the_configuration_says_another",
        pods_get_the_mtu_of_the_agent_unless_the_configuration_says_another,
    ),
    ("up_makes_bridge_and_guard_without_a_pod", up_makes_bridge_and_guard_without_a_pod),
    (
        "a_second_interface_leaves_the_default_route_and_reaches_the_cluster",
        a_second_interface_leaves_the_default_route_and_reaches_the_cluster,
    ),
    ("pods_are_isolated_from_each_other_and_from_themselves_as_the_keys_say", isolation_and_hairpin),
    ("duplicate_address_detection_finds_an_address_that_a_neighbour_took", duplicates_are_detected),
    ("no_pod_gets_a_reserved_address", no_pod_gets_a_reserved_address),
    ("a_pod_has_the_routes_of_the_configuration", a_pod_has_the_routes_of_the_configuration),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

fn a_pod_reaches_gateway_host_and_neighbour_in_both_families() {
    let world = World::new(DUAL);
    let (first, second) = (world.pod(), world.pod());
    assert_eq!(world.add(&first), ["10.77.3.2", "fd77:0:0:3::2"]);
    assert_eq!(world.add(&second), ["10.77.3.3", "fd77:0:0:3::3"]);
    for address in ["10.77.3.1", "10.77.3.3", "fd77:0:0:3::1", "fd77:0:0:3::3"] {
        assert!(pings(&first.netns, address), "{address} does not answer the pod");
    }
    for address in ["10.77.3.2", "fd77:0:0:3::3"] {
        assert!(pings(&world.host, address), "{address} does not answer the host");
    }
    assert!(ip(&first.netns, "route show default").contains("via 10.77.3.1 dev eth0"));
    assert!(ip(&first.netns, "-6 route show default").contains("via fd77:0:0:3::1 dev eth0"));
}

fn a_pod_has_only_the_families_that_the_node_has() {
    for (segments, expected) in [(&DUAL[..1], "10.77.3.2"), (&DUAL[1..], "fd77:0:0:3::2")] {
        let world = World::new(segments);
        let pod = world.pod();
        assert_eq!(world.add(&pod), [expected]);
        assert!(pings(&world.host, expected));
        world.del(&pod);
    }
}

fn the_result_has_the_shape_of_the_version_asked_for() {
    let world = World::new(DUAL);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        world.set("cniVersion", json!(version));
        let pod = world.pod();
        let result = world.verb("ADD", &pod);
        assert!(result.ok, "{}", result.json);
        assert_eq!(result.json["cniVersion"], version);
        assert_eq!(result.json["ips"][0].get("version").is_some(), version < "1.0.0", "{}", result.json);
        let eth0 = &result.json["interfaces"][2];
        assert_eq!((eth0["name"].as_str(), eth0["sandbox"].as_str()), (Some("eth0"), Some(path(&pod).as_str())));
        assert!(ip(&pod.netns, "link show eth0").contains(eth0["mac"].as_str().unwrap()), "{eth0}");
        let host = &result.json["interfaces"][1];
        assert!(
            world.ip(&format!("link show {}", host["name"].as_str().unwrap())).contains(host["mac"].as_str().unwrap())
        );
    }
}

/// The runtime is from before CNI 0.3.0, and may send no version.
fn the_first_versions_have_one_address_of_each_family() {
    let world = World::new(DUAL);
    let file = world.folder.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 10.96.0.10\nsearch cluster.local\n").unwrap();
    world.set("resolvConf", json!(file));
    for (sent, version) in [(Value::Null, "0.1.0"), (json!("0.1.0"), "0.1.0"), (json!("0.2.0"), "0.2.0")] {
        world.set("cniVersion", sent.clone());
        if sent.is_null() {
            world.config.borrow_mut().as_object_mut().unwrap().remove("cniVersion");
        }
        let pod = world.pod();
        let result = world.verb("ADD", &pod).json;
        assert_eq!(result["cniVersion"], version, "{result}");
        assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"], "search": ["cluster.local"]}));
        for (key, gateway) in [("ip4", "10.77.3.1"), ("ip6", "fd77:0:0:3::1")] {
            let address = result[key]["ip"].as_str().unwrap().split('/').next().unwrap();
            assert!(pings(&world.host, address), "{result}");
            assert_eq!((&result[key]["gateway"], &result[key]["routes"][0]["gw"]), (&json!(gateway), &json!(gateway)));
        }
        world.del(&pod);
        assert!(world.leased().is_empty());
    }
}

fn ipv6_is_usable_at_once_where_the_runtime_has_turned_it_off() {
    let world = World::new(&DUAL[1..]);
    let pod = world.pod();
    for name in ["all", "default"] {
        let set = format!("net.ipv6.conf.{name}.disable_ipv6=1");
        succeed(Command::new("ip").args(["netns", "exec", &pod.netns, "sysctl", "-qw", &set]));
    }
    world.add(&pod);
    let shown = ip(&pod.netns, "-6 addr show dev eth0 scope global");
    assert!(shown.contains("fd77:0:0:3::2/120") && !shown.contains("tentative"), "{shown}");
    assert_eq!(sysctl(&pod.netns, "ipv6/conf/eth0/accept_ra"), "0");
}

fn neighbours_learn_of_a_new_owner_without_asking() {
    // After four pods, one IPv4 address and two IPv6 addresses are left.
    let world = World::new(&["10.77.3.0/29", "fd77:0:0:3::/125"]);
    let neighbour = world.pod();
    world.add(&neighbour);
    let others: Vec<_> = (0..3).map(|_| world.pod()).collect();
    others.iter().for_each(|pod| drop(world.add(pod)));
    for round in 0..20 {
        for address in ["10.77.3.6", "fd77:0:0:3::6", "fd77:0:0:3::7"] {
            ip(&neighbour.netns, &format!("neigh replace {address} lladdr 02:ee:ee:ee:ee:ee dev eth0 nud stale"));
        }
        let pod = world.pod();
        let result = world.verb("ADD", &pod);
        assert!(result.ok, "{}", result.json);
        let mac = result.json["interfaces"][2]["mac"].as_str().unwrap();
        for address in addresses(&result.json) {
            wait_for(&format!("round {round}: the neighbour's entry for {address}"), || {
                ip(&neighbour.netns, &format!("neigh show {address}")).contains(mac)
            });
        }
        assert_eq!(addresses(&result.json)[0], "10.77.3.6");
        world.del(&pod);
    }
}

fn the_bridge_keeps_its_mac_address_as_ports_come_and_go() {
    let world = World::new(DUAL);
    let mac = || world.ip("-br link show ecni0").split_whitespace().nth(2).unwrap().to_owned();
    let pods: Vec<_> = (0..4).map(|_| world.pod()).collect();
    world.add(&pods[0]);
    let first = mac();
    pods[1..].iter().for_each(|pod| drop(world.add(pod)));
    assert_eq!(mac(), first);
    pods.iter().for_each(|pod| world.del(pod));
    assert_eq!(mac(), first);
}

fn the_guard_stands_before_the_first_pod() {
    let world = World::new(DUAL);
    let pod = world.pod();
    // The ADD fails after the guard was installed, but before any part of the pod's connection was
    // created.
    ip(&pod.netns, "link add eth0 type bridge");
    world.add_fails(&pod, 102);
    let policies = world.ip("xfrm policy");
    for (range, own) in [("10.77.0.0/16", "10.77.3.0/24"), ("fd77::/48", "fd77:0:0:3::/120")] {
        assert!(policies.contains(&format!("dst {range}")) && policies.contains(&format!("dst {own}")), "{policies}");
    }
    assert!(policies.contains("action block"), "{policies}");
    // Packets that no policy encrypts are sent to the guard's device. The node's own packets have
    // the bridge's address as their source.
    let route = world.ip("route get 10.77.99.1");
    assert!(route.contains("dev ecni-guard") && route.contains("src 10.77.3.1"), "{route}");
}

fn without_the_guard_no_pod_is_attached() {
    let world = World::new(DUAL);
    let pod = world.pod();
    // Another program adds a policy that allows all outgoing packets.
    world.ip("xfrm policy add src 0.0.0.0/0 dst 10.77.0.0/16 dir out action allow priority 1");
    let message = world.add_fails(&pod, 104);
    assert!(message.contains("guard") && message.contains("10.77.0.0/16"), "{message}");
    assert!(world.ip("xfrm policy").contains("priority 1"), "another's policy was touched");
    world.ip("xfrm policy delete src 0.0.0.0/0 dst 10.77.0.0/16 dir out");
    world.add(&pod);
}

fn pods_get_the_mtu_of_the_agent_unless_the_configuration_says_another() {
    let world = World::new(&[]);
    std::fs::create_dir(world.state("")).unwrap();
    let segments = json!({"version": 1, "source": "agent", "segments": DUAL, "mtu": 1380});
    std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
    let (first, second) = (world.pod(), world.pod());
    world.add(&first);
    assert!(ip(&first.netns, "link show eth0").contains("mtu 1380"));
    world.set("mtu", json!(1300));
    world.set("cniVersion", json!("1.1.0"));
    let result = world.verb("ADD", &second).json;
    assert!(ip(&second.netns, "link show eth0").contains("mtu 1300"));
    assert_eq!(result["interfaces"][2]["mtu"], 1300);
}

fn up_makes_bridge_and_guard_without_a_pod() {
    let world = World::new(DUAL);
    let list = world.folder.path().join("10-edge-cni.conflist");
    let mut plugin = world.config.borrow().clone();
    plugin.as_object_mut().unwrap().remove("name");
    plugin.as_object_mut().unwrap().remove("cniVersion");
    std::fs::write(&list, json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}).to_string()).unwrap();
    let up = || {
        let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni"), "up", list.to_str().unwrap()];
        succeed(Command::new("ip").args(program))
    };
    assert!(up().contains("10.77.3.1"));
    up();
    assert!(pings(&world.host, "10.77.3.1") && pings(&world.host, "fd77:0:0:3::1"));
    assert!(world.ip("route get 10.77.99.1").contains("src 10.77.3.1"));
    let pod = world.pod();
    world.add(&pod);
    assert!(pings(&pod.netns, "10.77.3.1"));
}

/// Attaches another interface to a pod. Returns the result.
fn add_interface(world: &World, pod: &Pod, ifname: &str) -> Value {
    let netns = path(pod);
    let variables =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", pod.id.as_str()), ("CNI_NETNS", &netns), ("CNI_IFNAME", ifname)];
    let answer = world.run(&variables, &world.config.borrow().to_string());
    assert!(answer.ok, "{}", answer.json);
    answer.json
}

fn a_second_interface_leaves_the_default_route_and_reaches_the_cluster() {
    let world = World::new(DUAL);
    world.set("cniVersion", json!("1.0.0"));
    // Both interfaces are on this network.
    let pod = world.pod();
    world.add(&pod);
    assert_eq!(add_interface(&world, &pod, "net1")["routes"], json!([]));
    let routes = ip(&pod.netns, "route show default");
    assert!(routes.contains("dev eth0") && !routes.contains("net1"), "{routes}");
    assert!(pings(&pod.netns, "10.77.3.1"));
    // The first interface belongs to another network, as with Multus.
    let pod = world.pod();
    ip(&pod.netns, "link add first type veth peer name other");
    ip(&pod.netns, "addr add 192.0.2.2/24 dev first");
    ip(&pod.netns, "link set first up");
    ip(&pod.netns, "route add default via 192.0.2.1 metric 100");
    let result = add_interface(&world, &pod, "net1");
    let expected = [("10.77.0.0/16", "10.77.3.1"), ("::/0", "fd77:0:0:3::1")];
    assert_eq!(result["routes"], Value::from(expected.map(|(to, by)| json!({"dst": to, "gw": by})).to_vec()));
    assert!(ip(&pod.netns, "route get 198.51.100.1").contains("via 192.0.2.1 dev first"));
    assert!(ip(&pod.netns, "route get 10.77.9.9").contains("via 10.77.3.1 dev net1"));
    let mut config = world.config.borrow().clone();
    config["prevResult"] = result;
    let netns = path(&pod);
    let check =
        [("CNI_COMMAND", "CHECK"), ("CNI_CONTAINERID", pod.id.as_str()), ("CNI_NETNS", &netns), ("CNI_IFNAME", "net1")];
    let checked = world.run(&check, &config.to_string());
    assert!(checked.ok, "{}", checked.json);
}

fn a_pod_has_the_routes_of_the_configuration() {
    let world = World::new(&DUAL[..1]);
    world.set("cniVersion", json!("1.1.0"));
    world.set("isDefaultGateway", json!(false));
    world.set(
        "routes",
        json!([
            {"dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 7},
            {"dst": "198.51.100.0/24", "gw": "10.77.3.9", "table": 1000},
            {"dst": "203.0.113.0/24", "scope": 253},
            // The route has no gateway, since the pod has no IPv6.
            {"dst": "2001:db8::/32"},
        ]),
    );
    let pod = world.pod();
    let result = world.verb("ADD", &pod);
    assert!(result.ok, "{}", result.json);
    let main = ip(&pod.netns, "route show");
    for route in [
        "10.77.0.0/16 via 10.77.3.1 dev eth0",
        "192.0.2.0/24 via 10.77.3.1 dev eth0 proto static metric 7 mtu 1300 advmss 1200",
        "203.0.113.0/24 dev eth0 proto static scope link",
    ] {
        assert!(main.contains(route), "{main}");
    }
    assert!(!main.contains("default"), "{main}");
    assert!(ip(&pod.netns, "route show table 1000").contains("198.51.100.0/24 via 10.77.3.9 dev eth0"));
    assert_eq!(result.json["routes"].as_array().unwrap().len(), 4, "{}", result.json);
    assert_eq!(result.json["routes"][2]["table"], 1000);
    // The gateway is not on the link.
    world.set("routes", json!([{"dst": "192.0.2.0/24", "gw": "172.31.0.1"}]));
    let message = world.add_fails(&world.pod(), 103);
    assert!(message.contains("192.0.2.0/24") && message.contains("172.31.0.1"), "{message}");
}

/// Returns the name of a pod's port.
fn port(world: &World, pod: &Pod) -> String {
    let all = world.ip("-o link show type veth");
    let line = all.lines().find(|line| line.contains(&format!(" {} ", pod.id)) || line.contains(&pod.netns)).unwrap();
    line.split_whitespace().nth(1).unwrap().split('@').next().unwrap().to_owned()
}

fn isolation_and_hairpin() {
    let world = World::new(DUAL);
    let (one, two) = (world.pod(), world.pod());
    world.set("portIsolation", json!(true));
    world.set("hairpinMode", json!(false));
    let (first, second) = (world.add(&one), world.add(&two));
    let settings = || world.ip(&format!("-d link show {}", port(&world, &one)));
    assert!(settings().contains("hairpin off") && settings().contains("isolated on"), "{}", settings());
    for address in &second {
        assert!(!pings(&one.netns, address), "{address} is reached");
        assert!(pings(&world.host, address));
    }
    for gateway in ["10.77.3.1", "fd77:0:0:3::1"] {
        assert!(pings(&one.netns, gateway));
    }
    world.set("portIsolation", json!(false));
    world.set("hairpinMode", json!(true));
    assert!(up(&world).ok);
    assert!(settings().contains("hairpin on") && settings().contains("isolated off"), "{}", settings());
    for address in &first {
        assert!(pings(&two.netns, address), "{address} is not reached");
    }
}

fn duplicates_are_detected() {
    let world = World::new(DUAL);
    world.set("enabledad", json!(true));
    world.set("unfilteredPods", json!(["default/web-container0"]));
    let thief = world.pod();
    world.add(&thief);
    ip(&thief.netns, "addr add fd77:0:0:3::3/120 dev eth0 nodad");
    let message = world.add_fails(&world.pod(), 11);
    assert!(message.contains("fd77:0:0:3::3") && message.contains("duplicate"), "{message}");
    let pod = world.pod();
    assert_eq!(world.add(&pod)[1], "fd77:0:0:3::4");
    let shown = ip(&pod.netns, "-6 addr show dev eth0");
    assert!(!shown.contains("tentative") && !shown.contains("nodad"), "{shown}");
    assert!(pings(&pod.netns, "fd77:0:0:3::1"));
}

fn no_pod_gets_a_reserved_address() {
    let world = World::new(&[]);
    world.set(
        "segments",
        json!([{"subnet": "10.77.3.0/28", "rangeStart": "10.77.3.4", "rangeEnd": "10.77.3.8", "gateway": "10.77.3.1"},
               "fd77:0:0:3::/64"]),
    );
    world.set("reserved", json!(["10.77.3.5", "10.77.3.7-10.77.3.9", "fd77:0:0:3::/80"]));
    let pods = [world.pod(), world.pod()];
    assert_eq!(world.add(&pods[0]), ["10.77.3.4", "fd77:0:0:3:1::"]);
    assert_eq!(world.add(&pods[1]), ["10.77.3.6", "fd77::3:1:0:0:1"]);
    let message = world.add_fails(&world.pod(), 11);
    assert!(message.contains("all 2 IPv4 addresses"), "{message}");
    // An address that is reserved after it was leased stays with its pod, and is not leased again
    // afterwards.
    world.set("reserved", json!(["10.77.3.4-10.77.3.7"]));
    world.del(&pods[0]);
    assert_eq!(world.add(&world.pod())[0], "10.77.3.8");
    assert!(pings(&world.host, "10.77.3.6"));
    world.add_fails(&world.pod(), 11);
}
