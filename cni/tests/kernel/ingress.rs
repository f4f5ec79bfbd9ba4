//! Tests which outside hosts reach pods while the agent's table does not exist.

use std::process::Command;

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::loopback::datagram_arrives;
use crate::node::{status, up};
use crate::world::{Pod, World, ip, pings, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("a_host_on_the_lan_reaches_no_pod_without_an_agent_either", a_lan_host_reaches_no_pod),
    ("a_host_on_the_lan_poses_as_no_pod_without_an_agent_either", a_lan_host_poses_as_no_pod),
    ("what_is_published_and_what_lan_to_pods_names_is_reached", what_is_published_and_named_is_reached),
    ("a_service_that_a_host_on_the_lan_routes_to_this_host_is_no_published_port", a_routed_service_is_not_published),
    ("a_service_that_ipvs_has_on_this_host_is_no_published_port", a_service_of_ipvs_is_not_published),
    ("a_service_that_is_redirected_to_a_proxy_on_this_host_is_no_published_port", a_proxied_service_is_not_published),
    ("pods_of_a_second_network_are_closed_too", pods_of_a_second_network_are_closed_too),
    ("the_agents_table_takes_the_place_of_the_plugins", the_agents_table_takes_the_place_of_the_plugins),
    ("the_table_before_pods_is_the_one_that_the_documentation_prints", it_is_the_documented_one),
    ("without_the_table_before_pods_none_is_attached_unless_all_may_come", it_is_needed_unless_all_may_come),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];
pub(crate) const HOST: [&str; 2] = ["192.0.2.10", "2001:db8:1::10"];
pub(crate) const NEIGHBOUR: [&str; 2] = ["192.0.2.66", "2001:db8:1::66"];

/// Creates a host on the node's LAN that uses the node as its router.
pub(crate) fn neighbour(world: &World) -> Pod {
    let lan = world.pod();
    world.ip(&format!("link add lan0 type veth peer name eth0 netns {}", lan.netns));
    world.ip("link set lan0 up");
    ip(&lan.netns, "link set eth0 up");
    for (family, length) in [(0, 24), (1, 64)] {
        let nodad = if family == 1 { " nodad" } else { "" };
        world.ip(&format!("addr add {}/{length} dev lan0{nodad}", HOST[family]));
        ip(&lan.netns, &format!("addr add {}/{length} dev eth0{nodad}", NEIGHBOUR[family]));
        ip(&lan.netns, &format!("route add default via {}", HOST[family]));
    }
    lan
}

pub(crate) fn nft(world: &World, arguments: &[&str]) -> String {
    succeed(Command::new("ip").args(["netns", "exec", &world.host, "nft"]).args(arguments))
}

fn tables(world: &World) -> String {
    nft(world, &["list", "tables", "inet"])
}

/// Returns the number of packets that the table has dropped.
pub(crate) fn dropped(world: &World) -> u64 {
    let text = nft(world, &["-j", "list", "table", "inet", "edge-cni-pods"]);
    let listed: Value = serde_json::from_str(&text).unwrap();
    let statements =
        listed["nftables"].as_array().unwrap().iter().filter_map(|object| object["rule"]["expr"].as_array());
    statements.flatten().filter_map(|statement| statement["counter"]["packets"].as_u64()).sum()
}

/// Asserts that packets from the neighbour to each of these addresses are dropped.
pub(crate) fn is_closed(world: &World, lan: &Pod, pod: &[String]) {
    for address in pod {
        let before = dropped(world);
        let ping = ["netns", "exec", &lan.netns, "ping", "-n", "-q", "-c", "1", "-W", "1", address];
        assert!(!Command::new("ip").args(ping).output().unwrap().status.success(), "{address} is reached");
        assert!(dropped(world) > before, "{address} is not reached, but nothing was dropped");
    }
}

pub(crate) fn is_reached(lan: &Pod, pod: &[String]) {
    for address in pod {
        assert!(pings(&lan.netns, address), "{address} is not reached");
    }
}

fn a_lan_host_reaches_no_pod() {
    let world = World::new(DUAL);
    let lan = neighbour(&world);
    let (one, two) = (world.pod(), world.pod());
    let (first, second) = (world.add(&one), world.add(&two));
    is_closed(&world, &lan, &first);
    // Pods reach each other and the host, and answers arrive.
    is_reached(&one, &second);
    for address in &first {
        assert!(pings(&world.host, address));
    }
    for address in NEIGHBOUR {
        assert!(pings(&one.netns, address));
    }
    // If the table is removed, the next pod or `up` restores it.
    nft(&world, &["flush", "ruleset"]);
    is_reached(&lan, &first);
    world.add(&world.pod());
    is_closed(&world, &lan, &first);
    nft(&world, &["delete", "table", "inet", "edge-cni-pods"]);
    assert!(up(&world).ok);
    is_closed(&world, &lan, &first);
    // The table of another release is replaced.
    nft(&world, &["delete", "table", "inet", "edge-cni-pods"]);
    nft(
        &world,
        &["add table inet edge-cni-pods; add set inet edge-cni-pods bridges-v1 { type ifname; elements = { ecni0 }; }"],
    );
    is_reached(&lan, &second);
    world.add(&world.pod());
    is_closed(&world, &lan, &second);
}

fn a_lan_host_poses_as_no_pod() {
    let world = World::new(DUAL);
    let lan = neighbour(&world);
    let pod = world.pod();
    let addresses = world.add(&pod);
    // The kernel's check of source addresses is turned off. IPv6 has no such check.
    for name in ["all", "lan0"] {
        let setting = format!("net.ipv4.conf.{name}.rp_filter=0");
        succeed(Command::new("ip").args(["netns", "exec", &world.host, "sysctl", "-qw", &setting]));
    }
    // The sources are the pod's addresses, free addresses, and the bridge's IPv6 address. In IPv4,
    // the kernel refuses packets with its own address as the source.
    let cases = [
        (addresses[0].as_str(), HOST[0]),
        ("10.77.3.200", HOST[0]),
        (&addresses[1], HOST[1]),
        ("fd77:0:0:3::c8", HOST[1]),
        ("fd77:0:0:3::1", HOST[1]),
    ];
    for (source, to) in cases {
        let length = if to == HOST[0] { "32" } else { "128 nodad" };
        ip(&lan.netns, &format!("addr add {source}/{length} dev eth0"));
    }
    let arrives = || cases.map(|(source, to)| datagram_arrives(&world, &lan, source, to));
    let stays_reachable = || {
        is_reached(&lan, &HOST.map(str::to_owned));
        is_reached(
            &pod,
            &[HOST, ["10.77.3.1", "fd77:0:0:3::1"]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>(),
        );
        assert!(addresses.iter().all(|address| pings(&world.host, address)));
    };
    let before = dropped(&world);
    assert_eq!(arrives(), [false; 5]);
    assert!(dropped(&world) >= before + 5);
    stays_reachable();
    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    world.set("forwardOthers", json!(true));
    assert!(up(&world).ok);
    assert_eq!(arrives(), [true; 5], "under no table of ours");
}

fn what_is_published_and_named_is_reached() {
    let world = World::new(DUAL);
    let lan = neighbour(&world);
    let pod = world.pod();
    let addresses = world.add(&pod);
    for (family, address) in ["ip", "ip6"].into_iter().zip(&addresses) {
        let published = HOST[usize::from(family == "ip6")];
        let rules = format!(
            "add table {family} publish; add chain {family} publish pre {{ type nat hook prerouting priority dstnat; }}; \
             add rule {family} publish pre {family} daddr {published} dnat to {address}"
        );
        nft(&world, &[&rules]);
        // The host itself does not answer at this address.
        ip(&pod.netns, &format!("addr add {}/{} dev lo", published, if family == "ip" { 32 } else { 128 }));
    }
    let before = dropped(&world);
    is_reached(&lan, &HOST.map(str::to_owned));
    assert_eq!(dropped(&world), before);
    is_closed(&world, &lan, &addresses);
    // Other sources are still blocked.
    world.set("lanToPods", json!(["192.0.2.66/32", "2001:db8:2::/48"]));
    assert!(up(&world).ok);
    is_reached(&lan, &addresses[..1]);
    is_closed(&world, &lan, &addresses[1..]);
    // Pods are reachable from the networks that a hub fronts, which are on its LAN.
    let mut segments: Value = serde_json::from_slice(&std::fs::read(world.state("segments.json")).unwrap()).unwrap();
    segments["networks"] = json!(["2001:db8:1::/64"]);
    std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
    assert!(up(&world).ok);
    is_reached(&lan, &addresses);
}

/// Adds kube-proxy's rules for the address of a Service and for the address of its load balancer.
fn redirect(world: &World, addresses: &[String]) {
    for (family, (address, sent_to)) in ["ip", "ip6"]
        .into_iter()
        .zip(addresses.iter().zip(["{ 10.96.0.1, 203.0.113.5 }", "{ fd96::1, 2001:db8:5::5 }"]))
    {
        nft(
            world,
            &[&format!(
                "add table {family} proxy; add chain {family} proxy pre {{ type nat hook prerouting priority dstnat; }}; \
                 add rule {family} proxy pre {family} daddr {sent_to} dnat to {address}"
            )],
        );
    }
}

fn a_routed_service_is_not_published() {
    let world = World::new(DUAL);
    let (lan, client, backend) = (neighbour(&world), world.pod(), world.pod());
    world.add(&client);
    redirect(&world, &world.add(&backend));
    let services = ["10.96.0.1", "fd96::1"].map(str::to_owned);
    let balancers = ["203.0.113.5", "2001:db8:5::5"].map(str::to_owned);
    let pods_alone = || {
        is_closed(&world, &lan, &services);
        // A load balancer's address need not belong to this host.
        is_reached(&lan, &balancers);
        is_reached(&client, &services);
    };
    // No configuration declares these addresses as Services yet.
    is_reached(&lan, &services);
    let read = || serde_json::from_slice::<Value>(&std::fs::read(world.state("segments.json")).unwrap()).unwrap();
    let write = |hub_networks: Value| {
        let mut segments = read();
        segments["hub_networks"] = hub_networks;
        std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
    };
    // After the next boot, the data of the agent's last view applies from the first pod on.
    write(json!(["10.96.0.0/12", "10.96.0.0/16", "fd96::/108"]));
    nft(&world, &["delete", "table", "inet", "edge-cni-pods"]);
    world.add(&world.pod());
    pods_alone();
    write(json!([]));
    assert!(up(&world).ok);
    is_reached(&lan, &services);
    world.set("serviceRanges", json!(["10.96.0.0/12", "fd96::/108"]));
    assert!(up(&world).ok);
    pods_alone();
    world.set("lanToPods", json!(["192.0.2.0/24"]));
    assert!(up(&world).ok);
    is_reached(&lan, &services[..1]);
    is_closed(&world, &lan, &services[1..]);
}

/// IPVS delivers packets for a Service to the host itself, and the Service's address is on a
/// separate link. In this test, the host itself answers.
fn a_service_of_ipvs_is_not_published() {
    let world = World::new(DUAL);
    let (lan, client) = (neighbour(&world), world.pod());
    world.add(&client);
    let services = ["10.96.0.1", "fd96::1"].map(str::to_owned);
    world.ip("link add kube-ipvs0 type bridge");
    world.ip("link set kube-ipvs0 up");
    world.ip("addr add 10.96.0.1/32 dev kube-ipvs0");
    world.ip("addr add fd96::1/128 dev kube-ipvs0 nodad");
    // No configuration declares these addresses as Services yet.
    is_reached(&lan, &services);
    world.set("serviceRanges", json!(["10.96.0.0/12", "fd96::/108"]));
    assert!(up(&world).ok);
    is_closed(&world, &lan, &services);
    is_reached(&client, &services);
    is_reached(&lan, &HOST.map(str::to_owned));
    world.set("lanToPods", json!(["192.0.2.0/24"]));
    assert!(up(&world).ok);
    is_reached(&lan, &services[..1]);
    is_closed(&world, &lan, &services[1..]);
}

/// EdgeMesh and other userspace proxies redirect connections to a Service to a process on the host,
/// which connects to the pod. In this test, the host itself answers.
fn a_proxied_service_is_not_published() {
    let world = World::new(DUAL);
    let (lan, client) = (neighbour(&world), world.pod());
    world.add(&client);
    world.ip("link add edgemesh0 type bridge");
    world.ip("link set edgemesh0 up");
    let proxies = ["169.254.96.16", "fd96:ffff::16"].map(str::to_owned);
    world.ip("addr add 169.254.96.16/32 dev edgemesh0");
    world.ip("addr add fd96:ffff::16/128 dev edgemesh0 nodad");
    redirect(&world, &proxies);
    let services = ["10.96.0.1", "fd96::1"].map(str::to_owned);
    let balancers = ["203.0.113.5", "2001:db8:5::5"].map(str::to_owned);
    // A process on the host calls a Service with an endpoint outside of the cluster, such as the
    // API server.
    let outside = ["10.96.0.9", "fd96::9"].map(str::to_owned);
    for ((family, service), to) in ["ip", "ip6"].into_iter().zip(&outside).zip(NEIGHBOUR) {
        nft(
            &world,
            &[&format!(
                "add chain {family} proxy out {{ type nat hook output priority -100; }}; add rule {family} proxy out {family} daddr {service} dnat to {to}"
            )],
        );
    }
    world.ip(&format!("route add 10.96.0.0/12 via {}", NEIGHBOUR[0]));
    world.ip(&format!("-6 route add fd96::/108 via {}", NEIGHBOUR[1]));
    let by_the_host = || outside.iter().all(|service| pings(&world.host, service));
    // No configuration declares these addresses as Services yet.
    is_reached(&lan, &services);
    assert!(by_the_host());
    world.set("serviceRanges", json!(["10.96.0.0/12", "fd96::/108"]));
    assert!(up(&world).ok);
    is_closed(&world, &lan, &services);
    is_reached(&client, &services);
    is_reached(&lan, &balancers);
    is_reached(&lan, &HOST.map(str::to_owned));
    assert!(by_the_host());
    world.set("lanToPods", json!(["192.0.2.0/24"]));
    assert!(up(&world).ok);
    is_reached(&lan, &services[..1]);
    is_closed(&world, &lan, &services[1..]);
}

fn pods_of_a_second_network_are_closed_too() {
    let world = World::new(DUAL);
    let lan = neighbour(&world);
    let one = world.pod();
    let first = world.add(&one);
    world.set("name", json!("others"));
    world.set("bridge", json!("others0"));
    world.set("segments", json!(["10.77.4.0/24", "fd77:0:0:4::/120"]));
    let two = world.pod();
    let second = world.add(&two);
    is_closed(&world, &lan, &[first, second].concat());
    assert!(nft(&world, &["list", "set", "inet", "edge-cni-pods", "bridges-v3"]).contains("\"others0\""));
}

fn the_agents_table_takes_the_place_of_the_plugins() {
    let world = World::new(DUAL);
    nft(&world, &["add", "table", "inet", "edge-cni"]);
    world.add(&world.pod());
    assert!(!tables(&world).contains("edge-cni-pods"), "{}", tables(&world));
    nft(&world, &["delete", "table", "inet", "edge-cni"]);
    world.add(&world.pod());
    assert!(tables(&world).contains("edge-cni-pods"));
    nft(&world, &["add", "table", "inet", "edge-cni"]);
    assert!(up(&world).ok);
    assert!(!tables(&world).contains("edge-cni-pods"), "{}", tables(&world));
    // `edge-agent down` runs this command before it removes the agent's table.
    let file = world.folder.path().join("plugin.json");
    let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni"), "ingress", file.to_str().unwrap()];
    assert_eq!(succeed(Command::new("ip").args(program)), "{\"table\":true}\n");
    assert!(tables(&world).contains("edge-cni-pods"));
    nft(&world, &["delete", "table", "inet", "edge-cni"]);
    // On a host that may forward, no table is necessary without a bridge.
    world.ip("link del ecni0");
    assert_eq!(succeed(Command::new("ip").args(program)), "{\"table\":true}\n");
    world.set("forwardOthers", json!(true));
    std::fs::write(&file, world.config.borrow().to_string()).unwrap();
    assert_eq!(succeed(Command::new("ip").args(program)), "{\"table\":false}\n");
    assert!(!tables(&world).contains("edge-cni-pods"), "{}", tables(&world));
}

fn it_is_the_documented_one() {
    let world = World::new(DUAL);
    world.forward(false);
    assert!(up(&world).ok);
    let document = include_str!("../../../docs/cni.md");
    let printed = document.split("```nft\n").find(|block| block.starts_with("table inet edge-cni-pods")).unwrap();
    let printed = printed.split("```").next().unwrap();
    // Returns one statement per line. The order of the elements of a set is ignored.
    let statements = |text: &str| {
        let text = text.replace("counter packets 0 bytes 0", "counter").replace("priority -150", "priority mangle");
        let mut lines: Vec<String> = Vec::new();
        for line in text.replace(",\n", ", ").lines() {
            let mut words: Vec<&str> = line.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
            if words.first() == Some(&"elements") {
                words.sort_unstable();
            }
            lines.extend((!words.is_empty()).then(|| words.join(" ")));
        }
        lines
    };
    assert_eq!(statements(&nft(&world, &["list", "table", "inet", "edge-cni-pods"])), statements(printed));
}

fn it_is_needed_unless_all_may_come() {
    let world = World::new(DUAL);
    let lan = neighbour(&world);
    // Another program owns the table, so no other process may change it.
    let mut owner = crate::filter_table::nft_session(&world, "add table inet edge-cni-pods { flags owner; }\n");
    wait_for("the other's table", || tables(&world).contains("edge-cni-pods"));
    let message = world.add_fails(&world.pod(), 107);
    assert!(message.contains("table inet edge-cni-pods"), "{message}");
    assert_eq!(status(&world).json["code"], 50);
    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    world.add_fails(&world.pod(), 107);
    assert_eq!(status(&world).json["code"], 50);
    world.set("forwardOthers", json!(true));
    assert!(status(&world).ok);
    let addresses = world.add(&world.pod());
    is_reached(&lan, &addresses);
    drop(owner.stdin.take());
    owner.wait().unwrap();
    assert!(up(&world).ok);
    is_reached(&lan, &addresses);
}
