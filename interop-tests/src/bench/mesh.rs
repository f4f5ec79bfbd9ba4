//! Measures agents that all have tunnels to each other, and an idle edge with one hub.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::report::{Goal, Results};
use super::tunnels::REST;
use super::usage::{Traffic, Usage, count_traffic, per_day, traffic};
use crate::edge_agent::{Agent, count_up};
use crate::edge_controller::Controller;
use crate::scenario::{Lab, Needs, Scenario};
use crate::topology::{NetworkPlan, Node};

const CLOUD: &str = "203.0.113.1";

/// Time for which an idle edge is watched. It covers some NAT keepalives (every 20 s) and a
/// liveness check.
const IDLE: Duration = Duration::from_secs(120);

/// Time in which an edge of a mesh asks one idle peer: two minutes for few peers, else half a
/// minute for each. A mesh is watched until each peer was asked once.
const ASKED: Duration = Duration::from_secs(30);

/// Time limit until all tunnels in a mesh are up, on a loaded machine.
const UP: Duration = Duration::from_secs(1500);

/// Interval at which the agents are queried whether all tunnels are up. Each query costs CPU time
/// of the agents.
const POLL: Duration = Duration::from_secs(1);

const fn scenario(name: &'static str, about: &'static str, run: fn(&Lab) -> Result<()>) -> Scenario {
    Scenario { name, about, deadline: Duration::from_secs(4500), by_default: false, needs: Needs::Nothing, run }
}

pub(super) const SCENARIOS: &[Scenario] = &[
    scenario("bench/mesh-10", "CPU time and traffic of ten agents in one community", |lab| mesh(lab, 10)),
    scenario("bench/mesh-50", "CPU time and traffic of fifty agents in one community", |lab| mesh(lab, 50)),
    scenario("bench/idle-edge", "traffic of an edge behind a NAT with one hub and no pod that talks", idle_edge),
];

fn mesh(lab: &Lab, count: usize) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.host("cloud").on("wire", &[&format!("{CLOUD}/24")]).own_directory("/etc/edge-controller");
    let names: Vec<String> = (0..count).map(|index| format!("edge-{index:02}")).collect();
    for (index, name) in names.iter().enumerate() {
        plan.host(name).on("wire", &[&format!("203.0.113.{}/24", 100 + index)]);
    }
    let net = lab.build(&plan)?;
    let nodes: Vec<&Node> = names.iter().map(|name| net.node(name)).collect();
    let controller = Controller::start(lab, net.node("cloud"), CLOUD, "")?;
    let mut agents = Vec::new();
    for node in &nodes {
        let mut agent = controller.join(node, "edge")?;
        agent.wait_ready()?;
        agents.push(agent);
    }
    lab.step(&format!("{count} agents have joined"));
    nodes.iter().try_for_each(|node| count_traffic(node))?;
    let before = cpu(&mut agents)?;
    let begun = Instant::now();
    for name in &names {
        controller.run(&["node", "label", name, "fabedge/edge-community=mesh"])?;
    }
    wait_up(&agents, count - 1)?;
    let (took, up) = (begun.elapsed(), cpu(&mut agents)?);
    lab.step(&format!("all tunnels are up after {took:.1?}, {:?} CPU", up - before));

    let (traffic_before, begun) = (sum(&nodes)?, Instant::now());
    #[expect(clippy::disallowed_methods, reason = "the length of the measurement")]
    std::thread::sleep(REST.max(ASKED * u32::try_from(count)?));
    let (traffic_after, after, rested) = (sum(&nodes)?, cpu(&mut agents)?, begun.elapsed());
    let rest = traffic_after - traffic_before;
    lab.step(&format!("at rest for {rested:.1?}: {:?} CPU, octets of all agents: {rest:?}", after - up));

    let mut results = Results::default();
    let case = |what: &str| format!("mesh/{count}/{what}");
    results.add(&case("time"), "s", took.as_secs_f64(), None, Goal::None);
    results.add(&case("cpu"), "s CPU of all agents", (up - before).as_secs_f64(), None, Goal::None);
    let share = 100.0 * (after - up).as_secs_f64() / rested.as_secs_f64() / count as f64;
    results.add(&case("rest/cpu"), "% of a core, each agent", share, None, Goal::None);
    let per_agent = per_day(rest.total(), rested) / count as f64;
    results.add(&case("rest/traffic"), "MB a day, each agent", per_agent, None, Goal::Ours(2.0));
    results.write(lab.out())
}

fn idle_edge(lab: &Lab) -> Result<()> {
    let mut plan = NetworkPlan::new();
    plan.router("isp").on("internet", &["203.0.113.254/24"]).on("home", &["192.168.1.1/24"]).masquerade("internet");
    plan.host("cloud").on("internet", &[&format!("{CLOUD}/24")]).own_directory("/etc/edge-controller");
    plan.host("hub").on("internet", &["203.0.113.10/24"]);
    plan.host("edge").on("home", &["192.168.1.10/24"]).via("192.168.1.1");
    let net = lab.build(&plan)?;
    let (hub, edge) = (net.node("hub"), net.node("edge"));
    let controller = Controller::start(lab, net.node("cloud"), CLOUD, "networks = [\"10.244.0.0/16\"]")?;
    let agents = [controller.join(hub, "hub")?, controller.join(edge, "edge")?];
    wait_up(&agents, 1)?;
    count_traffic(edge)?;
    lab.step("the tunnel is up");
    let begun = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "the length of the measurement")]
    std::thread::sleep(IDLE);
    let (counted, rested) = (traffic(edge)?, begun.elapsed());
    lab.step(&format!("at rest for {rested:.1?}: octets: {counted:?}"));
    let mut results = Results::default();
    results.add("rest/traffic", "MB a day", per_day(counted.total(), rested), None, Goal::Ours(2.0));
    results.write(lab.out())
}

/// Waits until each agent has at least `tunnels` tunnels.
fn wait_up(agents: &[Agent<'_>], tunnels: usize) -> Result<()> {
    let begun = Instant::now();
    for agent in agents {
        loop {
            // An agent that has just been started does not answer yet.
            let up = agent.status().map_or(0, |status| count_up(&status));
            if up >= tunnels {
                break;
            }
            ensure!(begun.elapsed() < UP, "an agent has {up} of {tunnels} tunnels after {UP:?}");
            #[expect(clippy::disallowed_methods, reason = "the usual poll would cost the agents much CPU time")]
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

fn cpu(agents: &mut [Agent<'_>]) -> Result<Duration> {
    let used = agents.iter_mut().map(|agent| Ok(Usage::of(agent.process().pid())?.cpu)).collect::<Result<Vec<_>>>()?;
    Ok(used.into_iter().sum())
}

fn sum(nodes: &[&Node]) -> Result<Traffic> {
    nodes.iter().try_fold(Traffic::default(), |sum, node| Ok(sum + traffic(node)?))
}
