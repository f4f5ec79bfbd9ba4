//! Measures the change of a hub's view with N edges by one edge.
//!
//! The edges are only in the controller's store. They have no addresses, so the hub waits for them
//! and negotiates with none.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edge_types::shared_files::VIEW_FILE;

use super::report::{Goal, Results};
use super::usage::Usage;
use crate::edge_controller::{Controller, STATE_DIR};
use crate::scenario::{Lab, Needs, Scenario};
use crate::stored_edges;
use crate::topology::{NetworkPlan, Node};
use crate::wait;

const CLOUD: &str = "203.0.113.1";

/// Number of edges that are deregistered in a batch, one after the other.
const CHANGES: u32 = 20;

/// Number of batches. The median counts, since the time that other programs take from the guest
/// counts as CPU time, and the agent compares everything with the kernel from time to time.
const BATCHES: u32 = 4;

/// Time for which the hub is watched before the change, to measure its cost at rest.
const REST: Duration = Duration::from_secs(20);

const fn scenario(name: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario {
        name,
        about: "CPU time of a hub's agent to carry out a view that lacks one of so many edges",
        deadline: Duration::from_secs(900),
        by_default: false,
        needs: Needs::Nothing,
        run,
    }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("bench/view-100", |lab| measure(lab, 100)),
    scenario("bench/view-1000", |lab| measure(lab, 1000)),
    scenario("bench/view-10000", |lab| measure(lab, 10_000)),
];

fn measure(lab: &Lab, count: u32) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("cloud").on("wire", &[&format!("{CLOUD}/24")]).own_directory("/etc/edge-controller");
    plan.host("hub").on("wire", &["203.0.113.10/24"]);
    let net = lab.build(&plan)?;
    let (cloud, hub) = (net.node("cloud"), net.node("hub"));
    // On average there are `count` edges while one after the other goes.
    let filled = count + BATCHES * CHANGES / 2;
    stored_edges::fill(&cloud.path(STATE_DIR), filled)?;
    let controller = Controller::start(lab, cloud, CLOUD, "networks = [\"10.244.0.0/16\"]")?;
    let mut agent = controller.join(hub, "hub")?;
    agent.wait_ready()?;
    wait::for_event("the hub's first view", || {
        let status = agent.status()?;
        let peers = status["peers"].as_array().map_or(0, Vec::len);
        ensure!(peers == filled as usize, "the hub has {peers} of {filled} peers");
        Ok(())
    })?;
    lab.step(&format!("the hub has {filled} peers"));
    let pid = agent.process().pid();

    let (before, begun) = (Usage::of(pid)?.cpu, Instant::now());
    #[expect(clippy::disallowed_methods, reason = "the length of the measurement")]
    std::thread::sleep(REST);
    let at_rest = (Usage::of(pid)?.cpu - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    lab.step(&format!("at rest: {:.2} % of a core", 100.0 * at_rest));

    let mut costs = Vec::new();
    for batch in 0..BATCHES {
        let (before, begun) = (Usage::of(pid)?.cpu, Instant::now());
        for index in batch * CHANGES..(batch + 1) * CHANGES {
            let name = stored_edges::name(index);
            controller.run(&["node", "deregister", &name])?;
            wait::for_event(&format!("a view without {name}"), || lacks(hub, &name))?;
        }
        let (used, took) = (Usage::of(pid)?.cpu - before, begun.elapsed());
        lab.step(&format!("{CHANGES} changes in {took:.1?}: {used:?} CPU"));
        let changes = (used.as_secs_f64() - at_rest * took.as_secs_f64()).max(0.0);
        costs.push(1000.0 * changes / f64::from(CHANGES));
    }
    let status = agent.status()?;
    let peers = status["peers"].as_array().map_or(0, Vec::len);
    ensure!(peers == (filled - BATCHES * CHANGES) as usize, "the hub still has {peers} peers");

    costs.sort_by(f64::total_cmp);
    let each = costs.iter().skip(BATCHES as usize / 2 - 1).take(2).sum::<f64>() / 2.0;
    let mut results = Results::default();
    results.add(&format!("view/one-of-n/{count}"), "ms CPU", each, None, Goal::Ours(5.0));
    results.write(lab.out())
}

/// Checks that the view stored on the hub no longer contains the node. The removal is either
/// already in the view file or recorded in the file of changes beside it. Reads the files instead
/// of querying the agent's status, because a status query costs the agent more CPU than the change
/// that is measured.
fn lacks(hub: &Node, name: &str) -> Result<()> {
    let file = format!("/var/lib/edge-cni/{VIEW_FILE}");
    // The file does not exist before the first change, nor for a small view.
    let changes = hub.read(&format!("{file}.changes")).unwrap_or_default();
    ensure!(changes.contains(name) || !hub.read(&file)?.contains(name), "it is still there");
    Ok(())
}
