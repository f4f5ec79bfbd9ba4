//! A clock that somebody sets while the agent runs.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario, skip};
use crate::topology::{NetworkPlan, Node};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "agent/clock-diagnosed",
    about: "the system clock is set back and forward: `edge-agent diagnose` says by how much, and what that means",
    deadline: Duration::from_secs(180),
    by_default: true,
    needs: Needs::Nothing,
    run: diagnosed,
}];

const HUB: &str = "203.0.113.1";
const DAY: i64 = 86_400;

/// Sets the guest's clock, and sets it back when it is dropped.
struct Shifted<'a> {
    node: &'a Node,
    by: i64,
}

impl<'a> Shifted<'a> {
    fn by(node: &'a Node, seconds: i64) -> Result<Self> {
        shift(node, seconds)?;
        Ok(Self { node, by: seconds })
    }
}

impl Drop for Shifted<'_> {
    fn drop(&mut self) {
        if let Err(error) = shift(self.node, -self.by) {
            eprintln!("the clock cannot be set back: {error:#}");
        }
    }
}

fn shift(node: &Node, seconds: i64) -> Result<()> {
    node.sh(&format!("date --set=@$(($(date +%s) + {seconds}))")).map(drop)
}

fn diagnosed(lab: &Lab) -> Result<()> {
    // The clock of a namespace is that of its kernel.
    if !std::fs::read_to_string("/proc/cpuinfo")?.contains("User Mode Linux") {
        return skip("it sets the clock, so it runs only in a guest's kernel");
    }
    let mut plan = NetworkPlan::new();
    plan.host("hub").on("isp", &[&format!("{HUB}/24")]).own_directory("/etc/edge-controller");
    plan.host("edge").on("isp", &["203.0.113.10/24"]);
    let net = lab.build(&plan)?;
    let (node, edge_node) = (net.node("hub"), net.node("edge"));
    let mut controller = Controller::start(lab, node, HUB, "")?;
    let mut hub = controller.join(node, "hub")?;
    hub.wait_ready()?;
    let mut edge = controller.join(edge_node, "edge")?;
    edge.wait_up("hub")?;
    edge.wait_diagnosis("s off the controller's")?;
    let not_off = edge.diagnosis()?;
    ensure!(not_off.contains("ok       clock: "), "{not_off}");
    // What the controller has said last stays, since no response brings its present clock, which is
    // the same one.
    controller.process().kill()?;
    {
        let _set_back = Shifted::by(edge_node, -3 * DAY - 3600 - 1800)?;
        edge.wait_diagnosis("WARNING  clock: 3 d 1 h behind the controller's: certificates are judged")?;
    }
    {
        let _set_forward = Shifted::by(edge_node, 2 * 3600 + 90)?;
        edge.wait_diagnosis("clock: 2 h 1 min ahead of the controller's")?;
        ensure!(edge.diagnosis()?.lines().any(|line| line.starts_with("WARNING  clock: ")));
    }
    {
        let _far_ahead = Shifted::by(edge_node, 400 * DAY + 1800)?;
        // The controller has told the time since this node started, so certificates go by that.
        edge.wait_diagnosis("WARNING  clock: 400 d 0 h ahead of the controller's: certificates are judged by")?;
    }
    edge.wait_diagnosis("ok       clock: ")
}
