//! Creates an edge with two pods on its bridge, a LAN, a host outside of the cluster, and a far
//! network that represents the networks behind tunnels. Each is in a separate network namespace,
//! with both address families.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use edge_agent::host::firewall::{self, Firewall};
use interop_tests::netns;
use tokio::net::TcpSocket;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Timeout for packets that must not arrive, and for packets that must arrive on a busy machine.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);

/// Addresses of one family.
pub(crate) struct Family {
    pub(crate) ip: &'static str,
    /// The edge's address on the LAN, and the address of a LAN host.
    pub(crate) edge_lan: &'static str,
    pub(crate) lan: &'static str,
    /// The edge's address on the uplink, and the address of a host outside of the cluster.
    pub(crate) edge_up: &'static str,
    pub(crate) outside: &'static str,
    /// Addresses of the bridge, of a pod and its neighbour, and an unused address.
    pub(crate) bridge: &'static str,
    pub(crate) pod: &'static str,
    pub(crate) neighbour: &'static str,
    pub(crate) unused: &'static str,
    /// A pod on another node.
    pub(crate) far: &'static str,
    /// A pod of the cloud's CNI, on the side of the LAN.
    pub(crate) cloud: &'static str,
}

pub(crate) const V4: Family = Family {
    ip: "ip",
    edge_lan: "192.168.1.10",
    lan: "192.168.1.66",
    edge_up: "203.0.113.10",
    outside: "203.0.113.1",
    bridge: "10.77.1.1",
    pod: "10.77.1.2",
    neighbour: "10.77.1.3",
    unused: "10.77.1.9",
    far: "10.77.2.2",
    cloud: "10.244.0.7",
};

pub(crate) const V6: Family = Family {
    ip: "ip6",
    edge_lan: "2001:db8:1::10",
    lan: "2001:db8:1::66",
    edge_up: "2001:db8:9::10",
    outside: "2001:db8:9::1",
    bridge: "fd77::1:1",
    pod: "fd77::1:2",
    neighbour: "fd77::1:3",
    unused: "fd77::1:9",
    far: "fd77::2:2",
    cloud: "fd44::7",
};

pub(crate) const BOTH: [&Family; 2] = [&V4, &V6];

pub(crate) struct World {
    prefix: String,
}

impl World {
    pub(crate) fn new() -> Self {
        let prefix = format!("fw-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let world = Self { prefix };
        for name in ["edge", "lan", "outside", "far", "pod", "neighbour"] {
            netns::add(&world.netns(name));
            world.sh(name, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 && ip link set lo up");
        }
        let link = |here: &str, name: &str| {
            format!(
                "ip link add {here} type veth peer name eth0 netns {} && ip link set {here} up && ip -n {0} link set eth0 up",
                world.netns(name)
            )
        };
        world.sh(
            "edge",
            &format!(
                "set -e
                 sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
                 {lan}
                 {up}
                 {far}
                 {pod}
                 {neighbour}
                 ip link add ecni0 type bridge mcast_snooping 0 forward_delay 0
                 ip link set ecni0 up
                 for port in pod neighbour; do ip link set $port master ecni0; ip link set $port type bridge_slave hairpin on; done
                 ip addr add 10.77.1.1/24 dev ecni0; ip addr add fd77::1:1/112 dev ecni0 nodad
                 ip addr add 192.168.1.10/24 dev lan; ip addr add 2001:db8:1::10/64 dev lan nodad
                 ip addr add 203.0.113.10/24 dev wan; ip addr add 2001:db8:9::10/64 dev wan nodad
                 ip addr add 10.0.0.1/24 dev far; ip addr add fd00::1/64 dev far nodad
                 ip route add default via 203.0.113.1; ip -6 route add default via 2001:db8:9::1
                 ip route add 10.77.2.0/24 via 10.0.0.2 src 10.77.1.1; ip -6 route add fd77::2:0/112 via fd00::2 src fd77::1:1
                 ip route add 10.244.0.0/16 via 192.168.1.66; ip -6 route add fd44::/64 via 2001:db8:1::66",
                lan = link("lan", "lan"),
                up = link("wan", "outside"),
                far = link("far", "far"),
                pod = link("pod", "pod"),
                neighbour = link("neighbour", "neighbour"),
            ),
        );
        let host = |name: &str, addresses: &[&str], via: &[&str]| {
            let mut script = String::from("set -e\n");
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                script += &format!("ip addr add {address} dev eth0{nodad}\n");
            }
            for gateway in via {
                let family = if gateway.contains(':') { "-6" } else { "-4" };
                script += &format!("ip {family} route add default via {gateway}\n");
            }
            world.sh(name, &script);
        };
        host(
            "lan",
            &["192.168.1.66/24", "2001:db8:1::66/64", "10.244.0.7/32", "fd44::7/128"],
            &["192.168.1.10", "2001:db8:1::10"],
        );
        // The kernel uses this address as a source only if a program binds it.
        world.sh("lan", "ip -6 addr change fd44::7/128 dev eth0 preferred_lft 0");
        // This host has no route to pods, so only translated packets get a response.
        host("outside", &["203.0.113.1/24", "2001:db8:9::1/64"], &[]);
        host("far", &["10.0.0.2/24", "fd00::2/64", "10.77.2.2/32", "fd77::2:2/128"], &["10.0.0.1", "fd00::1"]);
        host("pod", &["10.77.1.2/24", "fd77::1:2/112"], &["10.77.1.1", "fd77::1:1"]);
        host("neighbour", &["10.77.1.3/24", "fd77::1:3/112"], &["10.77.1.1", "fd77::1:1"]);
        world
    }

    /// Returns the table of an edge with these addresses.
    pub(crate) fn edge() -> Firewall {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Firewall {
            pod_bridges: vec!["ecni0".into()],
            own: networks(&["10.77.1.0/24", "fd77::1:0/112"]),
            remote: networks(&["10.77.2.0/24", "fd77::2:0/112"]).into(),
            ranges: networks(&["10.77.0.0/16", "fd77::/64"]),
            addresses: vec![V4.bridge.parse().unwrap(), V6.bridge.parse().unwrap()],
            // The test uses no ESP, so the far network responds without encryption.
            remote_in_clear: true,
            ike_ports: [500, 4500],
            masquerade: true,
            mtu: 1418,
            ..Firewall::default()
        }
    }

    fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs a shell script on one of the hosts.
    pub(crate) fn sh(&self, name: &str, script: &str) -> String {
        netns::succeed(Command::new("ip").args(["netns", "exec", &self.netns(name), "sh", "-c", script]))
    }

    /// Runs `work` on one of the hosts.
    pub(crate) fn on<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        netns::within(&self.netns(name), work)
    }

    pub(crate) fn apply(&self, firewall: &Firewall) {
        let firewall = firewall.clone();
        self.on("edge", move || firewall.apply()).unwrap();
    }

    /// Returns the number of dropped packets in this counter of the edge.
    pub(crate) fn refused(&self, counter: &'static str) -> u64 {
        let refused = self.on("edge", firewall::dropped_packets).unwrap();
        refused.iter().find(|refused| refused.counter == counter).map_or(0, |refused| refused.packets)
    }

    /// Adds the rules of another program that masquerades all packets that the edge forwards.
    pub(crate) fn masquerade_by_others(&self) {
        self.sh("edge", "nft 'add table inet other; add chain inet other post { type nat hook postrouting priority srcnat; }; add rule inet other post oifname { far, wan, lan } masquerade'");
    }

    /// Redirects a port of the edge, as kube-proxy and portmap do.
    pub(crate) fn publish(&self, port: u16, to: &str) {
        let (family, target) =
            if to.contains(':') { ("ip6", format!("[{to}]:80")) } else { ("ip", format!("{to}:80")) };
        self.sh("edge", &format!(
            "nft 'add table {family} publish; add chain {family} publish pre {{ type nat hook prerouting priority dstnat; }}; \
             add rule {family} publish pre fib daddr type local tcp dport {port} dnat to {target}'"
        ));
    }

    /// Redirects port 80 of a Service's address for any sender, as kube-proxy does.
    pub(crate) fn redirect(&self, service: &str, to: &str) {
        let (family, target) =
            if to.contains(':') { ("ip6", format!("[{to}]:80")) } else { ("ip", format!("{to}:80")) };
        self.sh("edge", &format!(
            "nft 'add table {family} services; add chain {family} services pre {{ type nat hook prerouting priority dstnat; }}; \
             add rule {family} services pre {family} daddr {service} tcp dport 80 dnat to {target}'"
        ));
    }

    /// Runs a server on port 80 of a host while the world exists. Its response is the client's
    /// source address.
    pub(crate) fn serve(&self, name: &str) {
        let listener = self.on(name, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let source = stream.peer_addr().map(|address| address.ip().to_canonical().to_string());
                let _ = stream.write_all(source.unwrap_or_default().as_bytes());
            }
        });
    }

    /// Connects to the server at `to`. Returns the client's source address from the point of view
    /// of the server.
    pub(crate) fn fetch(&self, from: &str, to: &str, port: u16) -> Option<String> {
        self.connect(from, to, port, LONG)
    }

    /// Panics if a connection to `to` is established.
    pub(crate) fn cannot_fetch(&self, from: &str, to: &str, port: u16) {
        if let Some(source) = self.connect(from, to, port, SHORT) {
            panic!("{from} reaches {to}, where it is seen as {source}");
        }
    }

    fn connect(&self, from: &str, to: &str, port: u16, patience: Duration) -> Option<String> {
        let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), port);
        self.on(from, move || {
            let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
    }

    /// Returns whether a connection from this address and port is established.
    pub(crate) fn connects(&self, from: &str, source: (&str, u16), to: (&str, u16)) -> bool {
        let [source, to] = [source, to].map(|(address, port)| SocketAddr::new(address.parse().unwrap(), port));
        self.on(from, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = if source.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
                socket.set_reuseaddr(true).unwrap();
                socket.bind(source).unwrap();
                tokio::time::timeout(SHORT, socket.connect(to)).await.is_ok_and(|connected| connected.is_ok())
            })
        })
    }

    /// Opens a connection that stays open. Returns both of its ends.
    pub(crate) fn connection(&self, from: &str, at: &str, to: &str) -> (TcpStream, TcpStream) {
        let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), 81);
        let listener = self.on(at, move || TcpListener::bind(to).unwrap());
        let client = self.on(from, move || TcpStream::connect_timeout(&to, LONG).unwrap());
        (client, listener.accept().unwrap().0)
    }

    /// Sends a datagram and returns its source address on arrival.
    pub(crate) fn source_of_datagram(&self, from: &str, at: &str, to: &str) -> String {
        let target = SocketAddr::new(to.parse::<IpAddr>().unwrap(), 9);
        let receiver = self.on(at, move || UdpSocket::bind(target).unwrap());
        receiver.set_read_timeout(Some(LONG)).unwrap();
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.on(from, move || UdpSocket::bind((any, 0)).unwrap().send_to(b"datagram", target).unwrap());
        receiver.recv_from(&mut [0; 16]).unwrap().1.ip().to_string()
    }

    /// Returns whether an ICMP error reports that no socket listens at `to`.
    pub(crate) fn is_refused(&self, from: &str, to: &str) -> bool {
        let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), 9);
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.on(from, move || UdpSocket::bind((any, 0)).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.send(b"datagram").unwrap();
        socket.recv(&mut [0; 16]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// Panics if a datagram from `source` arrives at `to` on the host `at`. The sender has the
    /// address `source` while it sends.
    pub(crate) fn cannot_pose(&self, from: &str, source: &str, at: &str, to: &str) {
        let arrived = self.datagrams(from, source, at, to, 3);
        assert!(!arrived, "a datagram from {source}, sent by {from}, arrived at {to}");
    }

    /// Returns whether a datagram from `source` arrives at `to` on the host `at`.
    pub(crate) fn arrives(&self, from: &str, source: &str, at: &str, to: &str) -> bool {
        self.datagrams(from, source, at, to, 50)
    }

    fn datagrams(&self, from: &str, source: &str, at: &str, to: &str, count: usize) -> bool {
        let target = SocketAddr::new(to.parse::<IpAddr>().unwrap(), 9);
        let source = source.parse::<IpAddr>().unwrap();
        let receiver = self.on(at, move || UdpSocket::bind(target).unwrap());
        receiver.set_read_timeout(Some(SHORT / 3)).unwrap();
        let own = self.sh(from, "ip -br address").contains(&format!("{source}/"));
        if !own {
            let (length, nodad) = if source.is_ipv6() { (128, "nodad") } else { (32, "") };
            self.sh(from, &format!("ip addr add {source}/{length} dev eth0 {nodad}"));
        }
        let sender = self.on(from, move || UdpSocket::bind(SocketAddr::new(source, 0)).unwrap());
        let mut buffer = [0; 16];
        let arrived = (0..count).any(|_| {
            sender.send_to(b"datagram", target).ok();
            receiver.recv_from(&mut buffer).is_ok()
        });
        if !own {
            self.sh(from, &format!("ip addr del {source} dev eth0"));
        }
        arrived
    }
}

/// Returns whether a byte passes through a connection.
pub(crate) fn passes(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    to.set_read_timeout(Some(SHORT)).unwrap();
    from.write_all(b"x").unwrap();
    to.read_exact(&mut [0]).is_ok()
}

impl Drop for World {
    fn drop(&mut self) {
        for name in ["edge", "lan", "outside", "far", "pod", "neighbour"] {
            netns::delete(&self.netns(name));
        }
    }
}
