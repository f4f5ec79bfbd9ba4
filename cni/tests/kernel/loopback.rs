//! Tests the host's loopback addresses when packets to and from them may cross links
//! (`route_localnet`). portmap and kube-proxy turn this setting on, so that the host's processes
//! reach published ports at these addresses.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use interop_tests::netns::{succeed, within};
use interop_tests::suite::Test;
use serde_json::json;

use crate::ingress::{HOST, NEIGHBOUR, dropped, neighbour, nft};
use crate::node::up;
use crate::spoof::{DUAL, attach};
use crate::world::{Pod, World};

pub(crate) const TESTS: &[Test] = &[(
    "neither_pods_nor_lan_hosts_reach_the_hosts_loopback_addresses_and_its_own_processes_do",
    only_its_own_processes_reach_them,
)];

const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

fn sh(netns: &str, script: &str) -> String {
    succeed(Command::new("ip").args(["netns", "exec", netns, "sh", "-c", script]))
}

/// Serves on a port of all addresses of a namespace. The response is the client's address.
pub(crate) fn serve(netns: &str, port: u16) {
    let listener = within(netns, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
    std::thread::spawn(move || {
        while let Ok((mut stream, client)) = listener.accept() {
            let _ = stream.write_all(client.ip().to_canonical().to_string().as_bytes());
        }
    });
}

pub(crate) fn fetch(netns: &str, address: &str, port: u16, patience: Duration) -> Option<String> {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    within(netns, || {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok().map(|_| answer)
    })
}

fn reaches(netns: &str, address: &str, port: u16) -> bool {
    fetch(netns, address, port, Duration::from_secs(5)).is_some()
}

pub(crate) fn is_kept_out(netns: &str, address: &str, port: u16) -> bool {
    fetch(netns, address, port, Duration::from_millis(300)).is_none()
}

/// Returns an iterator that sets whether iptables processes packets that a bridge forwards between
/// its ports, and yields the name of the setting. Without br_netfilter, it has one element.
pub(crate) fn set_br_netfilter(world: &World) -> impl Iterator<Item = &'static str> {
    let present = std::path::Path::new("/proc/sys/net/bridge").exists();
    let modes: &[(&str, &str)] =
        if present { &[("1", "with br_netfilter"), ("0", "without br_netfilter")] } else { &[("", "")] };
    modes.iter().map(|(value, mode)| {
        for family in ["iptables", "ip6tables"].iter().filter(|_| !value.is_empty()) {
            sh(&world.host, &format!("sysctl -qw net.bridge.bridge-nf-call-{family}={value}"));
        }
        *mode
    })
}

/// Adds routes to loopback addresses through these routers.
pub(crate) fn send_loopback_by(netns: &str, routers: [&str; 2]) {
    let [v4, v6] = routers;
    sh(
        netns,
        &format!(
            "sysctl -qw net.ipv4.conf.all.route_localnet=1 && ip link set lo up
             ip addr del 127.0.0.1/8 dev lo; ip -6 addr del ::1/128 dev lo
             ip route add 127.0.0.1/32 via {v4} dev eth0 && ip -6 route add ::1/128 via {v6} dev eth0"
        ),
    );
}

/// Returns whether a datagram from `source` arrives at the host. The sender must have the address
/// `source`.
pub(crate) fn datagram_arrives(world: &World, from: &Pod, source: &str, to: &str) -> bool {
    let [source, to]: [IpAddr; 2] = [source, to].map(|text| text.parse().unwrap());
    let receiver = within(&world.host, || UdpSocket::bind((to, 9)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let sender = within(&from.netns, || UdpSocket::bind((source, 0)).unwrap());
    (0..3).any(|_| {
        sender.send_to(b"datagram", (to, 9)).unwrap();
        receiver.recv_from(&mut [0; 16]).is_ok()
    })
}

fn only_its_own_processes_reach_them() {
    let world = World::new(DUAL);
    let lan = neighbour(&world);
    let pod = attach(&world);
    world.set("unfilteredPods", json!(["default/web-container2"]));
    let excepted = attach(&world);
    assert_eq!(excepted.pod.id, "container2");
    serve(&world.host, 80);
    serve(&pod.pod.netns, 80);
    // Adds portmap's rules for a process on the host.
    nft(
        &world,
        &[&format!(
            "add table ip publish; add chain ip publish out {{ type nat hook output priority -100; }}; \
             add chain ip publish post {{ type nat hook postrouting priority srcnat; }}; \
             add rule ip publish out ip daddr 127.0.0.1 tcp dport 8080 dnat to {}:80; \
             add rule ip publish post ip saddr 127.0.0.1 oifname ecni0 masquerade",
            pod.v4
        )],
    );
    sh(
        &world.host,
        "sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lan0.rp_filter=0",
    );
    for attached in [&pod, &excepted] {
        send_loopback_by(&attached.pod.netns, ["10.77.3.1", "fd77:0:0:3::1"]);
    }
    send_loopback_by(&lan.netns, HOST);
    sh(&lan.netns, "ip addr add 127.0.0.5/32 dev eth0");
    let forged_arrives = || datagram_arrives(&world, &lan, "127.0.0.5", HOST[0]);

    world.set("lanToPods", json!(["0.0.0.0/0", "::/0"]));
    world.set("forwardOthers", json!(true));
    assert!(up(&world).ok);
    for netns in [&excepted.pod.netns, &lan.netns] {
        assert!(reaches(netns, LOOPBACK[0], 80), "{netns} is under no table of ours");
    }
    assert!(forged_arrives(), "under no table of ours");
    assert!(is_kept_out(&pod.pod.netns, LOOPBACK[0], 80), "the bridge's filter holds without the other table, too");

    world.set("lanToPods", json!([]));
    world.set("forwardOthers", json!(false));
    assert!(up(&world).ok);
    for mode in set_br_netfilter(&world) {
        for netns in [&pod.pod.netns, &excepted.pod.netns, &lan.netns] {
            for address in LOOPBACK {
                let before = dropped(&world);
                assert!(is_kept_out(netns, address, 80), "{address} from {netns}, {mode}");
                let counted = address == LOOPBACK[0] && *netns != pod.pod.netns;
                assert!(!counted || dropped(&world) > before, "{address} from {netns} is not counted");
            }
        }
        assert!(!forged_arrives());
        assert!(datagram_arrives(&world, &lan, NEIGHBOUR[0], HOST[0]));
        let seen = fetch(&world.host, LOOPBACK[0], 8080, Duration::from_secs(5));
        assert_eq!(seen.as_deref(), Some("10.77.3.1"), "the published port, {mode}");
        for address in LOOPBACK {
            assert!(reaches(&world.host, address, 80), "{address} from the host");
        }
    }
}
