//! Changes the pre-shared key at one end while the tunnel is up. RFC 7296 2.8: an SA ends with its
//! lifetime, and who no longer has the secret does not get another one.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Daemon, Initiator, SECRET, Site, WRONG_SECRET};
use crate::edge_agent::{Agent, StaticPeer};
use crate::scenario::Lab;
use crate::strongswan::charon::Auth;
use crate::wait;

/// The IKE SA ends after one and a half of this time, unless the peer authenticates again.
const AUTHENTICATION_LIFETIME: &str = "[timing]\nauthentication_lifetime = \"10s\"\n";
/// Kept SAs end after this time, unless the peer authenticates again.
const CHILD_LIFETIME: &str = "[timing]\nchild_lifetime = \"8s\"\n";

/// Checks a tunnel whose secret the daemon changes by `change`, then the agent, and last the agent
/// alone.
pub(in crate::scenarios) fn check<'a, D: Daemon>(
    lab: &Lab,
    site: &Site<'a>,
    peer: impl Fn(&Site<'a>, Auth) -> StaticPeer,
    daemon: &mut D,
    change: impl FnOnce(&mut D) -> Result<()>,
) -> Result<()> {
    let start = |secret: &str, timing: &str| -> Result<Agent<'a>> {
        let mut agent = Agent::start(lab, site.edge, timing, &[peer(site, Auth::Psk(secret.to_owned()))])?;
        agent.wait_ready()?;
        Ok(agent)
    };
    let mut agent = start(SECRET, AUTHENTICATION_LIFETIME)?;
    up(site, &mut agent, daemon)?;
    lab.step("up with the first secret");
    change(daemon)?;
    expect_refused(&agent)?;
    wait::for_event("the tunnel to end at both ends", || {
        ensure!(agent.tunnel("moon").is_err(), "the agent still has it");
        ensure!(daemon.count_children()? == 0, "{} still has it", daemon.name());
        Ok(())
    })?;
    ensure!(!site.edge_pod.reaches("10.2.0.2", Duration::from_millis(300))?, "a ping is answered");
    lab.step(&format!("{} has another secret, and the tunnel ends with its lifetime", daemon.name()));
    agent.process().stop()?;

    let mut agent = start(WRONG_SECRET, "")?;
    up(site, &mut agent, daemon)?;
    lab.step("up with the second secret");
    agent.process().stop()?;

    // The kernel keeps the tunnel while the agent is restarted. Also as responder, the agent begins
    // to where the kept SAs send.
    let mut agent = start(SECRET, CHILD_LIFETIME)?;
    expect_refused(&agent)?;
    wait::for_event("the SAs of the earlier run to end", || {
        let states = site.edge.sh("ip xfrm state list nokeys")?;
        ensure!(states.trim().is_empty(), "it has {states}");
        Ok(())
    })?;
    ensure!(!site.edge_pod.reaches("10.2.0.2", Duration::from_millis(300))?, "a ping is answered");
    lab.step("a restarted agent has another secret, and the SAs that it found end");
    // The policies stay, so the pings without a tunnel went nowhere. The first one was long ago.
    site.wire.expect_none_so_far("dst net 10.0.0.0/8")?;
    agent.process().stop().map(drop)
}

fn up(site: &Site<'_>, agent: &mut Agent<'_>, daemon: &impl Daemon) -> Result<()> {
    if site.initiator == Initiator::Moon {
        wait::for_event(&format!("{} to get through", daemon.name()), || daemon.initiate())?;
    }
    agent.wait_up("moon")?;
    daemon.wait_up()?;
    ensure!(site.edge_pod.reaches("10.2.0.2", Duration::from_secs(5))?, "no ping through the tunnel");
    Ok(())
}

fn expect_refused(agent: &Agent<'_>) -> Result<()> {
    wait::for_event("the reason in the status", || {
        let error = agent.last_error("moon")?;
        ensure!(error.contains("pre-shared key"), "it says {error:?}");
        Ok(())
    })
}
