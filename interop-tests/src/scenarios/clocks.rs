//! Sets the clocks of nodes, so that certificates end or appear to have ended.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::hub_and_edges::{HubAndEdges, NODES};
use crate::edge_agent::Agent;
use crate::scenario::{Lab, Needs, Scenario};
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

/// Further configuration of the controller.
const CONFIGURED: &str = "networks = [\"10.244.0.0/16\"]\n[certificates]\nnode_days = 1";
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// Starts the network. Each node has a clock of its own.
fn start(lab: &Lab) -> Result<HubAndEdges<'_>> {
    HubAndEdges::start(lab, CONFIGURED, |node| node.own_clock())
}

fn wait_cloud(site: &HubAndEdges<'_>, at: usize, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    wait::for_event(&format!("{} {what}", NODES[at]), || {
        let cloud = cloud(&site.agents[at])?;
        ensure!(is(&cloud), "its status is {cloud}");
        Ok(cloud)
    })
}

fn wait_clock(site: &HubAndEdges<'_>, at: usize, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    wait::for_event(&format!("{} {what}", NODES[at]), || {
        let status = site.agents[at].status()?;
        ensure!(is(&status["clock"]), "its clocks are {}", status["clock"]);
        Ok(())
    })
}

/// Restarts the agents of these nodes, one after the other.
fn restart(site: &mut HubAndEdges<'_>, nodes: &[usize]) -> Result<()> {
    let program = site.lab.program("edge-agent")?;
    for &at in nodes {
        site.replace_agent(at, &program)?;
        site.go_on(&format!("the agent of {} was restarted", NODES[at]))?;
    }
    Ok(())
}

fn certificates_end_offline(lab: &Lab) -> Result<()> {
    let mut site = start(lab)?;
    let ends = site.agents.iter().map(end_of_certificate).collect::<Result<Vec<_>>>()?;
    site.controller.process().stop()?;
    // Certificates are valid for a day, and accepted for seven days after that. An agent does not
    // believe a clock that is set ahead by more than two days.
    for node in site.nodes {
        node.set_clock(25 * HOUR)?;
    }
    for at in 0..NODES.len() {
        let cloud = wait_cloud(&site, at, "to say that its certificate ended", |cloud| {
            !text(cloud, "certificate_ended").is_empty()
        })?;
        let said = text(&cloud, "certificate_ended");
        ensure!(said.starts_with("our certificate ended on") && said.contains("; grace until"), "{said}");
    }
    site.go_on("the certificates ended while the controller was away")?;
    restart(&mut site, &[1, 0])?;
    site.start_controller()?;
    for (at, end) in ends.iter().enumerate() {
        let renewed = |cloud: &Value| {
            cloud["connected"] == true
                && cloud["certificate_not_after"].as_i64() > Some(end + DAY)
                && cloud["certificate_ended"].is_null()
        };
        wait_cloud(&site, at, "to renew its certificate by itself", renewed)?;
    }
    site.go_on("the nodes renewed their certificates")?;
    restart(&mut site, &[2, 0])?;
    site.end()
}

/// Ten years.
const DECADE: i64 = 3650 * DAY;

fn clock_steps(lab: &Lab) -> Result<()> {
    let mut site = start(lab)?;
    for at in [1, 0] {
        // The hub's node also runs the controller, which is away when the hub's clock is wrong.
        if at == 0 {
            site.controller.process().stop()?;
        }
        site.nodes[at].set_clock(DECADE)?;
        wait_clock(&site, at, "to say that its clock is wrong", is_wrong)?;
        site.go_on(&format!("the clock of {} is ten years ahead", NODES[at]))?;
        restart(&mut site, &[at])?;
        wait_clock(&site, at, "to say that its clock is wrong", is_wrong)?;
        let cloud = cloud(&site.agents[at])?;
        ensure!(cloud["certificate_ended"].is_null(), "{cloud}");
        site.nodes[at].set_clock(0)?;
        wait_clock(&site, at, "to say that its clock is right", |clock| !is_wrong(clock))?;
        site.go_on(&format!("the clock of {} is right again", NODES[at]))?;
        restart(&mut site, &[at])?;
    }
    site.start_controller()?;
    for at in 0..NODES.len() {
        wait_cloud(&site, at, "to be connected", |cloud| cloud["connected"] == true)?;
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
