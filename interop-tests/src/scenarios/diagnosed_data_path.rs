//! Faults on the way of packets, while tunnels are up or should be.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Ping};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "agent/data-path-diagnosed",
    about: "a hub that was never up, a router that drops the ESP of one direction, a forger and a stopped agent: `edge-agent diagnose` names each",
    deadline: Duration::from_secs(180),
    by_default: true,
    needs: Needs::Nothing,
    run: diagnosed,
}];

const HUB: &str = "203.0.113.1";
/// An address in the cloud's network that the hub fronts.
const CLOUD_POD: &str = "10.244.0.1";
/// The way of ESP in UDP to the edge: a datagram that does not begin with the non-ESP marker of
/// IKE, and is no keepalive.
const DROP_ESP: &str = "table ip middle { chain forward { type filter hook forward priority 0; \
                        ip daddr 192.0.2.10 udp length > 9 @th,64,32 != 0 drop; }; }";

fn diagnosed(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("hub")
        .on("isp", &[&format!("{HUB}/24")])
        .route("192.0.2.0/24", "203.0.113.254")
        .own_directory("/etc/edge-controller");
    plan.router("router").on("isp", &["203.0.113.254/24"]).on("site", &["192.0.2.1/24"]);
    plan.host("edge").on("site", &["192.0.2.10/24"]).via("192.0.2.1");
    plan.host("stranger").on("isp", &["203.0.113.66/24"]);
    let net = lab.build(&plan)?;
    let (node, edge_node, router) = (net.node("hub"), net.node("edge"), net.node("router"));
    node.sh(&format!("ip link add cloud type dummy; ip link set cloud up; ip addr add {CLOUD_POD}/24 dev cloud"))?;
    let controller = Controller::start(lab, node, HUB, "networks = [\"10.244.0.0/16\"]")?;
    let mut hub = controller.join(node, "hub")?;
    hub.wait_ready()?;

    hub.process().kill()?;
    let mut edge = controller.join(edge_node, "edge")?;
    about(&edge, CLOUD_POD, "What is wrong: hub: the tunnel was never up")?;
    lab.step("a hub that was never up");
    hub = controller.start_again(node)?;
    edge.wait_up("hub")?;
    hub.wait_up("edge")?;

    let (pod, address) = controller.pod_of(edge_node)?;
    let mut ping = Ping::start(&pod, CLOUD_POD, Duration::from_millis(50))?;
    ping.wait_more(20)?;
    about(&edge, "hub", "Nothing is wrong")?;
    router.sh(&format!("nft -f - <<'END'\n{DROP_ESP}\nEND"))?;
    about(&edge, "hub", "were sent and none came back")?;
    // The hub sees nothing of it: it answers what arrives.
    about(&hub, "edge", "Nothing is wrong")?;
    router.sh("nft delete table ip middle")?;
    ping.wait_more(20)?;
    about(&edge, "hub", "Nothing is wrong")?;
    ping.stop()?;
    lab.step("a router that drops the ESP of one direction");

    // A host beside the hub sends with the address of the edge's pod, in clear.
    let stranger = net.node("stranger");
    stranger.sh(&format!("ip addr add {address}/32 dev lo; ip route add {CLOUD_POD} via {HUB} src {address}"))?;
    let forger = stranger.ping(CLOUD_POD)?;
    about(
        &hub,
        "edge",
        "of them just now: packets with a pod's source that came neither from the bridge nor out of a tunnel",
    )?;
    forger.end()?;
    lab.step("a forger");

    edge.process().signal(Signal::STOP)?;
    let stopped = edge.diagnosis();
    edge.process().signal(Signal::CONT)?;
    let stopped = stopped?;
    ensure!(stopped.contains("ERROR    agent: "), "{stopped}");
    lab.step("an agent that does not answer");
    Ok(())
}

/// Waits until the diagnosis of a peer or an address says this.
fn about(agent: &Agent<'_>, subject: &str, words: &str) -> Result<()> {
    wait::for_event(&format!("the diagnosis of {subject} to say {words:?}"), || {
        let said = agent.diagnosis_of(subject)?;
        ensure!(said.contains(words), "{said}");
        Ok(())
    })
}
