//! Gives an end a name of the other end instead of its address.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Daemon, Initiator, Site};
use crate::edge_agent::Agent;
use crate::scenario::Lab;
use crate::topology::Node;
use crate::wait;

/// The responder, at its public address.
pub(in crate::scenarios) const RESPONDER: (&str, &str) = ("responder.example", "203.0.113.10");
/// The initiator, at the address of its NAT.
pub(in crate::scenarios) const INITIATOR: (&str, &str) = ("initiator.example", "203.0.113.1");

/// Gives a host an `/etc/hosts` of its own, with these names and addresses. It asks no server for
/// others.
pub(in crate::scenarios) fn install(node: &Node, names: &[(&str, &str)]) -> Result<()> {
    write_hosts(node, names)?;
    node.write("/etc/edge-cni/nsswitch.conf", "hosts: files\n")?;
    node.sh("for file in hosts nsswitch.conf; do mount --bind /etc/edge-cni/$file /etc/$file || exit 1; done").map(drop)
}

/// Changes the names of [`install`].
pub(in crate::scenarios) fn write_hosts(node: &Node, names: &[(&str, &str)]) -> Result<()> {
    let mut text = String::new();
    for (name, address) in names {
        writeln!(text, "{address} {name}")?;
    }
    node.write("/etc/edge-cni/hosts", &text)
}

/// Checks that a tunnel whose ends know each other by names comes up. As initiator, the agent has
/// started before its host knows the name.
pub(in crate::scenarios) fn check(
    lab: &Lab,
    site: &Site<'_>,
    agent: &mut Agent<'_>,
    daemon: &impl Daemon,
) -> Result<()> {
    if site.initiator == Initiator::Edge {
        agent.process().wait_log("cannot be resolved")?;
        lab.step("the log says that the name cannot be resolved");
        write_hosts(site.edge, &[RESPONDER])?;
    } else {
        agent.wait_ready()?;
        wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
    }
    agent.wait_up("moon")?;
    daemon.wait_up()?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    lab.step("up by name");
    Ok(())
}
