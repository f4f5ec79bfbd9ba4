//! Stops the controller and checks that pods still reach each other and that agents start from the
//! files on their disks.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::check_runner::TIMEOUT;
use super::pod::{answered, reaches};
use super::reach::{Pods, only_esp_on_the_wire};
use super::world::World;

/// CNI error code for "try again later".
const TRY_AGAIN_LATER: u64 = 11;

/// Stops the controller, adds pods until no address is left, kills two agents, changes the address
/// of one of them, and starts both again before the controller.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn pods_keep_talking(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("Alone: the controller is stopped");
    world.end("controller", Signal::TERM)?;
    let (a1, a2) = (pods.of("edge-a1"), pods.of("edge-a2"));
    let (v4_a1, v4_a2) = (a1.v4.context("no IPv4")?, a2.v4.context("no IPv4")?);
    checks.eventually("pods still talk", "*.edge-agent.log", TIMEOUT, || reaches(&a1.pod, v4_a2.into()))?;
    checks.eventually("a1's diagnosis names the controller", "edge-agent diagnose on edge-a1", TIMEOUT, || {
        let conclusion = world.diagnosis("edge-a1", None)?;
        ensure!(conclusion.contains("is not connected, and the last view goes on"), "{conclusion}");
        Ok(())
    })?;
    let first = world.add_pod("edge-a1", "alone-0")?;
    checks.eventually("a new pod gets an address and reaches a2", "commands.log", TIMEOUT, || {
        reaches(&first.pod, v4_a2.into())
    })?;
    checks.check("with all addresses used, ADD answers code 11", "commands.log", || {
        for number in 1..20 {
            let name = format!("alone-{number}");
            let pod = world.node("edge-a1").pod(&name)?;
            let answer = world.cni("edge-a1", "ADD", &name, pod.netns())?;
            if !answer.ok {
                ensure!(answer.body["code"] == TRY_AGAIN_LATER, "it answered {}", answer.body);
                let left = pod.sh("ip -o link show | grep -c -v ': lo' || true")?;
                ensure!(left.trim() == "0", "the failed ADD left a device in the pod");
                return Ok(format!("after {number} pods: {}", answer.body["msg"].as_str().unwrap_or_default()));
            }
        }
        anyhow::bail!("20 pods got addresses and no end")
    })?;

    checks.note("both agents of alpha are killed with -9, their /run/edge-cni is wiped, a2 gets a new address");
    for node in ["edge-a1", "edge-a2"] {
        world.end(node, Signal::KILL)?;
        world.node(node).sh("rm -rf /run/edge-cni")?;
    }
    world.node("edge-a2").sh("ip addr del 192.168.1.77/24 dev lan-a2 && ip addr add 192.168.1.99/24 dev lan-a2 && \
         ip route replace default via 192.168.1.1")?;
    // The pods of the killed agents still send packets: through SAs for an address that is gone,
    // and to a socket that no process reads.
    answered(&[(&*a1.pod, v4_a2.into()), (&*a2.pod, v4_a1.into())])?;
    only_esp_on_the_wire(world, "with the agents dead and the address gone")?;
    let began = Instant::now();
    world.start_agent("edge-a1")?;
    world.start_agent("edge-a2")?;
    checks.eventually("from disk alone they find each other again", "*.edge-agent.log", TIMEOUT, || {
        reaches(&a1.pod, v4_a2.into())?;
        reaches(&a2.pod, v4_a1.into())
    })?;
    checks.note(format!("{:.2} s after they were started", began.elapsed().as_secs_f64()));
    world.start_controller()
}
