//! Sets the clocks of nodes, so that certificates end or appear to have ended.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::edge_agent::Agent;
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{Net, NetworkPlan, Node, Ping};
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "agent/certificates-end-offline",
        about: "all certificates end while the controller is away: no ping is lost, agents restart, and renew once it is back",
        deadline: Duration::from_secs(240),
        by_default: true,
        needs: Needs::Nothing,
        run: certificates_end_offline,
    },
    Scenario {
        name: "agent/clock-steps",
        about: "the clocks of an edge and of the hub go ten years ahead and back, with restarts of the agents: no ping is lost",
        deadline: Duration::from_secs(300),
        by_default: true,
        needs: Needs::Nothing,
        run: clock_steps,
    },
];

const HUB: &str = "203.0.113.1";
/// An address in the cloud's network that the hub fronts.
const CLOUD_POD: &str = "10.244.0.1";
/// Further configuration of the controller.
const CONFIGURED: &str = "networks = [\"10.244.0.0/16\"]\n[certificates]\nnode_days = 1";
/// Interval of the pings.
const PACE: Duration = Duration::from_millis(10);
/// Number of pings after each event.
const AFTER_EACH: u64 = 100;
/// The nodes with agents.
const NODES: [&str; 3] = ["hub", "edge-a", "edge-b"];
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// A hub and two edges of one community, each with a clock of its own.
struct Site<'a> {
    lab: &'a Lab,
    nodes: [&'a Node; 3],
    controller: Controller<'a>,
    agents: [Agent<'a>; 3],
    pings: [Ping; 2],
}

impl<'a> Site<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let mut plan = NetworkPlan::new();
        plan.host("hub").on("wire", &[&format!("{HUB}/24")]).own_directory("/etc/edge-controller");
        plan.host("edge-a").on("wire", &["203.0.113.10/24"]);
        plan.host("edge-b").on("wire", &["203.0.113.11/24"]);
        let net: &Net = lab.build(&plan)?;
        let [hub, a, b] = NODES.map(|name| net.node(name));
        for node in [hub, a, b] {
            node.own_clock()?;
        }
        hub.sh(&format!("ip link add cloud type dummy; ip link set cloud up; ip addr add {CLOUD_POD}/24 dev cloud"))?;
        let controller = Controller::start(lab, hub, HUB, CONFIGURED)?;
        let mut agents = [controller.join(hub, "hub")?, controller.join(a, "edge")?, controller.join(b, "edge")?];
        wait_up(&mut agents)?;
        let ((pod, _), (_other, address)) = (controller.pod_of(a)?, controller.pod_of(b)?);
        for name in ["edge-a", "edge-b"] {
            controller.run(&["node", "label", name, "fabedge/edge-community=alpha"])?;
        }
        agents[1].wait_up("edge-b")?;
        agents[2].wait_up("edge-a")?;
        let pings = [Ping::start(&pod, &address, PACE)?, Ping::start(&pod, CLOUD_POD, PACE)?];
        let mut site = Self { lab, nodes: [hub, a, b], controller, agents, pings };
        site.go_on("the network works")?;
        Ok(site)
    }

    /// Waits until both pings have sent more packets.
    fn go_on(&mut self, what: &str) -> Result<()> {
        for ping in &mut self.pings {
            ping.wait_more(AFTER_EACH).with_context(|| format!("after: {what}"))?;
        }
        self.lab.step(what);
        Ok(())
    }

    /// Restarts the agents of these nodes, one after the other.
    fn restart(&mut self, nodes: &[usize]) -> Result<()> {
        for &at in nodes {
            self.agents[at].process().stop()?;
            self.agents[at] = self.controller.start_again(self.nodes[at])?;
            self.agents[at].wait_ready()?;
            wait_up(&mut self.agents)?;
            self.agents[1].wait_up("edge-b")?;
            self.go_on(&format!("the agent of {} was restarted", NODES[at]))?;
        }
        Ok(())
    }

    fn wait_cloud(&self, at: usize, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::for_event(&format!("{} {what}", NODES[at]), || {
            let cloud = cloud(&self.agents[at])?;
            ensure!(is(&cloud), "its status is {cloud}");
            Ok(cloud)
        })
    }

    fn wait_clock(&self, at: usize, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
        wait::for_event(&format!("{} {what}", NODES[at]), || {
            let status = self.agents[at].status()?;
            ensure!(is(&status["clock"]), "its clocks are {}", status["clock"]);
            Ok(())
        })
    }

    fn end(self) -> Result<()> {
        for ping in self.pings {
            ping.stop()?.expect_none_lost()?;
        }
        Ok(())
    }
}

fn certificates_end_offline(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab)?;
    let ends = site.agents.iter().map(end_of_certificate).collect::<Result<Vec<_>>>()?;
    site.controller.process().stop()?;
    // Certificates are valid for a day, and accepted for seven days after that. An agent does not
    // believe a clock that is set ahead by more than two days.
    for node in site.nodes {
        node.set_clock(25 * HOUR)?;
    }
    for at in 0..NODES.len() {
        let cloud = site.wait_cloud(at, "to say that its certificate ended", |cloud| {
            !text(cloud, "certificate_ended").is_empty()
        })?;
        let said = text(&cloud, "certificate_ended");
        ensure!(said.starts_with("our certificate ended on") && said.contains("; grace until"), "{said}");
    }
    site.go_on("the certificates ended while the controller was away")?;
    site.restart(&[1, 0])?;
    site.controller = Controller::start(lab, site.nodes[0], HUB, CONFIGURED)?;
    for (at, end) in ends.iter().enumerate() {
        let renewed = |cloud: &Value| {
            cloud["connected"] == true
                && cloud["certificate_not_after"].as_i64() > Some(end + DAY)
                && cloud["certificate_ended"].is_null()
        };
        site.wait_cloud(at, "to renew its certificate by itself", renewed)?;
    }
    site.go_on("the nodes renewed their certificates")?;
    site.restart(&[2, 0])?;
    site.end()
}

/// Ten years.
const DECADE: i64 = 3650 * DAY;

fn clock_steps(lab: &Lab) -> Result<()> {
    let mut site = Site::start(lab)?;
    for at in [1, 0] {
        // The hub's node also runs the controller, which is away when the hub's clock is wrong.
        if at == 0 {
            site.controller.process().stop()?;
        }
        site.nodes[at].set_clock(DECADE)?;
        site.wait_clock(at, "to say that its clock is wrong", is_wrong)?;
        site.go_on(&format!("the clock of {} is ten years ahead", NODES[at]))?;
        site.restart(&[at])?;
        site.wait_clock(at, "to say that its clock is wrong", is_wrong)?;
        let cloud = cloud(&site.agents[at])?;
        ensure!(cloud["certificate_ended"].is_null(), "{cloud}");
        site.nodes[at].set_clock(0)?;
        site.wait_clock(at, "to say that its clock is right", |clock| !is_wrong(clock))?;
        site.go_on(&format!("the clock of {} is right again", NODES[at]))?;
        site.restart(&[at])?;
    }
    site.controller = Controller::start(lab, site.nodes[0], HUB, CONFIGURED)?;
    for at in 0..NODES.len() {
        site.wait_cloud(at, "to be connected", |cloud| cloud["connected"] == true)?;
    }
    site.end()
}

/// Returns whether certificates are judged by another time than the system clock's.
fn is_wrong(clock: &Value) -> bool {
    let time = |key: &str| clock[key].as_i64().unwrap_or_default();
    time("system") > time("certificates") + DAY
}

/// Returns the part of an agent's status about controller and certificate.
fn cloud(agent: &Agent<'_>) -> Result<Value> {
    agent.status()?.get("cloud").cloned().context("the status has no controller")
}

fn end_of_certificate(agent: &Agent<'_>) -> Result<i64> {
    cloud(agent)?["certificate_not_after"].as_i64().context("the node has no certificate")
}

fn text<'v>(cloud: &'v Value, key: &str) -> &'v str {
    cloud[key].as_str().unwrap_or_default()
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
