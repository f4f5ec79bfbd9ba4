//! The ports of IKE stay the edge's own, whatever source ports its pods choose.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use edge_agent::host::firewall::Firewall;

use super::Test;
use super::world::{BOTH, Family, World};

pub(crate) const TESTS: &[Test] = &[(
    "a_pod_that_sends_from_an_ike_port_gets_no_packets_of_peers_for_the_edge",
    a_pod_that_sends_from_an_ike_port_gets_no_packets_of_peers_for_the_edge,
)];

const PATIENCE: Duration = Duration::from_secs(5);

/// As a hub with the cloud's networks, and with other ports than usual.
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

/// A pod sends first, from the port of IKE to that of a peer. What the peer then sends to the
/// edge's port must not look like an answer to the pod.
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
    // The pod is still served.
    peer.send_to(b"answer", seen).unwrap();
    assert_eq!(pod.recv_from(&mut buffer).unwrap().0, 6);
}
