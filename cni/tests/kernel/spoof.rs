//! Tests which packets a pod can send. Each attack succeeds from a pod that the operator has
//! exempted, and fails from any other pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use interop_tests::netns::succeed;
use interop_tests::suite::Test;
use interop_tests::wait;
use serde_json::json;

use crate::frames::{self, BROADCAST, Mac, Wire, arp, discovery, ethernet, ipv4, ipv6, mac_text, neighbour, udp};
use crate::world::{Pod, World, addresses, ip, pings};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_sends_as_nobody_else_unless_the_operator_says_so", a_pod_sends_as_nobody_else_unless_the_operator_says_so),
    ("a_pod_takes_over_no_neighbours_address", a_pod_takes_over_no_neighbours_address),
    ("invented_mac_addresses_are_not_learned", invented_mac_addresses_are_not_learned),
    ("a_pods_router_advertisements_change_no_routes", a_pods_router_advertisements_change_no_routes),
];

pub(crate) const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

/// An attached pod with its addresses.
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

/// Sets whether pods that are attached later are exempt from the filter.
pub(crate) fn except(world: &World, excepted: bool) {
    world.set("unfilteredPods", if excepted { json!(["default/web-*"]) } else { json!([]) });
}

fn a_pod_sends_as_nobody_else_unless_the_operator_says_so() {
    let world = World::new(DUAL);
    // Without these keys, connection tracking is on and holds fragments until the remaining ones
    // arrive.
    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    world.set("forwardOthers", json!(true));
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

/// Returns a frame without its VLAN tag, as a packet socket shows it.
fn untagged(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [0x81, 0] {
        frame.drain(12..16);
    }
    frame
}

/// Builds a frame that every pod may send. It is different for each number.
pub(crate) fn marker(own: &Attached, victim: &Attached, number: u16) -> Vec<u8> {
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
        ("ping", ipv4(victim.mac, own.mac, 1, (own.v4, victim.v4), &[8, 0, 0xf7, 0xff, 0, 0, 0, 0])),
        ("an error about what came", {
            ipv4(victim.mac, own.mac, 1, (own.v4, victim.v4), &frames::error4(3, (victim.v4, own.v4)))
        }),
        ("an IPv6 error about what came", {
            let addresses = (own.v6, victim.v6);
            ipv6(victim.mac, own.mac, 58, addresses, &frames::error6(addresses, 2, (victim.v6, own.v6)))
        }),
        ("an IPv6 error about what came to the link-local address", {
            let addresses = (own.link_local, victim.v6);
            ipv6(victim.mac, own.mac, 58, addresses, &frames::error6(addresses, 1, (victim.v6, own.link_local)))
        }),
        ("broadcast", ipv4(BROADCAST, own.mac, 17, (own.v4, Ipv4Addr::BROADCAST), &udp(68, 67, b""))),
        ("fragment", fragment),
        ("IPv6", ipv6(victim.mac, own.mac, 17, (own.v6, victim.v6), &udp(4000, 4000, b"six"))),
        ("DHCPv6 request", {
            let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
            ipv6([0x33, 0x33, 0, 1, 0, 2], own.mac, 17, (own.link_local, servers), &udp(546, 547, &[1; 20]))
        }),
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
    // The message follows a hop-by-hop options header (RFC 8200 4.3) with padding.
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
    let about_others = |kind| {
        let about = frames::error4(kind, (victim.v4, outside4));
        ipv4(victim.mac, own.mac, 1, (own.v4, victim.v4), &about)
    };
    let about_others6 = |kind, to| {
        let addresses = (own.v6, victim.v6);
        ipv6(victim.mac, own.mac, 58, addresses, &frames::error6(addresses, kind, (victim.v6, to)))
    };
    vec![
        ("too large for the way to the outside", about_others(3)),
        ("source quench for the outside", about_others(4)),
        ("redirect of the outside", about_others(5)),
        ("time exceeded on the way to the outside", about_others(11)),
        ("an error about a parameter for the outside", about_others(12)),
        ("unreachable outside by IPv6", about_others6(1, outside6)),
        ("too large for the way to the outside by IPv6", about_others6(2, outside6)),
        ("too large for a neighbour", about_others6(2, other.v6)),
        ("time exceeded on the way to the outside by IPv6", about_others6(3, outside6)),
        ("an error about a parameter for a remote pod", about_others6(4, remote6)),
        ("an unknown error", about_others6(127, outside6)),
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
        ("a loopback address of the host", {
            ipv4(victim.mac, own.mac, 17, (own.v4, Ipv4Addr::new(127, 0, 0, 1)), &data)
        }),
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
        ("DHCP offer from another port", v4(own.mac, own.v4, &udp(1067, 68, &[2; 240]))),
        ("DHCP offer from the client's port", v4(own.mac, own.v4, &udp(68, 68, &[2; 240]))),
        ("DHCPv6 answer", v6(own.link_local, &udp(547, 546, &[2; 20]))),
        ("DHCPv6 answer from another port", v6(own.link_local, &udp(1547, 546, &[2; 20]))),
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
        let port = |mac: [u8; 6]| {
            let table = fdb(&world);
            let line = table.lines().find(|line| line.contains(&mac_text(mac))).unwrap_or_default();
            line.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned)
        };
        let mut attack = |number| {
            // The address is announced, since other replies do not replace a new neighbour entry.
            wire.send(&arp(own.mac, 1, (own.mac, other.v4), other.v4));
            wire.send(&discovery(own.mac, own.v6, 136, &neighbour(0xa0, other.v6, 2, own.mac)));
            // If these frames pass, the bridge sends the neighbour's frames to this pod.
            wire.send(&ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], other.mac, 0x88cc, &[0; 50]));
            wire.send(&ethernet([1, 0x80, 0xc2, 0, 0, 3], other.mac, 0x888e, &[0; 50]));
            wire.send(&marker(&own, &victim, number));
            tap.until(&marker(&own, &victim, number));
            let attackers = mac_text(own.mac);
            [&v4, &v6].map(|address| ip(&victim.pod.netns, &format!("neigh show {address}")).contains(&attackers))
                == [true; 2]
                && port(own.mac).is_some()
                && port(own.mac) == port(other.mac)
        };
        if excepted {
            // The neighbour's own frames move its MAC address back to its port, so not every attack
            // has a lasting effect.
            wait::expect("an attack of an excepted pod to last", Duration::from_secs(60), || attack(9).then_some(()));
        } else {
            assert!(!(0..3).any(&mut attack));
            for address in [&v4, &v6] {
                let entry = ip(&victim.pod.netns, &format!("neigh show {address}"));
                assert!(entry.contains(&mac_text(other.mac)), "{entry}");
            }
            assert_ne!(port(own.mac), port(other.mac), "{}", fdb(&world));
        }
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
    // Kernels since 6.8 support the limit.
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
            // The frames are sent only to the bridge. Half of them are IP, and half are LLDP, from
            // which bridges also learn addresses.
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
        // Even a router advertisement that passes the filter has no effect.
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
        // When the kernel has answered a later packet, it has processed this one.
        assert!(pings(&own.pod.netns, &victim.v4.to_string()) && pings(&own.pod.netns, "10.77.3.1"));
        let without_lifetime = |text: &String| text.replace(" expires", "\n expires");
        assert_eq!(before.each_ref().map(without_lifetime), routes().each_ref().map(without_lifetime));
        assert!(!ip(&victim.pod.netns, "-6 addr").contains("2001:db8:bad"));
    }
}
