//! Tests connections of strangers to a hub's TCP port (RFC 9329).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edge_ike::{EndpointConfig, PeerConfig, TcpConnectionId};

use crate::faults::init_request;
use crate::network::{LinkQuality, Network};
use crate::oracle::octets::notify;
use crate::peers::{SECOND, name, peer};

const HUB: usize = 0;
const HONEST: [&str; 3] = ["198.51.100.1", "198.51.100.1", "2001:db8:1:1::1"];

/// A hub, and edges that reach it by TCP. The first two are behind one NAT.
struct World {
    network: Network,
    /// The address of the hub's end of each edge's connection, from the edge.
    edges: Vec<(usize, PeerConfig)>,
    /// Connections of strangers, and the number of their requests.
    strangers: Vec<TcpConnectionId>,
    requests: u64,
}

impl World {
    fn new() -> Self {
        let mut network = Network::new(1, LinkQuality::RELIABLE);
        let config = EndpointConfig { half_open_limit: 128, cookie_threshold: 16, ..EndpointConfig::default() };
        assert_eq!(network.add_with("10.0.0.1", None, config), HUB);
        let mut edges = Vec::new();
        for (number, host) in HONEST.iter().enumerate() {
            let edge = format!("edge{number}.example");
            let node = network.add(&format!("10.0.1.{number}"), None);
            let (ours, _) = network.connect_tcp(node, host.parse().unwrap(), HUB);
            let (remote, local) = Network::ends_of_tcp(ours);
            let for_edge = PeerConfig { initiate: false, ..peer("hub.example", &edge, &[]) };
            network.call(HUB, |endpoint, now, env| endpoint.set_peer(for_edge, now, env)).unwrap();
            let for_hub = peer(&edge, "hub.example", &[]);
            edges.push((node, PeerConfig { local: Some(local.ip()), remotes: vec![remote], ..for_hub }));
        }
        Self { network, edges, strangers: Vec::new(), requests: 0 }
    }

    /// Sends a request in a new connection of each of these hosts, and returns the cookies of the
    /// earlier ones.
    fn flood(&mut self, hosts: impl IntoIterator<Item = IpAddr>) {
        for host in hosts {
            let connection = self.network.connect_tcp_from(host, HUB);
            self.strangers.push(connection);
            self.requests += 1;
            self.send(Network::ends_of_tcp(connection), 0xffff_0000 + self.requests, None);
        }
        for (_, at, octets) in std::mem::take(&mut self.network.outside) {
            let Some(answer) = octets.get(4..).and_then(crate::oracle::clear) else { continue };
            let Some(cookie) = answer.notify(notify::COOKIE) else { continue };
            let ends = Network::ends_of_tcp(TcpConnectionId::of(at.ip()).unwrap());
            self.send(ends, answer.header.spis.0, Some(&cookie.data));
        }
    }

    fn send(&mut self, (from, to): (SocketAddr, SocketAddr), spi: u64, cookie: Option<&[u8]>) {
        self.network.inject(from, to, [&[0; 4], init_request(spi, cookie).as_slice()].concat());
    }

    /// Runs for this time. Each millisecond, these strangers open further connections. In a round
    /// trip, their half-open IKE SAs could fill the table more than once.
    fn run_flooded(&mut self, time: Duration, hosts: impl Fn(u64) -> Vec<IpAddr>) {
        for millisecond in 0..time.as_millis() as u64 {
            self.flood(hosts(millisecond));
            self.network.run_for(Duration::from_millis(1));
        }
    }

    fn start_edges(&mut self) {
        for (node, config) in self.edges.clone() {
            self.network.call(node, |endpoint, now, env| endpoint.set_peer(config, now, env)).unwrap();
        }
    }

    fn assert_edges_are_up(&self) {
        for (number, (node, _)) in self.edges.iter().enumerate() {
            let at_hub = &self.network.nodes[HUB].host.kernel.tunnels;
            let at_edge = &self.network.nodes[*node].host.kernel.tunnels;
            let up = at_hub.get(&name(&format!("edge{number}.example"))).is_some_and(|it| it.sole_outbound().is_some());
            assert!(up && at_edge[&name("hub.example")].sole_outbound().is_some(), "edge {number}");
        }
    }
}

#[test]
fn edges_come_up_by_tcp_while_one_host_opens_connections_without_end() {
    let stranger = "203.0.113.1".parse().unwrap();
    let within_a_network =
        |number: u64| IpAddr::from((0x2001_0db8_0000_0009_u128 << 64 | u128::from(number)).to_be_bytes());
    let one_host = |_| vec![stranger; 20];
    let one_network = |millisecond| (0..20).map(|host| within_a_network(millisecond * 20 + host)).collect();
    let hosts: [&dyn Fn(u64) -> Vec<IpAddr>; 2] = [&one_host, &one_network];
    for hosts in hosts {
        let mut world = World::new();
        world.run_flooded(SECOND / 20, hosts);
        world.start_edges();
        world.run_flooded(SECOND / 5, hosts);
        world.assert_edges_are_up();
        assert!(world.strangers.len() >= 5000);
    }
}
