//! Checks rekeys, a change of a node's address, and segments that fill up, all under load.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::check_runner::TIMEOUT;
use super::pod::{DemoPod, reaches};
use super::reach::{Pods, only_esp_on_the_wire};
use super::world::World;
use crate::topology::Ping;

/// Rekeys the tunnel between a1 and a2, and changes a2's address, both under load.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn rekey_and_move(world: &World, pods: &Pods) -> Result<()> {
    let checks = &world.checks;
    checks.part("Change");
    let (a1, a2) = (pods.of("edge-a1"), pods.of("edge-a2"));
    let to_a2 = a2.v4.context("a2's pod has an IPv4 address")?.to_string();
    for (node, peer) in [("edge-a1", "edge-a2"), ("edge-a2", "edge-a1")] {
        checks.check(
            &format!("a CHILD rekey by {node} under load loses nothing"),
            "ping logs, *.edge-agent.log",
            || {
                let before = world.node(node).xfrm_states()?;
                let mut ping = Ping::start(&a1.pod, &to_a2, Duration::from_millis(5))?;
                ping.wait_more(50)?;
                world.agent(node, &["rekey", peer])?;
                crate::wait::for_event("new SAs", || {
                    let now = world.node(node).xfrm_states()?;
                    let fresh = now.iter().filter(|state| !before.iter().any(|old| old.spi == state.spi)).count();
                    ensure!(fresh >= 2, "{fresh} new SAs");
                    Ok(())
                })?;
                ping.wait_more(200)?;
                let report = ping.stop()?;
                report.expect_none_lost()?;
                Ok(format!("{} pings", report.sent))
            },
        )?;
    }
    let host = world.node("edge-a2");
    let ping = Ping::start(&a1.pod, &to_a2, Duration::from_millis(20))?;
    crate::wait::for_event("the ping to run", || {
        ensure!(ping.received() > 20, "{} answers", ping.received());
        Ok(())
    })?;
    host.sh("ip addr del 192.168.1.10/24 dev lan-a2 && ip addr add 192.168.1.77/24 dev lan-a2 && \
         ip route replace default via 192.168.1.1")?;
    let moved = Instant::now();
    let before = ping.received();
    checks.eventually(
        "a2's address changes under load: pods talk again within 5 s",
        "*.edge-agent.log",
        TIMEOUT,
        || {
            ensure!(ping.received() > before + 5, "no answer since");
            Ok(())
        },
    )?;
    let took = moved.elapsed();
    let report = ping.stop()?;
    checks.note(format!(
        "{} of {} pings lost, {:.2} s until answers flowed again",
        report.lost(),
        report.sent,
        took.as_secs_f64()
    ));
    only_esp_on_the_wire(world, "through the change of address")
}

/// Fills a1's segments, with a spare segment and without. Returns the pods.
///
/// # Errors
/// Returns the error of the first check that fails.
pub(super) fn growth(world: &World, pods: &Pods) -> Result<Vec<DemoPod>> {
    let checks = &world.checks;
    checks.part("Growth");
    let mut made = Vec::new();
    let to_a2 = pods.of("edge-a2").v4.context("a2's pod has an IPv4 address")?.to_string();
    for spare in [1, 0] {
        if spare == 0 {
            world.restart_agent_with_spare("edge-a1", 0)?;
            checks.eventually("restarted with spare = 0, a1 has its tunnel", "*.edge-agent.log", TIMEOUT, || {
                world.tunnel_is_up("edge-a1", "edge-a2")
            })?;
        }
        let before = world.segments_of("edge-a1", false)?;
        let ping = pods.of("edge-a1").pod.ping(&to_a2)?;
        crate::wait::for_event("the ping to run", || {
            ensure!(ping.received() > 0, "no answer yet");
            Ok(())
        })?;
        // Adds pods until a pod needs an address that is not in the first segments. The last of
        // these segments is the spare one.
        let mut last;
        loop {
            ensure!(made.len() < 60, "60 pods and the ledger has not grown");
            last = world.add_pod("edge-a1", &format!("grow-{}", made.len()))?;
            let address = last.v4.context("the pod has no IPv4 address")?;
            let spare_begun = before.last().is_some_and(|segment| segment.contains(address.into()));
            let fresh = !before.iter().any(|segment| segment.contains(address.into()));
            made.push(last);
            if fresh || (spare == 1 && spare_begun) {
                break;
            }
        }
        let last = made.last().context("a pod was made")?;
        checks.eventually(
            &format!("with spare = {spare}, the ledger grows by one"),
            "edge-controller segment list",
            TIMEOUT,
            || {
                let now = world.segments_of("edge-a1", false)?;
                ensure!(now.len() == before.len() + 1, "{} segments before, {} now", before.len(), now.len());
                Ok(())
            },
        )?;
        world.route_ledger_in_clear()?;
        let address = last.v4.context("the pod has no IPv4 address")?;
        checks.eventually(&format!("a2's pod reaches the new pod at {address}"), "ip xfrm policy", TIMEOUT, || {
            reaches(&pods.of("edge-a2").pod, address.into())
        })?;
        checks.check("the ping meanwhile lost nothing", "ping logs", || {
            let report = ping.stop()?;
            report.expect_none_lost()?;
            Ok(format!("{} pings", report.sent))
        })?;
    }
    only_esp_on_the_wire(world, "while segments grew")?;
    Ok(made)
}
