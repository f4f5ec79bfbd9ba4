//! Changes a host's address while a tunnel carries pings: MOBIKE (RFC 4555).

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::topology::{Namespaces, Node, Ping};
use crate::wait;

/// Maximum time without an answer. Without MOBIKE nothing happens before the liveness check, 4 s
/// after the last answer.
const LONGEST_SILENCE: Duration = Duration::from_secs(3);

/// Changes an address while pings run, each from a host or pod to an address. Checks that the IKE
/// SA stays, and that only pings during the change are lost.
pub(in crate::scenarios) fn check_move<const N: usize>(
    lab: &Lab,
    agent: &Agent<'_>,
    pings: [(&Namespaces, &str); N],
    what: &str,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = agent.ike_sas("moon")?;
    let mut pings: Vec<Ping> = pings.iter().map(|(from, to)| from.ping(to)).collect::<Result<_>>()?;
    for ping in &mut pings {
        ping.wait_more(5)?;
    }
    change()?;
    for mut ping in pings {
        ping.wait_more(10)?;
        let report = ping.stop()?;
        lab.step(&format!("{what}: {} of {} lost, {:?} silent", report.lost(), report.sent, report.longest_silence));
        ensure!(report.longest_silence < LONGEST_SILENCE, "it was no update of addresses: {report:?}");
    }
    let after = agent.ike_sas("moon")?;
    ensure!(after == before, "the IKE SA was replaced: {before:?} {after:?}");
    Ok(())
}

/// Replaces the host's address on this wire.
pub(in crate::scenarios) fn replace(node: &Node, wire: &str, [old, new]: [&str; 2], prefix: u8) -> Result<()> {
    // The address is added without duplicate address detection, which would delay its use.
    let nodad = if new.contains(':') { "nodad" } else { "" };
    node.sh(&format!("ip addr del {old}/{prefix} dev {wire} && ip addr add {new}/{prefix} dev {wire} {nodad}"))
        .map(drop)
}

/// Waits until the kernel's newest SAs, one each way, are between these addresses.
pub(in crate::scenarios) fn on_path(node: &Node, ours: &str, theirs: &str) -> Result<()> {
    let (ours, theirs): (IpAddr, IpAddr) = (ours.parse()?, theirs.parse()?);
    wait::for_event(&format!("SAs of {} between {ours} and {theirs}", node.name()), || {
        let states = node.xfrm_states()?;
        for (src, dst) in [(ours, theirs), (theirs, ours)] {
            states.iter().find(|state| (state.src, state.dst) == (src, dst)).with_context(|| format!("{states:?}"))?;
        }
        Ok(())
    })
}
