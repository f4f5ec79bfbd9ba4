//! Removes a node from its community and then from the cluster. On another node, removes the
//! agent's objects from the kernel, and then everything else that belongs to edge-cni.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ipnetwork::IpNetwork;
use rustix::process::Signal;

use super::check_runner::TIMEOUT;
use super::layout::NODES;
use super::operator::QUARANTINE;
use super::pod::answered;
use super::reach::Pods;
use super::world::World;

/// Removes a2 from its community, then from the cluster.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn a2_leaves(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("End: a2 leaves its community, then the cluster");
    // An agent that is still in the delay before its next attempt would get the next views only
    // after the quarantine. So the test waits until all agents are connected.
    checks.eventually("the agents find the controller again", "*.edge-agent.log", TIMEOUT, || {
        for node in NODES {
            let status = world.status(node)?;
            ensure!(status["cloud"]["connected"] == true, "{node}: {}", status["cloud"]);
        }
        Ok(())
    })?;
    let pairs = [("edge-a1", "edge-a2"), ("edge-a2", "edge-a1")];
    let mut reqids = Vec::new();
    for (node, peer) in pairs {
        let status = world.status(node)?;
        let entry = super::status::peer(&status, peer).with_context(|| format!("{node} does not know {peer}"))?;
        reqids.push(entry["reqid"].as_u64().context("a peer without a reqid")?);
    }
    world.label("edge-a2", "bocloud.com/edge-community-")?;
    for ((node, peer), reqid) in pairs.into_iter().zip(reqids) {
        checks.eventually(
            &format!("without its label, {node} has no tunnel to {peer}"),
            "*.edge-agent.log",
            TIMEOUT,
            || {
                ensure!(super::status::peer(&world.status(node)?, peer).is_none(), "status still names it");
                let segments = world.segments_of(peer, false)?;
                let policies = world.node(node).xfrm_policies()?;
                let left =
                    policies.iter().filter(|policy| segments.contains(&policy.dst) && policy.action == "allow").count();
                ensure!(left == 0, "{left} policies are left");
                let states = world.node(node).xfrm_states()?;
                ensure!(states.iter().all(|state| u64::from(state.reqid) != reqid), "SAs are left: {states:?}");
                Ok(())
            },
        )?;
    }
    let address = pods.of("edge-a2").v4.context("no IPv4")?;
    checks.check("and their pods do not reach each other", "ip xfrm policy", || {
        let answers = answered(&[(&pods.of("edge-a1").pod, address.into())])?;
        ensure!(answers.is_empty(), "a2's pod answers a1's");
        Ok("")
    })?;
    a2_is_deregistered(world)
}

/// Returns whether a node already has a segment that is still in quarantine.
fn is_early(held: &[IpNetwork], granted: &[IpNetwork], released: Instant) -> bool {
    released.elapsed() < QUARANTINE && held.iter().any(|segment| granted.contains(segment))
}

fn a2_is_deregistered(world: &World) -> Result<()> {
    let checks = &world.checks;
    let held = world.segments_of("edge-a2", false)?;
    let released = Instant::now();
    world.controller(&["node", "deregister", "edge-a2"])?;
    checks.eventually("deregistered, a2's certificate is refused", "edge-a2.edge-agent.log", TIMEOUT, || {
        let cloud = &world.status("edge-a2")?["cloud"];
        ensure!(cloud["connected"] == false, "a2 is still connected: {cloud}");
        let error = cloud["last_error"].as_str().unwrap_or_default().to_owned();
        ensure!(error.contains("deregistered"), "a2 does not say why: {cloud}");
        Ok(())
    })?;
    checks.eventually("and its tunnel to the hub is gone at the hub", "cloud-1.edge-agent.log", TIMEOUT, || {
        ensure!(super::status::peer(&world.status("cloud-1")?, "edge-a2").is_none(), "the hub still names it");
        Ok(())
    })?;
    // a1 requests all segments. Those in quarantine are granted last. An early grant must not
    // become right by waiting.
    let early = Cell::new(false);
    world.restart_agent_with_spare("edge-a1", 60)?;
    checks.eventually(
        "a1 gets every free segment but a2's, which are in quarantine",
        "edge-controller segment list",
        TIMEOUT,
        || {
            let status = world.status("edge-a1")?;
            let error = status["cloud"]["last_error"].as_str().unwrap_or_default().to_owned();
            early.set(early.get() || is_early(&held, &world.segments_of("edge-a1", false)?, released));
            ensure!(error.contains("quarantine"), "no refusal yet: {}", status["cloud"]);
            Ok(())
        },
    )?;
    checks.eventually(
        "after the quarantine it gets that very segment",
        "edge-controller segment list",
        QUARANTINE + TIMEOUT,
        || {
            let mine = world.segments_of("edge-a1", false)?;
            early.set(early.get() || is_early(&held, &mine, released));
            ensure!(held.iter().all(|segment| mine.contains(segment)), "it has {mine:?}");
            Ok(())
        },
    )?;
    checks.check("and not before the end of the quarantine", "edge-controller segment list", || {
        ensure!(!early.get(), "a1 had a segment of a2 less than {QUARANTINE:?} after a2 was deregistered");
        Ok("")
    })?;
    // a2 still has its certificate and its last view, and tries repeatedly.
    checks.eventually("the hub refuses a2's certificate, good as it is", "edge-a2.edge-agent.log", TIMEOUT, || {
        let status = world.status("edge-a2")?;
        let hub = super::status::peer(&status, "cloud-1").context("a2 has forgotten the hub")?;
        let error = hub["last_error"].as_str().unwrap_or_default();
        ensure!(error.contains(r#"does not accept that we are "edge-a2""#), "a2 says {hub}");
        Ok(())
    })?;
    checks.check("a2's diagnosis says that it was deregistered", "edge-agent diagnose on edge-a2", || {
        let conclusion = world.diagnosis("edge-a2", None)?;
        ensure!(conclusion.starts_with("What is wrong: ") && conclusion.contains("deregistered"), "{conclusion}");
        Ok("")
    })
}

/// Checks that `edge-agent down` on c1 removes all our objects from its kernel.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn agent_down(world: &World) -> Result<()> {
    let host = world.node("edge-c1");
    world.end("edge-c1", Signal::TERM)?;
    world.checks.check("a stopped agent leaves its policies in the kernel", "ip xfrm policy on edge-c1", || {
        let policies = host.xfrm_policies()?.len();
        ensure!(policies > 0, "there are none");
        Ok(format!("{policies} of them"))
    })?;
    world.agent("edge-c1", &["down"])?;
    world.checks.check("`edge-agent down` removes all that is ours", "ip xfrm, nft, ip link on edge-c1", || {
        let (states, policies) = (host.xfrm_states()?, host.xfrm_policies()?);
        ensure!(states.is_empty() && policies.is_empty(), "left are {states:?} and {policies:?}");
        let rest = host
            .sh("nft list tables; ip -o link show type dummy; ip route show proto 236; ip -6 route show proto 236")?;
        let ours = |line: &&str| line.contains("edge-cni") || line.contains("ecni-guard");
        let left: Vec<&str> = rest.lines().filter(ours).collect();
        ensure!(left == ["table inet edge-cni-pods"], "left is {rest}");
        Ok("but for the table that keeps hosts outside from pods")
    })
}

/// Shell commands that print the state that `edge-agent uninstall` must restore: the interfaces,
/// addresses, routes, rules, settings and directories of a host.
pub const HOST_STATE: &str = "ip -o link show | cut -d' ' -f2
     ip -o address show | cut -d' ' -f2-7
     ip route show table all; ip -6 route show table all; ip rule; ip -6 rule
     nft list tables; ip xfrm state; ip xfrm policy
     sysctl -a 2>/dev/null | grep '^net\\.' | grep -v 'conntrack_count\\|stable_secret'
     find /etc/cni -type f 2>/dev/null
     ls -A /etc/edge-cni /run/edge-cni /var/lib/edge-cni 2>/dev/null || true";

/// Compares two states of a host, as [`HOST_STATE`] prints them. Returns the lines that are gone,
/// and those that are new.
#[must_use]
pub fn compare_host<'a>(before: &'a str, after: &'a str) -> (Vec<&'a str>, Vec<&'a str>) {
    let (before, after): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    (before.difference(&after).copied().collect(), after.difference(&before).copied().collect())
}

/// Returns the state of the host that is uninstalled.
///
/// # Errors
/// Returns an error if a program of the host cannot be run.
pub(super) fn host_before_us(world: &World) -> Result<String> {
    world.node("edge-c1").sh(HOST_STATE)
}

/// Checks that `edge-agent uninstall` on c1 restores the host's state from before the installation.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn uninstalled(world: &World, before: &str) -> Result<()> {
    let host = world.node("edge-c1");
    world.checks.check("`edge-agent uninstall` cuts off no pod unasked", "edge-agent uninstall on edge-c1", || {
        let Err(refusal) = world.agent("edge-c1", &["uninstall"]) else { bail!("it did") };
        let refusal = refusal.to_string();
        ensure!(refusal.contains("pods are attached") && refusal.contains("kubectl drain"), "it says {refusal}");
        Ok("")
    })?;
    host.sh("ip -o link show master ecni0 | cut -d' ' -f2 | cut -d@ -f1 | xargs -n 1 ip link del")?;
    world.checks.check("without pods it leaves the host as it was", "edge-agent uninstall on edge-c1", || {
        world.agent("edge-c1", &["uninstall"])?;
        let again = world.agent("edge-c1", &["uninstall"])?;
        ensure!(again.trim() == "nothing of edge-cni was on this host", "a second run says {again}");
        world.agent("edge-c1", &["uninstall", "--purge"])?;
        let again = world.agent("edge-c1", &["uninstall", "--purge"])?;
        ensure!(again.starts_with("nothing of edge-cni was on this host"), "after --purge, a second run says {again}");
        let after = host_before_us(world)?;
        let (gone, left) = compare_host(before, &after);
        ensure!(gone.is_empty() && left.is_empty(), "gone is {gone:#?}, left is {left:#?}");
        Ok(format!("{} lines of its state compared", after.lines().count()))
    })
}
