//! A hub and two edges of one community, with pings that must all be answered whatever happens to
//! the programs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::Lab;
use crate::topology::{NetworkPlan, Node, Ping};

const HUB: &str = "203.0.113.1";
/// An address in the cloud's network that the hub fronts.
const CLOUD_POD: &str = "10.244.0.1";
/// Interval of the pings.
const PACE: Duration = Duration::from_millis(10);
/// Number of pings after each event.
const AFTER_EACH: u64 = 100;

/// The nodes with agents, in the order of an upgrade.
pub(super) const NODES: [&str; 3] = ["hub", "edge-a", "edge-b"];

/// The network. A pod of `edge-a` pings a pod of `edge-b` and one in the cloud. The controller runs
/// on the hub's node.
pub(super) struct HubAndEdges<'a> {
    pub(super) lab: &'a Lab,
    pub(super) nodes: [&'a Node; 3],
    pub(super) controller: Controller<'a>,
    pub(super) agents: [Agent<'a>; 3],
    configured: &'static str,
    pings: [Ping; 2],
}

impl<'a> HubAndEdges<'a> {
    /// Starts everything, with further configuration of the controller. `prepare` is called for
    /// each node before a program starts there.
    pub(super) fn start(lab: &'a Lab, configured: &'static str, prepare: impl Fn(&Node) -> Result<()>) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.host("hub").on("wire", &[&format!("{HUB}/24")]).own_directory("/etc/edge-controller");
        plan.host("edge-a").on("wire", &["203.0.113.10/24"]);
        plan.host("edge-b").on("wire", &["203.0.113.11/24"]);
        let net = lab.build(&plan)?;
        let nodes = NODES.map(|name| net.node(name));
        nodes.into_iter().try_for_each(prepare)?;
        let [hub, a, b] = nodes;
        hub.sh(&format!("ip link add cloud type dummy; ip link set cloud up; ip addr add {CLOUD_POD}/24 dev cloud"))?;
        let controller = Controller::start(lab, hub, HUB, configured)?;
        let mut agents = [controller.join(hub, "hub")?, controller.join(a, "edge")?, controller.join(b, "edge")?];
        wait_up_with_hub(&mut agents)?;
        let ((pod, _), (_other, address)) = (controller.pod_of(a)?, controller.pod_of(b)?);
        for name in ["edge-a", "edge-b"] {
            controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
        }
        agents[1].wait_up("edge-b")?;
        agents[2].wait_up("edge-a")?;
        let pings = [Ping::start(&pod, &address, PACE)?, Ping::start(&pod, CLOUD_POD, PACE)?];
        let mut site = Self { lab, nodes, controller, agents, configured, pings };
        site.go_on("the network works")?;
        Ok(site)
    }

    /// Waits until both pings have sent more packets, and says what has happened before.
    pub(super) fn go_on(&mut self, what: &str) -> Result<()> {
        for ping in &mut self.pings {
            ping.wait_more(AFTER_EACH).with_context(|| format!("after: {what}"))?;
        }
        self.lab.step(what);
        Ok(())
    }

    /// Stops the agent of this node as an upgrade does, starts `program` on the same state, and
    /// waits until all tunnels are up.
    pub(super) fn replace_agent(&mut self, at: usize, program: &Path) -> Result<()> {
        self.agents[at].process().stop()?;
        self.agents[at] = self.controller.start_program_again(program.to_owned(), self.nodes[at])?;
        self.agents[at].wait_ready()?;
        wait_up_with_hub(&mut self.agents)?;
        self.agents[1].wait_up("edge-b")?;
        Ok(())
    }

    /// Starts the controller, which was stopped, on the same state.
    pub(super) fn start_controller(&mut self) -> Result<()> {
        self.controller = Controller::start(self.lab, self.nodes[0], HUB, self.configured)?;
        Ok(())
    }

    /// Fails if one ping was lost.
    pub(super) fn end(self) -> Result<()> {
        for ping in self.pings {
            ping.stop()?.expect_none_lost()?;
        }
        Ok(())
    }
}

/// Waits until the tunnels between hub and edges are up.
fn wait_up_with_hub(agents: &mut [Agent<'_>; 3]) -> Result<()> {
    let [hub, edges @ ..] = agents;
    for edge in edges {
        edge.wait_up("hub")?;
    }
    for edge in ["edge-a", "edge-b"] {
        hub.wait_up(edge)?;
    }
    Ok(())
}
