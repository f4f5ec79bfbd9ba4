//! Replaces the programs of a running network one after the other, in the order of an upgrade and
//! in the order of a rollback.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::hub_and_edges::{HubAndEdges, NODES};
use crate::edge_agent::Agent;
use crate::scenario::{Lab, Needs, Scenario};

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

const NETWORKS: &str = "networks = [\"10.244.0.0/16\"]";

/// Upgrades all programs, and rolls them back. The agents are upgraded from the program `older`,
/// and the controller from the present one.
fn rolling_upgrade(lab: &Lab, older: PathBuf) -> Result<()> {
    let present = lab.program("edge-agent")?;
    let mut site = HubAndEdges::start(lab, NETWORKS, |_| Ok(()))?;
    for at in 0..NODES.len() {
        site.replace_agent(at, &older)?;
    }
    site.go_on("all agents are of the earlier release")?;

    restart_controller(&mut site)?;
    site.go_on("the controller is replaced")?;
    // The order of an upgrade.
    for (at, name) in NODES.iter().enumerate() {
        site.replace_agent(at, &present)?;
        rekey(&site.agents)?;
        site.go_on(&format!("the agent of {name} is replaced"))?;
    }
    for (at, name) in NODES.iter().enumerate().rev() {
        site.replace_agent(at, &older)?;
        rekey(&site.agents)?;
        site.go_on(&format!("the agent of {name} is rolled back"))?;
    }
    restart_controller(&mut site)?;
    site.go_on("the controller is rolled back")?;
    site.end()
}

/// Stops the controller as an upgrade does, and starts it on the same state.
fn restart_controller(site: &mut HubAndEdges<'_>) -> Result<()> {
    site.controller.process().stop()?;
    site.start_controller()
}

/// Rekeys the tunnel between the edges and that of one edge to the hub, from both ends.
fn rekey([hub, a, b]: &[Agent<'_>; 3]) -> Result<()> {
    for (agent, peer) in [(a, "edge-b"), (b, "edge-a"), (a, "hub"), (hub, "edge-a")] {
        agent.rekey(peer)?;
        agent.rekey_ike(peer)?;
    }
    Ok(())
}
