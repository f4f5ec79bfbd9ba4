//! Authenticates again while the tunnel carries pings: a new IKE SA by IKE_SA_INIT and IKE_AUTH,
//! with a CHILD_SA of its own, before the old one goes (make before break).

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Daemon, Initiator, Site, came_early, expect_none_lost, expect_none_lost_to_new_ike_sas};
use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::topology::Ping;
use crate::wait;

/// The initiator authenticates again after this time, less a tenth at most. The responder waits a
/// quarter longer.
const LIFETIME: &str = "[timing]\nauthentication_lifetime = \"6s\"\n";

/// Number of new IKE SAs.
const TIMES: usize = 2;

/// Checks that the daemon authenticates again by `again`, if it can, and that the agent does so by
/// its configured lifetime, whichever end has initiated the IKE SA before.
pub(in crate::scenarios) fn check<D: Daemon>(
    lab: &Lab,
    site: &Site<'_>,
    peer: &StaticPeer,
    daemon: &D,
    again: Option<fn(&D) -> Result<()>>,
) -> Result<()> {
    if let Some(again) = again {
        let mut agent = up(lab, site, peer, daemon, "")?;
        let pings = watched(site, &agent, || {
            for _ in 0..TIMES {
                let before = agent.ike_sas("moon")?;
                again(daemon)?;
                other_ike_sa(site, &agent, daemon, &before)?;
            }
            Ok(())
        })?;
        expect_none_lost(site.edge, daemon, pings)?;
        lab.step(&format!("{} authenticates again, and nothing is lost", daemon.name()));
        if site.initiator == Initiator::Moon {
            daemon.terminate()?;
        }
        agent.process().stop()?;
        agent.command(&["down"])?;
    }
    let mut agent = up(lab, site, peer, daemon, LIFETIME)?;
    let early = came_early(site.edge)?;
    let pings = watched(site, &agent, || {
        for _ in 0..TIMES {
            let before = agent.ike_sas("moon")?;
            other_ike_sa(site, &agent, daemon, &before)?;
        }
        Ok(())
    })?;
    expect_none_lost_to_new_ike_sas(site.edge, early, pings)?;
    lab.step("edge-agent authenticates again, and nothing is lost");
    agent.process().stop().map(drop)
}

fn up<'a>(lab: &Lab, site: &Site<'a>, peer: &StaticPeer, daemon: &impl Daemon, timing: &str) -> Result<Agent<'a>> {
    let mut agent = Agent::start(lab, site.edge, timing, std::slice::from_ref(peer))?;
    agent.wait_ready()?;
    if site.initiator == Initiator::Moon {
        wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
    }
    agent.wait_up("moon")?;
    daemon.wait_up()?;
    Ok(agent)
}

/// Runs `change` while pings go both ways, and checks that IKE_SA_INIT began the IKE SAs. Returns
/// the pings, which still run.
fn watched(site: &Site<'_>, agent: &Agent<'_>, change: impl FnOnce() -> Result<()>) -> Result<[Ping; 2]> {
    let begun = site.count_inits()?;
    let mut pings = [site.edge_pod.ping("10.2.0.2")?, site.moon_pod.ping("10.1.0.2")?];
    for ping in &mut pings {
        ping.wait_more(3)?;
    }
    change()?;
    for ping in &mut pings {
        ping.wait_more(3)?;
    }
    // Each new IKE SA has a request and a response.
    let begun = site.count_inits()? - begun;
    ensure!(begun >= 2 * TIMES, "{begun} messages of IKE_SA_INIT were on the wire");
    ensure!(agent.last_error("moon").is_err(), "the agent reports {:?}", agent.last_error("moon"));
    Ok(pings)
}

/// Waits until both ends have another IKE SA, and only that one, with the same CHILD_SA.
fn other_ike_sa(site: &Site<'_>, agent: &Agent<'_>, daemon: &impl Daemon, before: &[(String, String)]) -> Result<()> {
    wait::for_event("another IKE SA", || {
        let now = agent.ike_sas("moon")?;
        ensure!(now.len() == 1 && now != before, "it has {now:?}, had {before:?}");
        Ok(())
    })?;
    site.same_spis(agent, daemon)?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the new CHILD_SA");
    Ok(())
}
