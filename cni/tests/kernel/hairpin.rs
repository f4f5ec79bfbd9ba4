//! Tests a pod that calls a Service whose endpoint is the pod itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use interop_tests::netns::{succeed, within};
use interop_tests::suite::Test;

use crate::frames::{Wire, arp, discovery};
use crate::spoof::attach;
use crate::world::{World, pings};

pub(crate) const TESTS: &[Test] = &[
    ("a_pod_reaches_itself_and_its_neighbour_by_a_service", a_pod_reaches_itself_and_its_neighbour_by_a_service),
    ("a_pods_own_broadcasts_do_not_come_back", a_pods_own_broadcasts_do_not_come_back),
];

const DUAL: &[&str] = &["10.77.3.0/24", "fd77:0:0:3::/120"];

fn a_pod_reaches_itself_and_its_neighbour_by_a_service() {
    let world = World::new(DUAL);
    let (backend, neighbour) = (attach(&world), attach(&world));
    // The rules of kube-proxy: DNAT to the endpoint, and masquerading of packets from an endpoint
    // to itself.
    let rules = format!(
        "add table inet proxy
         add chain inet proxy pre {{ type nat hook prerouting priority dstnat; }}
         add chain inet proxy post {{ type nat hook postrouting priority srcnat; }}
         add rule inet proxy pre ip daddr 10.96.0.1 tcp dport 80 dnat ip to {v4}:8080
         add rule inet proxy pre ip6 daddr fd96::1 tcp dport 80 dnat ip6 to [{v6}]:8080
         add rule inet proxy post ip saddr {v4} ip daddr {v4} masquerade
         add rule inet proxy post ip6 saddr {v6} ip6 daddr {v6} masquerade",
        v4 = backend.v4,
        v6 = backend.v6,
    );
    succeed(Command::new("ip").args(["netns", "exec", &world.host, "nft", &rules]));
    let serve = |address: SocketAddr| {
        let listener = within(&backend.pod.netns, || TcpListener::bind(address).unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"served");
            }
        });
    };
    serve((backend.v4, 8080).into());
    serve((backend.v6, 8080).into());
    let served = |netns: &str, service: &str| {
        within(netns, || {
            let address: SocketAddr = service.parse().unwrap();
            let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(3)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).is_ok() && answer == "served"
        })
    };
    let modes: &[&str] = if std::path::Path::new("/proc/sys/net/bridge").exists() { &["1", "0"] } else { &[""] };
    for mode in modes {
        for family in ["iptables", "ip6tables"].iter().filter(|_| !mode.is_empty()) {
            let setting = format!("net.bridge.bridge-nf-call-{family}={mode}");
            succeed(Command::new("ip").args(["netns", "exec", &world.host, "sysctl", "-qw", &setting]));
        }
        for service in ["10.96.0.1:80", "[fd96::1]:80"] {
            assert!(served(&backend.pod.netns, service), "{service} from its own backend, br_netfilter {mode:?}");
            // Without br_netfilter, the reply crosses the bridge without connection tracking. No
            // plugin can change that.
            if *mode == "1" {
                assert!(served(&neighbour.pod.netns, service), "{service} from a neighbour");
            }
        }
    }
}

fn a_pods_own_broadcasts_do_not_come_back() {
    let world = World::new(DUAL);
    let (own, other) = (attach(&world), attach(&world));
    let mut wire = Wire::open(&own.pod.netns, "eth0");
    let mut tap = Wire::open(&own.pod.netns, "eth0");
    let mut neighbour = Wire::open(&other.pod.netns, "eth0");
    let broadcast = arp(own.mac, 1, (own.mac, own.v4), "10.77.3.99".parse().unwrap());
    let multicast = discovery(own.mac, own.v6, 136, &crate::frames::neighbour(0x20, own.v6, 2, own.mac));
    // The bridge has not learned the destination of this frame, so it floods the frame to every
    // port.
    let unknown = crate::frames::ethernet([2, 9, 9, 9, 9, 9], own.mac, 0x0806, &broadcast[14..]);
    for frame in [&broadcast, &multicast, &unknown] {
        wire.send(frame);
        neighbour.until(frame);
    }
    let last = arp(other.mac, 1, (other.mac, other.v4), "10.77.3.98".parse().unwrap());
    neighbour.send(&last);
    let seen = tap.until(&last);
    for frame in [&broadcast, &multicast, &unknown] {
        // A packet socket also receives the frames that are sent on its interface, so it receives
        // each frame exactly once.
        assert_eq!(seen.iter().filter(|other| *other == frame).count(), 1);
    }
    assert!(pings(&own.pod.netns, &other.v4.to_string()));
}
