//! An edge whose network blocks UDP reaches its hub by TCP, and returns to UDP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Net, NetworkPlan, Ping, Pod};
use crate::wait;

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(300), by_default: true, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "tcp/udp-blocked",
        "an edge reaches its hub by TCP while UDP is blocked, returns to UDP without loss, and goes to TCP again",
        udp_blocked,
    ),
    scenario("tcp/ipv6", "an edge reaches its hub by TCP over IPv6, and a reset connection is replaced", over_ipv6),
    scenario(
        "tcp/own-address-changes",
        "an edge that gets another address connects again at once, from the new one",
        own_address_changes,
    ),
    scenario(
        "tcp/restarts",
        "while UDP is blocked, an edge's and a hub's agent are restarted and killed, and the tunnel is back in TCP",
        restarts,
    ),
    scenario(
        "tcp/strangers",
        "what strangers send to the TCP port ends their connections and nobody else's",
        strangers,
    ),
];

const HUB: &str = "203.0.113.1";
const HUB_V6: &str = "2001:db8:1::1";
const CLOUD_NETWORK: &str = "10.244.0.0/16";
const CLOUD_POD: &str = "10.244.1.2";
/// An address of the cloud's network that no pod has.
const NOBODY: &str = "10.244.1.99";
/// Interval of the pings.
const PACE: Duration = Duration::from_millis(20);
/// The longest time without an answer after an agent was restarted or killed while UDP is blocked.
/// A connection ends with its process. The edge tries UDP for 5.5 s before it opens another one,
/// and notices a hub that was killed by a liveness check.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);
/// Time for the tunnel to change its transport: an edge tries UDP once a minute.
const CHANGE: Duration = Duration::from_secs(90);

/// The part of the hub's configuration that makes it accept TCP.
const LISTENS: &str = "[tcp]\nlisten_port = 4500\n";

/// A hub with a cloud pod, and an edge with a pod behind a router that blocks UDP. The router
/// translates IPv4.
struct Site<'a> {
    net: &'a Net,
    controller: Controller<'a>,
    hub: Agent<'a>,
    edge: Agent<'a>,
    edge_pod: Pod,
    edge_pod_address: String,
    cloud_pod: Pod,
}

impl<'a> Site<'a> {
    /// Starts everything with these rules of the router, for forwarded packets.
    fn start(lab: &'a Lab, rules: &[&str]) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.host("hub")
            .on("isp", &[&format!("{HUB}/24"), &format!("{HUB_V6}/64")])
            .route("2001:db8:9::/64", "2001:db8:1::10")
            .own_directory("/etc/edge-controller");
        plan.host("stranger").on("isp", &["203.0.113.99/24", "2001:db8:1::99/64"]);
        plan.router("router")
            .on("isp", &["203.0.113.10/24", "2001:db8:1::10/64"])
            .on("home", &["192.168.1.1/24", "2001:db8:9::1/64"]);
        plan.host("edge").on("home", &["192.168.1.10/24", "2001:db8:9::10/64"]).via("192.168.1.1").via("2001:db8:9::1");
        let net = lab.build(&plan)?;
        net.node("router").sh("set -e
             nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; }'
             nft add rule ip nat post oifname isp masquerade
             nft 'add table inet block; add chain inet block forward { type filter hook forward priority 0; }'")?;
        block(net, rules)?;
        let networks = format!("networks = [{CLOUD_NETWORK:?}]");
        let controller = Controller::start(lab, net.node("hub"), HUB, &networks)?;
        let mut hub = controller.join_with(net.node("hub"), "hub", LISTENS)?;
        hub.wait_ready()?;
        let cloud_pod = net.node("hub").wired_pod("p", &format!("{CLOUD_POD}/24"), "10.244.1.1/24")?;
        let mut edge = controller.join(net.node("edge"), "edge")?;
        edge.wait_up("hub")?;
        let (edge_pod, edge_pod_address) = controller.pod_of(net.node("edge"))?;
        Ok(Self { net, controller, hub, edge, edge_pod, edge_pod_address, cloud_pod })
    }

    /// Returns what the status of the edge says about the hub.
    fn report(&self) -> Result<Value> {
        let status = self.edge.status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        peers.into_iter().find(|found| found["name"] == "hub").context("the hub is no peer")
    }

    /// Waits until the tunnel travels in TCP, or in UDP.
    fn wait_tcp(&self, tcp: bool) -> Result<()> {
        wait::until(&format!("the tunnel to have tcp = {tcp}"), CHANGE, || {
            let report = self.report()?;
            ensure!(report["phase"] == "up" && report["tcp"] == tcp, "the status says {report}");
            Ok(())
        })
    }

    /// Checks that the tunnel is up in TCP again after `happens`, and that pods are without an
    /// answer for less than [`LONGEST_SILENCE`].
    fn survives(&mut self, lab: &Lab, what: &str, happens: fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut pings = self.pings()?;
        for ping in &mut pings {
            ping.wait_more(50)?;
        }
        happens(self)?;
        self.hub.wait_ready()?;
        self.edge.wait_ready()?;
        self.wait_tcp(true)?;
        for (mut ping, direction) in pings.into_iter().zip(["from the edge", "from the cloud"]) {
            ping.wait_more(100).with_context(|| format!("{direction}, after {what}"))?;
            let report = ping.stop()?;
            let (lost, silence) = (report.lost(), report.longest_silence);
            lab.step(&format!("{what}: {direction} {lost} of {} lost, {silence:.1?} silent", report.sent));
            ensure!(silence < LONGEST_SILENCE, "{what}: {direction} nothing was answered for {silence:?}");
        }
        wait::for_event("both ends to have SAs in TCP", || self.expect_tcp(HUB))
    }

    /// Starts pings between the pods, in both directions.
    fn pings(&self) -> Result<[Ping; 2]> {
        Ok([Ping::start(&self.edge_pod, CLOUD_POD, PACE)?, Ping::start(&self.cloud_pod, &self.edge_pod_address, PACE)?])
    }

    /// Checks that both ends have SAs in the TCP connection with this address of the hub, and that
    /// people see that the tunnel is up via TCP.
    fn expect_tcp(&self, hub: &str) -> Result<()> {
        let text = self.edge.command(&["status"])?;
        ensure!(text.contains("up via TCP"), "the table does not say that the tunnel is up via TCP: {text}");
        let report = self.report()?;
        let remote = std::net::SocketAddr::new(hub.parse::<IpAddr>()?, 4500).to_string();
        ensure!(report["ike_sas"][0]["remote"] == remote.as_str(), "the IKE SA is not with {remote}: {report}");
        let text = self.hub.command(&["status"])?;
        ensure!(text.contains("up via TCP"), "the hub does not say that the tunnel is up via TCP: {text}");
        for node in ["edge", "hub"] {
            let states = self.net.node(node).sh("ip xfrm state")?;
            ensure!(states.contains("type espintcp"), "{node} has no SA in TCP: {states}");
        }
        Ok(())
    }
}

/// Replaces the router's rules for forwarded packets.
fn block(net: &Net, rules: &[&str]) -> Result<()> {
    let mut script = "flush chain inet block forward\n".to_owned();
    for rule in rules {
        script.push_str(&format!("add rule inet block forward {rule}\n"));
    }
    net.node("router").sh(&format!("nft -f - <<'END'\n{script}END"))?;
    Ok(())
}

const NO_UDP: &str = "meta l4proto udp drop";

fn udp_blocked(lab: &Lab) -> Result<()> {
    let site = Site::start(lab, &[NO_UDP])?;
    site.wait_tcp(true)?;
    site.expect_tcp(HUB)?;
    let mut capture = site.net.node("router").capture("isp")?;
    let mut pings = site.pings()?;
    for ping in &mut pings {
        ping.wait_more(100)?;
    }
    site.edge.rekey("hub")?;
    site.edge.rekey_ike("hub")?;
    for ping in &mut pings {
        ping.wait_more(50)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    site.expect_tcp(HUB)?;
    capture.wait_for(&format!("tcp port 4500 and host {HUB}"))?;
    capture.stop()?;
    for address in [CLOUD_POD, &site.edge_pod_address] {
        capture.expect_none(&format!("host {address}"))?;
    }
    lab.step("the pods talk by TCP, and rekeys lose nothing");
    // Packets that nobody answers make the edge ask whether the hub is alive.
    let ike_sas = site.edge.ike_sas("hub")?;
    let checks = || -> Result<u64> {
        let sent = site.edge.status()?["ike"]["liveness_checks"].as_u64();
        sent.context("the status counts no liveness checks")
    };
    let before = checks()?;
    wait::for_event("a liveness check in the connection", || {
        ensure!(!site.edge_pod.reaches(NOBODY, Duration::from_millis(500))?, "{NOBODY} answers");
        ensure!(checks()? > before, "none yet");
        Ok(())
    })?;
    ensure!(site.edge.ike_sas("hub")? == ike_sas, "the liveness check has replaced the IKE SA");
    lab.step("a liveness check is answered, and the IKE SA stays");

    let mut pings = site.pings()?;
    for ping in &mut pings {
        ping.wait_more(50)?;
    }
    block(site.net, &[])?;
    site.wait_tcp(false)?;
    for ping in &mut pings {
        ping.wait_more(100)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("the tunnel has returned to UDP, and no ping was lost");
    wait::until("the TCP connection to end", CHANGE, || {
        let open = site.net.node("hub").sh("ss -Htn state established sport = :4500")?;
        ensure!(open.trim().is_empty(), "it is open: {open}");
        Ok(())
    })?;

    block(site.net, &[NO_UDP])?;
    site.wait_tcp(true)?;
    for mut ping in site.pings()? {
        ping.wait_more(50)?;
        ping.stop()?;
    }
    lab.step("UDP is blocked again, and the tunnel goes to TCP again");
    Ok(())
}

fn over_ipv6(lab: &Lab) -> Result<()> {
    let v6_alone = format!("ip daddr {HUB} tcp dport 4500 drop");
    let site = Site::start(lab, &[NO_UDP, &v6_alone])?;
    site.wait_tcp(true)?;
    site.expect_tcp(HUB_V6)?;
    let mut pings = site.pings()?;
    for ping in &mut pings {
        ping.wait_more(100)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    lab.step("the pods talk by TCP over IPv6");
    let port = || -> Result<String> {
        let open = site.net.node("edge").sh("ss -Htn6 state established dport = :4500")?;
        let mut words = open.split_whitespace();
        words.nth(2).map(ToOwned::to_owned).with_context(|| format!("no connection: {open:?}"))
    };
    let before = port()?;
    // The router answers the next segment in either direction with a reset.
    block(
        site.net,
        &[NO_UDP, &v6_alone, "tcp dport 4500 reject with tcp reset", "tcp sport 4500 reject with tcp reset"],
    )?;
    let mut pings = site.pings()?;
    wait::for_event("the connection to end", || {
        ensure!(port().ok() != Some(before.clone()), "it is open");
        Ok(())
    })?;
    block(site.net, &[NO_UDP, &v6_alone])?;
    for ping in &mut pings {
        ping.wait_more(100)?;
    }
    ensure!(port()? != before, "the connection is the same");
    site.expect_tcp(HUB_V6)?;
    lab.step("the connection was reset, and another one carries the tunnel");
    Ok(())
}

fn own_address_changes(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, &[NO_UDP])?;
    site.wait_tcp(true)?;
    let mut pings = site.pings()?;
    for ping in &mut pings {
        ping.wait_more(50)?;
    }
    site.net.node("edge").sh("set -e
         ip addr del 192.168.1.10/24 dev home
         ip addr add 192.168.1.77/24 dev home
         ip route replace default via 192.168.1.1")?;
    site.edge.process().wait_log("the address of the TCP connection to the hub is gone")?;
    for ping in &mut pings {
        ping.wait_more(100)?;
    }
    let open = site.net.node("edge").sh("ss -Htn4 state established dport = :4500")?;
    ensure!(open.contains("192.168.1.77:") && !open.contains("192.168.1.10:"), "it has {open}");
    site.expect_tcp(HUB)?;
    for ping in pings {
        let report = ping.stop()?;
        lab.step(&format!("longest silence {:?}", report.longest_silence));
    }
    Ok(())
}

fn restarts(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, &[NO_UDP])?;
    site.wait_tcp(true)?;
    site.survives(lab, "the edge's agent is restarted", |site| {
        site.edge.process().stop()?;
        site.edge = site.controller.start_again(site.net.node("edge"))?;
        Ok(())
    })?;
    site.survives(lab, "the edge's agent is killed", |site| {
        site.edge.process().kill()?;
        site.edge = site.controller.start_again(site.net.node("edge"))?;
        Ok(())
    })?;
    site.survives(lab, "the hub's agent is restarted", |site| {
        site.hub.process().stop()?;
        site.hub = site.controller.start_with(site.net.node("hub"), LISTENS)?;
        Ok(())
    })?;
    site.survives(lab, "the hub's agent is killed", |site| {
        site.hub.process().kill()?;
        site.hub = site.controller.start_with(site.net.node("hub"), LISTENS)?;
        Ok(())
    })
}

fn strangers(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab, &[NO_UDP])?;
    site.wait_tcp(true)?;
    let mut pings = site.pings()?;
    for ping in &mut pings {
        ping.wait_more(20)?;
    }
    let node = site.net.node("stranger");
    let text = node.run(node.command("python3").args(["-c", STRANGER]))?;
    lab.step(text.trim());
    for ping in &mut pings {
        ping.wait_more(50)?;
    }
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    ensure!(site.hub.process().exit_status()?.is_none(), "the hub's agent has ended");
    let rows = site.controller.run(&["node", "list"])?;
    ensure!(rows.contains("edge"), "{rows}");
    Ok(())
}

/// A Python program that opens connections to the hub in many wrong ways, and waits until the hub
/// has closed each of them.
const STRANGER: &str = "\
import os, select, socket, struct, time
def frame(payload):
    return struct.pack('!H', len(payload) + 2) + payload
init = os.urandom(8) + bytes(8) + bytes([33, 0x20, 34, 0x08]) + bytes(4) + struct.pack('!I', 28)
wrong = [
    b'',
    b'IKET',
    b'GET / HTTP/1.1\\r\\n\\r\\n',
    bytes(100),
    b'IKETCP',
    b'IKETCP' + struct.pack('!H', 0),
    b'IKETCP' + struct.pack('!H', 1),
    b'IKETCP' + struct.pack('!H', 2) * 1000,
    b'IKETCP' + struct.pack('!H', 65535),
    b'IKETCP' + struct.pack('!H', 65535) + os.urandom(65533),
    b'IKETCP' + frame(b'\\xff') * 1000,
    b'IKETCP' + frame(bytes(4)) * 1000,
    b'IKETCP' + frame(bytes(4) + init) * 1000,
    b'IKETCP' + frame(bytes(4) + os.urandom(200)) * 1000,
    b'IKETCP' + frame(os.urandom(200)) * 1000,
    b'IKETCP' + frame(os.urandom(200))[:100],
    b'IKETCP' * 100,
]
began = time.monotonic()
for address in ['203.0.113.1', '2001:db8:1::1']:
    open_now = {}
    for number in range(4):
        for data in wrong:
            s = socket.create_connection((address, 4500), timeout=10)
            try:
                s.sendall(data)
            except OSError:
                pass
            s.setblocking(False)
            open_now[s] = data
    while open_now:
        assert time.monotonic() - began < 150, [data[:40] for data in open_now.values()]
        for s in select.select(list(open_now), [], [], 1)[0]:
            try:
                closed = not s.recv(65536)
            except OSError:
                closed = True
            if closed:
                del open_now[s]
                s.close()
print('every connection of a stranger was closed after', round(time.monotonic() - began), 's')
";
