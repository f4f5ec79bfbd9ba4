//! Connects two edges behind NATs of each kind, directly or through the hub's relay.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Net, NetworkPlan, Node, Ping, Pod};
use crate::wait;

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(180), by_default: true, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "nat/changing-changing",
        "two NATs that change ports: the hubs tell the ports, and the edges connect",
        |lab| direct(lab, Nat::ChangesPorts, Nat::ChangesPorts),
    ),
    scenario("nat/changing-keeping", "one NAT changes ports and the other keeps them: the edges connect", |lab| {
        direct(lab, Nat::ChangesPorts, Nat::KeepsPorts)
    }),
    scenario("nat/keeping-keeping", "two NATs that keep ports: the edges connect", |lab| {
        direct(lab, Nat::KeepsPorts, Nat::KeepsPorts)
    }),
    scenario("nat/keeping-open", "an edge behind a NAT that keeps ports reaches one without a NAT", |lab| {
        direct(lab, Nat::KeepsPorts, Nat::None)
    }),
    scenario("nat/symmetric-open", "an edge behind a symmetric NAT reaches one without a NAT", |lab| {
        direct(lab, Nat::Symmetric, Nat::None)
    }),
    scenario("nat/symmetric-keeping", "a symmetric NAT and one that keeps ports: the hub relays", |lab| {
        relayed(lab, Nat::Symmetric, Nat::KeepsPorts)
    }),
    scenario("nat/symmetric-changing", "a symmetric NAT and one that changes ports: the hub relays", |lab| {
        relayed(lab, Nat::Symmetric, Nat::ChangesPorts)
    }),
    scenario("nat/symmetric-symmetric", "two symmetric NATs: the hub relays", |lab| {
        relayed(lab, Nat::Symmetric, Nat::Symmetric)
    }),
    scenario(
        "nat/diagnosed",
        "`edge-agent diagnose` names the kind of each NAT, once two hubs have seen the node",
        diagnosed,
    ),
    scenario(
        "nat/relay-direct-later",
        "two symmetric NATs become friendly: the relayed tunnel becomes direct, and no ping is lost",
        relay_direct_later,
    ),
    scenario(
        "nat/moved-without-cloud",
        "an edge without a NAT gets another address while the controller is away: the hub relays before the tunnel is given up",
        moved_without_cloud,
    ),
    scenario(
        "nat/relay-hub-restarted",
        "the hub that relays is restarted and forgets the relay: the edges ask it again",
        relay_hub_restarted,
    ),
    scenario(
        "nat/relay-hub-lost",
        "the agent of the hub that relays is killed: the edges ask the other hub",
        relay_hub_lost,
    ),
];

const HUB: &str = "203.0.113.1";
/// The hub's default ports for relays, as a port range of a capture filter.
const RELAY_PORTS: &str = "24000-25023";

/// Interval of the pings.
const PACE: Duration = Duration::from_millis(20);

/// A router in front of an edge. None of the NATs lets in what comes from an address and port to
/// which nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nat {
    /// Nothing is translated.
    None,
    /// Ports stay as they are.
    KeepsPorts,
    /// Another port, the same one towards all destinations.
    ChangesPorts,
    /// Another port towards each destination.
    Symmetric,
}

impl Nat {
    fn start(self, router: &Node, public: &str) -> Result<()> {
        let translate = match self {
            Self::None => return Ok(()),
            Self::KeepsPorts => "masquerade".to_owned(),
            Self::ChangesPorts => format!("udp sport 4500 snat ip to {public}:61000"),
            Self::Symmetric => "meta l4proto udp masquerade to :20000-60000 fully-random".to_owned(),
        };
        // What comes unasked is dropped before connection tracking remembers it. Otherwise it would
        // take the port from the edge.
        router.sh(&format!(
            "set -e
             nft 'add table inet nat; add chain inet nat in {{ type filter hook input priority 0; }}'
             nft 'add chain inet nat post {{ type nat hook postrouting priority srcnat; }}'
             nft add rule inet nat in iifname isp meta l4proto udp drop
             nft add rule inet nat post oifname isp {translate}
             nft add rule inet nat post oifname isp masquerade"
        ))?;
        Ok(())
    }
}

/// A hub and two edges of one community, with pods.
pub(super) struct Edges<'a> {
    pub(super) net: &'a Net,
    pub(super) controller: Controller<'a>,
    pub(super) hub: Agent<'a>,
    pub(super) agents: [Agent<'a>; 2],
    pub(super) pods: [(Pod, String); 2],
}

impl<'a> Edges<'a> {
    /// Starts the network, the controller, the agents and the pods, and puts both edges into one
    /// community.
    fn start(lab: &'a Lab, nats: [Nat; 2]) -> Result<Self> {
        Self::start_with(lab, nats, "")
    }

    /// The same, with these tables in the hub's configuration.
    pub(super) fn start_with(lab: &'a Lab, nats: [Nat; 2], of_hub: &str) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.host("hub").on("isp", &[&format!("{HUB}/24")]).own_directory("/etc/edge-controller");
        plan.host("hub-2").on("isp", &["203.0.113.2/24"]);
        plan.host("stranger").on("isp", &["203.0.113.99/24"]);
        // The networks behind the NATs have the same addresses. An edge without a NAT has a public
        // address.
        for (index, nat) in nats.into_iter().enumerate() {
            let (edge, router, home) = (format!("edge-{index}"), format!("r-{index}"), format!("home-{index}"));
            let public = format!("203.0.113.{}/24", 10 + index);
            if nat == Nat::None {
                plan.host(&edge).on("isp", &[&public]);
            } else {
                plan.router(&router).on("isp", &[&public]).on(&home, &["192.168.1.1/24"]);
                plan.host(&edge).on(&home, &["192.168.1.10/24"]).via("192.168.1.1");
            }
        }
        let net = lab.build(&plan)?;
        for (index, nat) in nats.into_iter().enumerate().filter(|(_, nat)| *nat != Nat::None) {
            nat.start(net.node(&format!("r-{index}")), &format!("203.0.113.{}", 10 + index))?;
        }
        let (node, one, other) = (net.node("hub"), net.node("edge-0"), net.node("edge-1"));
        let controller = Controller::start(lab, node, HUB, "")?;
        let mut hub = controller.join_with(node, "hub", of_hub)?;
        hub.wait_ready()?;
        let mut agents = [controller.join(one, "edge")?, controller.join(other, "edge")?];
        for agent in &mut agents {
            agent.wait_up("hub")?;
        }
        let pods = [controller.pod_of(one)?, controller.pod_of(other)?];
        for name in ["edge-0", "edge-1"] {
            controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
        }
        Ok(Self { net, controller, hub, agents, pods })
    }

    pub(super) fn wait_up(&mut self) -> Result<()> {
        self.agents[0].wait_up("edge-1")?;
        self.agents[1].wait_up("edge-0").map(drop)
    }

    pub(super) fn ping(&self) -> Result<Ping> {
        let ([(pod, _), (_, address)], pace) = (&self.pods, PACE);
        Ping::start(pod, address, pace)
    }

    /// Waits until neither edge makes another IKE SA with the other one. Both may have begun the
    /// tunnel. Until the attempts have ended, after 5.5 s, one IKE SA may take the other's place.
    pub(super) fn settle(&self) -> Result<()> {
        let mut ping = self.ping()?;
        ping.wait_more(300)?;
        ping.stop().map(drop)
    }

    /// Returns what the status of the edge with this index says about the other edge.
    pub(super) fn report(&self, index: usize) -> Result<Value> {
        let peer = format!("edge-{}", 1 - index);
        let status = self.agents[index].status()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        peers.into_iter().find(|found| found["name"] == peer.as_str()).context("the other edge is no peer")
    }

    /// Waits until the status of both edges says that this hub relays the tunnel, or with `None`,
    /// that the tunnel is direct.
    pub(super) fn wait_relayed_by(&self, hub: Option<&str>) -> Result<()> {
        for index in 0..2 {
            wait::for_event(&format!("edge-{index} to be relayed by {hub:?}"), || {
                let report = self.report(index)?;
                ensure!(report["phase"] == "up" && report["relayed_by"].as_str() == hub, "it says {report}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn direct(lab: &Lab, first: Nat, second: Nat) -> Result<()> {
    let mut edges = Edges::start(lab, [first, second])?;
    edges.wait_up()?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    ping.stop()?;
    edges.wait_relayed_by(None)?;
    for (index, nat) in [first, second].into_iter().enumerate().filter(|(_, nat)| *nat == Nat::ChangesPorts) {
        // The other edge sends to the port that the NAT chose, which only the hub knew.
        let expected = format!("203.0.113.{}:61000", 10 + index);
        wait::for_event("the mapped address", || {
            let report = edges.report(1 - index)?;
            let remote = &report["ike_sas"][0]["remote"];
            ensure!(*remote == expected.as_str(), "{nat:?}: edge-{index} is at {remote}, not at {expected}");
            Ok(())
        })?;
        lab.step(&format!("edge-{index} is reached at {expected}"));
    }
    Ok(())
}

fn relayed(lab: &Lab, first: Nat, second: Nat) -> Result<()> {
    let mut edges = Edges::start(lab, [first, second])?;
    let mut capture = edges.net.node("hub").capture("isp")?;
    edges.wait_up()?;
    edges.wait_relayed_by(Some("hub"))?;
    edges.settle()?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()?;
    lab.step("the ping went by the relay");
    for (agent, peer) in edges.agents.iter().zip(["edge-1", "edge-0"]) {
        let text = agent.command(&["status"])?;
        ensure!(text.contains("up, relayed by hub"), "the table does not say who relays: {text}");
        let text = agent.command(&["ping", peer, "--count", "3"])?;
        ensure!(text.contains("relayed by hub"), "the ping does not say who relays: {text}");
    }
    let text = edges.hub.command(&["status"])?;
    ensure!(text.contains("relay between 1 pairs of nodes"), "the hub does not say that it relays: {text}");
    // The hub has no SA of the pair, and no packet of the pods passes it in clear.
    let spis = edges.agents[0].tunnel("edge-1")?;
    let states = edges.net.node("hub").xfrm_states()?;
    let known = states.iter().find(|state| [spis.spi_in, spis.spi_out].contains(&state.spi));
    ensure!(known.is_none(), "the hub has an SA of the relayed pair: {known:?}");
    capture.wait_for(&format!("udp portrange {RELAY_PORTS} and host 203.0.113.10"))?;
    capture.wait_for(&format!("udp portrange {RELAY_PORTS} and host 203.0.113.11"))?;
    capture.stop()?;
    for (_, address) in &edges.pods {
        capture.expect_none(&format!("host {address}"))?;
    }
    strangers_reach_nobody(lab, &edges)
}

/// Sends datagrams to all ports of the relay while the edges use it, from a host that is not a
/// member, and from the public address of the first edge. Fails if one of them reaches an edge, or
/// if a ping is lost.
fn strangers_reach_nobody(lab: &Lab, edges: &Edges) -> Result<()> {
    let mut captures = [edges.net.node("edge-0").capture("home-0")?, edges.net.node("edge-1").capture("home-1")?];
    let mut ping = edges.ping()?;
    ping.wait_more(5)?;
    for name in ["stranger", "r-0"] {
        let node = edges.net.node(name);
        node.run(node.command("python3").args(["-c", STRANGER]))?;
    }
    ping.wait_more(25)?;
    ping.stop()?.expect_none_lost()?;
    for capture in &mut captures {
        capture.stop()?;
        capture.expect_none("udp[8:4] = 0x53545247")?;
    }
    lab.step("what strangers sent went nowhere");
    Ok(())
}

/// A Python program that sends a datagram to each port of the relay, slowly enough for the guest to
/// keep up.
const STRANGER: &str = "\
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 4500))
for port in range(24000, 25024):
    s.sendto(b'STRG' + bytes(64), ('203.0.113.1', port))
    if port % 64 == 0:
        time.sleep(0.02)
";

fn diagnosed(lab: &Lab) -> Result<()> {
    let edges = Edges::start(lab, [Nat::Symmetric, Nat::ChangesPorts])?;
    let changed = "192.168.1.10:4500 becomes 203.0.113.11:61000 towards";
    edges.agents[1].wait_diagnosis(&format!("NAT: {changed} hub; a second hub would say"))?;
    let mut second = edges.controller.join(edges.net.node("hub-2"), "hub")?;
    second.wait_ready()?;
    edges.agents[1].wait_diagnosis(&format!("NAT: endpoint-independent: {changed} each of hub, hub-2"))?;
    edges.agents[0].wait_diagnosis("NAT: address-dependent: 192.168.1.10:4500 becomes 203.0.113.10:")?;
    edges.hub.wait_diagnosis("NAT: ")?;
    for agent in &edges.agents {
        // Controller and agents have the same clock.
        agent.wait_diagnosis("s off the controller's")?;
    }
    let mut plain = edges.controller.join(edges.net.node("stranger"), "edge")?;
    plain.wait_up("hub")?;
    plain.wait_diagnosis("NAT: none in front of 203.0.113.99:4500, as hub")
}

fn relay_direct_later(lab: &Lab) -> Result<()> {
    let mut edges = Edges::start(lab, [Nat::Symmetric, Nat::Symmetric])?;
    edges.wait_up()?;
    edges.wait_relayed_by(Some("hub"))?;
    edges.settle()?;
    for index in 0..2 {
        // Only new flows use the new rules. Flows that connection tracking knows keep their ports.
        edges.net.node(&format!("r-{index}")).sh(&format!(
            "set -e
             nft flush chain inet nat post
             nft add rule inet nat post oifname isp udp sport 4500 snat ip to 203.0.113.{}:4500
             nft add rule inet nat post oifname isp masquerade",
            10 + index
        ))?;
    }
    // On a busy machine, the change of the rules itself costs packets, so the ping begins after it.
    let mut ping = edges.ping()?;
    // Connection tracking forgets the unanswered flows of the first attempt after 30 s, the
    // duration of 1500 pings.
    for _ in 0..2 {
        ping.wait_more(800)?;
    }
    // After one edge gets a new address, the other one soon tries the direct path.
    edges.net.node("edge-1").sh("ip addr add 192.168.1.77/24 dev home-1")?;
    edges.wait_relayed_by(None)?;
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()?;
    for index in 0..2 {
        let report = edges.report(index)?;
        let (remote, expected) = (&report["ike_sas"][0]["remote"], format!("203.0.113.{}:4500", 11 - index));
        ensure!(*remote == expected.as_str(), "the other edge is at {remote}, not at {expected}");
    }
    lab.step("the path is direct");
    Ok(())
}

fn moved_without_cloud(lab: &Lab) -> Result<()> {
    let mut edges = Edges::start(lab, [Nat::KeepsPorts, Nat::None])?;
    edges.wait_up()?;
    edges.wait_relayed_by(None)?;
    edges.settle()?;
    edges.controller.process().stop()?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    let logged: Vec<usize> = edges.agents.iter_mut().map(|agent| agent.process().log().len()).collect();
    // The NAT of the other edge lets nothing in from there.
    edges.net.node("edge-1").sh("ip addr del 203.0.113.11/24 dev isp && ip addr add 203.0.113.77/24 dev isp")?;
    edges.wait_relayed_by(Some("hub"))?;
    ping.wait_more(50)?;
    let lost = ping.stop()?.lost();
    lab.step(&format!("the hub relays; {lost} pings, one each {PACE:?}, were lost"));
    for ((agent, other), logged) in edges.agents.iter_mut().zip(["edge-1", "edge-0"]).zip(logged) {
        let given_up = format!("peer {other}: ");
        let log = agent.process().log();
        let since = log.get(logged..).unwrap_or(&log);
        ensure!(!since.contains(&given_up), "the tunnel was given up:\n{since}");
    }
    Ok(())
}

fn relay_hub_restarted(lab: &Lab) -> Result<()> {
    let mut edges = Edges::start(lab, [Nat::Symmetric, Nat::Symmetric])?;
    edges.wait_up()?;
    edges.wait_relayed_by(Some("hub"))?;
    let before = edges.report(0)?["ike_sas"][0]["remote"].clone();
    edges.hub.process().kill()?;
    edges.hub = edges.controller.start_again(edges.net.node("hub"))?;
    wait::until("another port of the relay", Duration::from_secs(60), || {
        let report = edges.report(0)?;
        let now = &report["ike_sas"][0]["remote"];
        ensure!(report["relayed_by"] == "hub" && *now != before && !now.is_null(), "it says {report}");
        Ok(())
    })?;
    edges.wait_relayed_by(Some("hub"))?;
    edges.settle()?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()
}

fn relay_hub_lost(lab: &Lab) -> Result<()> {
    let mut edges = Edges::start(lab, [Nat::Symmetric, Nat::Symmetric])?;
    edges.wait_up()?;
    edges.wait_relayed_by(Some("hub"))?;
    let mut second = edges.controller.join(edges.net.node("hub-2"), "hub")?;
    second.wait_ready()?;
    for agent in &mut edges.agents {
        agent.wait_up("hub-2")?;
    }
    edges.wait_relayed_by(Some("hub"))?;
    edges.hub.process().kill()?;
    wait::until("the other hub to relay", Duration::from_secs(90), || {
        let report = edges.report(0)?;
        ensure!(report["relayed_by"] == "hub-2", "it says {report}");
        Ok(())
    })?;
    edges.wait_relayed_by(Some("hub-2"))?;
    edges.settle()?;
    let mut ping = edges.ping()?;
    ping.wait_more(50)?;
    ping.stop()?.expect_none_lost()
}
