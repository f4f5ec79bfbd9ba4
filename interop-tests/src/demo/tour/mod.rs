//! Shows the demo's network to a person: what each part does, with the commands that show it and
//! their output, a map, and at the end a prompt in the network.
//!
//! - `guide`: shows the steps.
//! - `map`: draws the map from what the programs report.
//!
//! Without a terminal the tour runs through, and fails where the network is not as it says.

mod guide;
mod map;

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use edge_types::Role;
use edge_types::api::ControllerStatus;
use rustix::process::Signal;

use super::check_runner::TIMEOUT;
use super::layout::NODES;
use super::pod::reaches;
use super::reach::{self, Pods};
use super::status;
use super::world::World;
use crate::kernel::Purpose;
use crate::runner::{RunOptions, outcomes};
use crate::scenario::{Lab, Needs, Scenario, TestResult};
use crate::wait;
use guide::Guide;
use map::{Map, MapNode};

/// The tour as a scenario. `make test` runs it without a terminal.
pub const SCENARIO: Scenario = Scenario {
    name: "demo/tour",
    about: "what make tour shows: the network, status of controller and agents, a map, who reaches whom, the cloud away; its prompt",
    deadline: Duration::from_secs(300),
    by_default: true,
    needs: Needs::Nothing,
    run,
};

/// The sites and their links, as [`super::world`] builds them.
const SITES: &str = "  cloud-1 (hub, controller)  cloud-2
        |                       |
        +-------- r-cloud ------+
                     |
   ~~~~~~~~~~~~~~ internet ~~~~~~~~~~~~~~~~~~~~~~~~~~~~
     |               |              |              |
   r-a1         r-a2 (NAT)        r-b1         r-c1 (NAT)
     |               |              |              |
  edge-a1         edge-a2        edge-b1        edge-c1
 IPv4 + IPv6   192.168.1.0/24   IPv6 only    192.168.1.0/24";

/// Shows the tour. The exit status is 1 if the network is not as the tour says.
///
/// # Errors
/// Returns an error if there is no lab or the programs do not build.
pub fn main(backend: Option<String>) -> Result<ExitCode> {
    let keep = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let options = RunOptions {
        names: vec![SCENARIO.name.to_owned()],
        backend,
        keep,
        purpose: Purpose::Demo,
        ..RunOptions::default()
    };
    let outcomes = outcomes(&[&SCENARIO], &options, |outcome, kept| {
        if outcome.result != TestResult::Pass {
            eprintln!("\ntour: {}\n  logs: {}", outcome.why, kept.display());
        }
        Ok(())
    })?;
    Ok(ExitCode::from(u8::from(!outcomes.iter().all(|outcome| outcome.result == TestResult::Pass))))
}

fn run(lab: &Lab) -> Result<()> {
    let guide = Guide::new(lab.has_terminal());
    guide.step(
        "Six machines and the internet",
        "Each machine is a set of network namespaces with its own addresses, routes and rules. Two sites are behind \
         NATs that use the same private range, one has IPv6 only. Next, the controller and an agent on each machine \
         start, each node joins with a token, and two nodes are put into the community alpha, one into beta.",
    );
    guide.picture(SITES);
    guide.wait()?;
    let world = World::build(lab)?;
    let pods = reach::bring_up(&world)?;
    what_the_programs_say(&guide, &world)?;
    who_reaches_whom(&guide, &world, &pods)?;
    without_the_cloud(&guide, &world, &pods)?;
    world.end_captures()?;
    prompt(&guide, &world, &pods)
}

fn what_the_programs_say(guide: &Guide, world: &World) -> Result<()> {
    guide.step(
        "What the controller knows",
        "It has granted each edge a segment, the network of the edge's pods, and counts the tunnels that are up.",
    );
    let said = wait::until("the controller to know all tunnels", TIMEOUT, || {
        let status = controller_status(world)?;
        for node in &status.nodes {
            let tunnels = node.tunnels.as_ref().with_context(|| format!("{} has reported no tunnels", node.name))?;
            let some = node.role == Role::Cloud || tunnels.up > 0;
            ensure!(node.connected && some && tunnels.up == tunnels.wanted, "{}: {tunnels:?}", node.name);
        }
        ensure!(status.nodes.len() == NODES.len(), "{} nodes", status.nodes.len());
        world.controller(&["status"])
    })?;
    guide.output("cloud-1 edge-controller status", &said);
    guide.wait()?;

    guide.step(
        "What an agent knows",
        "edge-a1 has tunnels to the hub and to edge-a2, the other member of alpha. It negotiated them itself, with \
         IKEv2, and the keys are in the kernel.",
    );
    let said = world.agent("edge-a1", &["status"])?;
    ensure!(said.contains("cloud-1") && said.contains("edge-a2") && !said.contains("edge-b1"), "it says {said}");
    guide.output("edge-a1 edge-agent status", &said);
    guide.wait()?;

    guide.step("The map", "From what the controller and the agents report now:");
    let map = read_map(world)?;
    ensure!(map.is_up("edge-a1", "edge-a2") && map.is_up("edge-c1", "cloud-1"), "the map is\n{map}");
    ensure!(!map.is_up("edge-a1", "edge-b1"), "the map is\n{map}");
    guide.picture(&map.to_string());
    guide.wait()
}

fn who_reaches_whom(guide: &Guide, world: &World, pods: &Pods) -> Result<()> {
    let to = pods.of("edge-a2").v4.context("no IPv4")?;
    guide.step(
        "Pods of one community reach each other",
        "A pod of edge-a1 pings a pod of edge-a2, which is behind a NAT. The routers in between capture all frames.",
    );
    world.new_frames()?;
    let ping = ["-n", "-c", "3", "-i", "0.2", &to.to_string()].map(str::to_owned);
    let said = wait::until("answers to the pings", TIMEOUT, || {
        let pod = &pods.of("edge-a1").pod;
        pod.run(pod.command("ping").args(&ping))
    })?;
    guide.output(&format!("edge-a1.web ping {}", ping.join(" ")), &said);
    let seen = world.new_frames()?;
    ensure!(seen.clear() == 0 && seen.unexpected() == 0 && !seen.spis().is_empty(), "the routers saw {seen}");
    guide.output("what the routers saw", &seen.to_string());
    guide.wait()?;

    guide.step(
        "Others do not",
        "edge-b1 is in the community beta. Its pod gets no answer, and the diagnosis says why. No packet leaves in clear.",
    );
    let hidden = pods.of("edge-a1").v6.context("no IPv6")?;
    let answered = pods.of("edge-b1").pod.reaches(&hidden.to_string(), Duration::from_secs(1))?;
    ensure!(!answered, "{hidden} answered a pod of edge-b1");
    guide.output(&format!("edge-b1.web ping -c 1 {hidden}"), "no answer");
    let conclusion = world.diagnosis("edge-b1", Some(&hidden.to_string()))?;
    guide.output(&format!("edge-b1 edge-agent diagnose {hidden}"), &conclusion);
    guide.wait()
}

fn without_the_cloud(guide: &Guide, world: &World, pods: &Pods) -> Result<()> {
    guide.step(
        "Without the controller",
        "The controller ends. Nothing that runs needs it: agents keep their last view on disk, and start from it too.",
    );
    world.end("controller", Signal::TERM)?;
    world.end("edge-a1", Signal::KILL)?;
    world.start_agent("edge-a1")?;
    let to: IpAddr = pods.of("edge-a2").v4.context("no IPv4")?.into();
    world.checks.eventually(
        "edge-a1's agent, killed and started again, carries pods' packets without the controller",
        "edge-a1.edge-agent.log",
        TIMEOUT,
        || {
            world.tunnel_is_up("edge-a1", "edge-a2")?;
            reaches(&pods.of("edge-a1").pod, to)
        },
    )?;
    world.start_controller()?;
    guide.wait()
}

/// Ends the tour with a prompt if there is a terminal. Otherwise runs the suggested commands.
fn prompt(guide: &Guide, world: &World, pods: &Pods) -> Result<()> {
    let shell = world.lab.shell()?;
    let to = pods.of("edge-a2").v4.context("no IPv4")?;
    let suggested = [
        "edge-c1 edge-agent status".to_owned(),
        "edge-a1 edge-agent ping edge-a2".to_owned(),
        format!("edge-a1.web ping -c 3 {to}"),
        "edge-a1 ip -s xfrm state".to_owned(),
        "edge-a1 edge-agent diagnose edge-a2".to_owned(),
        "cloud-1 edge-controller segment list".to_owned(),
    ];
    guide.step(
        "A prompt in the network",
        "Each machine and each pod is a command, which runs another one there; alone, it opens a shell. `exit` ends the tour.",
    );
    guide.picture(&format!("  {}\n\nFor example:\n  {}", shell.names.join(" "), suggested.join("\n  ")));
    if world.lab.has_terminal() {
        return shell.interact();
    }
    for line in &suggested {
        // An agent that was started again may still be busy with its peers.
        wait::until(line, TIMEOUT, || shell.run(line))?;
    }
    Ok(())
}

fn controller_status(world: &World) -> Result<ControllerStatus> {
    Ok(serde_json::from_str(&world.controller(&["status", "--json"])?)?)
}

fn read_map(world: &World) -> Result<Map> {
    let status = controller_status(world)?;
    let mut nodes = Vec::new();
    for node in &status.nodes {
        let name = node.name.to_string();
        let said = world.status(&name)?;
        let peers = said["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let tunnels = peers.iter().filter_map(|peer| Some((peer["name"].as_str()?.to_owned(), status::is_up(peer))));
        nodes.push(MapNode {
            tunnels: tunnels.collect(),
            name,
            role: node.role.to_string(),
            communities: node.communities.iter().map(ToString::to_string).collect(),
            segments: node.segments.iter().map(ToString::to_string).collect(),
            connected: node.connected,
        });
    }
    Ok(Map::new(nodes))
}
