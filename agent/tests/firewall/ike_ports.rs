//! Tests that pods cannot block an edge's IKE, although they share its address. The IKE ports stay
//! reserved for the edge, and pods can initiate only few IKE SAs.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use edge_agent::host::firewall::Firewall;

use super::Test;
use super::world::{BOTH, Family, World};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_pod_that_sends_from_an_ike_port_gets_no_packets_of_peers_for_the_edge",
        a_pod_that_sends_from_an_ike_port_gets_no_packets_of_peers_for_the_edge,
    ),
    (
        "pods_begin_too_few_ike_sas_to_take_the_edges_places_at_a_peer",
        pods_begin_too_few_ike_sas_to_take_the_edges_places_at_a_peer,
    ),
];

const PATIENCE: Duration = Duration::from_secs(5);

/// Returns an edge's table, a hub's table with the cloud's networks, and a table with unusual IKE
/// ports, each together with its IKE ports.
fn tables() -> [(Firewall, [u16; 2]); 3] {
    let hub = vec!["10.244.0.0/16".parse().unwrap(), "fd44::/64".parse().unwrap()];
    [
        (World::edge(), [500, 4500]),
        (Firewall { fronted: hub, ..World::edge() }, [500, 4500]),
        (Firewall { ike_ports: [20500, 45000], ..World::edge() }, [20500, 45000]),
    ]
}

fn a_pod_that_sends_from_an_ike_port_gets_no_packets_of_peers_for_the_edge() {
    for (table, ports) in tables() {
        let world = World::new();
        world.apply(&table);
        for family in BOTH {
            for port in ports {
                the_edge_keeps(&world, family, port);
            }
        }
    }
}

/// Checks that the edge keeps its IKE port. A pod sends first, from the IKE port to a peer's IKE
/// port. Then the peer sends to the edge's IKE port. These packets must reach the edge, and must
/// not be treated as replies to the pod.
fn the_edge_keeps(world: &World, family: &Family, port: u16) {
    let socket = |name, address: &str| {
        let at = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let socket = world.on(name, move || UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let any = Ipv6Addr::UNSPECIFIED.to_string();
    let (edge, peer, pod) = (socket("edge", &any), socket("outside", family.outside), socket("pod", family.pod));
    let mut buffer = [0; 16];
    pod.send_to(b"pod", peer.local_addr().unwrap()).unwrap();
    let (_, seen) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(seen.ip().to_string(), family.edge_up, "masqueraded");
    peer.send_to(b"peer", SocketAddr::new(seen.ip(), port)).unwrap();
    let (_, from) = edge.recv_from(&mut buffer).unwrap_or_else(|_| {
        let stolen = pod.recv_from(&mut buffer).is_ok();
        panic!("{seen}: the edge did not get what its peer sent to port {port}; the pod got it: {stolen}")
    });
    assert_eq!((from.port(), &buffer[..4]), (port, &b"peer"[..]));
    // The peer's reply to the pod still arrives.
    peer.send_to(b"answer", seen).unwrap();
    assert_eq!(pod.recv_from(&mut buffer).unwrap().0, 6);
}

/// Builds an IKE header (RFC 7296 3.1) with a body. `number` makes the initiator's SPI unique.
fn ike(number: u64, responder_spi: u64, exchange: u8, version: u8) -> Vec<u8> {
    let mut message = [number.to_be_bytes(), responder_spi.to_be_bytes()].concat();
    message.extend([33, version, exchange, 8, 0, 0, 0, 0, 0, 0, 1, 0]);
    message.resize(256, 0);
    message
}

fn pods_begin_too_few_ike_sas_to_take_the_edges_places_at_a_peer() {
    const SENT: u64 = 100;
    const IKE_SA_INIT: u8 = 34;
    const CREATE_CHILD_SA: u8 = 36;
    let world = World::new();
    world.apply(&World::edge());
    let mut begun = 0;
    // A peer may use any port, for example behind port forwarding.
    for (family, port) in BOTH.into_iter().flat_map(|family| [(family, 500), (family, 7000)]) {
        for marker in [&[][..], &[0; 4]] {
            let arrived = |make: &dyn Fn(u64) -> Vec<u8>| {
                let datagrams = (1..=SENT).map(|number| [marker, &make(number)].concat()).collect();
                arrivals(&world, family, port, datagrams)
            };
            for version in [0x20, 0x2f] {
                let arrived = arrived(&|number| ike(number, 0, IKE_SA_INIT, version));
                // A peer accepts 64 half-open IKE SAs from one address in 30 s.
                assert!(arrived < 60, "{} {port} {version}: {arrived} of {SENT}", family.ip);
                begun += arrived;
            }
            assert_eq!(arrived(&|number| ike(number, number, CREATE_CHILD_SA, 0x20)), SENT as usize);
            assert_eq!(arrived(&|number| number.to_be_bytes().repeat(32)), SENT as usize, "other datagrams");
        }
    }
    assert!(begun > 0 && world.refused("ike-sa-init") > 0, "{begun} began");
}

/// Sends datagrams from a pod to the host outside, and returns how many arrive. After each, the pod
/// sends a datagram that always passes. The next one is sent only after that datagram has arrived,
/// so that none is lost because a buffer is full.
fn arrivals(world: &World, family: &Family, port: u16, datagrams: Vec<Vec<u8>>) -> usize {
    let at = SocketAddr::new(family.outside.parse::<IpAddr>().unwrap(), port);
    let peer = world.on("outside", move || UdpSocket::bind(at).unwrap());
    let from = SocketAddr::new(family.pod.parse::<IpAddr>().unwrap(), 0);
    let pod = world.on("pod", move || UdpSocket::bind(from).unwrap());
    for socket in [&peer, &pod] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 512];
    let mut arrived = 0;
    for datagram in datagrams {
        pod.send_to(&datagram, at).unwrap();
        pod.send_to(b"end", at).unwrap();
        while peer.recv_from(&mut buffer).unwrap().0 != 3 {
            arrived += 1;
        }
    }
    arrived
}
