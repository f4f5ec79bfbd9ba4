//! What a pod may send, and what it may not: each attack is seen to succeed from a pod that the
//! operator has excepted, and to fail from any other.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use serde_json::json;

use crate::frames::{self, BROADCAST, Mac, Wire, arp, discovery, ethernet, ipv4, ipv6, neighbour, udp};
use crate::host::status;
use crate::world::{Pod, World, addresses, ip, pings, wait_for};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_sends_as_nobody_else_unless_the_operator_says_so", a_pod_sends_as_nobody_else_unless_the_operator_says_so),
    ("a_pod_takes_over_no_neighbours_address", a_pod_takes_over_no_neighbours_address),
    ("invented_mac_addresses_are_not_learned", invented_mac_addresses_are_not_learned),
    ("a_pods_router_advertisements_change_no_routes", a_pods_router_advertisements_change_no_routes),
    ("the_filter_is_the_one_that_the_documentation_prints", the_filter_is_the_one_that_the_documentation_prints),
    ("a_lost_filter_comes_back_with_every_pod", a_lost_filter_comes_back_with_every_pod),
    ("a_filter_of_another_version_is_replaced", a_filter_of_another_version_is_replaced),
    ("without_the_filter_no_pod_is_attached_unless_excepted", without_the_filter_no_pod_is_attached_unless_excepted),
    ("adds_at_once_make_one_filter", adds_at_once_make_one_filter),
    ("a_pod_that_goes_leaves_nothing_in_the_filter", a_pod_that_goes_leaves_nothing_in_the_filter),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

/// A pod with what was leased to it.
pub(crate) struct Attached {
    pub(crate) pod: Pod,
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) link_local: Ipv6Addr,
}

pub(crate) fn attach(world: &World) -> Attached {
    let pod = world.pod();
    let answer = world.verb("ADD", &pod);
    assert!(answer.ok, "{}", answer.json);
    let mac = frames::mac(answer.json["interfaces"][2]["mac"].as_str().unwrap());
    let (mut v4, mut v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    for address in addresses(&answer.json) {
        match address.parse().unwrap() {
            IpAddr::V4(address) => v4 = address,
            IpAddr::V6(address) => v6 = address,
        }
    }
    let [a, b, c, d, e, f] = mac;
    let link_local = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Attached { pod, mac, v4, v6, link_local }
}

/// Lets a pod that is attached next send what it likes.
fn except(world: &World, excepted: bool) {
    world.set("unfilteredPods", if excepted { json!(["default/web-*"]) } else { json!([]) });
}

fn a_pod_sends_as_nobody_else_unless_the_operator_says_so() {
    let world = World::new(DUAL);
    // Without this key there is connection tracking, which waits for the rest of a fragment.
    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    let (neighbour_pod, victim) = (attach(&world), attach(&world));
    let mut tap = Wire::open(&victim.pod.netns, "eth0");
    for excepted in [true, false] {
        except(&world, excepted);
        let own = attach(&world);
        let mut wire = Wire::open(&own.pod.netns, "eth0");
        for (number, (name, frame)) in honest(&own, &victim).into_iter().enumerate() {
            let marker = marker(&own, &victim, number as u16);
            wire.send(&frame);
            wire.send(&marker);
            assert!(tap.until(&marker).contains(&frame), "{name} did not arrive, excepted: {excepted}");
        }
        for (number, (name, frame)) in attacks(&own, &victim, &neighbour_pod).into_iter().enumerate() {
            let marker = marker(&own, &victim, number as u16);
            wire.send(&frame);
            wire.send(&marker);
            assert_eq!(tap.until(&marker).contains(&untagged(frame)), excepted, "{name}, excepted: {excepted}");
        }
        world.del(&own.pod);
    }
}

/// A frame as a packet socket shows it: with a VLAN's tag beside it.
fn untagged(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [0x81, 0] {
        frame.drain(12..16);
    }
    frame
}

/// A frame that every pod may send, each different.
fn marker(own: &Attached, victim: &Attached, number: u16) -> Vec<u8> {
    ipv4(victim.mac, own.mac, 17, (own.v4, victim.v4), &udp(4000, number, b"marker"))
}

fn honest(own: &Attached, victim: &Attached) -> Vec<(&'static str, Vec<u8>)> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let nowhere = Ipv6Addr::UNSPECIFIED;
    let fragment = frames::last_fragment(ipv4(victim.mac, own.mac, 17, (own.v4, victim.v4), &[7; 64]));
    vec![
        ("ARP request", arp(own.mac, 1, (own.mac, own.v4), victim.v4)),
        ("ARP reply", arp(own.mac, 2, (own.mac, own.v4), victim.v4)),
        ("ARP probe", arp(own.mac, 1, (own.mac, Ipv4Addr::UNSPECIFIED), own.v4)),
        ("broadcast", ipv4(BROADCAST, own.mac, 17, (own.v4, Ipv4Addr::BROADCAST), &udp(68, 67, b""))),
        ("fragment", fragment),
        ("IPv6", ipv6(victim.mac, own.mac, 17, (own.v6, victim.v6), &udp(4000, 4000, b"six"))),
        ("IPv6 link-local", ipv6(victim.mac, own.mac, 17, (own.link_local, all_nodes), &udp(4000, 4001, b"six"))),
        ("solicitation", discovery(own.mac, own.v6, 135, &neighbour(0, victim.v6, 1, own.mac))),
        ("advertisement", discovery(own.mac, own.v6, 136, &neighbour(0x20, own.v6, 2, own.mac))),
        ("advertisement of the link-local address", {
            discovery(own.mac, own.link_local, 136, &neighbour(0x20, own.link_local, 2, own.mac))
        }),
        ("duplicate address detection", discovery(own.mac, nowhere, 135, &neighbour(0, own.v6, 1, own.mac))),
        ("report of a group", discovery(own.mac, nowhere, 143, &[0; 4])),
    ]
}

fn attacks(own: &Attached, victim: &Attached, other: &Attached) -> Vec<(&'static str, Vec<u8>)> {
    let gateway4: Ipv4Addr = "10.77.3.1".parse().unwrap();
    let gateway6: Ipv6Addr = "fd77:0:0:3::1".parse().unwrap();
    let (remote4, remote6) = ("10.77.99.7".parse().unwrap(), "fd77:0:0:99::7".parse().unwrap());
    let (outside4, outside6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let nowhere = Ipv6Addr::UNSPECIFIED;
    let v4 = |from: Mac, source, content: &[u8]| ipv4(victim.mac, from, 17, (source, victim.v4), content);
    let v6 = |source, content: &[u8]| ipv6(victim.mac, own.mac, 17, (source, victim.v6), content);
    let data = udp(4000, 4000, b"forged");
    let advertise = |source, target| discovery(own.mac, source, 136, &neighbour(0xa0, target, 2, own.mac));
    // Behind a header of hop-by-hop options (RFC 8200 4.3) with padding.
    let hidden = {
        let addresses = (own.link_local, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
        let message = frames::icmpv6(addresses, 134, &frames::router(1800));
        let content = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &message].concat();
        ipv6([0x33, 0x33, 0, 0, 0, 1], own.mac, 0, addresses, &content)
    };
    let tagged = {
        let inner = v4(own.mac, own.v4, &data);
        [&inner[..12], &[0x81, 0, 0, 5], &inner[12..]].concat()
    };
    let wrong_arp = |place: usize, value: u8| {
        let mut frame = arp(own.mac, 2, (own.mac, own.v4), victim.v4);
        frame[14 + place] = value;
        frame
    };
    let group = |last| ethernet([1, 0x80, 0xc2, 0, 0, last], other.mac, 0x88cc, &[0; 50]);
    vec![
        ("ARP reply for the gateway", arp(own.mac, 2, (own.mac, gateway4), victim.v4)),
        ("ARP request as the gateway", arp(own.mac, 1, (own.mac, gateway4), victim.v4)),
        ("ARP reply for a neighbour", arp(own.mac, 2, (own.mac, other.v4), victim.v4)),
        ("ARP announcement of a neighbour's address", arp(own.mac, 1, (own.mac, other.v4), other.v4)),
        ("ARP with another's MAC address within", arp(own.mac, 2, (other.mac, own.v4), victim.v4)),
        ("ARP from another's MAC address", arp(other.mac, 2, (own.mac, own.v4), victim.v4)),
        ("ARP probe for a neighbour's address", arp(own.mac, 1, (own.mac, Ipv4Addr::UNSPECIFIED), other.v4)),
        ("ARP of another hardware", wrong_arp(1, 6)),
        ("ARP of another protocol", wrong_arp(2, 9)),
        ("ARP with long addresses", wrong_arp(4, 8)),
        ("a neighbour's MAC address", v4(other.mac, own.v4, &data)),
        ("an invented MAC address", v4([2, 1, 2, 3, 4, 5], own.v4, &data)),
        ("a neighbour's MAC and IPv4 address", v4(other.mac, other.v4, &data)),
        ("a neighbour's IPv4 address", v4(own.mac, other.v4, &data)),
        ("a remote pod's IPv4 address", v4(own.mac, remote4, &data)),
        ("the gateway's IPv4 address", v4(own.mac, gateway4, &data)),
        ("an IPv4 address of the outside", v4(own.mac, outside4, &data)),
        ("no IPv4 address", v4(own.mac, Ipv4Addr::UNSPECIFIED, &data)),
        ("a neighbour's IPv6 address", v6(other.v6, &data)),
        ("a neighbour's link-local address", v6(other.link_local, &data)),
        ("a remote pod's IPv6 address", v6(remote6, &data)),
        ("the gateway's IPv6 address", v6(gateway6, &data)),
        ("an IPv6 address of the outside", v6(outside6, &data)),
        ("no IPv6 address", v6(nowhere, &data)),
        ("advertisement of the gateway", advertise(own.link_local, gateway6)),
        ("advertisement of a neighbour", advertise(own.v6, other.v6)),
        ("advertisement of a neighbour's link-local address", advertise(own.v6, other.link_local)),
        ("solicitation as a neighbour", discovery(own.mac, other.v6, 135, &neighbour(0, victim.v6, 1, own.mac))),
        ("a neighbour's duplicate address", discovery(own.mac, nowhere, 135, &neighbour(0, other.v6, 1, own.mac))),
        ("router advertisement", discovery(own.mac, own.link_local, 134, &frames::router(1800))),
        ("router advertisement behind options", hidden),
        ("redirect", discovery(own.mac, own.link_local, 137, &[0; 36])),
        ("MLD query", discovery(own.mac, own.link_local, 130, &[0; 24])),
        ("IGMP query", {
            let all: Ipv4Addr = "224.0.0.1".parse().unwrap();
            ipv4([1, 0, 0x5e, 0, 0, 1], own.mac, 2, (own.v4, all), &[0x11, 0, 0xee, 0xff, 0, 0, 0, 0])
        }),
        ("DHCP offer", v4(own.mac, own.v4, &udp(67, 68, &[2; 240]))),
        ("DHCPv6 answer", v6(own.link_local, &udp(547, 546, &[2; 20]))),
        ("tagged frame", tagged),
        ("another ethertype", ethernet(BROADCAST, own.mac, 0x88b5, &[0; 50])),
        ("LLDP from another's MAC address", group(0x0e)),
        ("802.1X from another's MAC address", group(3)),
    ]
}

fn a_pod_takes_over_no_neighbours_address() {
    for excepted in [true, false] {
        let world = World::new(DUAL);
        let (other, victim) = (attach(&world), attach(&world));
        except(&world, excepted);
        let own = attach(&world);
        let (v4, v6) = (other.v4.to_string(), other.v6.to_string());
        assert!(pings(&victim.pod.netns, &v4) && pings(&victim.pod.netns, &v6));
        let mut tap = Wire::open(&victim.pod.netns, "eth0");
        let mut wire = Wire::open(&own.pod.netns, "eth0");
        // As an announcement: a neighbour that was heard just now is not replaced by any other
        // reply.
        wire.send(&arp(own.mac, 1, (own.mac, other.v4), other.v4));
        wire.send(&discovery(own.mac, own.v6, 136, &neighbour(0xa0, other.v6, 2, own.mac)));
        // The bridge would send a neighbour's frames to us.
        wire.send(&ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], other.mac, 0x88cc, &[0; 50]));
        wire.send(&ethernet([1, 0x80, 0xc2, 0, 0, 3], other.mac, 0x888e, &[0; 50]));
        wire.send(&marker(&own, &victim, 9));
        tap.until(&marker(&own, &victim, 9));
        let text = |mac: Mac| mac.map(|octet| format!("{octet:02x}")).join(":");
        let right = text(if excepted { own.mac } else { other.mac });
        for address in [&v4, &v6] {
            let entry = ip(&victim.pod.netns, &format!("neigh show {address}"));
            assert!(entry.contains(&right), "excepted: {excepted}: {entry}");
        }
        let port = |name: &str| fdb(&world).lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
        let (own_port, other_port) = (port(&text(own.mac)), port(&text(other.mac)));
        let device = |line: &str| line.split(" dev ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        assert_eq!(device(&own_port) == device(&other_port), excepted, "{own_port} {other_port}");
        if !excepted {
            assert!(pings(&victim.pod.netns, &v4) && pings(&victim.pod.netns, &v6));
        }
    }
}

fn fdb(world: &World) -> String {
    succeed(Command::new("bridge").args(["-n", &world.host, "fdb", "show", "br", "ecni0"]))
}

fn invented_mac_addresses_are_not_learned() {
    const INVENTED: u32 = 20_000;
    let world = World::new(DUAL);
    let victim = attach(&world);
    // Kernels from 6.8 on.
    let limited = world.ip("-d link show ecni0").contains("fdb_max_learned 4096");
    let limit = if limited { 4096 } else { INVENTED as usize + 10 };
    for excepted in [true, false] {
        except(&world, excepted);
        let own = attach(&world);
        let mut tap = Wire::open(&victim.pod.netns, "eth0");
        let mut wire = Wire::open(&own.pod.netns, "eth0");
        let before = fdb(&world).lines().count();
        for number in 0..INVENTED {
            let [_, a, b, c] = number.to_be_bytes();
            let from = [2, 0x77, u8::from(excepted), a, b, c];
            // To nobody but the bridge: half of them as IP, half as LLDP, which bridges learn from,
            // too.
            let frame = match number % 2 {
                0 => ipv4(BROADCAST, from, 17, (own.v4, victim.v4), &udp(1, 9, b"")),
                _ => ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], from, 0x88cc, &[0; 50]),
            };
            wire.send(&frame);
        }
        let marker = marker(&own, &victim, 7);
        wire.send(&marker);
        tap.until(&marker);
        let learned = fdb(&world).lines().count().saturating_sub(before);
        assert!(
            if excepted { (1000..=limit).contains(&learned) } else { learned < 10 },
            "{learned} learned, excepted: {excepted}"
        );
        world.del(&own.pod);
    }
}

fn a_pods_router_advertisements_change_no_routes() {
    for segments in [&DUAL[..1], DUAL] {
        let world = World::new(segments);
        let victim = attach(&world);
        // Even one that gets past the filter is heeded by nobody.
        except(&world, true);
        let own = attach(&world);
        ip(&own.pod.netns, "link set eth0 up");
        let routes = || [ip(&victim.pod.netns, "-6 route"), world.ip("-6 route"), world.ip("-6 addr show dev ecni0")];
        let before = routes();
        let mut tap = Wire::open(&victim.pod.netns, "eth0");
        let mut bridge = Wire::open(&world.host, "ecni0");
        let mut wire = Wire::open(&own.pod.netns, "eth0");
        let advertisement = discovery(own.mac, own.link_local, 134, &frames::router(1800));
        for number in 0..3 {
            wire.send(&advertisement);
            let marker = arp(own.mac, 1, (own.mac, own.v4), Ipv4Addr::new(10, 77, 3, 100 + number));
            wire.send(&marker);
            assert!(tap.until(&marker).contains(&advertisement));
            assert!(bridge.until(&marker).contains(&advertisement));
        }
        // The kernel is done with it once it answers what came later.
        assert!(pings(&own.pod.netns, &victim.v4.to_string()) && pings(&own.pod.netns, "10.77.3.1"));
        let without_lifetime = |text: &String| text.replace(" expires", "\n expires");
        assert_eq!(before.each_ref().map(without_lifetime), routes().each_ref().map(without_lifetime));
        assert!(!ip(&victim.pod.netns, "-6 addr").contains("2001:db8:bad"));
    }
}

pub(crate) fn table(world: &World) -> String {
    let nft = ["netns", "exec", &world.host, "nft", "list", "table", "bridge", "edge-cni"];
    let output = Command::new("ip").args(nft).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn nft(world: &World, arguments: &[&str]) {
    succeed(Command::new("ip").args(["netns", "exec", &world.host, "nft"]).args(arguments));
}

fn the_filter_is_the_one_that_the_documentation_prints() {
    let world = World::new(DUAL);
    let pod = attach(&world);
    world.del(&pod.pod);
    let document = include_str!("../../../docs/cni.md");
    let printed = document.split("```nft\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a table");
    let words = |text: &str| {
        let text = text.replace("counter packets 0 bytes 0", "counter");
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>()
    };
    assert_eq!(words(&table(&world)), words(printed));
    // People save their rules so and load them at boot.
    let file = world.folder.path().join("saved.nft");
    std::fs::write(&file, table(&world)).unwrap();
    nft(&world, &["delete", "table", "bridge", "edge-cni"]);
    nft(&world, &["-f", file.to_str().unwrap()]);
    assert_eq!(words(&table(&world)), words(printed));
    let pods = [attach(&world), attach(&world)];
    assert!(pings(&pods[0].pod.netns, &pods[1].v4.to_string()) && pings(&pods[0].pod.netns, &pods[1].v6.to_string()));
}

pub(crate) fn up(world: &World) {
    let path = world.folder.path().join("plugin.json");
    std::fs::write(&path, world.config.borrow().to_string()).unwrap();
    let program = ["netns", "exec", &world.host, env!("CARGO_BIN_EXE_edge-cni"), "up", path.to_str().unwrap()];
    succeed(Command::new("ip").args(program));
}

/// Whether pods reach each other in both families, and none as another.
pub(crate) fn stands(pods: &[&Attached]) {
    for (from, to) in pods.iter().zip(pods.iter().cycle().skip(1)) {
        // Whatever was learned before says nothing.
        ip(&from.pod.netns, "neigh flush all");
        assert!(pings(&from.pod.netns, &to.v4.to_string()) && pings(&from.pod.netns, &to.v6.to_string()));
        let mut tap = Wire::open(&to.pod.netns, "eth0");
        let mut wire = Wire::open(&from.pod.netns, "eth0");
        let forged = arp(from.mac, 2, (from.mac, "10.77.3.1".parse().unwrap()), to.v4);
        wire.send(&forged);
        wire.send(&marker(from, to, 3));
        assert!(!tap.until(&marker(from, to, 3)).contains(&forged));
    }
}

fn a_lost_filter_comes_back_with_every_pod() {
    let world = World::new(DUAL);
    let mut pods = vec![attach(&world), attach(&world)];
    stands(&pods.iter().collect::<Vec<_>>());
    nft(&world, &["flush", "ruleset"]);
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    // Also by the next pod, and where only elements are gone.
    nft(&world, &["flush", "ruleset"]);
    pods.push(attach(&world));
    stands(&pods.iter().collect::<Vec<_>>());
    nft(&world, &["flush", "chain", "bridge", "edge-cni", "pod"]);
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    nft(&world, &["flush", "set", "bridge", "edge-cni", "macs"]);
    assert!(!pings(&pods[0].pod.netns, "10.77.3.1"), "what the filter does not know may not send");
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    // A pod of an earlier release has the addresses that the kernel chose.
    let old = &mut pods[0];
    let port = host_end(&world, &old.pod);
    world.ip(&format!("link set {port} address 72:01:02:03:04:05"));
    ip(&old.pod.netns, "link set eth0 address 72:0a:0b:0c:0d:0e");
    old.mac = frames::mac("72:0a:0b:0c:0d:0e");
    succeed(Command::new("bridge").args(["-n", &world.host, "link", "set", "dev", &port, "hairpin", "off"]));
    world.ip(&format!("link set {port} type bridge_slave group_fwd_mask 0"));
    nft(&world, &["flush", "ruleset"]);
    up(&world);
    stands(&pods.iter().collect::<Vec<_>>());
    let shown = world.ip(&format!("-d link show {port}"));
    assert!(shown.contains("hairpin on") && shown.contains("group_fwd_mask 0xfffd"), "{shown}");
    // One of ours does not become another by giving itself an address before the filter is made
    // again.
    let [a, b, c, d, e, f] = pods[2].mac;
    ip(&pods[1].pod.netns, &format!("link set eth0 address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
    nft(&world, &["flush", "ruleset"]);
    up(&world);
    assert!(!pings(&pods[1].pod.netns, "10.77.3.1"));
}

pub(crate) fn host_end(world: &World, pod: &Pod) -> String {
    let all = world.ip("-o link show type veth");
    let line = all.lines().find(|line| line.contains(&format!("alias edge-cni {} eth0", pod.id))).unwrap();
    line.split([' ', '@']).nth(1).unwrap().to_owned()
}

fn a_filter_of_another_version_is_replaced() {
    let world = World::new(DUAL);
    let pods = [attach(&world), attach(&world)];
    nft(&world, &["flush", "ruleset"]);
    nft(&world, &["add table bridge edge-cni { set macs { type ifname . ether_addr; }; chain old { }; }"]);
    let third = attach(&world);
    assert!(!table(&world).contains("chain old"));
    stands(&[&pods[0], &pods[1], &third]);
}

fn without_the_filter_no_pod_is_attached_unless_excepted() {
    let world = World::new(DUAL);
    // STATUS tries what a pod would need, and leaves nothing of it.
    let answer = status(&world);
    assert!(answer.ok && table(&world).is_empty(), "{} {}", answer.json, table(&world));
    // Another program owns a table of this name: the kernel lets nobody else change it
    // (NFT_TABLE_F_OWNER, 5.12).
    let mut owner = nft_session(&world, "add table bridge edge-cni { flags owner; }\n");
    wait_for("the other's table", || table(&world).contains("edge-cni"));
    let pod = world.pod();
    let message = world.add_fails(&pod, 107);
    assert!(message.contains("table bridge edge-cni"), "{message}");
    let message = status_fails(&world);
    assert!(message.contains("table bridge edge-cni"), "{message}");
    // Some of the pods are excepted; the next may be another.
    except(&world, true);
    status_fails(&world);
    world.set("unfilteredPods", json!(["*"]));
    let answer = status(&world);
    assert!(answer.ok, "{}", answer.json);
    except(&world, true);
    let answer = world.verb("ADD", &pod);
    assert!(answer.ok && answer.said.contains("without a filter"), "{} {}", answer.json, answer.said);
    // Nothing would keep its broadcasts from coming back.
    let port = host_end(&world, &pod);
    assert!(world.ip(&format!("-d link show {port}")).contains("hairpin off"));
    assert!(pings(&pod.netns, "10.77.3.1"));
    world.del(&pod);
    drop(owner.stdin.take());
    owner.wait().unwrap();
    except(&world, false);
    let pods = [attach(&world), attach(&world)];
    stands(&[&pods[0], &pods[1]]);
    let before = table(&world);
    assert!(status(&world).ok);
    assert_eq!(table(&world).matches("\" . \"ecni").count(), before.matches("\" . \"ecni").count());
    // As a table of ours that another program holds.
    nft(&world, &["delete", "table", "bridge", "edge-cni"]);
    let mut owner =
        nft_session(&world, "add table bridge edge-cni { flags owner; set ports-v1 { type ifname . ifname; }; }\n");
    wait_for("the other's table", || table(&world).contains("ports-v1"));
    status_fails(&world);
    drop(owner.stdin.take());
    owner.wait().unwrap();
}

fn status_fails(world: &World) -> String {
    let answer = status(world);
    assert_eq!(answer.json["code"], 50, "{}", answer.json);
    answer.json["msg"].as_str().unwrap().to_owned()
}

/// `nft` with this order, until its standard input ends.
pub(crate) fn nft_session(world: &World, order: &str) -> std::process::Child {
    let program = ["netns", "exec", &world.host, "nft", "-i"];
    let mut session = Command::new("ip").args(program).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    session.stdin.as_mut().unwrap().write_all(order.as_bytes()).unwrap();
    session
}

fn adds_at_once_make_one_filter() {
    for _ in 0..5 {
        let world = World::new(DUAL);
        let pods: Vec<_> = (0..12).map(|_| world.pod()).collect();
        let started: Vec<_> = pods.iter().map(|pod| world.start_verb("ADD", pod)).collect();
        for child in started {
            let answer = crate::world::answer(child);
            assert!(answer.ok, "{}", answer.json);
        }
        for pod in &pods {
            assert!(pings(&pod.netns, "10.77.3.1") && pings(&pod.netns, "fd77:0:0:3::1"), "{}", pod.id);
        }
        // None had to be put back by another.
        let known = table(&world).lines().filter(|line| line.contains("\" . \"ecni")).count();
        assert_eq!(known, pods.len());
    }
}

fn a_pod_that_goes_leaves_nothing_in_the_filter() {
    let world = World::new(DUAL);
    let empty = |world: &World| !table(world).contains("\"ecni") || !table(world).contains("elements");
    let pods = [attach(&world), attach(&world), attach(&world)];
    pods.iter().for_each(|attached| world.del(&attached.pod));
    assert!(empty(&world), "{}", table(&world));
    // Also where the container's namespace went without a DEL: with GC.
    world.set("cniVersion", json!("1.1.0"));
    let attached = attach(&world);
    world.destroy(&attached.pod);
    wait_for("the kernel's removal of the pair", || world.ports().is_empty());
    assert!(!empty(&world));
    world.set("cni.dev/valid-attachments", json!([]));
    assert!(world.run(&[("CNI_COMMAND", "GC")], &world.config.borrow().to_string()).ok);
    assert!(empty(&world), "{}", table(&world));
    // An ADD that fails leaves nothing either.
    world.set("cni.dev/valid-attachments", serde_json::Value::Null);
    let pod = world.pod();
    ip(&pod.netns, "link add d0 type veth peer name d1");
    ip(&pod.netns, "link set d0 up");
    ip(&pod.netns, "link set d1 up");
    ip(&pod.netns, "route add default dev d0");
    world.add_fails(&pod, 102);
    assert!(empty(&world), "{}", table(&world));
}
