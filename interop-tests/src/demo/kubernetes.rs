//! Runs the demo's communities with a real API server on cloud-1. Nodes are Node objects, which
//! kubectl labels. The controller stores everything in its custom resources, with exactly the
//! rights in `deploy/`.

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::api_server::Kubernetes;
use super::ca_rollover::to_another_authority;
use super::check_runner::TIMEOUT;
use super::isolation::{joining_and_leaving, outsiders_stay_out};
use super::layout::{EDGES, NODES};
use super::pod::reaches;
use super::reach::{self, Pods, only_esp_on_the_wire};
use super::tunnel_watch::TunnelWatch;
use super::world::{CONTROLLER_PORT, REPLICA_PORT, World};
use crate::kube;
use crate::scenario::{Lab, skip};

/// Runs [`super::KUBERNETES`].
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn run(lab: &Lab) -> Result<()> {
    if let Some(why) = kube::unavailable() {
        ensure!(!kube::suite::must_run(), why);
        return skip(&why);
    }
    let mut world = World::build(lab)?;
    world.checks.part("A real API server with etcd, our resources, and a Node object for each node");
    world.kubernetes =
        Some(Kubernetes::start(world.node("cloud-1"), &NODES.map(|node| (node, EDGES.contains(&node))))?);
    let kubernetes = world.kubernetes.as_ref().context("it was started")?;
    let pods = reach::bring_up(&world)?;
    members_reach(&world, &pods)?;
    outsiders_stay_out(&world, &pods, "with communities from Node objects")?;
    joining_and_leaving(&world, &pods)?;
    what_kubectl_shows(&world, kubernetes)?;
    two_replicas(&world, kubernetes, &pods)?;
    to_another_authority(&world, &pods)?;
    without_the_api_server(&world, kubernetes, &pods)?;
    a_node_that_is_deleted(&world, kubernetes, &pods)?;
    only_esp_on_the_wire(&world, "to the very end")?;
    world.end_captures()?;
    eprintln!("\ndemo: {} checks passed in {:.0} s", world.checks.passed(), world.checks.elapsed().as_secs_f64());
    Ok(())
}

fn members_reach(world: &World, pods: &Pods) -> Result<()> {
    let (a1, a2) = (pods.of("edge-a1"), pods.of("edge-a2"));
    for (from, to) in [(a1, a2), (a2, a1)] {
        let address = to.v4.context("no IPv4")?.into();
        let what = format!("{}'s pod reaches {}'s", from.node, to.node);
        world.checks.eventually(&what, "*.edge-agent.log", TIMEOUT, || reaches(&from.pod, address))?;
    }
    Ok(())
}

/// Checks that kubectl shows nodes and segments to an operator.
fn what_kubectl_shows(world: &World, kubernetes: &Kubernetes) -> Result<()> {
    world.checks.part("What kubectl shows");
    world.checks.eventually(
        "kubectl get edgenodes shows roles, communities, segments, tunnels",
        "kubectl",
        TIMEOUT,
        || {
            let table = kubernetes.plane.kubectl(&["get", "edgenodes"])?;
            for node in NODES {
                ensure!(table.lines().any(|line| line.starts_with(node)), "{node} is missing in\n{table}");
            }
            let row = table.lines().find(|line| line.starts_with("edge-a1")).unwrap_or_default();
            for word in ["edge", "alpha", "10.77.", "2/2"] {
                ensure!(row.contains(word), "no {word} in {row:?}");
            }
            Ok(())
        },
    )?;
    world.checks.check("kubectl get segments shows who holds what, as the ledger does", "kubectl", || {
        let table = kubernetes.plane.kubectl(&["get", "segments"])?;
        for row in world.ledger()? {
            let name = row.segment.network().to_string();
            let shown = table.lines().any(|line| line.contains(&row.node) && line.contains(&name));
            ensure!(shown, "{name} of {} is missing in\n{table}", row.node);
        }
        Ok(format!("{} segments", table.lines().count().saturating_sub(1)))
    })
}

/// Checks that agents switch from a replica that dies or stops to another replica without an effect
/// on tunnels.
fn two_replicas(world: &World, kubernetes: &Kubernetes, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("A second replica: the first is killed, then it is back and the second is stopped");
    world.start_replica()?;
    let watch = TunnelWatch::begin(world, pods)?;
    let follow = |what: &str, port: u16| {
        checks.eventually(what, "*.edge-agent.log", TIMEOUT, || {
            for node in NODES {
                let cloud = &world.status(node)?["cloud"];
                let there = cloud["url"].as_str().is_some_and(|url| url.contains(&format!(":{port}")));
                ensure!(there && cloud["connected"] == true, "{node}: {cloud}");
            }
            Ok(())
        })
    };
    let first = kubernetes.leader()?;
    world.end("controller", Signal::KILL)?;
    follow("the first is killed, and all agents follow the second", REPLICA_PORT)?;
    checks.eventually("which leads when the lease of the first has run out", "*.controller.log", TIMEOUT, || {
        let now = kubernetes.leader()?;
        ensure!(!now.is_empty() && now != first, "{now:?} leads");
        Ok(())
    })?;
    world.label("edge-b1", "fabedge/edge-community=alpha")?;
    checks.eventually("it tells a1 of a new member", "*.edge-agent.log", TIMEOUT, || {
        ensure!(super::status::peer(&world.status("edge-a1")?, "edge-b1").is_some(), "it does not know b1");
        Ok(())
    })?;
    world.label("edge-b1", "fabedge/edge-community-")?;
    checks.eventually("and that it is none any more", "*.edge-agent.log", TIMEOUT, || {
        ensure!(super::status::peer(&world.status("edge-a1")?, "edge-b1").is_none(), "it still knows b1");
        Ok(())
    })?;
    world.start_controller()?;
    world.end("replica", Signal::TERM)?;
    follow("the second is stopped, and all agents follow the first again", CONTROLLER_PORT)?;
    watch.end()
}

/// Checks that a NotReady node and a lost API server do not affect tunnels.
fn without_the_api_server(world: &World, kubernetes: &Kubernetes, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("A2 is NotReady, the API server is killed, then the controller");
    kubernetes.plane.kubectl(&[
        "patch",
        "node",
        "edge-a2",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"conditions":[{"type":"Ready","status":"False","reason":"KubeletNotReady"}]}}"#,
    ])?;
    kubernetes.plane.kill_api_server()?;
    let address = pods.of("edge-a2").v4.context("no IPv4")?.into();
    let talk = |when: &str| {
        checks.check(&format!("{when}, pods still talk and tunnels stand"), "*.log", || {
            reaches(&pods.of("edge-a1").pod, address)?;
            world.tunnel_is_up("edge-a1", "edge-a2")?;
            world.tunnel_is_up("edge-a2", "cloud-1")?;
            Ok("")
        })
    };
    talk("without the API server")?;
    world.end("controller", Signal::KILL)?;
    talk("without the controller as well")?;
    kubernetes.plane.start_api_server()?;
    world.start_controller()?;
    checks.eventually("both back, the agents find them", "*.edge-agent.log", TIMEOUT, || {
        for node in ["edge-a1", "edge-a2"] {
            let status = world.status(node)?;
            ensure!(status["cloud"]["connected"] == true, "{node}: {}", status["cloud"]);
        }
        Ok(())
    })?;
    talk("with both back")
}

/// Checks that deleting the Node object deregisters the node.
fn a_node_that_is_deleted(world: &World, kubernetes: &Kubernetes, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("End: the Node object of a2 is deleted");
    kubernetes.plane.kubectl(&["delete", "node", "edge-a2", "--wait=false"])?;
    checks.eventually("its tunnel to a1 is gone at a1's end", "*.edge-agent.log", TIMEOUT, || {
        ensure!(super::status::peer(&world.status("edge-a1")?, "edge-a2").is_none(), "status still names it");
        Ok(())
    })?;
    checks.eventually("its certificate is refused", "edge-a2.edge-agent.log", TIMEOUT, || {
        let status = world.status("edge-a2")?;
        ensure!(status["cloud"]["connected"] == false, "it is connected: {}", status["cloud"]);
        let said = status["cloud"]["last_error"].as_str().unwrap_or_default();
        ensure!(said.contains("deregistered"), "it says {said:?}");
        Ok(())
    })?;
    checks.check("its segments are kept from others for a while, and kubectl says so", "kubectl get segments", || {
        let table = kubernetes.plane.kubectl(&["get", "segments"])?;
        let own = pods.of("edge-a2").v4.context("no IPv4")?;
        let held = world.segments_of("edge-a2", false)?;
        ensure!(held.is_empty(), "it still holds {held:?}");
        ensure!(table.contains("edge-a2"), "nothing of {own} in\n{table}");
        Ok("")
    })
}
