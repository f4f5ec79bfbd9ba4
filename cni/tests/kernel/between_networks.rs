//! Tests that a host that forwards only for its pods does not route between its other networks,
//! even if only the plugin is installed.

use interop_tests::suite::Test;
use serde_json::{Value, json};

use crate::ingress::{is_closed, is_reached, nft};
use crate::node::up;
use crate::world::{Pod, World, ip};

pub(crate) const TESTS: &[Test] = &[
    ("a_host_that_forwards_for_pods_alone_is_no_router_between_its_networks", it_is_no_router),
    ("containers_of_others_reach_outside_and_hosts_of_the_lan_reach_what_they_publish_alone", containers_of_others),
    ("bridges_of_containers_go_on_forwarding_and_those_that_hold_hardware_do_not", bridges_are_told_apart),
    ("forwarding_that_the_plugin_turns_on_later_makes_no_router_either", a_second_family_is_isolated_too),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

/// A host on another network of the node, which uses the node as its router. The node's link is a
/// macvlan, since a veth may belong to a container.
struct Neighbour {
    host: Pod,
    addresses: [String; 2],
}

fn neighbour(world: &World, number: u8) -> Neighbour {
    let host = world.pod();
    let link = network_card(world, number, &host);
    connect(world, &link, &host, number)
}

/// Creates a link of the node that leads to the host's `eth0`.
fn network_card(world: &World, number: u8, host: &Pod) -> String {
    let (below, link) = (format!("below{number}"), format!("lan{number}"));
    world.ip(&format!("link add {below} type veth peer name eth0 netns {}", host.netns));
    // This link must not answer ARP requests for the address of the link above it.
    world.ip(&format!("link set {below} up arp off"));
    world.ip(&format!("link add link {below} name {link} type macvlan mode bridge"));
    link
}

/// Sets the addresses of both ends, and configures the node as the host's router.
fn connect(world: &World, link: &str, host: &Pod, number: u8) -> Neighbour {
    world.ip(&format!("link set {link} up"));
    ip(&host.netns, "link set eth0 up");
    for (network, length, nodad) in
        [(format!("192.0.{number}."), 24, ""), (format!("2001:db8:{number}::"), 64, " nodad")]
    {
        world.ip(&format!("addr add {network}1/{length} dev {link}{nodad}"));
        ip(&host.netns, &format!("addr add {network}2/{length} dev eth0{nodad}"));
        ip(&host.netns, &format!("route add default via {network}1"));
    }
    Neighbour { host: host.clone(), addresses: [format!("192.0.{number}.2"), format!("2001:db8:{number}::2")] }
}

fn it_is_no_router() {
    let world = World::new(DUAL);
    world.forward(false);
    let (one, two) = (neighbour(&world, 1), neighbour(&world, 2));
    let pod = world.pod();
    let addresses = world.add(&pod);
    assert_eq!(world.forwards(), ["1", "1"]);
    is_closed(&world, &one.host, &two.addresses);
    is_closed(&world, &two.host, &one.addresses);
    // Pods reach both networks, and the rules also apply to a link that is added later.
    is_reached(&pod, &one.addresses);
    is_reached(&pod, &two.addresses);
    let three = neighbour(&world, 3);
    is_closed(&world, &one.host, &three.addresses);
    is_closed(&world, &three.host, &one.addresses);
    // A port that is published on one network is reachable from the other network.
    nft(
        &world,
        &["add table ip publish; add chain ip publish pre { type nat hook prerouting priority dstnat; }; \
           add rule ip publish pre ip daddr 192.0.1.1 icmp type echo-request dnat to 192.0.2.2"],
    );
    is_reached(&one.host, &["192.0.1.1".to_owned()]);
    nft(&world, &["delete", "table", "ip", "publish"]);
    // A setting that allows sources to reach pods does not turn routing on.
    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    assert!(up(&world).ok);
    is_reached(&one.host, &addresses);
    is_closed(&world, &one.host, &two.addresses);
    // Another process finds the record, even after the table was removed.
    nft(&world, &["flush", "ruleset"]);
    is_reached(&one.host, &two.addresses);
    world.add(&world.pod());
    is_closed(&world, &one.host, &two.addresses);
    world.set("forwardOthers", json!(true));
    assert!(up(&world).ok);
    is_reached(&one.host, &two.addresses);

    // A host that was a router stays a router.
    let world = World::new(DUAL);
    world.forward(true);
    let (one, two) = (neighbour(&world, 1), neighbour(&world, 2));
    world.add(&world.pod());
    is_reached(&one.host, &two.addresses);
}

/// Creates a container on a separate bridge, as Docker does.
fn container(world: &World, bridge: &str, number: u8) -> Neighbour {
    let host = world.pod();
    let port = format!("veth{number}");
    world.ip(&format!("link add {bridge} type bridge"));
    world.ip(&format!("link add {port} type veth peer name eth0 netns {}", host.netns));
    world.ip(&format!("link set {port} up master {bridge}"));
    connect(world, bridge, &host, number)
}

/// Docker blocks access from other hosts to its containers only if Docker turned forwarding on.
fn containers_of_others() {
    let world = World::new(DUAL);
    world.forward(false);
    let lan = neighbour(&world, 1);
    let pod = world.pod();
    world.add(&pod);
    // These containers are added after the table was created.
    let (one, two) = (container(&world, "docker0", 2), container(&world, "virbr0", 4));
    is_closed(&world, &lan.host, &one.addresses);
    is_closed(&world, &lan.host, &two.addresses);
    is_reached(&one.host, &lan.addresses);
    is_reached(&one.host, &two.addresses);
    is_reached(&two.host, &one.addresses);
    is_reached(&pod, &one.addresses);
    for (family, published, to) in [("ip", "192.0.1.1", &one.addresses[0]), ("ip6", "2001:db8:1::1", &one.addresses[1])]
    {
        let rules = format!(
            "add table {family} docker; add chain {family} docker pre {{ type nat hook prerouting priority dstnat; }}; \
             add rule {family} docker pre {family} daddr {published} meta l4proto {{ icmp, ipv6-icmp }} dnat to {to}"
        );
        nft(&world, &[&rules]);
        if family == "ip6" {
            // Neighbour discovery is not redirected.
            nft(&world, &["insert", "rule", "ip6", "docker", "pre", "icmpv6", "type", "!=", "echo-request", "accept"]);
        }
        is_reached(&lan.host, &[published.to_owned()]);
        nft(&world, &["delete", "table", family, "docker"]);
    }
    // The pods belong to another CNI, on a node with the cloud's networks.
    let mut segments: Value = serde_json::from_slice(&std::fs::read(world.state("segments.json")).unwrap()).unwrap();
    segments["networks"] = json!(["192.0.2.0/24", "2001:db8:2::/64"]);
    std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
    assert!(up(&world).ok);
    is_reached(&lan.host, &one.addresses);
    is_closed(&world, &lan.host, &two.addresses);
    world.set("forwardOthers", json!(true));
    assert!(up(&world).ok);
    is_reached(&lan.host, &two.addresses);

    // Forwarding was on before the first pod.
    let world = World::new(DUAL);
    world.forward(true);
    let lan = neighbour(&world, 1);
    world.add(&world.pod());
    let container = container(&world, "docker0", 2);
    is_reached(&lan.host, &container.addresses);
}

fn bridges_are_told_apart() {
    let world = World::new(DUAL);
    world.forward(false);
    let lan = neighbour(&world, 1);
    world.add(&world.pod());
    let container = container(&world, "docker0", 2);
    is_reached(&container.host, &lan.addresses);
    is_closed(&world, &lan.host, &container.addresses);
    // A network card becomes a port of a bridge.
    let other = world.pod();
    let card = network_card(&world, 3, &other);
    world.ip("link add br-lan type bridge");
    world.ip(&format!("link set {card} up master br-lan"));
    let other = connect(&world, "br-lan", &other, 3);
    assert!(up(&world).ok);
    is_closed(&world, &lan.host, &other.addresses);
    is_closed(&world, &other.host, &lan.addresses);
    is_closed(&world, &other.host, &container.addresses);
    is_reached(&container.host, &other.addresses);
    is_reached(&container.host, &lan.addresses);
}

fn a_second_family_is_isolated_too() {
    let world = World::new(&DUAL[..1]);
    world.forward(false);
    let (one, two) = (neighbour(&world, 1), neighbour(&world, 2));
    world.add(&world.pod());
    assert_eq!(world.forwards(), ["1", "0"]);
    is_closed(&world, &one.host, &two.addresses[..1]);
    let mut segments: Value = serde_json::from_slice(&std::fs::read(world.state("segments.json")).unwrap()).unwrap();
    segments["segments"] = json!(DUAL);
    std::fs::write(world.state("segments.json"), segments.to_string()).unwrap();
    world.add(&world.pod());
    assert_eq!(world.forwards(), ["1", "1"]);
    is_closed(&world, &one.host, &two.addresses);
    // Forwarding that the operator has turned on, here for IPv6, does not count as turned on for
    // pods.
    let world = World::new(&DUAL[..1]);
    world.forward(false);
    let (one, two) = (neighbour(&world, 1), neighbour(&world, 2));
    world.add(&world.pod());
    world.forward(true);
    is_closed(&world, &one.host, &two.addresses[..1]);
    is_reached(&one.host, &two.addresses[1..]);
}
