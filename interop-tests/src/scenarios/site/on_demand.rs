//! Sets a tunnel up by a packet that needs it, and again after it was closed.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Daemon, Site};
use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::wait;

/// Checks `start = "on-demand"`: the agent's first packet brings the tunnel and is not lost. The
/// tunnel goes when it is idle, and comes again after the daemon has closed it.
pub(in crate::scenarios) fn by_agent<'a>(
    lab: &Lab,
    mut site: Site<'a>,
    peer: impl Fn(&Site<'a>) -> StaticPeer,
    daemon: &impl Daemon,
) -> Result<()> {
    let peer = StaticPeer { start: "on-demand", ..peer(&site) };
    let mut agent = Agent::start(lab, site.edge, "[on_demand]\nidle_timeout = \"2s\"", &[peer])?;
    agent.wait_ready()?;
    for _ in 0..2 {
        agent.wait_phase("moon", "on-demand")?;
        wait_idle(daemon)?;
        // This single packet sets up the tunnel.
        ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(60))?, "the first packet was lost");
    }
    lab.step("the first packet is answered, and the idle tunnel goes");

    let mut ping = site.edge_pod.ping("10.2.0.2")?;
    ping.wait_more(3)?;
    let (ours, theirs) = (agent.wait_up("moon")?, daemon.wait_up()?);
    ensure!((ours.spi_in, ours.spi_out) == (theirs.spi_out, theirs.spi_in), "{ours:x?} and {theirs:x?}");
    daemon.terminate()?;
    wait::for_event("another tunnel", || {
        let now = agent.tunnel("moon")?;
        ensure!(now != ours, "it is still {now:x?}");
        Ok(())
    })?;
    ping.wait_more(3)?;
    lab.step(&format!("{} closes the tunnel, and the next packet brings another one", daemon.name()));
    ping.stop()?;
    agent.wait_phase("moon", "on-demand")?;
    site.wire.stop()?;
    site.wire.expect_none("net 10.0.0.0/8")
}

/// Checks a daemon whose policies wait for a packet: its packet brings the tunnel, and again after
/// the daemon has closed it.
pub(in crate::scenarios) fn by_daemon(
    lab: &Lab,
    mut site: Site<'_>,
    agent: &mut Agent<'_>,
    daemon: &impl Daemon,
) -> Result<()> {
    let answered = || {
        // The packet that begins the attempt may be lost.
        wait::for_event("a ping that needs the tunnel", || {
            ensure!(site.moon_pod.reaches("10.1.0.2", Duration::from_secs(1))?, "it is not answered");
            Ok(())
        })
    };
    ensure!(agent.tunnel("moon").is_err() && daemon.count_children()? == 0, "there is a tunnel before any packet");
    answered()?;
    let first = agent.wait_up("moon")?;
    daemon.wait_up()?;
    lab.step("a packet brings the tunnel");
    daemon.terminate()?;
    wait_idle(daemon)?;
    answered()?;
    ensure!(agent.wait_up("moon")? != first, "the tunnel was not closed");
    daemon.wait_up()?;
    lab.step(&format!("{} closes the tunnel, and a packet brings another one", daemon.name()));
    site.wire.stop()?;
    site.wire.expect_none("net 10.0.0.0/8")
}

fn wait_idle(daemon: &impl Daemon) -> Result<()> {
    wait::for_event(&format!("{} to have no SA", daemon.name()), || {
        ensure!(daemon.is_idle()?, "it still has one");
        Ok(())
    })
}
