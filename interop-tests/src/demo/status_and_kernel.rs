//! Compares the agent's status with the kernel's SAs and policies.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use super::check_runner::TIMEOUT;
use super::layout::NODES;
use super::reach::Pods;
use super::world::World;

/// Compares status and kernel on every host, then deletes a policy and an SA manually. Then
/// compares the output of `diagnose` with the permitted pairs.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn kernel_and_status_agree(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("Truth");
    for node in NODES {
        checks.eventually(
            &format!("ip xfrm and status agree entry by entry on {node}"),
            "edge-agent status --json; ip xfrm state; ip xfrm policy",
            TIMEOUT,
            || agree(world, node),
        )?;
    }
    repairs_are_reported(world)?;
    diagnosis_names_the_way(world, pods)
}

/// Runs `edge-agent diagnose` for the node, a permitted pod and a forbidden one.
fn diagnosis_names_the_way(world: &World, pods: &Pods) -> Result<()> {
    let address = |node: &str| anyhow::Ok(pods.of(node).v4.context("no IPv4")?.to_string());
    for (about, expected) in [
        (None, "Nothing is "),
        (Some(address("edge-a2")?), "Nothing is "),
        (Some(address("edge-b1")?), "no member of this node's communities has it"),
    ] {
        let whom = about.as_deref().unwrap_or("itself");
        world.checks.eventually(
            &format!("edge-a1's diagnosis of {whom}: {expected}"),
            "edge-agent diagnose on edge-a1",
            TIMEOUT,
            || {
                let conclusion = world.diagnosis("edge-a1", about.as_deref())?;
                ensure!(conclusion.contains(expected), "{conclusion}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Checks that a node's status and its kernel have the same SAs and policies.
///
/// # Errors
/// Returns an error if the SAs or the policies differ.
pub(super) fn agree(world: &World, node: &str) -> Result<()> {
    let status = world.status(node)?;
    let host = world.node(node);
    let kernel: BTreeSet<String> = host
        .xfrm_states()?
        .into_iter()
        .map(|state| format!("{} > {} spi {:#010x} reqid {}", state.src, state.dst, state.spi, state.reqid))
        .collect();
    let mut reported = BTreeSet::new();
    for state in status["states"].as_array().context("status shows no states")? {
        let text = |key: &str| state[key].as_str().with_context(|| format!("no {key} in {state}"));
        let reqid = state["reqid"].as_u64().with_context(|| format!("no reqid in {state}"))?;
        reported.insert(format!("{} > {} spi {} reqid {reqid}", text("source")?, text("destination")?, text("spi")?));
    }
    differ("states", &reported, &kernel)?;
    let kernel: BTreeSet<String> = host
        .xfrm_policies()?
        .into_iter()
        .filter(|policy| !policy.dir.starts_with("socket"))
        .map(|policy| {
            format!(
                "{} {} > {} {} priority {} reqid {:?}",
                policy.dir, policy.src, policy.dst, policy.action, policy.priority, policy.reqids
            )
        })
        .collect();
    let mut reported = BTreeSet::new();
    for policy in status["policies"].as_array().context("status shows no policies")? {
        let text = |key: &str| policy[key].as_str().with_context(|| format!("no {key} in {policy}"));
        let priority = policy["priority"].as_u64().with_context(|| format!("no priority in {policy}"))?;
        let reqids: Vec<u64> = policy["template"]["reqid"].as_u64().into_iter().collect();
        reported.insert(format!(
            "{} {} > {} {} priority {priority} reqid {reqids:?}",
            text("direction")?,
            text("source")?,
            text("destination")?,
            text("action")?,
        ));
    }
    differ("policies", &reported, &kernel)
}

fn differ(what: &str, reported: &BTreeSet<String>, kernel: &BTreeSet<String>) -> Result<()> {
    let only_reported: Vec<_> = reported.difference(kernel).cloned().collect();
    let only_kernel: Vec<_> = kernel.difference(reported).cloned().collect();
    ensure!(
        only_reported.is_empty() && only_kernel.is_empty(),
        "{what}: only status has [{}], only the kernel has [{}]",
        only_reported.join("; "),
        only_kernel.join("; ")
    );
    ensure!(what != "states" || reported.len() == kernel.len(), "{what} count");
    Ok(())
}

/// Deletes a policy and an SA of a1 manually. The agent must report and restore them.
fn repairs_are_reported(world: &World) -> Result<()> {
    let host = world.node("edge-a1");
    let repairs = || -> Result<u64> { Ok(super::status::repairs(&world.status("edge-a1")?)) };
    let before = repairs()?;
    let policy = host
        .xfrm_policies()?
        .into_iter()
        .find(|policy| policy.dir == "out" && policy.action == "allow" && !policy.reqids.is_empty())
        .context("a1 has no policy with a template")?;
    host.sh(&format!("ip xfrm policy delete src {} dst {} dir out", policy.src, policy.dst))?;
    world.checks.eventually(
        "an outsider deletes a policy: it is reported, and back",
        "edge-agent status",
        TIMEOUT,
        || {
            ensure!(repairs()? > before, "status reports no repair");
            agree(world, "edge-a1")
        },
    )?;
    let before = repairs()?;
    let state = host
        .xfrm_states()?
        .into_iter()
        .find(|state| state.src.to_string() == "192.0.2.10")
        .context("a1 has no outbound SA")?;
    host.sh(&format!("ip xfrm state delete src {} dst {} proto esp spi {:#x}", state.src, state.dst, state.spi))?;
    world.checks.eventually(
        "an outsider deletes a state: it is reported, and the tunnel is whole again",
        "edge-agent status",
        TIMEOUT,
        || {
            ensure!(repairs()? > before, "status reports no repair");
            agree(world, "edge-a1")
        },
    )
}
