//! Replaces the programs of a running network one after the other, in the order of an upgrade and
//! in the order of a rollback.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node, Ping};

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(240), by_default: true, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario(
        "agent/rolling-upgrade",
        "controller, hub and edges are replaced one after the other, and then back in the reverse order: no ping is lost",
        |lab| rolling_upgrade(lab, lab.program("edge-agent")?),
    ),
    scenario(
        "agent/two-releases",
        "hub and edges are upgraded from an earlier release one after the other, rekey in each mixture, and are rolled back: no ping is lost",
        |lab| rolling_upgrade(lab, lab.older_program("edge-agent")?),
    ),
];

const HUB: &str = "203.0.113.1";
/// An address in the cloud's network that the hub fronts.
const CLOUD_POD: &str = "10.244.0.1";
const NETWORKS: &str = "networks = [\"10.244.0.0/16\"]";
/// Interval of the pings.
const PACE: Duration = Duration::from_millis(10);
/// Number of pings after each replacement.
const AFTER_EACH: u64 = 100;

/// The nodes with agents, in the order of an upgrade.
const NODES: [&str; 3] = ["hub", "edge-a", "edge-b"];

/// Upgrades all programs, and rolls them back. The agents are upgraded from the program `older`,
/// and the controller from the present one.
fn rolling_upgrade(lab: &Lab, older: PathBuf) -> Result<()> {
    let present = lab.program("edge-agent")?;
    let mut plan = NetworkPlan::new();
    plan.host("hub").on("wire", &[&format!("{HUB}/24")]).own_directory("/etc/edge-controller");
    plan.host("edge-a").on("wire", &["203.0.113.10/24"]);
    plan.host("edge-b").on("wire", &["203.0.113.11/24"]);
    let net = lab.build(&plan)?;
    let nodes = NODES.map(|name| net.node(name));
    let [hub, a, b] = nodes;
    hub.sh(&format!("ip link add cloud type dummy; ip link set cloud up; ip addr add {CLOUD_POD}/24 dev cloud"))?;
    let mut controller = Controller::start(lab, hub, HUB, NETWORKS)?;
    let mut agents = [controller.join(hub, "hub")?, controller.join(a, "edge")?, controller.join(b, "edge")?];
    wait_up(&mut agents)?;
    for (agent, node) in agents.iter_mut().zip(nodes) {
        replace_agent(&controller, agent, node, &older)?;
    }
    wait_up(&mut agents)?;
    let ((pod, _), (_other, address)) = (controller.pod_of(a)?, controller.pod_of(b)?);
    for name in ["edge-a", "edge-b"] {
        controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
    }
    agents[1].wait_up("edge-b")?;
    agents[2].wait_up("edge-a")?;
    let mut pings = [Ping::start(&pod, &address, PACE)?, Ping::start(&pod, CLOUD_POD, PACE)?];
    let mut go_on = |what: &str| -> Result<()> {
        for ping in &mut pings {
            ping.wait_more(AFTER_EACH).with_context(|| format!("after {what}"))?;
        }
        lab.step(what);
        Ok(())
    };
    go_on("the network works")?;

    controller = replace_controller(lab, controller, hub)?;
    go_on("the controller is replaced")?;
    for (index, node) in nodes.into_iter().enumerate() {
        replace_agent(&controller, &mut agents[index], node, &present)?;
        wait_up(&mut agents)?;
        rekey(&agents)?;
        go_on(&format!("the agent of {} is replaced", node.name()))?;
    }
    for (index, node) in nodes.into_iter().enumerate().rev() {
        replace_agent(&controller, &mut agents[index], node, &older)?;
        wait_up(&mut agents)?;
        rekey(&agents)?;
        go_on(&format!("the agent of {} is rolled back", node.name()))?;
    }
    let _controller = replace_controller(lab, controller, hub)?;
    go_on("the controller is rolled back")?;
    for ping in pings {
        ping.stop()?.expect_none_lost()?;
    }
    Ok(())
}

/// Rekeys the tunnel between the edges and that of one edge to the hub, from both ends.
fn rekey([hub, a, b]: &[Agent<'_>; 3]) -> Result<()> {
    for (agent, peer) in [(a, "edge-b"), (b, "edge-a"), (a, "hub"), (hub, "edge-a")] {
        agent.rekey(peer)?;
        agent.rekey_ike(peer)?;
    }
    Ok(())
}

/// Stops the controller as an upgrade does, and starts it on the same state.
fn replace_controller<'a>(lab: &'a Lab, mut before: Controller<'a>, node: &'a Node) -> Result<Controller<'a>> {
    before.process().stop()?;
    drop(before);
    Controller::start(lab, node, HUB, NETWORKS)
}

/// Stops an agent as an upgrade does, and starts this program on the same state.
fn replace_agent<'n>(controller: &Controller<'_>, agent: &mut Agent<'n>, node: &'n Node, program: &Path) -> Result<()> {
    agent.process().stop()?;
    *agent = controller.start_program_again(program.to_owned(), node)?;
    agent.wait_ready()
}

/// Waits until the tunnels between hub and edges are up.
fn wait_up(agents: &mut [Agent<'_>; 3]) -> Result<()> {
    let [hub, edges @ ..] = agents;
    for edge in edges {
        edge.wait_up("hub")?;
    }
    for edge in ["edge-a", "edge-b"] {
        hub.wait_up(edge)?;
    }
    Ok(())
}
