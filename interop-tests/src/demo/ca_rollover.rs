//! Checks that a new CA takes over and the first CA is retired. Nodes that were authenticated by
//! the first CA are authenticated again without a lost packet, and new tunnels come up with
//! certificates of the new CA.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::check_runner::TIMEOUT;
use super::pod::reaches;
use super::reach::Pods;
use super::tunnel_watch::TunnelWatch;
use super::world::World;

/// Rolls the CA over, retires the first one, and restarts an agent.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn to_another_authority(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("Rollover: another authority signs, the first is retired, and a2's agent starts again");
    let (a1, a2) = (pods.of("edge-a1"), pods.of("edge-a2"));
    let address = a2.v4.context("no IPv4")?;
    let watch = TunnelWatch::begin(world, pods)?;
    let first = authorities(world)?.into_iter().find(|one| one["state"] == "active").context("none signs")?;
    let first = first["id"].as_str().context("it has no id")?.to_owned();
    world.controller(&["ca", "rollover"])?;
    checks.eventually("soon no node needs the first authority", "*.edge-agent.log", TIMEOUT, || {
        let all = authorities(world)?;
        let old = all.iter().find(|one| one["id"] == first.as_str()).context("it is not listed")?;
        ensure!(old["needed_by"].as_array().is_some_and(Vec::is_empty), "{} need it", old["needed_by"]);
        Ok(())
    })?;
    world.controller(&["ca", "retire", &first])?;
    watch.end_after_replacements()?;
    let before = super::tunnel_watch::tunnels(world)?;
    world.restart_agent("edge-a2")?;
    checks.eventually("a2 and a1 trust what the new one has signed", "edge-a2.edge-agent.log", TIMEOUT, || {
        ensure!(super::tunnel_watch::tunnels(world)? != before, "a1 has the SAs from before a2 started again");
        world.tunnel_is_up("edge-a2", "edge-a1")?;
        world.tunnel_is_up("edge-a1", "edge-a2")?;
        reaches(&a1.pod, address.into())
    })
}

fn authorities(world: &World) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&world.controller(&["ca", "list", "--json"])?)?)
}
